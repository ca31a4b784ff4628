"""The schedule of callbacks that act every few epochs."""

from __future__ import annotations

import pytorch_lightning as pl


def due(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """Whether the current epoch, counted from 1, is a multiple of n or the last."""
    epochs = trainer.current_epoch + 1
    return epochs % every_n_epochs == 0 or epochs == trainer.max_epochs
