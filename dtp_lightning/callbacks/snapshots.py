"""Checkpoints that stay: to judge an encoder at several ages after one training."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pydantic import PositiveInt

from dtp_lightning.callbacks.schedule import due


class Snapshots(pl.Callback):
    """Keeps ``checkpoints/epoch<n>.ckpt`` every k epochs and after the last.

    Args:
        folder: the run's.
        every_n_epochs: k.
    """

    def __init__(self, folder: Path, every_n_epochs: PositiveInt = 5) -> None:
        self.folder = folder / "checkpoints"
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what ``last.ckpt`` would hold now."""
        if due(trainer, self.every_n_epochs):
            trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch + 1}.ckpt", weights_only=False)
