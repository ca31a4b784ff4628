"""last.ckpt after every epoch, and before leaving when a signal asks to; previous.ckpt is the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from dtp_lightning.runs.checkpoint_io import LAST
from dtp_lightning.runtime.signals import Interrupted, Leaving, guard


class LastCheckpoint(Checkpoint):
    """Saves after every epoch; on SIGTERM, SIGUSR1 or Ctrl-C after the running batch, and then leaves.

    A signal during an epoch's validation waits for its end. Where several processes train together, a signal to any of
    them waits for the epoch's end, which they reach together. Lightning calls callbacks of this class last, so what
    is saved is what the others have made.

    Args:
        folder: the run's.
        every_n_steps: also within an epoch, in batches; None does not.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        self.path = folder / "checkpoints" / LAST
        self.every_n_steps = every_n_steps
        self._leaving = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Signals are ours again (Lightning has set its own handlers just now, and gives them back after the fit)."""
        several = trainer.world_size > 1
        guard.take(Leaving.AFTER_EPOCH if several else Leaving.AFTER_BATCH)
        if several:
            self._agree(trainer)
        if guard.received is not None:  # before the first batch: nothing is to be saved
            raise Interrupted(guard.received)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Within an epoch: after n batches, or now if we have to go. An epoch's last batch is saved at its end."""
        due = self.every_n_steps is not None and (batch_idx + 1) % self.every_n_steps == 0
        if (due or guard.received) and not trainer.is_last_batch and trainer.world_size == 1:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After validation."""
        if trainer.world_size > 1:
            self._agree(trainer)
        self._save(trainer)

    def _agree(self, trainer: pl.Trainer) -> None:
        """Leave together, whichever process the signal came to."""
        signum = torch.tensor(guard.received or 0, device=trainer.strategy.root_device)
        if highest := int(trainer.strategy.reduce(signum, reduce_op="max")):
            guard.received = highest

    def _save(self, trainer: pl.Trainer) -> None:
        leaving = guard.received is not None
        trainer.save_checkpoint(self.path, weights_only=False)
        self._leaving = leaving

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave, if that is what was saved for; only now, because Lightning logs a batch after its last hook."""
        self._leave()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same between epochs."""
        self._leave()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training is saved: nothing is left to wait for."""
        guard.take(Leaving.AT_CHECK)
        guard.check()

    def _leave(self) -> None:
        if self._leaving and guard.received is not None:
            raise Interrupted(guard.received)
