"""Latent predictive learning: every stage predicts the next view of an image from its own activity."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from dtp_lightning.learners.base import OptimizerFactory
from dtp_lightning.learners.forward_only import ForwardOnly, in_full
from dtp_lightning.losses.lpl import LatentPredictive
from dtp_lightning.models.network import Network


class LatentPredictiveLearning(ForwardOnly):
    """Stage i descends :class:`~dtp_lightning.losses.LatentPredictive` of the mean over places of its output.

    Source: Halvagal and Zenke (2023), layer-local form (its code: no projector, activations detached between layers).

    Args:
        model, loss, forward_optimizer, epochs: see :class:`ForwardOnly`; with ``loss=lpl`` the head has the same loss.
        predictive, variance, decorrelation, epsilon: see :class:`~dtp_lightning.losses.LatentPredictive`.

    >>> from functools import partial
    >>> import torch
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> lpl = LatentPredictiveLearning(model, LatentPredictive(), partial(torch.optim.SGD, lr=0.01))
    >>> sorted(lpl.step(torch.rand(2, 5, 1, 8, 8)))
    ['head_loss', 'local_loss/stage1', 'local_loss/stage2', 'loss']
    """

    reads_preactivation = False

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        predictive: NonNegativeFloat = 1.0,
        variance: NonNegativeFloat = 1.0,
        decorrelation: NonNegativeFloat = 10.0,
        epsilon: PositiveFloat = 1e-4,
        epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer, epochs)
        self.stage_loss = LatentPredictive(predictive, variance, decorrelation, epsilon)

    def local_loss(self, i: int, activity: Tensor) -> Tensor:
        """The three terms of the stage's mean activity (N, C)."""
        z = in_full(activity)
        return self.objective(z.flatten(2).mean(2) if z.ndim > 2 else z, self.views, loss=self.stage_loss)
