"""Any torchvision data set that keeps its images as one array (MNIST, CIFAR and their kin)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from pydantic import PositiveFloat, PositiveInt

from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.errors import ConfigError, DataError


def torchvision_images(
    dataset: str,
    root: str,
    val_size: PositiveInt,
    mirror_safe: bool,
    mean: float = 0.0,
    std: PositiveFloat = 1.0,
    download: bool = True,
) -> ImageData:
    """Train split (its last ``val_size`` images are the validation split, as in the thesis) and test split.

    Args:
        dataset: class name in torchvision.datasets, such as ``CIFAR10``.
        root: folder that holds the data set, or that it is downloaded to; ``~`` is understood.
        val_size: number of images taken from the end of the train split.
        mirror_safe, mean, std: see :class:`ImageSpec`.
        download: fetch what is missing from ``root``.

    Raises:
        ConfigError: torchvision has no such data set, or ``val_size`` leaves nothing to train on.
        DataError: the files are missing or damaged and could not be fetched.
    """
    kind = getattr(torchvision.datasets, dataset, None)
    if kind is None:
        raise ConfigError(f"torchvision.datasets has no '{dataset}'")
    folder = Path(root).expanduser().resolve()
    train, test = (_read(kind, folder, train, download) for train in (True, False))
    images, labels = _tensors(train)
    if val_size >= len(images):
        raise ConfigError(f"dataset.val_size={val_size} leaves nothing of the {len(images)} training images")
    cut = len(images) - val_size
    return ImageData(
        Split(images[:cut], labels[:cut]),
        Split(images[cut:], labels[cut:]),
        Split(*_tensors(test)),
        classes=tuple(str(name) for name in train.classes),
        mirror_safe=mirror_safe,
        mean=mean,
        std=std,
    )


def _read(kind: Any, root: Path, train: bool, download: bool) -> Any:
    """The torchvision object, or one line that says what is missing, where, and what to do."""
    part = "train" if train else "test"
    try:
        return kind(str(root), train=train, download=False)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if not download:
            raise DataError(
                f"{kind.__name__} ({part}) is missing or damaged in {root}: {_first_line(error)}; "
                "set dataset.root to the folder that holds it, or dataset.download=true"
            ) from error
    try:
        return kind(str(root), train=train, download=True)
    except Exception as error:  # torchvision lets errors of urllib, tarfile and pickle through
        raise DataError(
            f"{kind.__name__} ({part}) is not complete in {root} and could not be downloaded: {_first_line(error)}; "
            "set dataset.root to a folder that holds it, or fetch it where there is a network"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _tensors(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.as_tensor(np.asarray(dataset.data))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(dataset.targets, dtype=torch.int64)
