"""Checkpoints of several epochs, to evaluate the encoder at each of them."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pydantic import PositiveInt

from dtp_lightning.callbacks.schedule import due


class Snapshots(pl.Callback):
    """Saves ``checkpoints/epoch<n>.ckpt`` every k epochs, or after those of a list; and after the last.

    Args:
        folder: the run folder.
        every_n_epochs: k, in epochs.
        epochs: numbers of epochs, counted from 1, in place of every k-th; those beyond the training's end are left out.
    """

    def __init__(self, folder: Path, every_n_epochs: PositiveInt = 5, epochs: list[PositiveInt] | None = None) -> None:
        self.folder = folder / "checkpoints"
        self.every_n_epochs = every_n_epochs
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a checkpoint as ``last.ckpt``, under the name of the epoch."""
        epoch = trainer.current_epoch + 1
        if self.epochs is None:
            save = due(trainer, self.every_n_epochs)
        else:
            save = epoch in self.epochs or epoch == trainer.max_epochs
        if save:
            trainer.save_checkpoint(self.folder / f"epoch{epoch}.ckpt", weights_only=False)
