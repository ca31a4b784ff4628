"""What training costs: seconds, images a second, seconds a step, peak memory."""

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
    """Measures the fit.

    Attributes:
        fit_seconds: wall time of the whole fit, validation and checkpoints included.
        training_seconds: the part spent in training batches and between them, without the ``overhead_seconds`` of
            diagnostic callbacks.
        images: training images seen (each of them twice, as two views), by all processes together.
        steps: batches.
    """

    def __init__(self) -> None:
        self.fit_seconds = 0.0
        self.training_seconds = 0.0
        self.images = 0
        self.steps = 0
        self._fit_began = 0.0
        self._epoch_began: float | None = None
        self._overhead = 0.0
        self._trainer: pl.Trainer | None = None

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on counting from."""
        self._stop_fit_clock()
        if self._trainer is not None:
            self._stop(self._trainer)
        return {"fit_seconds": self.fit_seconds, "training_seconds": self.training_seconds, "images": self.images,
                "steps": self.steps}  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.fit_seconds, self.training_seconds = state_dict["fit_seconds"], state_dict["training_seconds"]
        self.images, self.steps = int(state_dict["images"]), int(state_dict["steps"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the memory's high-water mark where the system lets us."""
        reset_peak_memory()
        self._trainer = trainer
        self._fit_began = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """An epoch's training begins, or goes on after a checkpoint (of which Lightning announces nothing)."""
        if self._epoch_began is None:
            self._overhead = _overhead(trainer)
            self._epoch_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; stop the clock after the last batch, before validation."""
        self.images += len(batch.images) * trainer.world_size  # each has a share of the same size
        self.steps += 1
        if trainer.is_last_batch:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """For an epoch cut short."""
        self._stop(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._stop(trainer)
        self._stop_fit_clock()

    def _stop_fit_clock(self) -> None:
        now = time.perf_counter()
        self.fit_seconds += now - self._fit_began
        self._fit_began = now

    def _stop(self, trainer: pl.Trainer) -> None:
        if self._epoch_began is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.training_seconds += time.perf_counter() - self._epoch_began - (_overhead(trainer) - self._overhead)
            self._epoch_began = None

    def summary(self) -> dict[str, float]:
        """``fit/seconds``, ``fit/peak_memory_mib``; training alone: ``fit/images_per_second`` and seconds a step."""
        return {
            "fit/seconds": self.fit_seconds,
            "fit/images_per_second": self.images / self.training_seconds if self.training_seconds else 0.0,
            "fit/peak_memory_mib": peak_memory_mib(),
            "cost/seconds_per_step": self.training_seconds / self.steps if self.steps else 0.0,
        }


def _overhead(trainer: pl.Trainer) -> float:
    """Seconds that the other callbacks took out of training so far."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return sum(callback.overhead_seconds for callback in callbacks if isinstance(callback, DataCallback))


def reset_peak_memory() -> None:
    """Let :func:`peak_memory_mib` start from now (no effect on the host where /proc does not offer it)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Largest memory used since the reset, in MiB: of this process' GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
