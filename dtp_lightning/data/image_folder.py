"""Data sets of image files in folders, with classes (``train/<class>/...``) or without."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.data.splitting import Share, split_each_class, split_unlabelled
from dtp_lightning.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class FolderImages:
    """Image files as uint8 (N, C, size, size) in 0..255, decoded when they are indexed.

    The shorter side is resized to ``size`` (bilinear, antialiased), then the centre is cropped.

    Args:
        paths: the N image files.
        size: height and width of the images, in pixels.
        channels: C, 1 (grey) or 3 (RGB); other files are converted.
        invert: replace a pixel x by 255 - x.
    """

    def __init__(self, paths: Sequence[Path], size: int, channels: int, invert: bool = False) -> None:
        self.paths = np.array([str(path) for path in paths], dtype=object)  # workers share an array
        self.size, self.channels, self.invert = size, channels, invert
        self.shape = (len(paths), channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Tensor:
        """The images at a slice or at int64 indices (M,), as uint8 (M, C, size, size).

        Raises:
            DataError: a file cannot be read.
        """
        paths = self.paths[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if not len(paths):
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while it decodes
            return torch.stack(list(pool.map(self.read, paths)))

    def read(self, path: str) -> Tensor:
        """Decode one file to uint8 (C, size, size) in 0..255.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with Image.open(path) as file:
                image = file.convert("RGB" if self.channels == 3 else "L")
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} cannot be read ({_error_message(error)}): replace or remove it, "
                "or set dataset.skip_damaged=true"
            ) from error
        return square(image, self.size, self.invert)


def square(image: Image.Image, size: int, invert: bool = False) -> Tensor:
    """The centre of an image of mode L or RGB, its shorter side resized (bilinear), as uint8 (C, size, size)."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    pixels = 255 - pixels if invert else pixels
    return torch.from_numpy(pixels.reshape(size, size, -1).transpose(2, 0, 1).copy())


def image_folder(
    root: str,
    size: PositiveInt = 32,
    channels: Literal[1, 3] = 3,
    mirror_safe: bool = True,
    invert: bool = False,
    val_share: Share = 0.1,
    test_share: Share = 0.2,
    mean: float = 0.5,
    std: PositiveFloat = 0.5,
    skip_damaged: bool = False,
) -> ImageData:
    """Make a data set of the images below ``root``; formats, sizes, grey and colour may be mixed.

    ``train/<class>/...`` holds labelled images. Where ``val/<class>/...`` or ``test/<class>/...`` is missing, a fixed
    share of each class of ``train`` becomes that split. ``unlabelled/...`` is the pre-training set in place of
    ``train``. Without ``train`` all images below ``root`` are unlabelled.

    Args:
        root: the folder; ``~`` is expanded.
        size, channels, invert: see :class:`FolderImages`.
        val_share, test_share: fraction in (0, 1) of each class (or of the unlabelled images) that becomes the
            validation and the test split, where the split has no folder.
        mirror_safe, mean, std: see :class:`~dtp_lightning.data.ImageSpec`.
        skip_damaged: read every file once before training and leave out the unreadable ones, with a warning.

    Raises:
        DataError: a folder or class is empty, a split has a class that ``train`` has not, or a file cannot be read.
    """
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"dataset.root={root}: there is no folder {folder}; it should hold train/<class>/ or images")

    def split(paths: list[Path], labels: list[int] | None = None) -> Split:
        images = FolderImages(paths, size, channels, invert)
        if skip_damaged:
            readable = _readable_indices(images)
            paths = [paths[i] for i in readable]
            labels = None if labels is None else [labels[i] for i in readable]
            images = FolderImages(paths, size, channels, invert)
        return (
            Split(images, torch.tensor(labels, dtype=torch.int64)) if labels is not None else Split.unlabelled(images)
        )

    if not (folder / "train").is_dir():
        train, val = map(split, _split_unlabelled(folder, val_share))
        return ImageData(train, val, split([]), (), mirror_safe, mean, std)
    classes = tuple(sorted(p.name for p in (folder / "train").iterdir() if p.is_dir()))
    files = {
        name: labelled_files(folder / name, classes) for name in ("train", "val", "test") if (folder / name).is_dir()
    }
    for name, share in (("test", test_share), ("val", val_share)):
        if name not in files:
            files["train"], files[name] = _split_each_class(files["train"], share, name, folder)
    unlabelled = _images_below(folder / "unlabelled") if (folder / "unlabelled").is_dir() else None
    if unlabelled == []:
        raise DataError(f"{folder / 'unlabelled'} holds no images ({', '.join(SUFFIXES)}): fill or remove it")
    train, val, test = (split([p for p, _ in files[n]], [y for _, y in files[n]]) for n in ("train", "val", "test"))
    pretraining = split(unlabelled) if unlabelled else None
    return ImageData(train, val, test, classes, mirror_safe, mean, std, unlabelled=pretraining)


def _split_unlabelled(folder: Path, val_share: float) -> tuple[list[Path], list[Path]]:
    """Train and validation files of a folder without classes."""
    paths = _images_below(folder)
    if len(paths) < 2:
        raise DataError(
            f"{folder} holds {len(paths)} images ({', '.join(SUFFIXES)}): it should hold train/<class>/... "
            "or images to pre-train on"
        )
    log.warning("%s has no train/<class>/ folders: its %d images are taken as unlabelled", folder, len(paths))
    remaining, split_off = split_unlabelled(len(paths), val_share)
    return [paths[i] for i in remaining.tolist()], [paths[i] for i in split_off.tolist()]


def _images_below(folder: Path) -> list[Path]:
    """Paths of all image files below the folder, sorted, since the file system's order is arbitrary."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def labelled_files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Paths and class indices of the images in ``folder/<class>/``."""
    class_folders = [p.name for p in folder.iterdir() if p.is_dir()]
    if unknown := sorted(set(class_folders) - set(classes)):
        raise DataError(f"{folder / unknown[0]} is a class that train/ does not have: rename or remove it")
    if not class_folders:
        raise DataError(f"{folder} holds no class folders: put images into {folder}/<class>/")
    pairs = []
    for label, name in enumerate(classes):
        if name not in class_folders:  # a small test split may lack a class
            continue
        paths = _images_below(folder / name)
        if not paths:
            raise DataError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}): add some or remove the class")
        pairs += [(path, label) for path in paths]
    return pairs


def _split_each_class(
    pairs: list[tuple[Path, int]], share: float, name: str, folder: Path
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Split off a share of each class, at least one image: the remaining pairs, and those of the split ``name``."""
    labels = torch.tensor([label for _, label in pairs])

    def too_few(label: int) -> str:
        class_folder = next(path.parent for path, y in pairs if y == label)
        return f"{class_folder} holds too few images to take some for {name}: add images, or {folder / name}/"

    remaining, split_off = split_each_class(labels, share, too_few)
    return [pairs[i] for i in remaining.tolist()], [pairs[i] for i in split_off.tolist()]


def _readable_indices(images: FolderImages) -> list[int]:
    """Indices of the files that can be read; a warning names the others."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = list(pool.map(lambda path: _read_error(images, path), images.paths))
    damaged = [f"{path} ({error})" for path, error in zip(images.paths, errors, strict=True) if error]
    if damaged:
        log.warning("left out %d damaged files: %s", len(damaged), _first_names(damaged))
    return [i for i, error in enumerate(errors) if not error]


def _read_error(images: FolderImages, path: str) -> str:
    """Why the file cannot be read; empty if it can."""
    try:
        images.read(path)
    except DataError as error:
        return _error_message(error.__cause__ or error)
    return ""


def _first_names(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _error_message(error: BaseException) -> str:
    """The first line of an error."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (str(error) or type(error).__name__).splitlines()[0]
