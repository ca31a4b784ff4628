"""Hugging Face data sets, by name or from a local folder."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from dtp_lightning.data.image_folder import square
from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.data.splitting import SPLIT_SEED, Share, completed
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.runtime.signals import guard

log = logging.getLogger(__name__)

SPLITS = {
    "train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test",
    "unsupervised": "unlabelled", "unlabelled": "unlabelled", "unlabeled": "unlabelled",
}  # fmt: skip
"""Their names of splits -> ours; others are not read."""
SHUFFLED = 10_000  # images of the buffer from which a streamed data set is drawn
Table = Any  # a datasets.Dataset


class TableImages:
    """A column of images as uint8 (N, C, size, size) in 0..255, decoded when they are indexed.

    Args:
        table: rows that are dictionaries; a slice or a list of indices gives lists by column.
        column: name of the images' column, of Pillow images.
        size, channels: of the images, see :func:`~dtp_lightning.data.image_folder.square`.
    """

    def __init__(self, table: Table, column: str, size: int, channels: int) -> None:
        self.table, self.column, self.size, self.channels = table, column, size, channels
        self.shape = (len(table), channels, size, size)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Tensor:
        """The images at a slice or at int64 indices (M,), as uint8 (M, C, size, size).

        Raises:
            DataError: an image cannot be decoded.
        """
        try:
            images = self.table[index.tolist() if isinstance(index, Tensor) else index][self.column]
            if not len(images):
                return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return torch.stack(list(pool.map(self._square, images)))
        except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
            raise DataError(f"column {self.column} holds what is not an image: {_first_line(error)}") from error

    def _square(self, image: Image.Image) -> Tensor:
        return square(image.convert("RGB" if self.channels == 3 else "L"), self.size)


def huggingface(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: PositiveInt = 32,
    channels: Literal[1, 3] = 3,
    mirror_safe: bool = True,
    val_share: Share = 0.1,
    test_share: Share = 0.2,
    mean: float = 0.5,
    std: PositiveFloat = 0.5,
    max_images: PositiveInt | None = None,
    root: str | None = None,
) -> ImageData:
    """Load a data set by the ``datasets`` library. Images stay on disk, in Arrow files, until they are indexed.

    Columns are found by their types (Image and ClassLabel). What is missing of the splits validation and test is cut
    from train, a share of each class, the same in every run. A split without labels (all -1) is no test split.

    Args:
        name: of the data set on huggingface.co, such as ``uoft-cs/cifar10``; or a local folder, written by
            ``save_to_disk`` or one that ``load_dataset`` reads (image folders, Parquet files).
        config: of a data set that has several.
        revision: branch, tag or commit.
        image, label: names of columns, where there are several.
        size, channels: the shorter side is resized to ``size``, then the centre is cropped.
        val_share, test_share: fraction in (0, 1) of each class (or of the unlabelled images).
        mirror_safe, mean, std: see :class:`~dtp_lightning.data.ImageSpec`.
        max_images: stream, and stop after this many images of each split, shuffled by a fixed seed in a buffer of
            10,000; what lies behind is not downloaded.
        root: where downloads are kept; default is the library's own cache.

    Raises:
        ConfigError: ``datasets`` is not installed.
        DataError: the data set cannot be had, or has no images, no train split or no column of the given name.
    """
    if name.startswith(("/", "~", ".")) and not Path(name).expanduser().is_dir():
        raise DataError(f"dataset.name={name}: there is no such folder")
    library = _library()
    tables = _load(library, name, config, revision, root, streaming=max_images is not None)
    if "train" not in tables:
        raise DataError(f"{name} has no split train to train on; it has {', '.join(tables) or 'none'}")
    features = tables["train"].features
    image, label = _columns(library, features, image, label, name)
    classes = tuple(map(str, features[label].names)) if label else ()
    parts: dict[str, Split] = {}
    for ours, table in tables.items():
        if max_images is not None:
            table = _streamed(library, table, max_images, name)
        images = TableImages(table.select_columns([image]), image, size, channels)
        if label is None or label not in table.features or ours == "unlabelled":
            parts[ours] = Split.unlabelled(images)
        else:
            labels = np.asarray(table.with_format("numpy")[label][:])
            parts[ours] = Split(images, torch.from_numpy(labels.astype(np.int64)))
    _drop_unlabelled(parts, classes, name)
    spec = {"mirror_safe": mirror_safe, "mean": mean, "std": std}
    return completed(parts, classes, name, val_share, test_share, **spec)


def _library() -> ModuleType:
    """The library, silent where there is no terminal."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ConfigError("dataset=huggingface needs datasets: pip install 'dtp-lightning[huggingface]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _drop_unlabelled(parts: dict[str, Split], classes: tuple[str, ...], name: str) -> None:
    """Take out validation and test splits whose labels are hidden; refuse train images without labels among others."""
    for split in ("val", "test"):
        if classes and split in parts and (parts[split].labels < 0).any():
            log.warning("%s: the %s split has no labels, so a share of train takes its place", name, split)
            del parts[split]
    if classes and (parts["train"].labels < 0).any():
        raise DataError(f"{name}: some train images have no label: remove them, or train on another column of labels")


def _load(
    library: ModuleType, name: str, config: str | None, revision: str | None, root: str | None, streaming: bool
) -> Mapping[str, Table]:
    """Tables by our names of splits."""
    folder = Path(name).expanduser()
    local = folder.is_dir()
    saved = local and any((folder / file).exists() for file in ("dataset_dict.json", "state.json"))
    cache = None if root is None else str(Path(root).expanduser())
    try:
        with guard.interruptible():  # a download takes minutes
            if saved:
                tables = library.load_from_disk(str(folder))
            else:
                source = str(folder) if local else name
                tables = library.load_dataset(source, config, revision=revision, cache_dir=cache, streaming=streaming)
    except Exception as error:  # the library lets errors of HTTP, Arrow and fsspec through
        advice = "the folder may be damaged" if local else "is the name right, and is there a network?"
        raise DataError(f"dataset.name={name} cannot be loaded: {_first_line(error)}; {advice}") from error
    if not isinstance(tables, Mapping):
        tables = {"train": tables}
    return {SPLITS[theirs]: table for theirs, table in tables.items() if theirs in SPLITS}


def _streamed(library: ModuleType, table: Table, count: int, name: str) -> Table:
    """So many rows in memory, still encoded."""
    features = table.features
    if hasattr(table, "to_iterable_dataset"):  # a folder of save_to_disk is not streamed
        table = table.to_iterable_dataset()
    images = {
        column: library.Image(decode=False) for column, kind in features.items() if isinstance(kind, library.Image)
    }
    for column, kind in images.items():
        table = table.cast_column(column, kind)
    try:
        with guard.interruptible():
            rows = list(table.shuffle(seed=SPLIT_SEED, buffer_size=SHUFFLED).take(count))
    except Exception as error:
        raise DataError(f"dataset.name={name} cannot be read: {_first_line(error)}") from error
    return library.Dataset.from_list(rows, features=features)


def _columns(
    library: ModuleType, features: Mapping[str, Any] | None, image: str | None, label: str | None, name: str
) -> tuple[str, str | None]:
    """Names of the columns of images and of labels: the given ones, or the only ones of their types."""
    if features is None:
        raise DataError(f"{name} does not say what its columns hold, so it cannot be streamed: remove max_images")
    found = {}
    for word, kind, given in (("image", library.Image, image), ("label", library.ClassLabel, label)):
        present = [column for column, feature in features.items() if isinstance(feature, kind)]
        if given is not None and given not in present:
            right = f"of type {kind.__name__} are {', '.join(present)}" if present else f"none is {kind.__name__}"
            raise DataError(f"dataset.{word}={given}: of the columns of {name} ({', '.join(features)}) {right}")
        if given is None and len(present) > 1:
            raise DataError(f"{name} has several columns of {kind.__name__}: set dataset.{word}={' or '.join(present)}")
        found[word] = given or (present[0] if present else None)
    if found["image"] is None:
        raise DataError(f"{name} has no column of type Image among its columns ({', '.join(features)})")
    if found["label"] is None:
        log.warning("%s has no column of type ClassLabel: its images are taken as unlabelled", name)
    return found["image"], found["label"]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
