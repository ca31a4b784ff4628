"""How checkpoints reach the disk, and which one a run goes on from."""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import nn

from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.runs.safe_loading import load
from dtp_lightning.runtime.files import write_atomically

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
EPOCH = re.compile(r"epoch(\d+)\.ckpt")
UNREADABLE = (KeyError, TypeError, EOFError, OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What reading a file raises that is not one of our checkpoints, or is one no longer."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Under a checkpoint's name there is always a whole checkpoint; of ``last.ckpt`` the one before is kept.

    Lightning's own writes to the system's temporary folder and moves the file, which on another file system is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full, for example; what was there before is still there.
        """
        path = Path(path)
        buffer = io.BytesIO()  # torch's own writing into a file hides why it failed
        torch.save(checkpoint, buffer)
        write_atomically(path, buffer.getbuffer(), previous=path.with_name(PREVIOUS) if path.name == LAST else None)


@dataclass(frozen=True)
class Progress:
    """How far training had come.

    Attributes:
        step: batches that were trained on.
        epochs: that were completed.
    """

    step: int
    epochs: int

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Progress:
        """From a loaded checkpoint."""
        return cls(int(stored["global_step"]), epochs_of(stored))

    @classmethod
    def read(cls, path: Path) -> Progress:
        """From a checkpoint file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return cls.of(load(path))
        except UNREADABLE as error:
            raise DataError(f"{path} is damaged, or not a checkpoint of train.py") from error


def epochs_of(stored: Mapping[str, Any]) -> int:
    """Completed epochs; a checkpoint may have been saved within one."""
    return int(stored["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def whole(path: Path) -> bool:
    """Whether a checkpoint can be read and its checksums hold (torch itself does not look at them)."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        Progress.read(path)
    except (DataError, *UNREADABLE):
        return False
    return True


def newest(folder: Path, *, repair: bool = False) -> Path | None:
    """The newest checkpoint of a run that is whole; says so if that is not the last one that was written.

    Args:
        folder: the run's.
        repair: a damaged last.ckpt gives its name to the one before.

    Returns:
        Its path; None if there is no checkpoint at all.

    Raises:
        DataError: there are some, and all are damaged.
    """
    last, previous = (folder / "checkpoints" / name for name in (LAST, PREVIOUS))
    there = [path for path in (last, previous, *snapshots_in(folder)) if path.exists()]
    good = next((path for path in there if whole(path)), None)
    if there and good is None:
        raise DataError(f"{last} is damaged, and there is none before it: delete {last.parent} to begin again")
    if good in (None, last):
        return good
    reason = "is damaged" if last.exists() else "is missing"
    if good == previous:
        log.warning("%s %s: going on from the checkpoint before it", last, reason)
        if repair:
            os.replace(previous, last)
            return last
    else:
        log.warning("%s %s, and so is the one before it: going on from the last snapshot, %s", last, reason, good)
    return good


def snapshots_in(folder: Path) -> list[Path]:
    """What :class:`dtp_lightning.callbacks.Snapshots` left in a run folder, the last epoch first."""
    numbered = [
        (int(m[1]), path) for path in (folder / "checkpoints").glob("epoch*.ckpt") if (m := EPOCH.match(path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def check_resumable(path: Path, module: nn.Module, max_epochs: int, *, averages: bool = False) -> None:
    """A checkpoint to go on from belongs to this learner and network, and has epochs left to run.

    Args:
        path: of the checkpoint.
        module: that its weights will be loaded into.
        max_epochs: of this run.
        averages: whether this run keeps an average of its weights.

    Raises:
        ConfigError: it does not.
        DataError: the checkpoint cannot be read.
    """
    stored = load(path)
    ours, theirs = (
        {key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")}
        for state in (module.state_dict(), stored.get("state_dict", {}))
    )
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            here, there = (shapes.get(key, "none") for shapes in (ours, theirs))
            raise ConfigError(
                f"{path} is of another learner, model or data set ({key.removeprefix('learner.')}: "
                f"{there} there, {here} here): resume with the choices that it was trained with"
            )
    if "averaging_state" in stored and not averages:
        raise ConfigError(f"{path} holds an average beside the weights: resume with average=ema, as it was trained")
    if (done := epochs_of(stored)) > max_epochs:
        raise ConfigError(f"{path} has {done} epochs already: set trainer.max_epochs to more than that")
