"""Any torchvision data set that keeps its images as one array (MNIST, CIFAR, STL-10 and others)."""

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
    """Load a torchvision data set; the last ``val_size`` training images are the validation split, as in the thesis.

    Args:
        dataset: class name in torchvision.datasets, such as ``CIFAR10``.
        root: folder of the data set, or to download it to; ``~`` is expanded.
        val_size: number of images taken from the end of the train split.
        mirror_safe, mean, std: see :class:`~dtp_lightning.data.ImageSpec`.
        download: fetch what is missing from ``root``.
        options: further arguments of the class, such as EMNIST's ``{split: letters}``.
        unlabelled: name of the split that is the pre-training set, instead of train (STL-10's ``unlabeled``).
        transposed: whether rows and columns of the stored images are exchanged (EMNIST).

    Raises:
        ConfigError: torchvision has no such data set, or ``val_size`` leaves nothing to train on.
        DataError: the files are missing or damaged and could not be fetched.
    """
    dataset_class = getattr(torchvision.datasets, dataset, None)
    if not inspect.isclass(dataset_class):  # not a submodule or function
        raise ConfigError(f"torchvision.datasets has no '{dataset}'")
    folder = Path(root).expanduser().resolve()
    splits = ["train", "test", *([unlabelled] if unlabelled else [])]
    train, test, *unlabelled_split = (_read(dataset_class, folder, split, download, options or {}) for split in splits)
    images, labels = _images_and_labels(train, transposed)
    if val_size >= len(images):
        raise ConfigError(f"dataset.val_size={val_size} leaves nothing of the {len(images)} training images")
    test_images, test_labels = _images_and_labels(test, transposed)
    present = labels.unique()  # EMNIST letters count from 1, and name a class 0 that has no images
    if unknown := set(test_labels.tolist()) - set(present.tolist()):
        raise DataError(f"{dataset} in {folder}: test images of class {min(unknown)}, which no training image has")
    labels, test_labels = torch.searchsorted(present, labels), torch.searchsorted(present, test_labels)
    cut = len(images) - val_size
    return ImageData(
        Split(images[:cut], labels[:cut]),
        Split(images[cut:], labels[cut:]),
        Split(test_images, test_labels),
        classes=_class_names(train, present),
        mirror_safe=mirror_safe,
        mean=mean,
        std=std,
        unlabelled=Split.unlabelled(_images_and_labels(unlabelled_split[0], transposed)[0])
        if unlabelled_split
        else None,
    )


def _class_names(dataset: Any, present: Tensor) -> tuple[str, ...]:
    """Names of the classes that have images; their indices if torchvision has no names (SVHN)."""
    names = getattr(dataset, "classes", None) or range(int(present.max()) + 1)
    return tuple(str(names[i]) for i in present.tolist())


def _read(dataset_class: Any, root: Path, split: str, download: bool, options: dict[str, Any]) -> Any:
    """The torchvision data set of a split; an error says in one line what is missing and what to do."""
    split_argument = {"train": split == "train"} if _has_train_argument(dataset_class) else {"split": split}
    try:
        return dataset_class(str(root), **split_argument, **options, download=False)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if not download:
            raise DataError(
                f"{dataset_class.__name__} ({split}) is missing or damaged in {root}: {_first_line(error)}; "
                "set dataset.root to the folder that holds it, or dataset.download=true"
            ) from error
    try:
        with guard.interruptible():  # takes minutes; a half-fetched archive is found by its checksum
            return dataset_class(str(root), **split_argument, **options, download=True)
    except Exception as error:  # torchvision lets errors of urllib, tarfile and pickle through
        raise DataError(
            f"{dataset_class.__name__} ({split}) is not complete in {root} and could not be downloaded: "
            f"{_first_line(error)}; set dataset.root to a folder that holds it, or fetch it where there is a network"
        ) from error


def _has_train_argument(dataset_class: Any) -> bool:
    """Whether a class takes ``train=True`` (MNIST, CIFAR) instead of ``split="train"`` (STL-10, SVHN)."""
    return any("train" in inspect.signature(base.__init__).parameters for base in dataset_class.__mro__)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _images_and_labels(dataset: Any, transposed: bool) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) of a torchvision data set."""
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if transposed:
        images = images.transpose(2, 3)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images.contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64)
