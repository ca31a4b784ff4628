"""A user's own images: ``train/<class>/...`` or just a folder of pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPLIT_SEED = 0
Share = Annotated[float, Field(gt=0, lt=1)]


class FolderImages:
    """Image files as uint8 (N, C, size, size), decoded when they are asked for.

    The shorter side is resized to ``size`` (bilinear, antialiased) and the middle is cut out.

    Args:
        paths: the files.
        size: of the square, in pixels.
        channels: 1 (grey) or 3 (RGB); files of the other kind are converted.
        invert: swap black and white.
    """

    def __init__(self, paths: Sequence[Path], size: int, channels: int, invert: bool = False) -> None:
        self.paths = np.array([str(path) for path in paths], dtype=object)  # one object: workers share it
        self.size, self.channels, self.invert = size, channels, invert
        self.shape = (len(paths), channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Tensor:
        """Images at a slice or at positions (M,).

        Raises:
            DataError: a file cannot be read.
        """
        paths = self.paths[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if not len(paths):
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
            return torch.stack(list(pool.map(self.read, paths)))

    def read(self, path: str) -> Tensor:
        """One file, (C, size, size)."""
        try:
            with Image.open(path) as file:
                image = file.convert("RGB" if self.channels == 3 else "L")
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} cannot be read ({_reason(error)}): replace or remove it, or set dataset.skip_damaged=true"
            ) from error
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        pixels = 255 - pixels if self.invert else pixels
        return torch.from_numpy(pixels.reshape(self.size, self.size, self.channels).transpose(2, 0, 1).copy())


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
    """Images below ``root``, any mixture of formats, sizes, grey and colour.

    ``train/<class>/...`` holds labelled images; ``val/<class>/...`` and ``test/<class>/...`` are taken from it, by
    class and always the same ones, where they are missing. ``unlabelled/...`` pre-trains in place of ``train``.
    Without ``train`` everything below ``root`` is unlabelled.

    Args:
        root: the folder; ``~`` is understood.
        size, channels, invert: see :class:`FolderImages`.
        val_share, test_share: of each class (or of the unlabelled images), where a split has no folder.
        mirror_safe, mean, std: see :class:`~dtp_lightning.data.ImageSpec`.
        skip_damaged: read every file once before training and leave out those that cannot be.

    Raises:
        DataError: a folder or class is empty, a split has a class that ``train`` has not, or a file cannot be read.
    """
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"dataset.root={root}: there is no folder {folder}; it should hold train/<class>/ or images")

    def split(paths: list[Path], labels: list[int] | None = None) -> Split:
        images = FolderImages(paths, size, channels, invert)
        if skip_damaged:
            kept = _readable(images)
            paths = [paths[i] for i in kept]
            labels = None if labels is None else [labels[i] for i in kept]
            images = FolderImages(paths, size, channels, invert)
        return (
            Split(images, torch.tensor(labels, dtype=torch.int64)) if labels is not None else Split.unlabelled(images)
        )

    if not (folder / "train").is_dir():
        train, val = map(split, _unlabelled_parts(folder, val_share))
        return ImageData(train, val, split([]), (), mirror_safe, mean, std)
    classes = tuple(sorted(p.name for p in (folder / "train").iterdir() if p.is_dir()))
    files = {part: _labelled(folder / part, classes) for part in ("train", "val", "test") if (folder / part).is_dir()}
    for part, share in (("test", test_share), ("val", val_share)):
        if part not in files:
            files["train"], files[part] = _divide(files["train"], share, part, folder)
    rest = _images_below(folder / "unlabelled") if (folder / "unlabelled").is_dir() else None
    if rest == []:
        raise DataError(f"{folder / 'unlabelled'} holds no images ({', '.join(SUFFIXES)}): fill or remove it")
    train, val, test = (split([p for p, _ in files[n]], [y for _, y in files[n]]) for n in ("train", "val", "test"))
    return ImageData(train, val, test, classes, mirror_safe, mean, std, unlabelled=split(rest) if rest else None)


def _unlabelled_parts(folder: Path, val_share: float) -> tuple[list[Path], list[Path]]:
    """Train and validation files of a folder without classes."""
    paths = _images_below(folder)
    if len(paths) < 2:
        raise DataError(
            f"{folder} holds {len(paths)} images ({', '.join(SUFFIXES)}): it should hold train/<class>/... "
            "or images to pre-train on"
        )
    log.warning("%s has no train/<class>/ folders: its %d images are taken as unlabelled", folder, len(paths))
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    cut = min(len(paths) - 1, max(2, round(val_share * len(paths))))  # two, so that there are negatives
    return [paths[i] for i in sorted(order[cut:])], [paths[i] for i in sorted(order[:cut])]


def _images_below(folder: Path) -> list[Path]:
    """All image files, in an order that does not depend on the file system."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _labelled(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    found = [p.name for p in folder.iterdir() if p.is_dir()]
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{folder / unknown[0]} is a class that train/ does not have: rename or remove it")
    if not found:
        raise DataError(f"{folder} holds no class folders: put images into {folder}/<class>/")
    pairs = []
    for label, name in enumerate(classes):
        if name not in found:  # a small test split may lack a class
            continue
        paths = _images_below(folder / name)
        if not paths:
            raise DataError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}): add some or remove the class")
        pairs += [(path, label) for path in paths]
    return pairs


def _divide(
    pairs: list[tuple[Path, int]], share: float, part: str, folder: Path
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Take a share of every class, at least one image, for a split that has no folder."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    kept, taken = [], []
    for label in sorted({y for _, y in pairs}):
        members = [pair for pair in pairs if pair[1] == label]
        if len(members) < 2:
            raise DataError(
                f"{members[0][0].parent} holds too few images to take some for {part}: add images, or {folder / part}/"
            )
        order = torch.randperm(len(members), generator=generator).tolist()
        cut = min(len(members) - 1, max(1, round(share * len(members))))
        taken += [members[i] for i in sorted(order[:cut])]
        kept += [members[i] for i in sorted(order[cut:])]
    return kept, taken


def _readable(images: FolderImages) -> list[int]:
    """Positions of the files that can be read; the others are named in a warning."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(lambda path: _problem(images, path), images.paths))
    damaged = [f"{path} ({problem})" for path, problem in zip(images.paths, problems, strict=True) if problem]
    if damaged:
        log.warning("left out %d damaged files: %s", len(damaged), _some(damaged))
    return [i for i, problem in enumerate(problems) if not problem]


def _problem(images: FolderImages, path: str) -> str:
    try:
        images.read(path)
    except DataError as error:
        return _reason(error.__cause__ or error)
    return ""


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (str(error) or type(error).__name__).splitlines()[0]
