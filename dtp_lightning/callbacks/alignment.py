"""Does a rule follow backprop, does its feedback undo its forward path, does the representation collapse?"""

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
    dead_units,
    effective_rank,
    effective_steps,
    jacobian_alignment,
    reconstruction,
    saturation,
    snapshot,
    update_alignment,
)
from dtp_lightning.data.images import ImageData
from dtp_lightning.learners import Learner
from dtp_lightning.runtime import collectives

SEED = 2_007  # of the views, the probes and the copy's noise: the same at every look, whatever the run's seed


class Alignment(DataCallback):
    """Logs ``diagnostics/...`` every n batches, before the first and after the last, on one fixed augmented batch.

    Everything is measured on a copy of the learner and with randomness of its own: the training does not notice.
    A row at step s describes the weights after s batches, and ``effective_step`` what batch s then did to them.
    docs/diagnostics.md defines each quantity. Of several processes the first looks, and the others wait.

    Args:
        data: ``val`` is looked at; its labels reach supervised losses alone.
        augment: the run's own views.
        every_n_steps: n, in batches; a look costs about as much as five batches of 100 images.
        images: at most so many, evenly spaced.
    """

    def __init__(
        self, data: ImageData, augment: nn.Module, every_n_steps: PositiveInt = 50, images: PositiveInt = 200
    ) -> None:
        self.every_n_steps = every_n_steps
        some = data.val.subset(images)
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            self.views: Tensor = augment(some.images)  # drawn on the CPU, so that no device changes them
        self.labels = some.labels
        self.overhead_seconds = 0.0
        self._metrics: dict[str, float] = {}
        self._before: list[list[Tensor]] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the weights that the batch is going to change."""
        if trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        learner = cast(Learner, pl_module.learner)
        self._metrics = self._look(learner)
        self._before = snapshot(learner)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See how far they moved; log under the batch's number, as its training metrics are."""
        if self._before is None:
            return
        self._metrics |= effective_steps(cast(Learner, pl_module.learner), self._before)
        self._before = None
        self._log(trainer, trainer.global_step - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what training made."""
        if not trainer.is_global_zero:
            return
        self._metrics = self._look(cast(Learner, pl_module.learner))
        self._log(trainer, trainer.global_step)

    def _log(self, trainer: pl.Trainer, step: int) -> None:
        """To the loggers directly: ``self.log`` would drop what falls between two logging steps."""
        metrics = {f"diagnostics/{name}": value for name, value in self._metrics.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _look(self, learner: Learner) -> dict[str, float]:
        device = next(learner.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what the training still computes is not our time
        began = time.perf_counter()
        generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with generators, torch.enable_grad(), collectives.single_process():
            torch.manual_seed(SEED)
            metrics = diagnose(copy.deepcopy(learner), self.views.to(device), self.labels.to(device))
        self.overhead_seconds += time.perf_counter() - began
        return metrics


def diagnose(learner: Learner, views: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """Everything that needs no training step, by name without the prefix ``diagnostics/``.

    Args:
        learner: a copy; its feedback maps take a step.
        views: (V, B, C, H, W) in [0, 1].
        labels: (B,), for a supervised loss.
    """
    generator = torch.Generator().manual_seed(SEED)
    metrics = {}
    with torch.no_grad():
        traces = Learner.trace(learner, views.flatten(0, 1))  # all stages: some rules trace only those they teach
        embeddings = learner.model.head(traces[-1].h)
    for i, trace in enumerate(traces, 1):
        metrics[f"dead_units/stage{i}"] = dead_units(trace.h)
        metrics |= {f"{name}/stage{i}": value for name, value in saturation(trace).items()}
        probe = torch.randn(trace.h.shape, generator=generator).to(trace.h.device)
        if trace.stage.feedback_map is not None and learner.uses_feedback_maps:
            cosine, ratio = jacobian_alignment(trace, probe)
            metrics[f"jacobian_cosine/stage{i}"] = cosine
            metrics[f"jacobian_norm_ratio/stage{i}"] = ratio
            metrics[f"reconstruction/stage{i}"] = reconstruction(trace)
    metrics["effective_rank/features"] = effective_rank(traces[-1].h.flatten(1))
    metrics["effective_rank/embeddings"] = effective_rank(embeddings)
    return metrics | update_alignment(learner, views, labels)  # last: its step trains the feedback
