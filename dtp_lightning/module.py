"""The one pre-training module: images -> views -> learner.step -> log. It knows no rule and no loss by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.data.module import Batch, epoch_seed
from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, StageTrace

VALIDATION_SEED = 20_210_809  # the views of the validation loss are the same at every epoch


class PretrainModule(pl.LightningModule):
    """Runs a learner inside a Trainer, by manual optimisation.

    ``global_step`` equals the number of batches: of the learner's optimisers only the forward one steps through
    Lightning. Randomness (views, feedback noise) is drawn from (seed, epoch, process), so an epoch does not depend on
    how the run got there.

    Args:
        learner: the rule, holding model and loss.
        augment: uint8 images (B, C, H, W) -> views (V, B, C, H, W) in [0, 1].
        seed: of the run.
        stored: plain values that the checkpoint carries along, so that it can be understood by itself.
    """

    def __init__(
        self, learner: Learner, augment: nn.Module, seed: int, stored: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters(dict(stored or {}), logger=False)
        self.automatic_optimization = False
        self.learner = learner
        self.augment = augment
        self.seed = seed
        self.last_loss: Tensor | None = None
        self.observers: list[Callable[[list[StageTrace], Batch], object]] = []
        """What callbacks do with a batch's activations, which they must not change."""
        self._random: dict[str, Tensor] | None = None

    def configure_optimizers(self) -> list[Optimizer]:
        """The learner's own optimisers, the forward one first."""
        return self.learner.optimizers

    def on_fit_start(self) -> None:
        """Refuse a precision that the rule cannot learn in.

        Raises:
            ConfigError: bf16-mixed, and the rule takes differences of activations.
        """
        if self.trainer.precision != "32-true" and not self.learner.survives_bf16:
            raise ConfigError(
                f"trainer.precision={self.trainer.precision}: this rule takes differences of activations, which are "
                "lost in 16 bits; use 32-true, or a rule without them, such as learner=bp, dtp, fa, gll, or "
                "learner.target=linearised"
            )

    def on_train_start(self) -> None:
        """Tell the learner how long training is, if it asks. (Not before: Lightning makes the data loader to know it.)

        Raises:
            ConfigError: a warm-up longer than training.
        """
        if self.learner.schedule or self.learner.target_network:
            self.learner.set_length(int(self.trainer.estimated_stepping_batches))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw an epoch's randomness from (seed, epoch), before its first batch; within an epoch, go on as saved.

        Not in ``on_train_epoch_start``: Lightning leaves that out in the first epoch after a checkpoint was resumed.
        """
        if batch_idx == 0:
            torch.manual_seed(epoch_seed(self.seed, self.current_epoch, self.global_rank))
            self.learner.start_epoch(self.current_epoch)
        elif self._random is not None:
            self.learner.start_epoch(self.current_epoch)
            torch.set_rng_state(self._random["cpu"])
            if "cuda" in self._random and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random["cuda"], self.device)
        self._random = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The generators' states, for a run that is stopped within an epoch."""
        checkpoint["random"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["random"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Kept until training begins."""
        random = checkpoint.get("random") or {}
        self._random = {name: state.cpu() for name, state in random.items()} or None

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One learner step; metrics leave the device only when they are logged."""
        log_now = self.is_logging_step()
        views = self.views(batch.images)
        observe = (lambda traces: [each(traces, batch) for each in self.observers]) if self.observers else None
        metrics = self.learner.step(views, batch.labels, update=self._counted_update, observe=observe, measure=log_now)
        self.last_loss = metrics["loss"]
        if log_now:
            self._log(metrics)

    def _log(self, metrics: Metrics) -> None:
        """To the loggers directly: ``self.log`` would repeat what later batches no longer measure."""
        row: dict[str, float] = {f"train/{name}": float(value) for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics({**row, "epoch": self.current_epoch}, step=self._step)

    @property
    def _step(self) -> int:
        """Batches before this one, as Lightning counts them for loggers; it has no public name."""
        return self.trainer.fit_loop.epoch_loop._batches_that_stepped

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective on the validation images, on the same views at every epoch; the first view's embeddings."""
        device = batch.images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(VALIDATION_SEED + batch_idx + 1_000_003 * self.global_rank)
            views = self.views(batch.images)
        loss, outputs = self.learner.evaluate(views, batch.labels)
        self.log("val/loss", loss, batch_size=len(batch.images))
        return outputs[: len(batch.images)]

    def views(self, images: Tensor) -> Tensor:
        """Views (V, B, C, H, W) in [0, 1] of uint8 images (B, C, H, W), in 32 bits even under bf16-mixed."""
        with torch.autocast(images.device.type, enabled=False):
            views: Tensor = self.augment(images)
        return views

    def _counted_update(self) -> None:
        optimizers = self.optimizers()
        forward = optimizers[0] if isinstance(optimizers, list) else optimizers
        forward.step()

    def is_logging_step(self) -> bool:
        """Every ``log_every_n_steps``-th batch."""
        return (self._step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
