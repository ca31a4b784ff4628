"""Detects collapse: all images have the same embedding."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl

from dtp_lightning.callbacks.measures import effective_rank

COLLAPSED = 1.1
"""Effective rank below which embeddings are on one line, or equal."""


class Collapse(pl.Callback):
    """Warns once, when the embeddings of the first validation batch have an effective rank near 1 or are all equal.

    The embeddings are those of the validation loss, so the only cost is the eigenvalues of a small matrix.
    """

    def __init__(self) -> None:
        self._warned = False

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Check the embeddings of the first view, ``outputs`` (B, D)."""
        if (
            batch_idx
            or self._warned
            or not trainer.is_global_zero
            or outputs is None
            or min(outputs.shape) < 3
            or not outputs.isfinite().all()
        ):
            return
        rank = effective_rank(outputs)
        if rank < COLLAPSED or math.isnan(rank):
            self._warned = True
            logging.getLogger(__name__).warning(
                "the embeddings have collapsed: effective rank %s of at most %d in epoch %d; all images look alike to "
                "this encoder (a smaller learning rate, or a loss that pushes negatives apart, may help)",
                "1" if math.isnan(rank) else f"{rank:.2f}", min(len(outputs) - 1, outputs.shape[1]),
                trainer.current_epoch,
            )  # fmt: skip
