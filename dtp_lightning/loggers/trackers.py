"""Experiment trackers, which come beside metrics.csv: W&B (offline by default), TensorBoard."""

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

STEP = "trainer/global_step"  # what Lightning's WandbLogger calls the number of batches


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
    """A W&B run of this run folder, grouped by task, its job type the learner; a resumed run is one more of its group.

    W&B never stops a training: see :mod:`dtp_lightning.loggers.guarded_wandb`.

    Args:
        folder: run folder; the offline run lands in ``wandb/`` inside.
        names: chosen group options (learner, loss, model, dataset).
        config: logged as nested plain values, so that W&B can filter on any of them.
        project, tags, entity: W&B's.
        group: W&B's; default dataset-model-loss, so that learners and seeds can be compared.
        mode: ``auto`` is online for a user who is logged in (or set WANDB_MODE), offline for anyone else.
    """
    import wandb

    earlier = sorted(path.name for path in (folder / "wandb").glob("*run-*"))

    def init(mode: str) -> Any:
        run = wandb.init(
            project=project,
            entity=entity,
            dir=str(folder),
            name=f"{names['learner']}-{names['loss']}{_part(earlier)}",
            group=group_of(names, group),
            job_type=names["learner"],
            tags=tags,
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",  # a job of a multirun never writes into the last one's run
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True,
                init_timeout=guarded_wandb.INIT_TIMEOUT, finish_timeout=guarded_wandb.FINISH_TIMEOUT,
            ),
        )  # fmt: skip
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        run.define_metric("val/*", step_metric="epoch")
        return run

    return guarded_wandb.start(init, _mode(mode), folder)


def _part(earlier: Sequence[str]) -> str:
    """What a resumed run adds to its name (W&B cannot append to a run offline): ``, part 2 of <id of the first>``."""
    return f", part {len(earlier) + 1} of {earlier[0].rpartition('-')[2]}" if earlier else ""


def group_of(names: Mapping[str, str], given: str | None) -> str:
    """A run's W&B group: the one given, else dataset-model-loss."""
    return given or "{dataset}-{model}-{loss}".format(**names)


class TensorBoardTracker(TensorBoardLogger):
    """Lightning's TensorBoard logger, which also shows image files."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """The first of some image files, (H, W, 3) of uint8, under a name."""
        pixels = np.asarray(Image.open(images[0]).convert("RGB"))
        self.experiment.add_image(key, pixels, step, dataformats="HWC")


def tensorboard_logger(folder: Path, config: Mapping[str, Any]) -> Logger:
    """TensorBoard event files in ``tensorboard/`` of the run folder, with the configuration as hyper-parameters.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        logger = TensorBoardTracker(str(folder), name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise ConfigError("logger=tensorboard needs TensorBoard: pip install tensorboard") from error
    logger.log_hyperparams(dict(config))
    return logger


def _mode(asked: str) -> Literal["online", "offline", "disabled"]:
    """W&B's mode: what was asked for, else the environment's, else online only for a user with credentials."""
    if asked in ("online", "offline"):
        return asked  # type: ignore[return-value]
    environment = os.environ.get("WANDB_MODE")
    if environment in ("online", "offline", "disabled"):
        return environment  # type: ignore[return-value]
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except Exception as error:  # a refused key or a dead network must not stop a training
        reason = guarded_wandb.brief(error)
        log.warning("W&B could not be reached (%s): logging offline, `wandb sync` later", reason)
        return "offline"
