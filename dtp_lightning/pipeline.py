"""Config -> objects -> fit -> evaluate -> summary. The only place that instantiates."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dtp_lightning import training
from dtp_lightning.callbacks import Cost
from dtp_lightning.callbacks.macs import macs_per_image
from dtp_lightning.config.compatibility import check_comparisons, check_start, usable
from dtp_lightning.config.instantiate import EVALUATE_SCALARS, build, checked
from dtp_lightning.data.images import ImageData
from dtp_lightning.data.module import fits_memory
from dtp_lightning.errors import ConfigError
from dtp_lightning.evaluation import Evaluation
from dtp_lightning.evaluation.judge import judge
from dtp_lightning.figures import plots
from dtp_lightning.figures.diagnostics import plot_diagnostics
from dtp_lightning.loggers import trackers as tracking
from dtp_lightning.loggers.metrics_csv import MetricsCSV
from dtp_lightning.losses import as_objective
from dtp_lightning.models import Network
from dtp_lightning.module import PretrainModule
from dtp_lightning.runs import summary
from dtp_lightning.runs.checkpoint import NAMED, Checkpoint
from dtp_lightning.runs.checkpoint_io import Progress
from dtp_lightning.runs.folder import claimed, failures_recorded, followed, record_error
from dtp_lightning.runtime.distributed import is_multi_device, is_rank_zero

log = logging.getLogger(__name__)


def run(cfg: DictConfig, choices: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Pre-train without labels, evaluate the frozen encoder, leave everything in the run folder.

    Args:
        cfg: composed from conf/train.yaml.
        choices: which option of each group was chosen (Hydra's ``runtime.choices``).
        folder: run folder; exists.

    Returns:
        What summary.json holds; nothing in ``mode=views``, and in all but the first of several processes.

    Raises:
        ConfigError: before any data is read, if a key or value does not fit or the folder holds a run.
        DataError: if the data set cannot be read.
        DivergedError: a number of the training was not finite; summary.json says so.
        RunError: the disk is full.
        Interrupted: by a signal; the training is saved.
    """
    values = checked(cfg)
    names = {group: str(choices[group]) for group in NAMED}
    if not is_rank_zero(values["trainer"]):
        return _follow(values, names, folder)
    with claimed(folder, values) as claim:
        if claim.finished is not None:
            print(f"finished already: {folder}", flush=True)
            return claim.finished
        several = is_multi_device(values["trainer"])
        with failures_recorded(folder, {**names, "seed": values["seed"]}, several=several):
            return _run(values, names, folder, claim.checkpoint)


def _follow(values: Mapping[str, Any], names: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Take part in the training of a run that the first process owns."""
    claim = followed(folder, values)
    if claim.finished is None and values["mode"] == "train":
        _quieten()
        _seed(values["seed"])
        try:
            _fit(values, _assemble(values, names), [], folder, claim.checkpoint)
        except BaseException as error:
            record_error(folder, error, keep_first=True)
            raise
    return {}


def _run(values: Mapping[str, Any], names: Mapping[str, str], folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    _quieten()
    _seed(values["seed"])
    parts = _assemble(values, names)
    if values["mode"] == "views":
        _draw_views(parts, folder)
        print(f"views drawn to {folder / 'plots' / 'views.png'}", flush=True)
        return {}
    loggers = [
        _metrics_csv(values, folder, checkpoint),
        *(build(node, folder=folder, names=names, config=values) for node in values["logger"].values()),
    ]
    macs = macs_per_image(parts.module.learner, parts.data.spec, parts.views)
    failed = True
    try:
        trainer, cost = _fit(values, parts, loggers, folder, checkpoint)
        trained, device = parts.module.learner.model, trainer.strategy.root_device
        judged = judge(
            parts.evaluations, trained, parts.untrained, parts.data, values["seed"], device, folder / "plots"
        )
        found = {**names, "seed": values["seed"], "epochs": trainer.current_epoch, "devices": trainer.world_size}
        found |= {**judged, **cost.summary(), "cost/macs_per_image": macs, **summary.provenance()}
        _finish(found, loggers, folder, step=parts.module.global_step)
        failed = False
    finally:
        tracking.close(loggers, failed=failed)
    print(summary.closing_table(found, folder), flush=True)
    return found


def _metrics_csv(values: Mapping[str, Any], folder: Path, checkpoint: Path | None) -> Logger:
    if checkpoint is None:
        return MetricsCSV(folder)
    done = Progress.read(checkpoint)
    return MetricsCSV(folder, up_to_step=done.step, ended=done.epochs >= values["trainer"]["max_epochs"])


def evaluate(cfg: DictConfig, choices: Mapping[str, str], folder: Path, cwd: Path) -> dict[str, Any]:
    """Evaluate the encoder in a checkpoint on any data set; leave a summary.json that reports read like a run's.

    Args:
        cfg: composed from conf/evaluate.yaml.
        choices: Hydra's ``runtime.choices``.
        folder: for the summary and figures; exists.
        cwd: what a relative ``checkpoint`` is relative to.

    Returns:
        What summary.json holds: that of the run, with ``evaluated_on`` and ``checkpoint``, without ``fit/...``.

    Raises:
        ConfigError, DataError: a key, the checkpoint or the data set is wrong.
    """
    values = checked(cfg, EVALUATE_SCALARS, ("dataset",), ("evaluation",), optional=("dataset",))
    _quieten()
    path = cwd / Path(values["checkpoint"]).expanduser()
    stored = Checkpoint.read(path)
    with claimed(folder, values):  # a folder holds one run or one evaluation
        return _evaluate(values, choices, folder, stored, path)


def _evaluate(
    values: Mapping[str, Any], choices: Mapping[str, str], folder: Path, stored: Checkpoint, path: Path
) -> dict[str, Any]:
    seed = stored.config["seed"]
    data: ImageData = build(values["dataset"] or stored.node("dataset")).like(stored.images)
    _seed(seed)  # the untrained network is the one that this run began with
    supervised = as_objective(build(stored.node("loss"))).supervised
    network: Network = build(
        stored.node("model"), images=stored.images, classes=len(stored.classes) if supervised else None
    )
    untrained = copy.deepcopy(network)
    stored.load_into(network)
    augment = build(stored.node("augment"), images=stored.images)
    evaluations = {name: build(node, augment=augment) for name, node in values["evaluation"].items()}
    evaluations = usable(evaluations, data)
    if not evaluations:
        raise ConfigError("nothing is left to evaluate: choose an evaluation that this data set has the labels for")
    device = _device(values["accelerator"])
    judged = judge(evaluations, network, untrained, data, seed, device, folder / "plots")
    found = {
        **stored.names,
        "seed": seed,
        "epochs": stored.epochs,
        "evaluated_on": choices["dataset"] if values["dataset"] else stored.names["dataset"],
        "checkpoint": str(path),
        "settings": summary.settings_of(path.parent.parent),
        **judged,
        **summary.provenance(),
    }
    summary.write_summary(found, folder / "summary.json")
    print(summary.closing_table(found, folder), flush=True)
    return found


def _device(accelerator: str) -> torch.device:
    try:
        device = pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"accelerator={accelerator}: {str(error).splitlines()[0]}") from error
    return device


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        data: images.
        module: learner and views.
        views: V, of each image.
        untrained: a copy of the learner's network as it is before any training.
        evaluations: built before training, so that what they lack is known before an hour is lost.
    """

    data: ImageData
    module: PretrainModule
    views: int
    untrained: Network
    evaluations: dict[str, Evaluation]


def _assemble(values: Mapping[str, Any], names: Mapping[str, str]) -> Parts:
    data: ImageData = build(values["dataset"])
    loss = as_objective(build(values["loss"]))
    supervised = loss.supervised
    if fits_memory(data.pretraining(supervised), values["loading"]):
        data = data.in_memory()
    network: Network = build(values["model"], images=data.spec, classes=len(data.classes) if supervised else None)
    untrained = copy.deepcopy(network)
    learner = build(values["learner"], model=network, loss=loss)
    augment = build(values["augment"], images=data.spec)
    check_comparisons(names["loss"], loss, augment.views, values["batch_size"])
    evaluations = {name: build(node, augment=augment) for name, node in values["evaluation"].items()}
    kept = {"names": dict(names), "config": dict(values), "images": asdict(data.spec), "classes": list(data.classes)}
    module = PretrainModule(learner, augment, values["seed"], kept)
    return Parts(data, module, augment.views, untrained, usable(evaluations, data))


def _fit(
    values: Mapping[str, Any], parts: Parts, loggers: list[Logger], folder: Path, start: Path | None
) -> tuple[pl.Trainer, Cost]:
    """Train, from a checkpoint if there is one; returns the trainer and what it cost."""
    built = {
        name: build(node, data=parts.data, augment=parts.module.augment, folder=folder)
        for name, node in values["callbacks"].items()
    }
    callbacks = usable(built, parts.data)
    if start:
        check_start(start, parts.module, values["trainer"]["max_epochs"])
    if is_rank_zero(values["trainer"]):
        _draw_views(parts, folder)
    return training.fit(values, parts.data, parts.module, callbacks, loggers, folder, start)


def _draw_views(parts: Parts, folder: Path) -> None:
    """Ten images above their views."""
    images = parts.data.pretraining().images
    some = images[:: max(1, len(images) // 10)][:10]
    with torch.random.fork_rng([]):
        plots.plot_views(some, parts.module.augment(some), folder / "plots" / "views.png")


def _finish(found: Mapping[str, Any], loggers: list[Logger], folder: Path, step: int) -> None:
    """The summary and figures, first on disk and then in the trackers (not in metrics.csv: it is a time series)."""
    summary.write_summary(found, folder / "summary.json")
    plots.plot_curves(folder / "metrics.csv", folder / "plots" / "curves.png")
    title = "{learner} x {loss}, {model} on {dataset}, seed {seed}".format(**found)
    plot_diagnostics(folder / "metrics.csv", folder / "plots" / "diagnostics.png", title)
    trackers = loggers[1:]
    for logger in trackers:
        logger.log_metrics(summary.scalars_of(found), step=step)
    tracking.log_images(trackers, summary.figures_in(folder), step=step)


def _seed(seed: int) -> None:
    """All generators, explicitly: in a multirun the last job's state is still there."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _quieten() -> None:
    """Silence advice that does not apply here."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are slices of a tensor on the device
        ".*exists and is not empty.*",  # Hydra's own files are in the run folder
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*The dirpath has changed.*",  # a run that goes on from another's checkpoint keeps its own
        ".*sync_dist=True.*",  # what is logged is of the whole batch already
        ".*ended before the epoch ended.*",  # our sampler knows where it was
        ".*callbacks used to create the checkpoint.*",  # they may differ; the training does not depend on them
        ".*LeafSpec.*",  # Lightning 2.6 calls what torch 2.15 deprecates
    ):
        warnings.filterwarnings("ignore", message)
