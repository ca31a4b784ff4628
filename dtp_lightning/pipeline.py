"""Config -> objects -> fit -> evaluate -> summary. The only place that instantiates."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from dtp_lightning import tracking
from dtp_lightning.callbacks import Cost
from dtp_lightning.config import build, checked
from dtp_lightning.data.images import ImageData
from dtp_lightning.data.module import ImageDataModule
from dtp_lightning.errors import ConfigError
from dtp_lightning.evaluation import FrozenEncoder, Result
from dtp_lightning.models import Network, freeze
from dtp_lightning.module import PretrainModule
from dtp_lightning.report import plots, summary

NAMED = ("learner", "loss", "model", "dataset")


def run(cfg: DictConfig, choices: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Pre-train without labels, evaluate the frozen encoder, leave everything in the run folder.

    Args:
        cfg: composed from conf/train.yaml.
        choices: which option of each group was chosen (Hydra's ``runtime.choices``).
        folder: run folder; exists.

    Returns:
        What summary.json holds.

    Raises:
        ConfigError: before any data is read, if a key or value does not fit or the folder holds a run.
        DataError: if the data set cannot be read.
    """
    values = checked(cfg)
    names = {group: str(choices[group]) for group in NAMED}
    _claim(folder, values)
    _quieten()
    _seed(values["seed"])
    data: ImageData = build(values["dataset"])
    module, untrained = _assemble(values, data)
    loggers = [
        tracking.metrics_csv(folder),
        *(build(node, folder=folder, names=names, config=values) for node in values["logger"].values()),
    ]
    failed = True
    try:
        trainer, cost = _fit(values, module, data, loggers, folder)
        encoders = {"": module.learner.model, summary.RANDOM: untrained}
        found = {
            **names,
            "seed": values["seed"],
            "epochs": trainer.current_epoch,
            **_evaluate(values, encoders, data, module.augment, folder, trainer.strategy.root_device),
            **cost.summary(),
            "git_commit": summary.git_commit(),
            "versions": summary.versions(),
        }
        _finish(found, loggers, folder, step=module.global_step)
        failed = False
    finally:
        tracking.close(loggers, failed=failed)
    print(summary.closing_table(found, folder), flush=True)
    return found


def _claim(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the resolved configuration; whoever creates the file owns the folder."""
    try:
        with (folder / "config.yaml").open("x") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(dict(values))))
    except FileExistsError as error:
        raise ConfigError(f"{folder} holds a run already: choose another folder by hydra.run.dir=...") from error


def _assemble(values: Mapping[str, Any], data: ImageData) -> tuple[PretrainModule, Network]:
    """The module, and a copy of its network as it is before any training."""
    network: Network = build(values["model"], images=data.spec)
    untrained = copy.deepcopy(network)
    learner = build(values["learner"], model=network, loss=build(values["loss"]))
    augment = build(values["augment"], images=data.spec)
    kept = {"config": dict(values), "images": asdict(data.spec), "classes": list(data.classes)}
    return PretrainModule(learner, augment, values["seed"], kept), untrained


def _fit(
    values: Mapping[str, Any], module: PretrainModule, data: ImageData, loggers: list[Logger], folder: Path
) -> tuple[pl.Trainer, Cost]:
    """Train; returns the trainer and what it cost."""
    cost = Cost()
    checkpoint = ModelCheckpoint(
        folder / "checkpoints", filename="last", every_n_epochs=1, save_top_k=1, save_on_train_epoch_end=True,
        enable_version_counter=False,
    )  # fmt: skip
    extra = [build(node, data=data, augment=module.augment, folder=folder) for node in values["callbacks"].values()]
    trainer = _trainer(values["trainer"], folder, loggers, [cost, checkpoint, *extra])
    batches = ImageDataModule(data, values["batch_size"], values["seed"])
    some = data.train.images[:: max(1, len(data.train) // 10)][:10]
    plots.plot_views(some, module.augment(some), folder / "plots" / "views.png")
    trainer.fit(module, batches)
    return trainer, cost


def _trainer(node: Mapping[str, Any], folder: Path, loggers: list[Logger], callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer, or one line that says why it cannot be had on this machine."""
    bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    try:
        trainer: pl.Trainer = build(
            {**node, "default_root_dir": str(folder), "enable_progress_bar": bar}, logger=loggers, callbacks=callbacks
        )
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error
    if trainer.world_size > 1:  # local gradients are not averaged between processes: they would drift apart in silence
        raise ConfigError(f"trainer.devices={node['devices']}: training runs on one device; set trainer.devices=1")
    return trainer


def _evaluate(
    values: Mapping[str, Any],
    networks: Mapping[str, Network],
    data: ImageData,
    augment: nn.Module,
    folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """Every evaluation on the trained and on the untrained encoder; the keys begin with the encoder's prefix."""
    metrics: dict[str, float] = {}
    encoders = {p: FrozenEncoder(freeze(n).to(device), data, values["seed"]) for p, n in networks.items()}
    for name, node in values["evaluation"].items():
        evaluate = build(node, augment=augment)
        results: dict[str, Result] = {prefix: evaluate(encoder) for prefix, encoder in encoders.items()}
        for prefix, result in results.items():
            metrics |= {f"{prefix}{name}/{key}": value for key, value in result.metrics.items()}
        _draw(name, results, data, folder / "plots")
    return metrics


def _draw(name: str, results: Mapping[str, Result], data: ImageData, folder: Path) -> None:
    """The figures that an evaluation's results ask for."""
    trained = results[""]
    if trained.test_predictions is not None:
        title = f"{name}, test accuracy {100 * trained.metrics['test_acc']:.1f} %"
        path = folder / f"confusion_{name}.png"
        plots.plot_confusion(data.test.labels, trained.test_predictions, data.classes, title, path)
    if trained.histograms:
        rows = {"random encoder": results[summary.RANDOM].histograms, "trained": trained.histograms}
        plots.plot_histograms(rows, folder / f"{name}.png")


def _finish(found: Mapping[str, Any], loggers: list[Logger], folder: Path, step: int) -> None:
    """The summary and figures, first on disk and then in the trackers (not in metrics.csv: it is a time series)."""
    summary.write_summary(found, folder / "summary.json")
    plots.plot_curves(folder / "metrics.csv", folder / "plots" / "curves.png")
    trackers = loggers[1:]
    for logger in trackers:
        logger.log_metrics({key: value for key, value in found.items() if isinstance(value, float)}, step=step)
    figures = {f"plots/{path.stem}": path for path in sorted((folder / "plots").glob("*.png"))}
    tracking.log_images(trackers, figures, step=step)


def _seed(seed: int) -> None:
    """All generators, explicitly: in a multirun the last job's state is still there."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _quieten() -> None:
    """Silence advice that does not apply here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are slices of a tensor on the device
        ".*exists and is not empty.*",  # Hydra's own files are in the run folder
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*LeafSpec.*",  # Lightning 2.6 calls what torch 2.15 deprecates
    ):
        warnings.filterwarnings("ignore", message)
