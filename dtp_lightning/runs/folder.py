"""A run folder: who writes into it, and how far its run came."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dtp_lightning.config.flatten import flatten
from dtp_lightning.config.instantiate import with_defaults
from dtp_lightning.config.keys import OPTIONAL_GROUPS, SINCE
from dtp_lightning.config.keys import key as key_of
from dtp_lightning.config.run_config import EvaluationConfig, RunConfig
from dtp_lightning.errors import ConfigError, DataError, DivergedError, RunError
from dtp_lightning.runs.checkpoint_io import newest
from dtp_lightning.runs.lock import locked
from dtp_lightning.runs.status import failed
from dtp_lightning.runs.stored import read_config, read_summary
from dtp_lightning.runs.summary import write_failed
from dtp_lightning.runtime.files import write_atomically
from dtp_lightning.runtime.memory import shortage_named

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RunState:
    """How far the run in a folder came.

    Attributes:
        checkpoint: to go on from; None begins at the beginning.
        finished: the summary of a run that needs no more training.
    """

    checkpoint: Path | None = None
    finished: dict[str, Any] | None = None


@contextlib.contextmanager
def acquire(folder: Path, config: RunConfig | EvaluationConfig, *, is_owner: bool = True) -> Iterator[RunState]:
    """Own a folder for the time of a run; what it holds already stays, unless ``resume`` says to go on with it.

    Args:
        folder: exists.
        config: written to config.yaml.
        is_owner: False for the processes that train together with the folder's owner: they find out the same, but lock
            and write nothing.

    Raises:
        ConfigError: the folder holds another run, or another process is at work in it.
        DataError: ``resume`` names a checkpoint that does not exist or is damaged.
    """
    resume = config.resume if isinstance(config, RunConfig) else False
    if not is_owner:
        yield _state_of(folder, config, repair=False) if resume is True else _origin(resume)
        return
    with locked(folder):
        path = folder / "config.yaml"
        if not path.exists() or _failed_before_training(folder):
            write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(config.model_dump())))
            yield _origin(resume)
            return
        if resume is not True:
            raise ConfigError(
                f"{folder} holds a run already: resume=true goes on with it, hydra.run.dir=... chooses another folder"
            )
        _check_same_run(path, config)
        yield _state_of(folder, config, repair=True)


def _failed_before_training(folder: Path) -> bool:
    """Whether all that a run left here is why it could not begin: its data were missing, say."""
    left = ("metrics.csv", "summary.json", "checkpoints")
    return (folder / "error.txt").exists() and not any((folder / name).exists() for name in left)


def _origin(resume: Any) -> RunState:
    """The state of a run that begins, at another run's checkpoint if ``resume`` names one."""
    return RunState(_named_checkpoint(Path(resume)) if isinstance(resume, str) else None)


def _state_of(folder: Path, config: RunConfig | EvaluationConfig, *, repair: bool) -> RunState:
    """How far the run in this folder came."""
    finished = _summary(folder)
    if finished is not None and isinstance(config, RunConfig) and finished["epochs"] >= config.max_epochs:
        return RunState(finished=finished)
    last, path = newest(folder, repair=repair), folder / "config.yaml"
    if last:
        return RunState(last)
    # it stopped in its first epoch: begin again where it began
    return _origin(read_config(path).get("resume") if path.exists() else None)


def _check_same_run(path: Path, config: RunConfig | EvaluationConfig) -> None:
    """The run in the folder was asked for the same as this one, but for what may change on resume (config/keys.py)."""
    written = read_config(path)
    stored, asked = (dict(flatten(with_defaults(values))) for values in (written, config.model_dump()))
    missing = object()
    stored, asked = SINCE | stored, SINCE | asked
    for group in OPTIONAL_GROUPS:
        if not any(key.startswith(f"{group}.") for key in stored):
            stored.setdefault(group, None)
        if not any(key.startswith(f"{group}.") for key in asked):
            asked.setdefault(group, None)
    differing = [
        f"{key} (was {stored.get(key)}, now {asked.get(key)})"
        for key in sorted({*stored, *asked})
        if not key_of(key).free_on_resume and stored.get(key, missing) != asked.get(key, missing)
    ]
    if differing:
        raise ConfigError(
            f"{path.parent} holds a run with another {', '.join(differing)}: resume it as it was, or choose another "
            "folder"
        )


def _named_checkpoint(path: Path) -> Path:
    """The checkpoint that ``resume=<path>`` means: a file, or the newest of a run folder."""
    path = path.expanduser()
    checkpoint = newest(path) if path.is_dir() else path
    if checkpoint is None or not checkpoint.is_file():
        raise DataError(f"resume={path}: no such checkpoint; give a run folder or a .ckpt file, or resume=true")
    return checkpoint


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    summary = read_summary(path)
    return summary if summary and not failed(summary) else None


@contextlib.contextmanager
def failures_recorded(
    folder: Path, known: Mapping[str, Any], *, is_owner: bool = True, several: bool = False
) -> Iterator[None]:
    """Within: a failure leaves its reason in the folder; one that is over is forgotten.

    Args:
        folder: of the run.
        known: what a summary says of a run that diverged, beside that.
        is_owner: of several processes, whether this one owns the folder; the others leave their reason alone.
        several: other processes train with this one, and may have failed first.

    Raises:
        RunError: in place of the system's error, where the disk is full or memory is short.
    """
    if several and is_owner:
        clear_error(folder)  # the first process that fails writes the next one
    try:
        with shortage_named():
            yield
    except BaseException as error:
        record_error(folder, error, keep_first=several)
        if not is_owner:
            raise
        if isinstance(error, DivergedError) and _summary(folder) is None:  # figures of fewer epochs stay
            write_failed(known, error, folder / "summary.json")
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            full = f"the disk is full ({error.filename})" if error.filename else "the disk is full"
            raise RunError(
                f"{full}: make room; resume=true hydra.run.dir={folder} goes on from the last checkpoint"
            ) from error
        raise
    if is_owner:
        clear_error(folder)


def record_error(folder: Path, error: BaseException, *, keep_first: bool = False) -> None:
    """Leave the reason of a failure in the folder, for whoever lists a sweep's jobs.

    Args:
        folder: of the run.
        error: the reason.
        keep_first: an error that is there already, of another of the run's processes, caused this one.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    with contextlib.suppress(OSError), (folder / "error.txt").open("x" if keep_first else "w") as file:
        file.write(f"{type(error).__name__}: {lines[-1]}\n")


def clear_error(folder: Path) -> None:
    """The run went well after all."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(folder / "error.txt")
