"""W&B beside a training that it can never stop: whatever it raises is said once, and then it is left alone."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

log = logging.getLogger(__name__)

INIT_TIMEOUT, FINISH_TIMEOUT = 20.0, 60.0
"""Seconds to wait for a server at a run's start, and for what is not uploaded yet at its end (it stays on disk)."""
ROOM = 2**20
"""Bytes: W&B's own process keeps silent about a disk that has less left."""


class GuardedWandbLogger(WandbLogger):
    """Lightning's W&B logger, whose failures end the logging to W&B and nothing else.

    Args:
        run: of wandb.
        folder: the run folder.
    """

    def __init__(self, run: Any, folder: Path) -> None:
        super().__init__(experiment=run, save_dir=str(folder))
        self._folder = folder
        self._broken = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        self._guarded(super().log_metrics, *args, **kwargs)

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        self._guarded(super().log_image, *args, **kwargs)

    def finalize(self, status: str) -> None:
        """As Lightning's."""
        self._guarded(super().finalize, status)

    def finish(self, *, failed: bool) -> None:
        """End W&B's run, so that the next job of a multirun starts its own."""
        import wandb

        self._guarded(wandb.finish, exit_code=int(failed))
        if self._broken:  # its helper process may be dead: the next job starts another
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=1)
        elif _full(self._folder / "wandb"):
            log.warning("the disk is full: what W&B keeps below %s may be incomplete", self._folder / "wandb")

    def _guarded(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        if self._broken:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:
            self._broken = True
            log.warning("W&B failed (%s): this run goes on without it; metrics.csv has everything", brief(error))


def start(init: Callable[[str], Any], mode: str, folder: Path) -> Logger:
    """A W&B run, offline where online is impossible, or nothing where that is impossible too; the user is told.

    Args:
        init: starts a run in a mode (online, offline, disabled).
        mode: that is asked for.
        folder: the run folder.
    """
    try:
        return GuardedWandbLogger(init(mode), folder)
    except Exception as error:
        reason = brief(error)
    if mode == "online":
        with contextlib.suppress(Exception):
            logger = GuardedWandbLogger(init("offline"), folder)
            log.warning("W&B could not be reached (%s): logging offline, `wandb sync` later", reason)
            return logger
    log.warning("W&B could not start (%s): this run goes on without it; metrics.csv has everything", reason)
    return DummyLogger()


def _full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < ROOM
    except OSError:  # nothing was written there
        return False


def brief(error: BaseException) -> str:
    """An error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
