"""Labels of a supervised objective for the pre-training images: coarse, noisy or few."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dtp_lightning.data.coarse_classes import COARSE
from dtp_lightning.data.images import ImageData, Supervision
from dtp_lightning.errors import DataError


def relabel(
    data: ImageData,
    labels: Literal["fine", "coarse"] = "fine",
    label_noise: float = 0.0,
    labelled_fraction: float = 1.0,
    label_seed: int = 0,
) -> ImageData:
    """The same data set with other labels for supervised pre-training; probes and contrastive losses see no difference.

    Args:
        data: its splits stay as they are.
        labels: ``coarse`` joins classes to those of :data:`~dtp_lightning.data.coarse_classes.COARSE`.
        label_noise: share in [0, 1] of the labels, each replaced once and for all by another class, drawn uniformly.
            Labels of the validation loss are not replaced.
        labelled_fraction: share in (0, 1] of the images of each class that have a label, at least one a class. They
            recur within an epoch, so that it has as many images and batches as with all labels.
        label_seed: of noise, and of which images are labelled. With the same one a smaller share is part of a larger.

    Raises:
        DataError: the images have no labels, no coarse ones, or all the same.
    """
    asked = (("labels", labels, "fine"), ("label_noise", label_noise, 0), ("labelled_fraction", labelled_fraction, 1))
    changed = [f"dataset.{name}={value}" for name, value, default in asked if value != default]
    if not changed:
        return data
    if not data.classes:
        raise DataError(f"{changed[0]}: these images have no labels; remove it")
    y, val_y, classes = data.train.labels, data.val.labels, data.classes
    if labels == "coarse":
        classes, coarse_of = _coarse(data.classes)
        y, val_y = coarse_of[y], coarse_of[val_y]
    index = None
    if labelled_fraction < 1:
        index = _labelled(data.train.labels, labelled_fraction, label_seed)
        y = y[index]
    if label_noise > 0:
        y = _noisy(y, label_noise, len(classes), label_seed)
    if index is not None:
        generator = torch.Generator().manual_seed(2 * label_seed)
        every = torch.arange(len(data.train)) % len(index)
        # a random order, as the images that recur once more than others must not be those of the first classes
        order = torch.randperm(len(index), generator=generator)[every]
        index, y = index[order], y[order]
    return replace(data, supervision=Supervision(index, y, val_y, classes))


def _coarse(classes: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor]:
    """Names of the coarse classes, and the number of the coarse class of each class, int64 (K,)."""
    for table in COARSE.values():
        of = {fine: coarse for coarse, members in table.items() for fine in members}
        if of.keys() >= set(classes):
            names = tuple(name for name in table if name in {of[fine] for fine in classes})
            if len(names) < 2:
                raise DataError(f"dataset.labels=coarse: all classes are {names[0]}; choose dataset.labels=fine")
            return names, torch.tensor([names.index(of[fine]) for fine in classes])
    there_is = ", ".join(f"{name} ({len(table)} coarse classes)" for name, table in COARSE.items())
    raise DataError(
        f"dataset.labels=coarse: classes {', '.join(classes[:3])}, ... have no coarse ones; there is: {there_is}; "
        "choose dataset.labels=fine"
    )


def _labelled(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted indices of a share of the images of each class, int64 (M,)."""
    generator = torch.Generator().manual_seed(2 * seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        size = max(1, round(fraction * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:size]])
    return torch.cat(chosen).sort().values


def _noisy(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """The labels (N,), a share of them replaced by another of 0..classes-1."""
    if classes < 2:
        raise DataError("dataset.label_noise: the images are all of one class; remove it")
    generator = torch.Generator().manual_seed(2 * seed + 1)
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    wrong = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[wrong] = (labels + shift)[wrong] % classes
    return noisy
