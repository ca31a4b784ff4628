"""What a file from elsewhere may do: give tensors and plain values, and name what this package ships.

A command line is the user's own and may name any class. A checkpoint may be a stranger's, and so may the
configuration in it: nothing in it is unpickled but tensors and plain values, and of the classes that it names only
those are built that are defined in :data:`SHIPPED`, or in a package that the user trusts by name.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dtp_lightning.config.flatten import flatten, last_word
from dtp_lightning.errors import DataError

SHIPPED = (
    "dtp_lightning.augment",
    "dtp_lightning.data",
    "dtp_lightning.losses",
    "dtp_lightning.models",
    "lightly.loss",
)
"""Packages of what an evaluation builds from a checkpoint's configuration."""
LARGEST_PICKLE = 16 * 2**20
"""Bytes of a checkpoint's pickle, which names its tensors and holds none of them."""
LARGEST_CONFIG = 10_000
TRUST = "DTP_LIGHTNING_TRUST"  # environment variable: the user's own packages, separated by commas


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU. Nothing in it is executed.

    Raises:
        DataError: the file asks to run code, is damaged, or is no checkpoint.
    """
    if zipfile.is_zipfile(path):  # what is none is unpickled by torch alone, which says what it asks for
        _check_archive(path)
    elif path.is_file() and path.stat().st_size > LARGEST_PICKLE:
        raise DataError(f"{path} is damaged, or not a checkpoint of train.py")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        if asked := re.search(r"GLOBAL (\w[\w.]*)", str(error)):
            raise DataError(
                f"{path} is refused, nothing of it was run: it asks for {asked[1]}, and a checkpoint of train.py "
                "holds tensors and plain values alone"
            ) from error
        raise DataError(f"{path} is damaged, or not a checkpoint of train.py") from error
    if not isinstance(stored, dict):
        raise DataError(f"{path} is not a checkpoint of train.py: it holds a {type(stored).__name__}")
    return stored


def _check_archive(path: Path) -> None:
    """A checkpoint's archive holds what its size says: nothing compressed, nothing overlapping, and a small pickle.

    Raises:
        DataError: it does not; a few kilobytes could unpack to any size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
        raise DataError(f"{path} is damaged, or not a checkpoint of train.py") from error
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    pickles = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size or pickles > LARGEST_PICKLE:
        raise DataError(f"{path} is refused: it would unpack to more than train.py writes into a checkpoint")


def check_plain(value: Any, path: Path) -> None:
    """A configuration is of the size that people write: it holds no more than :data:`LARGEST_CONFIG` values.

    A few bytes of pickle can refer to one list so often that to look at each takes for ever, or to itself.

    Raises:
        DataError: it is larger.
    """
    left, waiting = LARGEST_CONFIG, [value]
    while waiting:
        node = waiting.pop()
        inside = [*node.values()] if isinstance(node, Mapping) else [*node] if isinstance(node, list | tuple) else []
        left -= 1 + len(inside)
        if left < 0:
            raise DataError(f"{path} is refused: its configuration has more than {LARGEST_CONFIG:,} values")
        waiting += inside


def trusted(node: Any, path: Path) -> Any:
    """A node of the configuration in a checkpoint, unchanged, if all that it names may be built.

    Args:
        node: of a stored configuration, with the nodes inside it.
        path: the checkpoint, for the message.

    Raises:
        DataError: it names something that is not shipped, or refers to this machine (``${oc.env:...}``).
    """
    own = tuple(name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip())
    for key, value in flatten(node, lists=True):
        if not _names_shipped(key, value, (*SHIPPED, *own)):
            raise DataError(
                f"{path} names {value}, which is not shipped with dtp_lightning, and was not run: name its package in "
                f"the environment variable {TRUST} if it is your own"
            )
        if isinstance(value, str) and "${" in value:
            raise DataError(f"{path} is refused: its configuration refers to this machine by {value}")
    return node


def _names_shipped(key: str, value: Any, packages: tuple[str, ...]) -> bool:
    """Whether a value is no ``_target_``, or one that may be built; one that is no text may not be."""
    words = key.split(".")
    if not any(last_word(word) == "_target_" for word in words):
        return True
    is_name = isinstance(value, str) and words[-1] == "_target_" and "_target_" not in words[:-1]
    return is_name and _inside(value, packages)


def _inside(target: str, packages: tuple[str, ...]) -> bool:
    """Whether a target lies in one of the packages, and was defined in one: not merely imported by its modules."""
    from dtp_lightning.config.instantiate import target_of
    from dtp_lightning.errors import ConfigError

    def within(name: str) -> bool:
        return any(name == package or name.startswith(f"{package}.") for package in packages)

    if not within(target):
        return False
    try:
        return within(str(getattr(target_of(target), "__module__", "")))
    except ConfigError as error:
        raise DataError(f"the checkpoint names {target}, which cannot be imported: {error}") from error
