"""A linear probe that learns beside the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.callbacks.base import DataCallback
from dtp_lightning.callbacks.schedule import due
from dtp_lightning.data.images import ImageData
from dtp_lightning.data.module import Batch
from dtp_lightning.errors import ConfigError
from dtp_lightning.evaluation import accuracy
from dtp_lightning.evaluation.layerwise import pooled
from dtp_lightning.learners import StageTrace
from dtp_lightning.models import Network, Stage
from dtp_lightning.module import PretrainModule
from dtp_lightning.runtime import collectives

SEED = 1_989
"""Of the probe's initial weights: the same in every run and process."""
MAX_FEATURES = 4096
"""Of a stage that was chosen: larger activations are average-pooled, as by ``evaluation=layerwise``."""


class OnlineProbe(DataCallback):
    """Logs ``val/online_probe_acc``, in [0, 1]: of a linear classifier that learns from each batch's own activations.

    It reads what the learner's step has computed anyway, detached, so the encoder learns what it learns without it, bit
    for bit. Features are standardised by running statistics (a batch norm without gain and bias); cross-entropy, Adam.
    It learns from augmented views of an encoder that moves, so it tells less than ``evaluation=linear`` tells after
    training, and tells it in every epoch. Unlabelled images (label -1) teach it nothing.

    Args:
        data: the probe learns from the labels of the training batches; validation images, not augmented, are
            classified.
        stage: whose activations it reads, counted from 1; None: the last, with all its features.
        lr: learning rate of its Adam.
        every_n_epochs: it is evaluated every so many epochs, and after the last.
        val_size: largest number of validation images, evenly spaced.
    """

    needs_labels = True

    def __init__(
        self,
        data: ImageData,
        stage: PositiveInt | None = None,
        lr: PositiveFloat = 1e-3,
        every_n_epochs: PositiveInt = 1,
        val_size: PositiveInt = 2000,
    ) -> None:
        self.data, self.val_size = data, val_size
        self.stage, self.lr, self.every_n_epochs = stage, lr, every_n_epochs
        self.name = "val/online_probe_acc" + (f"/stage{stage}" if stage else "")
        self.probe: nn.Module | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Of its own for each stage, as several probes may learn together."""
        return self._generate_state_key(stage=self.stage)

    def state_dict(self) -> dict[str, Any]:
        """The probe and its optimiser, for a checkpoint."""
        if self.probe is None:
            return {}
        return {"probe": self.probe.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the probe is built."""
        self._saved = state_dict or None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the probe for the features of this network, or go on with the one of the checkpoint.

        Raises:
            ConfigError: the network has no such stage.
        """
        module = cast(PretrainModule, pl_module)
        self.network = network = module.learner.model
        if self.stage is not None and self.stage > len(network.stages):
            raise ConfigError(
                f"callbacks.online_probe.stage={self.stage}: this network has {len(network.stages)} stages"
            )
        supervised = module.learner.loss.supervised
        classes = self.data.supervised_classes if supervised else self.data.classes
        self.val = (self.data.validation if supervised else self.data.val).subset(self.val_size)
        features = self._features(network, self.val.images[:2].to(module.device)).shape[1]
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            probe = nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, len(classes)))
        self.probe = probe.to(module.device)
        self.optimizer = torch.optim.Adam(self.probe.parameters(), lr=self.lr)
        if self._saved is not None:
            self.probe.load_state_dict(self._saved["probe"])
            self.optimizer.load_state_dict(self._saved["optimizer"])
            self._saved = None
        module.observers.append(self.learn)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop to observe."""
        cast(PretrainModule, pl_module).observers.remove(self.learn)

    def learn(self, traces: list[StageTrace], batch: Batch) -> None:
        """One step on a batch's activations; nothing waits for the device.

        Args:
            traces: of the stages that this step runs, on all views.
            batch: the images, with their labels.
        """
        assert self.probe is not None
        known = traces[: self.stage]  # a layer-wise rule may have run fewer stages
        x = self._above(known[-1].h, self.network.stages, len(known))
        labels = batch.labels.repeat(len(x) // len(batch.labels))
        with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
            loss = F.cross_entropy(self.probe(x.float()), labels, ignore_index=-1, reduction="sum")
            (loss / (labels >= 0).sum().clamp(min=1)).backward()
        collectives.mean_gradients(self.probe.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Classify the validation images, if the epoch is due. Every process does, so that all can stop early."""
        if self.probe is None or not due(trainer, self.every_n_epochs):
            return
        self.probe.eval()
        with torch.no_grad():
            batches = self.val.images[:].to(pl_module.device).split(500)
            logits = [self.probe(self._features(self.network, images)).cpu() for images in batches]
        self.probe.train()
        pl_module.log(self.name, accuracy(torch.cat(logits).argmax(1), self.val.labels))

    def _flat(self, h: Tensor) -> Tensor:
        """Features (N, F), float32, of the activation h (N, C, H, W) that the probe reads."""
        return (h.flatten(1) if self.stage is None else pooled(h, MAX_FEATURES)).float()

    @torch.no_grad()
    def _features(self, network: Network, images: Tensor) -> Tensor:
        """Features (N, F), float32, of uint8 images (N, C, H, W), in evaluation mode."""
        return self._above(network.normalise(images.float() / 255), network.stages, 0)

    @torch.no_grad()
    def _above(self, h: Tensor, stages: Sequence[Stage], done: int) -> Tensor:
        """Features of h, the output of stage ``done``, after the stages up to the one that is read.

        In evaluation mode, so that running statistics of the encoder do not notice.
        """
        for stage in list(stages)[done : self.stage]:
            training = stage.training
            h = stage.eval()(h)
            stage.train(training)
        return self._flat(h)
