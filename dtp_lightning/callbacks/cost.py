"""The cost of training: seconds, images per second, seconds per step, peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from dtp_lightning.callbacks.base import DataCallback


class Cost(pl.Callback):
    """Measures time, throughput and memory of the fit.

    Attributes:
        fit_seconds: wall time of the whole fit, with validation and checkpoints.
        training_seconds: wall time of the training batches, without the ``overhead_seconds`` of diagnostic callbacks.
        images: number of training images of all processes; an image counts once, whatever its number of views.
        steps: number of batches.
    """

    def __init__(self) -> None:
        self.fit_seconds = 0.0
        self.training_seconds = 0.0
        self.images = 0
        self.steps = 0
        self._fit_start = 0.0
        self._training_start: float | None = None
        self._overhead_before = 0.0
        self._trainer: pl.Trainer | None = None

    def state_dict(self) -> dict[str, float]:
        """Times and counts so far, for a checkpoint."""
        self._stop_fit_clock()
        if self._trainer is not None:
            self._stop_training_clock(self._trainer)
        return {"fit_seconds": self.fit_seconds, "training_seconds": self.training_seconds, "images": self.images,
                "steps": self.steps}  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore times and counts from a checkpoint."""
        self.fit_seconds, self.training_seconds = state_dict["fit_seconds"], state_dict["training_seconds"]
        self.images, self.steps = int(state_dict["images"]), int(state_dict["steps"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and reset the peak memory."""
        reset_peak_memory()
        self._trainer = trainer
        self._fit_start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the training clock, at an epoch's start or after a checkpoint, for whose end Lightning has no hook."""
        if self._training_start is None:
            self._overhead_before = _overhead(trainer)
            self._training_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images and steps; stop the training clock after the last batch, before validation."""
        self.images += len(batch.images) * trainer.world_size  # the batches of all processes have one size
        self.steps += 1
        if trainer.is_last_batch:
            self._stop_training_clock(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock of an epoch that ended before its last batch."""
        self._stop_training_clock(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop both clocks."""
        self._stop_training_clock(trainer)
        self._stop_fit_clock()

    def _stop_fit_clock(self) -> None:
        now = time.perf_counter()
        self.fit_seconds += now - self._fit_start
        self._fit_start = now

    def _stop_training_clock(self, trainer: pl.Trainer) -> None:
        if self._training_start is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            overhead = _overhead(trainer) - self._overhead_before
            self.training_seconds += time.perf_counter() - self._training_start - overhead
            self._training_start = None

    def summary(self) -> dict[str, float]:
        """Seconds and MiB of the fit; images per second and seconds per step of training alone, by metric name."""
        return {
            "fit/seconds": self.fit_seconds,
            "fit/images_per_second": self.images / self.training_seconds if self.training_seconds else 0.0,
            "fit/peak_memory_mib": peak_memory_mib(),
            "cost/seconds_per_step": self.training_seconds / self.steps if self.steps else 0.0,
        }


def _overhead(trainer: pl.Trainer) -> float:
    """Seconds of the measurements of all diagnostic callbacks so far."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return sum(callback.overhead_seconds for callback in callbacks if isinstance(callback, DataCallback))


def reset_peak_memory() -> None:
    """Reset the peak of :func:`peak_memory_mib`; a system without /proc keeps the peak of the host's memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Peak memory of this process since the reset, in MiB: on the GPU if there is one, else on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
