"""k-NN accuracy on the validation split during training."""

from __future__ import annotations

from typing import cast

import pytorch_lightning as pl
from pydantic import PositiveInt

from dtp_lightning.callbacks.base import DataCallback
from dtp_lightning.callbacks.schedule import due
from dtp_lightning.data.images import ImageData
from dtp_lightning.evaluation import FeatureSplit, NearestNeighbours, accuracy
from dtp_lightning.learners import Learner
from dtp_lightning.models import features_of


class OnlineKNN(DataCallback):
    """Logs ``val/knn_acc``, in [0, 1], every k epochs and after the last. The labels are not used for training.

    Args:
        data: ``train`` is the feature bank, ``val`` is classified.
        every_n_epochs: k, in epochs.
        bank_size, val_size: largest number of images of each split, evenly spaced.
    """

    needs_labels = True

    def __init__(
        self,
        data: ImageData,
        every_n_epochs: PositiveInt = 5,
        bank_size: PositiveInt = 5000,
        val_size: PositiveInt = 2000,
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.bank = data.train.subset(bank_size)
        self.val = data.val.subset(val_size)
        self.neighbours = NearestNeighbours()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the encoder, if the epoch is due."""
        if not due(trainer, self.every_n_epochs) or not trainer.is_global_zero:
            return
        network = cast(Learner, pl_module.learner).model
        bank = FeatureSplit(features_of(network, self.bank.images), self.bank.labels)
        predicted = self.neighbours.predict(features_of(network, self.val.images), bank)
        pl_module.log("val/knn_acc", accuracy(predicted, self.val.labels), rank_zero_only=True)
