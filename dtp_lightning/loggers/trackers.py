"""Experiment trackers, in addition to metrics.csv: W&B (offline by default), TensorBoard."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from dtp_lightning.errors import ConfigError
from dtp_lightning.loggers import guarded_wandb

log = logging.getLogger(__name__)

STEP = "trainer/global_step"  # name of the number of batches in Lightning's WandbLogger


def wandb_logger(
    folder: Path,
    names: Mapping[str, str],
    config: Mapping[str, Any],
    project: str = "dtp-lightning",
    mode: Literal["auto", "online", "offline"] = "auto",
    group: str | None = None,
    tags: list[str] | None = None,
    entity: str | None = None,
) -> Logger:
    """Start a W&B run; its group is the task, its job type the learner. A resumed run is another run of the group.

    W&B never stops a training: see :mod:`dtp_lightning.loggers.guarded_wandb`.

    Args:
        folder: run folder; W&B writes to its subfolder ``wandb/``.
        names: chosen group options (learner, loss, model, dataset).
        config: the configuration, nested plain values, so that W&B can filter by each of them.
        project, tags, entity: of W&B.
        group: of W&B; default dataset-model-loss, to compare learners and seeds.
        mode: ``auto`` is online for a user who is logged in (or set WANDB_MODE), else offline.

    Returns:
        The logger; Lightning's ``DummyLogger`` if W&B could not start.
    """
    import wandb

    previous_runs = sorted(path.name for path in (folder / "wandb").glob("*run-*"))

    def init(mode: str) -> Any:
        run = wandb.init(
            project=project,
            entity=entity,
            dir=str(folder),
            name=f"{names['learner']}-{names['loss']}{_resume_suffix(previous_runs)}",
            group=group_of(names, group),
            job_type=names["learner"],
            tags=tags,
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",  # a job of a multirun must not write to the run of the job before
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True,
                init_timeout=guarded_wandb.INIT_TIMEOUT, finish_timeout=guarded_wandb.FINISH_TIMEOUT,
            ),
        )  # fmt: skip
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        run.define_metric("val/*", step_metric="epoch")
        return run

    return guarded_wandb.start(init, _resolve_mode(mode), folder)


def _resume_suffix(previous_runs: Sequence[str]) -> str:
    """Suffix of the name of a resumed run, as W&B cannot append offline: ``, part 2 of <id of the first>``."""
    return f", part {len(previous_runs) + 1} of {previous_runs[0].rpartition('-')[2]}" if previous_runs else ""


def group_of(names: Mapping[str, str], given: str | None) -> str:
    """The W&B group of a run: the given one, else dataset-model-loss."""
    return given or "{dataset}-{model}-{loss}".format(**names)


class TensorBoardTracker(TensorBoardLogger):
    """Lightning's TensorBoard logger, with a method for image files."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log the first of the image files, as RGB uint8 (H, W, 3), under a name."""
        pixels = np.asarray(Image.open(images[0]).convert("RGB"))
        self.experiment.add_image(key, pixels, step, dataformats="HWC")


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
