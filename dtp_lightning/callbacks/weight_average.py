"""An average of the weights over training, which is what validation and evaluation see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pytorch_lightning as pl
from pydantic import Field
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class WeightAverage(WeightAveraging):
    """Exponential moving average of all weights (Polyak and Juditsky 1992); training itself does not see it.

    After batch t + 1, a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)): t weights are in a already, the
    first is w as it is, and the beginning is forgotten also in a run shorter than 1 / (1 - decay) batches.

    Validation (the online callbacks that look at its end included), the evaluation after the training, ``state_dict``
    in checkpoints and what is exported are the average; a checkpoint holds the weights themselves beside it
    (``current_model_state``), and a resumed run goes on from these. Diagnostics (``alignment``) look at the weights.

    Args:
        decay: its largest d, in [0, 1); 0.99 looks back some 100 batches.
    """

    def __init__(self, decay: Annotated[float, Field(ge=0, lt=1)] = 0.99) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=self._update)
        self.decay = decay

    def _update(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        t = int(count)
        d = min(self.decay, (1 + t) / (10 + t))
        for a, w in zip(averaged, current, strict=True):
            a.lerp_(w, 1 - d)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The average lives where the weights will: the module is not there yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The average takes the place of the weights."""
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The weights come back: not at the epoch's end, when other callbacks evaluate the encoder."""
        super().on_validation_epoch_end(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Done already."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Not yet."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Not yet: a run that is resumed after its last epoch, to be evaluated, does not come here."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """What the training leaves is the average."""
        super().on_train_end(trainer, pl_module)
