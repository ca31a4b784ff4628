"""Tiny ImageNet (Stanford CS231n): 200 classes of 500 images, 64 x 64, as its archive unpacks."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import PositiveFloat, PositiveInt

from dtp_lightning.data.image_folder import FolderImages, labelled_files
from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.data.splitting import Share, completed
from dtp_lightning.errors import DataError

ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FOLDER = "tiny-imagenet-200"


def tiny_imagenet(
    root: str, size: PositiveInt = 64, val_share: Share = 0.1, mean: float = 0.5, std: PositiveFloat = 0.5
) -> ImageData:
    """Load Tiny ImageNet. Its validation images are the test split, as its test labels are not public.

    A share of each class of train is the validation split. ``val/`` may have the archive's ``val_annotations.txt``, or
    be sorted into ``val/<class>/`` already. Images are decoded when they are indexed.

    Args:
        root: folder that holds ``tiny-imagenet-200``, or that folder; ``~`` is expanded.
        size: height and width of the images, in pixels.
        val_share: fraction in (0, 1) of each class.
        mean, std: see :class:`~dtp_lightning.data.ImageSpec`.

    Raises:
        DataError: files are missing, or ``val_annotations.txt`` is not what it should be.
    """
    folder = Path(root).expanduser().resolve()
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise DataError(
            f"Tiny ImageNet is missing in {folder}: there is no train/ and val/; unpack {ARCHIVE} there, or set "
            "dataset.root to the folder that holds it"
        )
    identifiers = tuple(sorted(p.name for p in (folder / "train").iterdir() if p.is_dir()))
    annotations = folder / "val" / "val_annotations.txt"
    files = {
        "train": labelled_files(folder / "train", identifiers),
        "test": _annotated(annotations, identifiers)
        if annotations.exists()
        else labelled_files(folder / "val", identifiers),
    }
    parts = {
        name: Split(FolderImages([path for path, _ in pairs], size, 3), torch.tensor([label for _, label in pairs]))
        for name, pairs in files.items()
    }
    spec = {"mirror_safe": True, "mean": mean, "std": std}
    return completed(parts, _names(folder, identifiers), str(folder), val_share, 0.5, **spec)


def _annotated(annotations: Path, identifiers: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Files of ``val/images/`` and their class numbers: lines of a name, a class and a box, separated by tabs."""
    numbers = {name: i for i, name in enumerate(identifiers)}
    pairs = []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        name, _, rest = line.partition("\t")
        identifier = rest.partition("\t")[0]
        if identifier not in numbers:
            raise DataError(
                f"{annotations}, line {number}: '{identifier}' is no class of train/; unpack {ARCHIVE} again"
            )
        path = annotations.parent / "images" / name
        if not path.is_file():
            raise DataError(f"{annotations}, line {number}: there is no {path}; unpack {ARCHIVE} again")
        pairs.append((path, numbers[identifier]))
    if not pairs:
        raise DataError(f"{annotations} is empty: unpack {ARCHIVE} again")
    return pairs


def _names(folder: Path, identifiers: tuple[str, ...]) -> tuple[str, ...]:
    """First word of each class in words.txt; the WordNet identifiers where that is missing or two are alike."""
    words = folder / "words.txt"
    lines = words.read_text().splitlines() if words.exists() else []
    named = {line.partition("\t")[0]: line.partition("\t")[2].partition(",")[0] for line in lines}
    names = tuple(named.get(identifier) or identifier for identifier in identifiers)
    return names if len(set(names)) == len(names) else identifiers
