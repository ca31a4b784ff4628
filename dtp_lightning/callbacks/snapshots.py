"""Checkpoints of several epochs, to evaluate the encoder at each of them."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pydantic import PositiveInt

from dtp_lightning.callbacks.schedule import due


class Snapshots(pl.Callback):
    """Saves ``checkpoints/epoch<n>.ckpt`` every k epochs and after the last.

    Args:
        folder: the run folder.
        every_n_epochs: k, in epochs.
    """

    def __init__(self, folder: Path, every_n_epochs: PositiveInt = 5) -> None:
        self.folder = folder / "checkpoints"
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a checkpoint as ``last.ckpt``, under the name of the epoch."""
        if due(trainer, self.every_n_epochs):
            trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch + 1}.ckpt", weights_only=False)
