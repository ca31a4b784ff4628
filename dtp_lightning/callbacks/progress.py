"""Progress on a terminal: epoch, loss, images a second. Silent where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pydantic import PositiveInt
from pytorch_lightning.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """One line an epoch with loss and images/s.

    Args:
        refresh_rate: batches between redraws; each redraw reads the loss from the device.
    """

    def __init__(self, refresh_rate: PositiveInt = 20) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0)
        self._seen = 0
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Start counting images anew."""
        super().on_train_epoch_start(trainer, *args)
        self._seen, self._since = 0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch that begins."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._seen += len(batch.images)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss of the last batch and images/s since the epoch began."""
        loss = getattr(pl_module, "last_loss", None)
        rate = self._seen / max(1e-9, time.perf_counter() - self._since)
        shown: dict[str, int | str | float | dict[str, float]] = {"images/s": f"{rate:.0f}"}
        return shown if loss is None else {"loss": f"{loss.item():.3f}", **shown}
