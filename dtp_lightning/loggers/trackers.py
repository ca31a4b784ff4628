"""Experiment trackers, in addition to metrics.csv: W&B (offline by default), TensorBoard."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import Tensor

from dtp_lightning.errors import ConfigError
from dtp_lightning.loggers import guarded_wandb
from dtp_lightning.loggers.identity import Identity, identify, tags_of

log = logging.getLogger(__name__)

WANDB = "dtp_lightning.loggers.trackers.wandb_logger"
"""``_target_`` of :func:`wandb_logger`."""
STEP = "trainer/global_step"  # name of the number of batches in Lightning's WandbLogger
NAMES = ("learner", "loss", "model", "dataset", "evaluated_on", "trained_run")
"""What W&B's configuration has below ``names``, to group and filter by."""


def wandb_logger(
    folder: Path,
    names: Mapping[str, str],
    config: Mapping[str, Any],
    project: str = "dtp-lightning",
    mode: Literal["auto", "online", "offline"] = "auto",
    group: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
    entity: str | None = None,
    system: bool = True,
    tables: bool = True,
    encoder: bool = True,
) -> Logger:
    """Start a W&B run, or go on with the one of this folder: its id stays over a resume, online and offline.

    W&B never stops a training: see :mod:`dtp_lightning.loggers.guarded_wandb`.

    Args:
        folder: run folder; W&B writes to its subfolder ``wandb/``.
        names: chosen group options (learner, loss, model, dataset); where there are any, ``settings`` (what else the
            command line set), ``preset`` (names of presets), ``notes`` (what they say of themselves), and of an
            evaluation ``evaluated_on``, ``trained_run`` (id of the run that trained) and ``encoder`` (its artifact).
        config: the configuration, nested plain values, so that W&B can filter by each of them.
        project, entity: of W&B.
        group: of W&B; default: the cell, so that seeds fold together.
        tags: of W&B, beside the presets' names.
        notes: of W&B; default: what the presets say of themselves, and the settings.
        mode: ``auto`` is online for a user who is logged in (or set WANDB_MODE), else offline.
        system: measure the use of CPU, GPU, memory and disk, every 15 s.
        tables: log per-class accuracy, misclassified images and confusion matrices of the probes, and what
            ``callbacks=[pictures]`` saw: nearest neighbours and the map of the features.
        encoder: log the exported encoder with its card as an artifact.

    Returns:
        The logger; Lightning's ``DummyLogger`` if W&B could not start.
    """
    identity = identify(folder, names, config, project, entity, group)
    identity.write(folder)

    init = partial(
        _init, identity, folder, system,
        job_type="evaluation" if names.get("evaluated_on") else "train",
        tags=tags_of(names, tags),
        notes=notes or "\n\n".join(names[key] for key in ("notes", "settings") if names.get(key)) or None,
        config={**config, "names": {key: names[key] for key in NAMES if names.get(key)}},
    )  # fmt: skip
    logger = guarded_wandb.start(init, _resolve_mode(mode), folder, tables=tables, encoder=encoder)
    if isinstance(logger, guarded_wandb.GuardedWandbLogger) and names.get("encoder"):
        logger.use_encoder(names["encoder"])
    return logger


def _init(identity: Identity, folder: Path, system: bool, mode: str, **told: Any) -> Any:
    """Start, or go on with, the run of an identity in a mode (online, offline, disabled); see :func:`wandb_logger`."""
    import wandb

    run = wandb.init(
        **asdict(identity),
        **told,
        dir=str(folder),
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        reinit="finish_previous",  # a job of a multirun must not write to the run of the job before
        settings=wandb.Settings(
            silent=True, console="off", x_disable_stats=not system,
            init_timeout=guarded_wandb.INIT_TIMEOUT, finish_timeout=guarded_wandb.FINISH_TIMEOUT,
        ),
    )  # fmt: skip
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    run.define_metric("val/*", step_metric="epoch")
    return run


class TensorBoardTracker(TensorBoardLogger):
    """Lightning's TensorBoard logger, with methods for image files and histograms."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log the first of the image files, as RGB uint8 (H, W, 3), under a name."""
        pixels = np.asarray(Image.open(images[0]).convert("RGB"))
        self.experiment.add_image(key, pixels, step, dataformats="HWC")

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log histograms of values (M,)."""
        for name, found in values.items():
            self.experiment.add_histogram(name, found, step)


def tensorboard_logger(folder: Path, config: Mapping[str, Any]) -> Logger:
    """Write TensorBoard event files to ``tensorboard/`` of the run folder, with the configuration as hyper-parameters.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        logger = TensorBoardTracker(str(folder), name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise ConfigError("logger=tensorboard needs TensorBoard: pip install tensorboard") from error
    logger.log_hyperparams(dict(config))
    return logger


def _resolve_mode(requested: str) -> Literal["online", "offline", "disabled"]:
    """W&B's mode: the requested one, else WANDB_MODE, else online for a user with credentials, else offline."""
    if requested in ("online", "offline"):
        return requested  # type: ignore[return-value]
    environment = os.environ.get("WANDB_MODE")
    if environment in ("online", "offline", "disabled"):
        return environment  # type: ignore[return-value]
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except Exception as error:  # a rejected key or a network failure must not stop a training
        reason = guarded_wandb.brief(error)
        log.warning("W&B could not be reached (%s): logging offline, `wandb sync` later", reason)
        return "offline"
