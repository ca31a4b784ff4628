"""Progress bar with epoch, loss and images per second; none if the output is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pydantic import PositiveInt
from pytorch_lightning.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """One line for each epoch, with loss and images per second.

    Args:
        refresh_rate: batches between redraws; each redraw reads the loss from the device.
    """

    def __init__(self, refresh_rate: PositiveInt = 20) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0)
        self._images = 0
        self._epoch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Reset the count of images and the clock."""
        super().on_train_epoch_start(trainer, *args)
        self._images, self._epoch_start = 0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the batch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._images += len(batch.images)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss of the last batch and images per second since the start of the epoch."""
        loss = getattr(pl_module, "last_loss", None)
        rate = self._images / max(1e-9, time.perf_counter() - self._epoch_start)
        metrics: dict[str, int | str | float | dict[str, float]] = {"images/s": f"{rate:.0f}"}
        return metrics if loss is None else {"loss": f"{loss.item():.3f}", **metrics}
