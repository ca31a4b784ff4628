"""Diagnostics of a learning rule: alignment with backprop, quality of the feedback maps, rank of the features."""

from __future__ import annotations

import copy
import math
import time
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dtp_lightning.callbacks.base import DataCallback
from dtp_lightning.callbacks.measures import (
    effective_rank,
    effective_steps,
    jacobian_alignment,
    reconstruction,
    saturation,
    snapshot,
    update_alignment,
)
from dtp_lightning.data.images import ImageData
from dtp_lightning.evaluation.health import dead_units
from dtp_lightning.learners import Learner
from dtp_lightning.runtime import collectives

SEED = 2_007  # of the views, the random vectors and the noise of the copy: the same in each measurement and run


class Alignment(DataCallback):
    """Logs ``diagnostics/...`` every n batches, before the first and after the last, on one fixed augmented batch.

    All metrics are measured on a copy of the learner and with separate random numbers, so the training is unchanged.
    A row at step s describes the weights after s batches, and ``effective_step`` their update by the next batch.
    docs/diagnostics.md defines each metric. With several processes rank 0 measures, and the others wait.

    Args:
        data: images of its validation split are used, and their labels by supervised losses only.
        augment: the augmentation of the run.
        every_n_steps: n, in batches; a measurement takes about as long as five batches of 100 images.
        images: B, the number of validation images at most, evenly spaced.
    """

    def __init__(
        self, data: ImageData, augment: nn.Module, every_n_steps: PositiveInt = 50, images: PositiveInt = 200
    ) -> None:
        self.every_n_steps = every_n_steps
        batch = data.validation.subset(images)
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            self.views: Tensor = augment(batch.images)  # on the CPU, to be the same for every device
        self.labels = batch.labels
        self.overhead_seconds = 0.0
        self._metrics: dict[str, float] = {}
        self._weights_before: list[list[Tensor]] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure before the batch, and copy the weights that it updates."""
        if trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        learner = cast(Learner, pl_module.learner)
        self._metrics = self._measure(learner)
        self._weights_before = snapshot(learner)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the update of the weights; log at the step of the batch, as its training metrics."""
        if self._weights_before is None:
            return
        self._metrics |= effective_steps(cast(Learner, pl_module.learner), self._weights_before)
        self._weights_before = None
        self._log(trainer, trainer.global_step - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the trained weights."""
        if not trainer.is_global_zero:
            return
        self._metrics = self._measure(cast(Learner, pl_module.learner))
        self._log(trainer, trainer.global_step)

    def _log(self, trainer: pl.Trainer, step: int) -> None:
        """Log to the loggers directly, as ``self.log`` logs at every ``log_every_n_steps``-th step only."""
        metrics = {f"diagnostics/{name}": value for name, value in self._metrics.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _measure(self, learner: Learner) -> dict[str, float]:
        """Metrics of a copy of the learner; adds the time to ``overhead_seconds``."""
        device = next(learner.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the queue of the training is not part of the overhead
        start = time.perf_counter()
        generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with generators, torch.enable_grad(), collectives.single_process():
            torch.manual_seed(SEED)
            metrics = diagnose(copy.deepcopy(learner), self.views.to(device), self.labels.to(device))
        self.overhead_seconds += time.perf_counter() - start
        return metrics


def diagnose(learner: Learner, views: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """Measure all diagnostics of a learner, except the effective steps.

    Args:
        learner: a copy, since its feedback maps take a step.
        views: (V, B, C, H, W) in [0, 1].
        labels: int64 (B,), for a supervised loss.

    Returns:
        Metric -> value, without the prefix ``diagnostics/``.
    """
    generator = torch.Generator().manual_seed(SEED)
    metrics = {}
    with torch.no_grad():
        traces = Learner.trace(learner, views.flatten(0, 1))  # all stages; a rule may trace only those that learn
        embeddings = learner.model.head(traces[-1].h)
    for i, trace in enumerate(traces, 1):
        metrics[f"dead_units/stage{i}"] = dead_units(trace.h)
        metrics |= {f"{name}/stage{i}": value for name, value in saturation(trace).items()}
        u = torch.randn(trace.h.shape, generator=generator).to(trace.h.device)
        if trace.stage.feedback_map is not None and learner.uses_feedback_maps:
            cosine, ratio = jacobian_alignment(trace, u)
            metrics[f"jacobian_cosine/stage{i}"] = cosine
            metrics[f"jacobian_norm_ratio/stage{i}"] = ratio
            metrics[f"reconstruction/stage{i}"] = reconstruction(trace)
    metrics["effective_rank/features"] = effective_rank(traces[-1].h.flatten(1))
    metrics["effective_rank/embeddings"] = effective_rank(embeddings)
    return metrics | update_alignment(learner, views, labels)  # last, as it updates the feedback maps
