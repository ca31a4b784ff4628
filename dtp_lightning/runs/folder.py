"""A run folder: who writes into it, and how far its run came."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dtp_lightning.config.instantiate import flat_keys, with_defaults
from dtp_lightning.errors import ConfigError, DataError, DivergedError, RunError
from dtp_lightning.runs.checkpoint_io import newest
from dtp_lightning.runs.status import failed
from dtp_lightning.runs.summary import write_failed

with contextlib.suppress(ImportError):  # not on Windows: there two processes are not kept apart
    import fcntl

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MAY_DIFFER = (
    *("resume", "workers", "loading"),
    *(
        "trainer.max_epochs",
        "trainer.accelerator",
        "trainer.strategy",
        "trainer.on_nonfinite",
        "trainer.save_every_n_steps",
    ),
)
"""What a resumed run's command line may say otherwise than the run did."""


@dataclass(frozen=True)
class Claim:
    """A folder that this process alone writes into.

    Attributes:
        checkpoint: to go on from; None begins at the beginning.
        finished: the summary of a run that needs no more training.
    """

    checkpoint: Path | None = None
    finished: dict[str, Any] | None = None


@contextlib.contextmanager
def claimed(folder: Path, values: Mapping[str, Any]) -> Iterator[Claim]:
    """Own a folder for the time of a run; what it holds already stays, unless ``resume`` says to go on with it.

    Args:
        folder: exists.
        values: resolved configuration, written to config.yaml; ``resume`` is False, True (go on with the run in this
            folder, if there is one), or a checkpoint, or the folder of a run to go on from.

    Raises:
        ConfigError: the folder holds another run, or another process is at work in it.
        DataError: ``resume`` names a checkpoint that does not exist or is damaged.
    """
    with _lock(folder):
        resume = values.get("resume", False)
        path = folder / "config.yaml"
        if not path.exists():
            path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(values))))
            yield Claim(_named(Path(resume)) if isinstance(resume, str) else None)
            return
        if resume is not True:
            raise ConfigError(
                f"{folder} holds a run already: resume=true goes on with it, hydra.run.dir=... chooses another folder"
            )
        _same_run(path, values)
        yield _going_on(folder, values, repair=True)


def _going_on(folder: Path, values: Mapping[str, Any], *, repair: bool) -> Claim:
    """How far the run in this folder came."""
    finished = _summary(folder)
    if finished is not None and finished["epochs"] >= values["trainer"]["max_epochs"]:
        return Claim(finished=finished)
    last, path = newest(folder, repair=repair), folder / "config.yaml"
    if last:
        return Claim(last)
    # it stopped in its first epoch: begin again where it began
    origin = OmegaConf.select(OmegaConf.load(path), "resume") if path.exists() else None
    return Claim(_named(Path(origin)) if isinstance(origin, str) else None)


def followed(folder: Path, values: Mapping[str, Any]) -> Claim:
    """What the run's first process claims, for its others, which lock and write nothing. Arguments: :func:`claimed`."""
    resume = values.get("resume", False)
    if isinstance(resume, str):
        return Claim(_named(Path(resume)))
    return _going_on(folder, values, repair=False) if resume else Claim()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """The system frees the lock when the process ends, however it ends."""
    with (folder / ".lock").open("w") as file:
        if "fcntl" in globals():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"another process is at work in {folder}: wait for it, or choose another") from error
        yield


def locked(folder: Path) -> bool:
    """Whether a process is at work in a folder."""
    try:
        with _lock(folder):
            return False
    except ConfigError:
        return True


def _same_run(path: Path, values: Mapping[str, Any]) -> None:
    """The run in the folder was asked for the same as this one."""
    written = OmegaConf.to_container(OmegaConf.load(path))
    stored, asked = (OmegaConf.create(with_defaults(v)) for v in (written, values))  # type: ignore[arg-type]
    keys = sorted({*flat_keys(OmegaConf.to_container(stored)), *flat_keys(OmegaConf.to_container(asked))})  # type: ignore[arg-type]
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    missing = object()
    differing = [
        key
        for key in leaves
        if key not in MAY_DIFFER and not key.startswith(("logger.", "evaluation.", "callbacks."))
        if OmegaConf.select(stored, key, default=missing) != OmegaConf.select(asked, key, default=missing)
    ]
    if differing:
        told = ", ".join(
            f"{k} (was {OmegaConf.select(stored, k)}, now {OmegaConf.select(asked, k)})" for k in differing
        )
        raise ConfigError(
            f"{path.parent} holds a run with another {told}: resume it as it was, or choose another folder"
        )


def _named(path: Path) -> Path:
    """The checkpoint that ``resume=<path>`` means: a file, or the newest of a run folder."""
    path = path.expanduser()
    found = newest(path) if path.is_dir() else path
    if found is None or not found.is_file():
        raise DataError(f"resume={path}: no such checkpoint; give a run folder or a .ckpt file, or resume=true")
    return found


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and not failed(found) else None


@contextlib.contextmanager
def failures_recorded(folder: Path, known: Mapping[str, Any], *, several: bool) -> Iterator[None]:
    """Within: a failure leaves its reason in the folder; one that is over is forgotten.

    Args:
        folder: of the run.
        known: what a summary says of a run that diverged, beside that.
        several: other processes train with this one, and may have failed first.

    Raises:
        RunError: in place of the system's error, where the disk is full.
    """
    if several:
        clear_error(folder)  # the first process that fails writes the next one
    try:
        yield
    except BaseException as error:
        record_error(folder, error, keep_first=several)
        if isinstance(error, DivergedError) and _summary(folder) is None:  # figures of fewer epochs stay
            write_failed(known, error, folder / "summary.json")
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            full = f"the disk is full ({error.filename})" if error.filename else "the disk is full"
            raise RunError(
                f"{full}: make room; resume=true hydra.run.dir={folder} goes on from the last checkpoint"
            ) from error
        raise
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
