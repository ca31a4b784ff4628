"""W&B logging that cannot stop a training: its first error is logged as a warning and ends the logging to W&B."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor

from dtp_lightning.loggers.predictions import Predictions
from dtp_lightning.loggers.tables import Table
from dtp_lightning.loggers.wandb_media import (
    aliases_of,
    checkpoint_artifact,
    encoder_artifact,
    histograms_of,
    media_of,
    staged_in,
    tables_of,
)
from dtp_lightning.runtime.metrics import metrics_of

log = logging.getLogger(__name__)

INIT_TIMEOUT, FINISH_TIMEOUT = 20.0, 60.0
"""Seconds to wait for the server at the start of a run, and for the upload at its end (the files stay on disk)."""
MIN_FREE_BYTES = 2**20
"""Below this free space the disk counts as full; W&B's process does not report a full disk."""
BETTER: dict[str, Literal["max", "min"]] = {r"val/.*_acc(/.*)?": "max", r"val/loss": "min"}
"""Names of quantities whose best value is in W&B's summary, beside the last -> which is better."""

BEST: dict[str, Callable[[float, float], float]] = {"max": max, "min": min}


def better(name: str) -> Literal["max", "min"] | None:
    """Whether larger or smaller values of a quantity are better; None if neither is."""
    return next((which for pattern, which in BETTER.items() if re.fullmatch(pattern, name)), None)


def bests_of(metrics_csv: Path) -> dict[str, float]:
    """The best value so far of each quantity of :data:`BETTER` in a metrics.csv; none without the file."""
    read, bests = metrics_of(metrics_csv), {}
    for name in read.names:
        values = [value for _, value in read.points(name) if math.isfinite(value)]
        if values and (which := better(name)):
            bests[name] = functools.reduce(BEST[which], values)
    return bests


class GuardedWandbLogger(WandbLogger):
    """Lightning's W&B logger, whose errors end the logging to W&B and nothing else.

    Args:
        run: a ``wandb.Run``.
        folder: the run folder.
        tables: whether tables and confusion matrices are logged.
        encoder: whether the exported encoder is logged, as an artifact.
    """

    def __init__(self, run: Any, folder: Path, *, tables: bool = True, encoder: bool = True) -> None:
        super().__init__(experiment=run, save_dir=str(folder))
        self._tables = tables
        self.wants_encoder = encoder
        self._folder = folder
        self._failed = False
        self._before = bests_of(folder / "metrics.csv")  # W&B's own maxima begin anew where a run is resumed
        self._defined: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """As Lightning's; the summary has the best value of those that have one (:data:`BETTER`)."""
        self._call(self._log_metrics, dict(metrics), step)

    def _log_metrics(self, metrics: dict[str, Any], step: int | None) -> None:
        ranked = {name: which for name in metrics if (which := better(name))}
        for name in ranked.keys() - self._defined:
            self.experiment.define_metric(name, step_metric="epoch", summary=f"{ranked[name]},last")
            self._defined.add(name)
        super().log_metrics(metrics, step)
        for name in ranked.keys() & self._before.keys():
            which, value = ranked[name], float(metrics[name])
            self._before[name] = BEST[which](self._before[name], value)
            self.experiment.summary.update({name: {which: self._before[name], "last": value}})

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        self._call(super().log_image, *args, **kwargs)

    def log_predictions(self, predictions: Predictions, step: int) -> None:
        """Log per-class accuracy, misclassified images and confusion matrices, if tables are wanted."""
        if self._tables and predictions.of:
            self._call(self._log_media, media_of, predictions, step)

    def log_tables(self, tables: Mapping[str, Table], step: int) -> None:
        """Log tables, if they are wanted."""
        if self._tables:
            self._call(self._log_media, tables_of, tables, step)

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log histograms of values (M,)."""
        self._call(self._log_media, histograms_of, values, step)

    def _log_media(self, make: Callable[[Any], dict[str, Any]], found: object, step: int) -> None:
        with staged_in(self._folder / "wandb"):
            super().log_metrics(make(found), step)

    def log_encoder(self, weights: Path, checkpoint: Path) -> None:
        """Log an exported encoder, with the card beside it, as a version of the artifact ``encoder-<run id>``.

        Where its checkpoint lies is a version of ``checkpoint-<run id>``, which is not uploaded.

        Args:
            weights: the ``.safetensors`` file.
            checkpoint: that it is from; its name decides the aliases.
        """
        self._call(self._log_encoder, weights, checkpoint)

    def _log_encoder(self, weights: Path, checkpoint: Path) -> None:
        with staged_in(self._folder / "wandb"):
            run, aliases = self.experiment, aliases_of(checkpoint.stem)
            run.log_artifact(encoder_artifact(run.id, weights), aliases=[*aliases])
            run.log_artifact(checkpoint_artifact(run.id, checkpoint), aliases=[*aliases])

    def use_encoder(self, name: str) -> None:
        """Record in W&B's lineage that this run read an encoder; offline, and where there is none, nothing happens.

        Args:
            name: of the artifact, with its alias.
        """
        if not self.experiment.offline:
            with contextlib.suppress(Exception):
                self.experiment.use_artifact(name)

    def finalize(self, status: str) -> None:
        """As Lightning's."""
        self._call(super().finalize, status)

    def finish(self, *, failed: bool) -> None:
        """End the W&B run, so that the next job of a multirun starts its own.

        Args:
            failed: whether the run raised an error.
        """
        import wandb

        self._call(wandb.finish, exit_code=int(failed))
        if self._failed:  # W&B's process may have died: the next job starts another
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=1)
            wandb.run = None  # beside a run that did not end the next job's login would do nothing
        elif _disk_is_full(self._folder / "wandb"):
            log.warning("the disk is full: what W&B keeps below %s may be incomplete", self._folder / "wandb")

    def _call(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call a function of W&B; after its first error do nothing."""
        if self._failed:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:
            self._failed = True
            log.warning("W&B failed (%s): this run goes on without it; metrics.csv has everything", brief(error))


def start(init: Callable[[str], Any], mode: str, folder: Path, **wanted: bool) -> Logger:
    """Start a W&B run: offline if online fails, no logger if offline fails too, each with a warning.

    Args:
        init: starts a W&B run in a mode (online, offline, disabled).
        mode: the requested mode.
        folder: the run folder.
        wanted: see :class:`GuardedWandbLogger`.

    Returns:
        The logger; Lightning's ``DummyLogger`` if W&B could not start.
    """
    import wandb

    try:
        return GuardedWandbLogger(init(mode), folder, **wanted)
    except Exception as error:
        reason = brief(error)
    if mode == "online":
        with contextlib.suppress(Exception):
            wandb.teardown(exit_code=1)  # its process holds on to the id
        with contextlib.suppress(Exception):
            logger = GuardedWandbLogger(init("offline"), folder, **wanted)
            log.warning("W&B could not be reached (%s): logging offline, `wandb sync` later", reason)
            return logger
    log.warning("W&B could not start (%s): this run goes on without it; metrics.csv has everything", reason)
    return DummyLogger()


def _disk_is_full(folder: Path) -> bool:
    """Whether the disk of a folder is full; False if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free < MIN_FREE_BYTES
    except OSError:  # W&B has not written anything
        return False


def brief(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
