"""The fit: Lightning's Trainer with what every run has (cost, checkpoints, signals, a watch over its numbers)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dtp_lightning.callbacks import Collapse, Cost, LastCheckpoint, Nonfinite
from dtp_lightning.callbacks.nonfinite import finite
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.run_config import Node, RunConfig
from dtp_lightning.data.images import ImageData, ImageSpec
from dtp_lightning.data.module import ImageDataModule
from dtp_lightning.errors import ConfigError, DivergedError, RunError
from dtp_lightning.models import Network
from dtp_lightning.module import PretrainModule
from dtp_lightning.runs.checkpoint_io import AtomicCheckpointIO
from dtp_lightning.runtime.distributed import check_launch
from dtp_lightning.runtime.memory import ADVICE, GIB, machine_memory
from dtp_lightning.runtime.signals import guard

COPIES = 3  # of the weights, at least: those that learn, their gradients, and the untrained network


def build_network(
    node: Mapping[str, Any],
    images: ImageSpec,
    classes: int | None,
    check: Callable[[Network], None] = lambda network: None,
) -> Network:
    """The network of a configuration, if this machine can hold it.

    Args:
        node: its ``model``.
        images: what it takes.
        classes: K, for a supervised control.
        check: called with a network on the meta device, before the one that takes memory is made.

    Raises:
        RunError: it cannot; said before the system ends the process, which Linux does without a word.
    """
    there = machine_memory()
    with contextlib.suppress(RuntimeError, NotImplementedError):  # a network of one's own may need real numbers
        with torch.random.fork_rng([]), torch.device("meta"):
            sketch = build(node, images=images, classes=classes)
        parameters = list(sketch.parameters())
        check(sketch)
        needed = COPIES * sum(p.numel() * p.element_size() for p in parameters)
        if there is not None and needed > there:
            raise RunError(
                f"model: the network has {sum(p.numel() for p in parameters):,} weights; to train it takes more than "
                f"{needed / GIB:.0f} GiB of memory, and this machine has {there / GIB:.0f} GiB: {ADVICE}"
            )
    network: Network = build(node, images=images, classes=classes)
    return network


def fit(
    config: RunConfig,
    data: ImageData,
    module: PretrainModule,
    callbacks: Mapping[str, pl.Callback],
    loggers: list[Logger],
    folder: Path,
    start: Path | None,
) -> tuple[pl.Trainer, Cost]:
    """Train, from a checkpoint if there is one; returns the trainer and what it cost.

    Args:
        config: of the run.
        data: images.
        module: to be trained.
        callbacks: those that were chosen, by name.
        loggers: metrics go to all of them.
        folder: the run's.
        start: a checkpoint to go on from.

    Raises:
        ConfigError: this machine or this data cannot do what was asked for.
        DivergedError: a number was not finite.
        Interrupted: a signal came; the training is saved.
    """
    supervised = module.learner.loss.supervised
    cost = Cost()
    always = [
        cost,
        Nonfinite(config.on_nonfinite),
        *([] if supervised else [Collapse()]),
    ]
    last = LastCheckpoint(folder, config.save_every_n_steps)  # holds what the others, the best checkpoint's too, know
    trainer = _trainer(config.lightning_trainer, folder, loggers, [*always, *callbacks.values(), last])
    if trainer.world_size > 1 and config.save_every_n_steps:
        raise ConfigError("trainer.save_every_n_steps: several devices save at epoch ends only; remove it")
    batches = ImageDataModule(
        data, config.batch_size, config.seed,
        supervised=supervised, loading=config.loading, workers=config.workers, processes=trainer.world_size,
    )  # fmt: skip
    # the optimisers' and the learner's state are tensors and numbers: nothing in a checkpoint is executed
    with guard.collect():
        guard.check()
        try:
            trainer.fit(module, batches, ckpt_path=start, weights_only=True if start else None)
        except MisconfigurationException as error:  # such as a share of the batches that is less than one
            raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error
    if not finite(module.learner.model.parameters()):
        raise DivergedError("the trained weights are not finite: there is nothing to evaluate")
    return trainer, cost


def _trainer(node: Node, folder: Path, loggers: list[Logger], callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer, or one line that says why it cannot be had on this machine."""
    bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    try:
        # batches are shared between processes by their own sampler
        ours = {"default_root_dir": str(folder), "enable_progress_bar": bar, "use_distributed_sampler": False}
        trainer: pl.Trainer = build({**node, **ours}, logger=loggers, callbacks=callbacks)
    except (MisconfigurationException, TypeError, ModuleNotFoundError) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error
    check_launch(trainer, node["devices"])
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer
