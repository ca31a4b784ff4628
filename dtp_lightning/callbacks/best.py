"""To stop early, and to keep the best checkpoint, by a metric of validation: Lightning's, in our run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pydantic import NonNegativeFloat, PositiveInt
from pytorch_lightning.callbacks import EarlyStopping as LightningEarlyStopping
from pytorch_lightning.callbacks import ModelCheckpoint

from dtp_lightning.errors import ConfigError

MONITOR = "val/online_probe_acc"


def check_measured(trainer: pl.Trainer, monitor: str) -> None:
    """A metric is there once validation is over.

    Raises:
        ConfigError: it is not.
    """
    known = [name for name in trainer.callback_metrics if name.startswith("val/")]
    if not trainer.sanity_checking and monitor not in known:
        raise ConfigError(
            f"monitor={monitor} is not measured in every epoch ({', '.join(known)} is): choose another, or add what "
            "measures it, such as callbacks=[online_probe,...]"
        )


class EarlyStopping(LightningEarlyStopping):
    """Stops when a metric has not improved for some epochs. A run that it stopped is not trained further on resume.

    Args:
        monitor: a metric of validation, such as ``val/online_probe_acc`` or ``val/loss``.
        mode: whether larger (``max``) or smaller values are better.
        patience: validations without improvement.
        min_delta: by how much a value must be better to be an improvement.
    """

    def __init__(
        self,
        monitor: str = MONITOR,
        mode: Literal["max", "min"] = "max",
        patience: PositiveInt = 10,
        min_delta: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint, with the patience of now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the checkpoint says that it is over."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See :func:`check_measured`; whether to stop is decided at the epoch's end."""
        check_measured(trainer, self.monitor)
        super().on_validation_end(trainer, pl_module)


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, of the epoch with the best value of a metric so far.

    ``dtp evaluate checkpoint=<run folder>/checkpoints/best.ckpt`` evaluates it; the run's own evaluation is of the last
    weights.

    Args:
        folder: the run folder.
        monitor, mode: see :class:`EarlyStopping`.
    """

    def __init__(self, folder: Path, monitor: str = MONITOR, mode: Literal["max", "min"] = "max") -> None:
        super().__init__(
            folder / "checkpoints", "best", monitor, mode=mode, enable_version_counter=False,
            save_on_train_epoch_end=True,  # as last.ckpt: the epoch counts as done
        )  # fmt: skip
        self._monitored = monitor

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See :func:`check_measured`; it is saved at the epoch's end."""
        check_measured(trainer, self._monitored)
        super().on_validation_end(trainer, pl_module)
