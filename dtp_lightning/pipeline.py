"""The story of a run: resolve -> build -> fit -> evaluate -> save. The only place that instantiates a configuration."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from dtp_lightning import training
from dtp_lightning.callbacks import Cost
from dtp_lightning.callbacks.macs import macs_per_image
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.run_config import RunConfig
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageData
from dtp_lightning.data.labels import relabel
from dtp_lightning.data.module import fits_memory
from dtp_lightning.data.reader import usable
from dtp_lightning.errors import DataError
from dtp_lightning.evaluation import Evaluation
from dtp_lightning.evaluation.encoders import evaluate_encoders
from dtp_lightning.export.writer import export
from dtp_lightning.figures import plots
from dtp_lightning.figures.diagnostics import plot_diagnostics
from dtp_lightning.loggers.loggers import Loggers
from dtp_lightning.loggers.metrics_csv import MetricsCSV
from dtp_lightning.loggers.predictions import Predictions
from dtp_lightning.losses import as_objective
from dtp_lightning.losses.objective import check_comparisons
from dtp_lightning.models import Network
from dtp_lightning.module import PretrainModule
from dtp_lightning.runs import summary
from dtp_lightning.runs.checkpoint import NAMED
from dtp_lightning.runs.checkpoint_io import Progress, check_resumable
from dtp_lightning.runs.folder import acquire, failures_recorded
from dtp_lightning.runs.reader import settings_of
from dtp_lightning.runtime.distributed import is_multi_device, is_rank_zero
from dtp_lightning.runtime.setup import seed_generators, silence_warnings
from dtp_lightning.runtime.signals import guard
from dtp_lightning.training import build_network

log = logging.getLogger(__name__)


def run(
    cfg: DictConfig, choices: Mapping[str, str], folder: Path, presets: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Pre-train without labels, evaluate the frozen encoder, leave everything in the run folder.

    Args:
        cfg: composed from conf/train.yaml.
        choices: which option of each group was chosen (Hydra's ``runtime.choices``).
        folder: run folder; exists.
        presets: name of the preset and of the sweep -> what it says of itself, for trackers.

    Returns:
        What summary.json holds; nothing in ``mode=views``, and in all but the first of several processes.

    Raises:
        ConfigError: before any data is read, if a key or value does not fit or the folder holds a run.
        DataError: if the data set cannot be read.
        DivergedError: a number of the training was not finite; summary.json says so.
        RunError: the disk is full.
        Interrupted: by a signal; the training is saved.
    """
    return Experiment.resolve(cfg, choices, folder, presets).run()


@dataclass(frozen=True)
class Components:
    """What a run is made of.

    Attributes:
        data: images.
        module: learner and views, to be trained.
        macs_per_image: of a learning step, see :func:`dtp_lightning.callbacks.macs.macs_per_image`.
        untrained: a copy of the learner's network as it is before any training.
        evaluations: built before training, so that what they lack is known before an hour is lost.
        callbacks: those that were chosen, by name.
    """

    data: ImageData
    module: PretrainModule
    macs_per_image: float
    untrained: Network
    evaluations: dict[str, Evaluation]
    callbacks: dict[str, pl.Callback]


@dataclass(frozen=True)
class Experiment:
    """One run, in the order in which it happens; the same in each of the processes that train together.

    Attributes:
        config: what was asked for.
        names: option of each group that the run's names are made of.
        folder: the run's.
        presets: see :func:`run`.
    """

    config: RunConfig
    names: dict[str, str]
    folder: Path
    presets: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def resolve(
        cls, cfg: DictConfig, choices: Mapping[str, str], folder: Path, presets: Mapping[str, str] | None = None
    ) -> Experiment:
        """Check every key and value; arguments and errors are those of :func:`run`."""
        return cls(checked(cfg), {group: str(choices[group]) for group in NAMED}, folder, presets or {})

    @property
    def is_owner(self) -> bool:
        """Whether this process writes the run folder, logs and evaluates; the others only train."""
        return is_rank_zero(self.config.trainer)

    def run(self) -> dict[str, Any]:
        """From the run folder to its summary. :func:`run`"""
        known = {**self.names, "seed": self.config.seed}
        several = is_multi_device(self.config.trainer)
        with acquire(self.folder, self.config, is_owner=self.is_owner) as state:
            if state.finished is not None:
                if self.is_owner:
                    print(f"finished already: {self.folder}", flush=True)
                return state.finished if self.is_owner else {}
            with failures_recorded(self.folder, known, is_owner=self.is_owner, several=several):
                guard.check()
                components = self.build(state.checkpoint)
                guard.check()
                if self.is_owner:
                    self.draw_views(components)
                if self.config.mode == "views":
                    return {}
                with self.loggers(state.checkpoint) as loggers:
                    trainer, cost = self.fit(components, loggers, state.checkpoint)
                    if not self.is_owner:
                        return {}
                    figures, predictions = self.evaluate(components, trainer, cost)
                    self.save(figures, predictions, loggers, step=components.module.global_step)
        print(summary.closing_table(figures, self.folder), flush=True)
        return figures

    def build(self, checkpoint: Path | None) -> Components:
        """Data, network, learner, evaluations and callbacks, and whether they fit each other and the checkpoint."""
        silence_warnings()
        seed_generators(self.config.seed)
        config = self.config
        data: ImageData = relabel(build(config.images), **config.label_options)
        loss = as_objective(build(config.loss))
        supervised = loss.supervised
        if not supervised and data.supervision is not None:
            log.warning("loss=%s reads no labels: what is said of them changes nothing", self.names["loss"])
        if fits_memory(data.pretraining(supervised), config.loading):
            data = data.in_memory()
        guard.check()
        network = build_network(config.model, data.spec, len(data.supervised_classes) if supervised else None)
        untrained = copy.deepcopy(network)
        learner = build(config.learner, model=network, loss=loss)
        augment = build(config.augment, images=data.spec)
        check_comparisons(self.names["loss"], loss, augment.views, config.batch_size)
        macs = macs_per_image(learner, data.spec, augment.views)
        if config.schedule is not None:
            learner.follow_schedule(build(config.schedule))
        evaluations = {name: build(node, augment=augment) for name, node in config.evaluation.items()}
        evaluations = usable(evaluations, data)
        stored = {
            "names": self.names, "config": config.model_dump(), "images": asdict(data.spec),
            "classes": list(data.supervised_classes if supervised else data.classes),
        }  # fmt: skip
        module = PretrainModule(learner, augment, config.seed, stored)
        callbacks = {
            name: build(node, data=data, augment=augment, folder=self.folder) for name, node in config.callbacks.items()
        }
        callbacks = usable(callbacks, data)
        if config.average is not None:
            callbacks["average"] = build(config.average)  # last: what others see at the end are still the weights
        if checkpoint is not None:
            check_resumable(checkpoint, module, config.max_epochs, averages=config.average is not None)
        return Components(data, module, macs, untrained, evaluations, callbacks)

    def draw_views(self, components: Components) -> None:
        """Ten images above their views."""
        images = components.data.pretraining().images
        some = images[:: max(1, len(images) // 10)][:10]
        path = self.folder / "plots" / "views.png"
        with torch.random.fork_rng([]):
            plots.plot_views(some, components.module.augment(some), path)
        if self.config.mode == "views":
            print(f"views drawn to {path}", flush=True)

    def loggers(self, checkpoint: Path | None) -> Loggers:
        """metrics.csv, with what a resumed run keeps of it, and the trackers; nothing in other processes."""
        if not self.is_owner:
            return Loggers()
        config = self.config.model_dump()
        if checkpoint is None:
            metrics_csv = MetricsCSV(self.folder)
        else:
            done = Progress.read(checkpoint)
            metrics_csv = MetricsCSV(self.folder, done.step, ended=done.epochs >= self.config.max_epochs)
        told = {
            "settings": settings_of(self.folder),
            "preset": " ".join(self.presets),
            "notes": "\n\n".join(self.presets.values()),
        }
        names = self.names | told
        trackers = (build(node, folder=self.folder, names=names, config=config) for node in self.config.logger.values())
        return Loggers(metrics_csv, list(trackers))

    def fit(self, components: Components, loggers: Loggers, checkpoint: Path | None) -> tuple[pl.Trainer, Cost]:
        """Train, from a checkpoint if there is one; the trainer, and what it cost."""
        return training.fit(
            self.config, components.data, components.module, components.callbacks, loggers.for_trainer, self.folder,
            checkpoint,
        )  # fmt: skip

    def evaluate(self, components: Components, trainer: pl.Trainer, cost: Cost) -> tuple[dict[str, Any], Predictions]:
        """The frozen encoder beside the untrained one, what training cost, and which code made these numbers."""
        trained, device = components.module.learner.model, trainer.strategy.root_device
        data = components.data
        predictions = Predictions(data.test.images, data.test.labels, data.classes)
        told = (self.config.images, self.config.augment, self.config.seed, str(device))
        measured_by = {name: repr((node, *told)) for name, node in self.config.evaluation.items()}
        figures = {
            **self.names,
            "seed": self.config.seed,
            "epochs": trainer.current_epoch,
            "devices": trainer.world_size,
            **summary.weights_of(self.config.model_dump()),
            **evaluate_encoders(
                components.evaluations, trained, components.untrained, components.data, self.config.seed, device,
                self.folder / "plots", predictions, measured_by,
            ),
            **cost.summary(),
            "cost/macs_per_image": components.macs_per_image,
            **summary.provenance(),
        }  # fmt: skip
        return figures, predictions

    def save(self, figures: Mapping[str, Any], predictions: Predictions, loggers: Loggers, step: int) -> None:
        """The summary, the plots and the encoder, first on disk and then in the trackers."""
        metrics, plots_folder = self.folder / "metrics.csv", self.folder / "plots"
        summary.write_summary(figures, self.folder / "summary.json")
        plots.plot_curves(metrics, plots_folder / "curves.png")
        title = "{learner} x {loss}, {model} on {dataset}, seed {seed}".format(**figures)
        plot_diagnostics(metrics, plots_folder / "diagnostics.png", title)
        loggers.log_scalars(summary.scalars_of(figures), step=step)
        loggers.log_images(summary.figures_in(self.folder), step=step)
        loggers.log_predictions(predictions, step=step)
        loggers.log_encoder(self.exported)

    def exported(self) -> dict[Path, Path]:
        """The encoders of the best checkpoint, if there is one, and of the last: weights -> checkpoint."""
        checkpoints = [self.folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        try:
            return {export(path): path for path in checkpoints if path.exists()}
        except (DataError, OSError) as error:  # a network that no card can describe, or a full disk
            log.info("no encoder for trackers: %s", error)
            return {}
