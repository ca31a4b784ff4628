"""Any torchvision data set that keeps its images as one array (MNIST, CIFAR, STL-10 and their kin)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.runtime.signals import guard


def torchvision_images(
    dataset: str,
    root: str,
    val_size: PositiveInt,
    mirror_safe: bool,
    mean: float = 0.0,
    std: PositiveFloat = 1.0,
    download: bool = True,
    options: dict[str, Any] | None = None,
    unlabelled: str | None = None,
    transposed: bool = False,
) -> ImageData:
    """Train split (its last ``val_size`` images are the validation split, as in the thesis) and test split.

    Args:
        dataset: class name in torchvision.datasets, such as ``CIFAR10``.
        root: folder that holds the data set, or that it is downloaded to; ``~`` is understood.
        val_size: number of images taken from the end of the train split.
        mirror_safe, mean, std: see :class:`~dtp_lightning.data.ImageSpec`.
        download: fetch what is missing from ``root``.
        options: what else the class is called with, such as EMNIST's ``{split: letters}``.
        unlabelled: name of a split that pre-trains in place of train (STL-10's ``unlabeled``).
        transposed: whether rows and columns of the stored images are exchanged (EMNIST).

    Raises:
        ConfigError: torchvision has no such data set, or ``val_size`` leaves nothing to train on.
        DataError: the files are missing or damaged and could not be fetched.
    """
    kind = getattr(torchvision.datasets, dataset, None)
    if not inspect.isclass(kind):  # its helpers are modules and functions
        raise ConfigError(f"torchvision.datasets has no '{dataset}'")
    folder = Path(root).expanduser().resolve()
    names = ["train", "test", *([unlabelled] if unlabelled else [])]
    train, test, *rest = (_read(kind, folder, name, download, options or {}) for name in names)
    images, labels = _tensors(train, transposed)
    if val_size >= len(images):
        raise ConfigError(f"dataset.val_size={val_size} leaves nothing of the {len(images)} training images")
    test_images, test_labels = _tensors(test, transposed)
    present = labels.unique()  # EMNIST letters count from 1, and name a class 0 that has no images
    if stray := set(test_labels.tolist()) - set(present.tolist()):
        raise DataError(f"{dataset} in {folder}: test images of class {min(stray)}, which no training image has")
    labels, test_labels = torch.searchsorted(present, labels), torch.searchsorted(present, test_labels)
    cut = len(images) - val_size
    return ImageData(
        Split(images[:cut], labels[:cut]),
        Split(images[cut:], labels[cut:]),
        Split(test_images, test_labels),
        classes=_names(train, present),
        mirror_safe=mirror_safe,
        mean=mean,
        std=std,
        unlabelled=Split.unlabelled(_tensors(rest[0], transposed)[0]) if rest else None,
    )


def _names(dataset: Any, present: Tensor) -> tuple[str, ...]:
    """Names of the classes that have images; their numbers where torchvision names none (SVHN)."""
    known = getattr(dataset, "classes", None) or range(int(present.max()) + 1)
    return tuple(str(known[i]) for i in present.tolist())


def _read(kind: Any, root: Path, part: str, download: bool, options: dict[str, Any]) -> Any:
    """The torchvision object, or one line that says what is missing, where, and what to do."""
    which = {"train": part == "train"} if _chooses_by_train(kind) else {"split": part}
    try:
        return kind(str(root), **which, **options, download=False)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if not download:
            raise DataError(
                f"{kind.__name__} ({part}) is missing or damaged in {root}: {_first_line(error)}; "
                "set dataset.root to the folder that holds it, or dataset.download=true"
            ) from error
    try:
        with guard.interruptible():  # takes minutes; a half-fetched archive is found by its checksum
            return kind(str(root), **which, **options, download=True)
    except Exception as error:  # torchvision lets errors of urllib, tarfile and pickle through
        raise DataError(
            f"{kind.__name__} ({part}) is not complete in {root} and could not be downloaded: {_first_line(error)}; "
            "set dataset.root to a folder that holds it, or fetch it where there is a network"
        ) from error


def _chooses_by_train(kind: Any) -> bool:
    """Whether a class is asked ``train=True`` (MNIST, CIFAR) and not ``split="train"`` (STL-10, SVHN)."""
    return any("train" in inspect.signature(base.__init__).parameters for base in kind.__mro__)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _tensors(dataset: Any, transposed: bool) -> tuple[Tensor, Tensor]:
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if transposed:
        images = images.transpose(2, 3)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images.contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64)
