"""When a callback that looks every few epochs looks."""

from __future__ import annotations

import pytorch_lightning as pl


def due(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """Whether the epoch that ends now is an n-th one, or the last."""
    done = trainer.current_epoch + 1
    return done % every_n_epochs == 0 or done == trainer.max_epochs
