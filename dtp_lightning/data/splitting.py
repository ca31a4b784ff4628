"""Validation and test splits of data sets that come without them: fixed shares, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from dtp_lightning.data.images import ImageData, Indexed, Split
from dtp_lightning.errors import DataError

SPLIT_SEED = 0
SMALLEST = 4
"""Images of a training set, of which validation takes two."""
Share = Annotated[float, Field(gt=0, lt=1)]


def split_each_class(labels: Tensor, share: float, too_few: Callable[[int], str]) -> tuple[Tensor, Tensor]:
    """Split off a share of each class, at least one image: indices of what remains and of the split, by class.

    Args:
        labels: int64 (N,).
        share: in (0, 1).
        too_few: the error's message for a class of one image.

    Raises:
        DataError: a class has one image only.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    remaining, split_off = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(too_few(int(label)))
        order = torch.randperm(len(members), generator=generator)
        cut = min(len(members) - 1, max(1, round(share * len(members))))
        split_off.append(members[order[:cut].sort().values])
        remaining.append(members[order[cut:].sort().values])
    return torch.cat(remaining), torch.cat(split_off)


def split_unlabelled(size: int, share: float) -> tuple[Tensor, Tensor]:
    """Split a share off ``size`` images, at least two, so that there are negatives: sorted indices of both parts."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(SPLIT_SEED))
    cut = min(size - 1, max(2, round(share * size)))
    return order[cut:].sort().values, order[:cut].sort().values


def completed(
    parts: Mapping[str, Split], classes: tuple[str, ...], where: str, val_share: float, test_share: float, **spec: Any
) -> ImageData:
    """A data set of the given splits; what is missing of ``val`` and ``test`` is cut from ``train``.

    Args:
        parts: ``train``, and ``val``, ``test``, ``unlabelled`` where there are such. Labels are -1 without classes.
        classes: names of the classes; empty for images without labels, which get no test split.
        where: what the data set is, for messages.
        val_share, test_share: fraction in (0, 1) of each class, or of images without labels.
        spec: ``mirror_safe``, ``mean``, ``std`` of :class:`ImageData`.

    Raises:
        DataError: there are too few images to split, a split has a class that ``train`` has not, or splits differ in
            the size or the number of channels of their images.
    """
    parts = dict(parts)
    if len(parts["train"]) < SMALLEST:
        raise DataError(f"{where}: {len(parts['train'])} training images are too few, at least {SMALLEST} are needed")
    for name, split in parts.items():
        if tuple(split.images.shape[1:]) != tuple(parts["train"].images.shape[1:]):
            raise DataError(
                f"{where}: {name} images are {_size(split)} and train images {_size(parts['train'])}: make them alike"
            )
    for name, share in (("test", test_share), ("val", val_share)):
        if name not in parts and (classes or name == "val"):
            parts["train"], parts[name] = _cut(parts["train"], classes, share, where)
    train = parts["train"]
    for name in ("val", "test") if classes else ():
        if unknown := set(parts[name].labels.tolist()) - set(train.labels.tolist()):
            raise DataError(
                f"{where}: {name} has images of class {classes[min(unknown)]}, and train has none: add some"
            )
    none = Split(Indexed(train.images, torch.empty(0, dtype=torch.int64)), torch.empty(0, dtype=torch.int64))
    return ImageData(train, parts["val"], parts.get("test", none), classes, unlabelled=parts.get("unlabelled"), **spec)


def _cut(split: Split, classes: tuple[str, ...], share: float, where: str) -> tuple[Split, Split]:
    """What remains of a split, and a share of it."""
    if classes:
        remaining, cut = split_each_class(
            split.labels,
            share,
            lambda label: (
                f"{where}: class {classes[label]} has too few images to cut validation and test from: add some, "
                "or give these splits"
            ),
        )
    else:
        remaining, cut = split_unlabelled(len(split), share)
    first, second = (Split(Indexed(split.images, index), split.labels[index]) for index in (remaining, cut))
    return first, second


def _size(split: Split) -> str:
    return " x ".join(map(str, split.images.shape[1:]))
