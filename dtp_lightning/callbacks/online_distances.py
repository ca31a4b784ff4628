"""The distance study during training, every few epochs."""

from __future__ import annotations

from typing import Annotated, cast

import pytorch_lightning as pl
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import nn

from dtp_lightning.callbacks.base import DataCallback
from dtp_lightning.callbacks.schedule import due
from dtp_lightning.data.images import ImageData
from dtp_lightning.evaluation.distances import Distances
from dtp_lightning.learners import Learner


class OnlineDistances(DataCallback):
    """Logs ``val/distances/...`` every k epochs and after the last, on the batch of the final ``Distances``.

    Args:
        data: the validation split is used.
        augment: the augmentation of the run.
        every_n_epochs: k, in epochs.
        images, pos_margin, neg_margin: see :class:`Distances`.
    """

    def __init__(
        self,
        data: ImageData,
        augment: nn.Module,
        every_n_epochs: PositiveInt = 2,
        images: Annotated[int, Field(ge=2)] = 500,
        pos_margin: NonNegativeFloat = 1.0,
        neg_margin: NonNegativeFloat = 3.0,
    ) -> None:
        self.val = data.val
        self.every_n_epochs = every_n_epochs
        self.distances = Distances(augment, images, pos_margin, neg_margin)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the encoder, if the epoch is due."""
        if not due(trainer, self.every_n_epochs) or not trainer.is_global_zero:
            return
        embeddings = self.distances.embeddings(cast(Learner, pl_module.learner).model, self.val)
        metrics = self.distances.compute(embeddings).metrics
        pl_module.log_dict({f"val/distances/{n}": v for n, v in metrics.items()}, rank_zero_only=True)
