"""The story of an evaluation: a checkpoint and any data set -> what probes find in its encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.run_config import EvaluationConfig, Nodes, without_ours
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageData, ImageSpec
from dtp_lightning.data.reader import usable
from dtp_lightning.errors import ConfigError
from dtp_lightning.evaluation.encoders import evaluate_encoders
from dtp_lightning.loggers.identity import Identity
from dtp_lightning.loggers.loggers import Loggers
from dtp_lightning.loggers.predictions import Predictions
from dtp_lightning.loggers.trackers import WANDB
from dtp_lightning.loggers.wandb_media import aliases_of
from dtp_lightning.losses import as_objective
from dtp_lightning.runs import summary
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runs.folder import acquire
from dtp_lightning.runs.reader import settings_of
from dtp_lightning.runtime.memory import shortage_named
from dtp_lightning.runtime.setup import seed_generators, silence_warnings
from dtp_lightning.runtime.signals import guard
from dtp_lightning.training import build_network


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
    config = checked(cfg, EvaluationConfig)
    silence_warnings()
    stored = Checkpoint.read(cwd / Path(config.checkpoint).expanduser())
    evaluated_on = choices["dataset"] if config.dataset else stored.names["dataset"]
    with acquire(folder, config), shortage_named():  # a folder holds one run or one evaluation
        found, predictions = _evaluate_checkpoint(config, stored, folder)
        figures = {
            **stored.names,
            "seed": stored.config["seed"],
            "epochs": stored.epochs,
            "evaluated_on": evaluated_on,
            "checkpoint": str(stored.path),
            **summary.weights_of(stored.config),
            "settings": settings_of(stored.path.parent.parent),
            **found,
            **summary.provenance(),
        }
        summary.write_summary(figures, folder / "summary.json")
        with _loggers(config, choices.get("logger"), stored, evaluated_on, folder) as loggers:
            loggers.log_scalars({**summary.scalars_of(figures), "epoch": stored.epochs}, step=stored.step)
            loggers.log_images(summary.figures_in(folder), step=stored.step)
            loggers.log_predictions(predictions, step=stored.step)
    print(summary.closing_table(figures, folder), flush=True)
    return figures


def _loggers(
    config: EvaluationConfig, chosen: str | None, stored: Checkpoint, evaluated_on: str, folder: Path
) -> Loggers:
    """The chosen trackers; where none was chosen, W&B if the run was logged to it."""
    run = stored.path.parent.parent
    identity = Identity.read(run)
    nodes = _as_the_run(stored, identity) if chosen in (None, "null") else config.logger
    names = {**stored.names, "settings": settings_of(run), "evaluated_on": evaluated_on}
    if identity is not None:
        names["trained_run"] = identity.id
        if aliases := aliases_of(stored.path.stem):
            names["encoder"] = f"encoder-{identity.id}:{aliases[0]}"
    # with the keys of its training, to group by
    told = {**stored.config, **{key: value for key, value in config.model_dump().items() if value is not None}}
    return Loggers(None, [build(node, folder=folder, names=names, config=told) for node in nodes.values()])


def _as_the_run(stored: Checkpoint, identity: Identity | None) -> Nodes:
    """W&B's node for project and group of the run. A checkpoint may be a stranger's: nothing else is taken of its node.

    So nothing is sent to where its maker chose: an entity has to be given (logger=wandb logger.wandb.entity=...).
    """
    trackers = stored.config.get("logger")
    node = trackers.get("wandb") if isinstance(trackers, Mapping) else None
    if not isinstance(node, Mapping) or node.get("_target_") != WANDB:
        return {}
    project = {"project": node["project"]} if isinstance(node.get("project"), str) else {}
    group = {"group": identity.group} if identity else {}
    mode = "offline" if node.get("mode") == "offline" else "auto"
    return {"wandb": {"_target_": WANDB, "mode": mode, **project, **group}}


def _evaluate_checkpoint(
    config: EvaluationConfig, stored: Checkpoint, folder: Path
) -> tuple[dict[str, Any], Predictions]:
    """What evaluations find in the encoder of a checkpoint, and in the network that its run began with."""
    seed, images = stored.config["seed"], ImageSpec.from_dict(stored.images)
    supervised, dataset = as_objective(build(stored.node("loss"))).supervised, stored.node("dataset")
    seed_generators(seed)  # the untrained network is the one that this run began with
    classes = len(stored.classes) if supervised else None
    network = build_network(stored.node("model"), images, classes, check=stored.check_fits)
    data: ImageData = build(config.dataset or without_ours("dataset", dataset)).like(images)
    guard.check()
    untrained = copy.deepcopy(network)
    stored.load_into(network)
    augment = build(stored.node("augment"), images=images)
    evaluations = {name: build(node, augment=augment) for name, node in config.evaluation.items()}
    evaluations = usable(evaluations, data)
    if not evaluations:
        raise ConfigError("nothing is left to evaluate: choose an evaluation that this data set has the labels for")
    device, predictions = _device(config.accelerator), Predictions(data.test.images, data.test.labels, data.classes)
    plots = folder / "plots"
    found = evaluate_encoders(evaluations, network, untrained, data, seed, device, plots, predictions)
    return found, predictions


def _device(accelerator: str) -> torch.device:
    try:
        return pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        raise ConfigError(f"accelerator={accelerator}: {str(error).splitlines()[0]}") from error
