"""Images in a NumPy file: .npz with images and labels of one split or several, .npy with images alone."""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor

from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.data.splitting import Share, completed
from dtp_lightning.errors import DataError

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Layout = Literal["auto", "nhwc", "nchw"]
WORDS = {
    "images": ("images", "image", "x", "data"),
    "labels": ("labels", "label", "y", "targets", "target"),
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
    "unlabelled": ("unlabelled", "unlabeled"),
    "names": ("classes", "names"),
}
"""What the words of a key mean: ``x_train``, ``train_images`` and ``images`` are images of the train split."""
MEANING = {word: meaning for meaning, words in WORDS.items() for word in words}
KEYS = "images and labels, or x_train, y_train, x_val, y_val, x_test, y_test, or train_images, train_labels, ..."


class ArrayImages:
    """An array of images as uint8 (N, C, H, W); of one on disk, what is indexed is read.

    Args:
        array: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W).
        channels_last: whether its last axis is C.
    """

    def __init__(self, array: Array, channels_last: bool) -> None:
        self.array = array[..., None] if array.ndim == 3 else array
        self.channels_last = channels_last or array.ndim == 3
        n, *rest = self.array.shape
        self.shape = (n, rest[2], rest[0], rest[1]) if self.channels_last else (n, *rest)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Tensor:
        """The images at a slice or at int64 indices (M,), as uint8 (M, C, H, W)."""
        images = self.array[index.cpu().numpy() if isinstance(index, Tensor) else index]
        images = images.transpose(0, 3, 1, 2) if self.channels_last else images
        return torch.from_numpy(np.array(images, order="C"))  # a copy: an array on disk is read-only


def array_file(
    path: str,
    layout: Layout = "auto",
    mirror_safe: bool = True,
    val_share: Share = 0.1,
    test_share: Share = 0.2,
    mean: float = 0.5,
    std: PositiveFloat = 0.5,
) -> ImageData:
    """Load a data set from a NumPy file. Nothing in it is executed: pickled objects are refused.

    Keys of an .npz are ``images`` and ``labels``, with the name of a split (``train``, ``val``, ``test``,
    ``unlabelled``) before or after them if there are several; ``x`` and ``y`` mean the same. Labels are integers, or
    names of classes; names of integers may be given as ``classes``. What is missing of validation and test is cut from
    train, a share of each class, the same in every run. An .npy holds images without labels, and is read as needed.

    Args:
        path: the file; ``~`` is expanded.
        layout: of four axes, ``nhwc`` or ``nchw``; ``auto`` finds the axis of 1 or 3 channels.
        val_share, test_share: fraction in (0, 1) of each class (or of the unlabelled images).
        mirror_safe, mean, std: see :class:`~dtp_lightning.data.ImageSpec`.

    Raises:
        DataError: the file is missing, damaged or of another kind, or an array has a wrong key, shape or type.
    """
    file = Path(path).expanduser().resolve()
    arrays = _read(file)
    found: dict[str, dict[str, Array]] = {"images": {}, "labels": {}, "names": {}}
    for key, array in arrays.items():
        if (place := _meaning(key)) is None:
            log.warning("%s: %s is not read; known keys are %s", file.name, key, KEYS)
        elif place[1] in found[place[0]]:
            raise DataError(f"{file}: {key} is a second array of {place[1]} {place[0]}: remove one")
        else:
            found[place[0]][place[1]] = array
    images = {name: _images(array, layout, f"{file}: {name} images") for name, array in found["images"].items()}
    if "train" not in images:
        keys = ", ".join(arrays) or "nothing"
        raise DataError(f"{file}: no images to train on among its keys ({keys}): name them {KEYS}")
    if strange := sorted(found["labels"].keys() - images.keys()):
        raise DataError(f"{file}: labels of {strange[0]} without images: add them, or remove the labels")
    labels = {name: _labels(array, f"{file}: {name} labels") for name, array in found["labels"].items()}
    for name, y in labels.items():
        if len(y) != len(images[name]):
            raise DataError(f"{file}: {len(images[name])} {name} images and {len(y)} labels: make them as many")
    numbers, classes = _numbered(labels, found["names"].get("train"), str(file))
    parts = {name: Split(x, numbers[name]) if name in numbers else Split.unlabelled(x) for name, x in images.items()}
    for name in ("val", "test"):
        if name in parts and (name in numbers) != bool(classes):
            raise DataError(f"{file}: either train or {name} has labels: give them to both, or to none")
    spec = {"mirror_safe": mirror_safe, "mean": mean, "std": std}
    return completed(parts, classes, str(file), val_share, test_share, **spec)


def _read(file: Path) -> Mapping[str, Array]:
    """Arrays by key; an .npy has ``images`` alone."""
    if not file.is_file():
        raise DataError(f"dataset.path={file}: there is no such file; give an .npz or .npy file")
    try:
        if file.suffix == ".npy":
            return {"images": np.load(file, mmap_mode="r", allow_pickle=False)}
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if strange := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{strange[0]} in it is no array")  # NumPy gives the bytes of other files in an archive
        return arrays
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        TypeError,
        AttributeError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "allow_pickle" in reason:
            reason = "it is no NumPy file, or holds pickled objects, which could run code"
        raise DataError(f"{file} cannot be read ({reason}): save it again by numpy.savez, or copy it again") from error


def _meaning(key: str) -> tuple[str, str] | None:
    """What an array is (images, labels or names), and of which split; None for an unknown key."""
    words = [word for word in re.split(r"[^a-z]+", key.lower()) if word]
    if words == ["class", "names"] or words == ["label", "names"]:
        return "names", "train"
    meanings = [MEANING.get(word) for word in words]
    kinds = [m for m in meanings if m in ("images", "labels", "names")]
    splits = [m for m in meanings if m in ("train", "val", "test", "unlabelled")]
    if None in meanings or len(kinds) != 1 or len(splits) > 1:
        return None
    return str(kinds[0]), str(splits[0]) if splits else "train"


def _images(array: Array, layout: Layout, what: str) -> ArrayImages:
    shape = " x ".join(map(str, array.shape)) or "a single number"
    if array.dtype != np.uint8:
        raise DataError(f"{what} are {array.dtype}: save them as uint8 in 0..255 (from [0, 1]: (255 * x).round())")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(f"{what} are {shape}: N x H x W, N x H x W x C or N x C x H x W is needed")
    if array.ndim == 3:
        return ArrayImages(array, channels_last=True)
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if layout == "auto" and first and last:
        raise DataError(f"{what} are {shape}: which axis is the channels? set dataset.layout=nhwc or nchw")
    channels_last = last if layout == "auto" else layout == "nhwc"
    if not (last if channels_last else first):
        raise DataError(f"{what} are {shape}: no axis of 1 or 3 channels where dataset.layout={layout} has it")
    return ArrayImages(array, channels_last)


def _labels(array: Array, what: str) -> Array:
    """Labels (N,), integers or text."""
    y = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if y.ndim != 1:
        raise DataError(f"{what} are {' x '.join(map(str, array.shape))}: one label an image, N or N x 1, is needed")
    if y.dtype.kind not in "iuU":
        raise DataError(f"{what} are {array.dtype}: integers or names of classes are needed")
    if y.dtype.kind != "U" and len(y) and y.min() < 0:
        raise DataError(f"{what} go down to {y.min()}: 0 or above; images without labels go under unlabelled_images")
    return y


def _numbered(
    labels: Mapping[str, Array], names: Array | None, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels as int64 in 0..K-1 and the names of the K classes that train has; nothing where there are no labels."""
    if "train" not in labels:
        return {}, ()
    present = np.unique(labels["train"])
    numbers = {}
    for name, y in labels.items():
        if name != "unlabelled" and len(unknown := np.setdiff1d(y, present)):
            raise DataError(f"{where}: {name} has labels {unknown[0]}, and train has none: add some")
        numbers[name] = torch.from_numpy(np.searchsorted(present, y).astype(np.int64))
    numbers.pop("unlabelled", None)
    if names is None or present.dtype.kind == "U":
        return numbers, tuple(str(label) for label in present)
    if names.ndim != 1 or len(names) <= present.max():
        raise DataError(f"{where}: {names.size} names for labels up to {present.max()}: give one a class")
    return numbers, tuple(str(names[label]) for label in present)
