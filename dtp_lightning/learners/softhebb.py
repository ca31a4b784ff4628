"""SoftHebb: neurons of a stage compete for every place of an image; the winner moves to its input, the others away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from dtp_lightning.learners.base import OptimizerFactory, StageTrace
from dtp_lightning.learners.forward_only import ForwardOnly, in_full, of_each_stage
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class SoftHebb(ForwardOnly):
    """Delta w_k = sum of y_k (x - u_k w_k) over images and places, y the signed soft winner-take-all of u = w x.

    Source: Journe et al. (2023, ICLR, "Hebbian deep learning without feedback") and its code. No loss is descended:
    -Delta w is written as the gradient, so that a plain SGD makes the step. A stage's step is divided by its largest
    change, and a neuron's multiplied by abs(norm(w_k) - 1)^rate_power: it slows down as its norm reaches 1, where the
    rule leads it. At stages without a :class:`~dtp_lightning.models.forward_only.Preactivation` u is the stage's
    output.

    Args:
        model, loss, forward_optimizer, epochs: see :class:`ForwardOnly`.
        inverse_temperature: of the softmax over channels, one for all stages or one each.
        rate_power: exponent of abs(norm - 1) in a neuron's rate; 0 is one rate for all.

    Raises:
        ConfigError: a list has not one entry a stage.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import forward_only_net
    >>> model = forward_only_net(ImageSpec(1, 16, 16, mirror_safe=False), channels=[4, 4, 6], embedding_dim=4)
    >>> softhebb = SoftHebb(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.01))
    >>> sorted(softhebb.step(torch.rand(2, 5, 1, 16, 16)))
    ['head_loss', 'local_loss/stage1', 'local_loss/stage2', 'local_loss/stage3', 'loss']
    """

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        inverse_temperature: PositiveFloat | Sequence[PositiveFloat] = 1.0,
        rate_power: NonNegativeFloat = 0.5,
        epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer, epochs)
        self.inverse_temperature = of_each_stage("inverse_temperature", inverse_temperature, model)
        self.rate_power = rate_power
        self.activity: dict[int, Tensor] = {}

    def local_loss(self, i: int, activity: Tensor) -> Tensor:
        """-log of the winner's share of the softmax, the mean over images and places. It is shown, not descended."""
        return winners_loss(soft_winners(in_full(activity), self.inverse_temperature[i]))

    @torch.no_grad()
    def combine_gradients(self) -> None:
        """Add Oja's decay of each synapse, sum over processes, scale each stage's step by its largest change."""
        taught = {i: self.model.stages[i].forward_parameters() for i in self.activity}
        for i, weights in taught.items():
            for weight in weights:
                if len(weight) == len(self.activity[i]) and weight.grad is not None:
                    weight.grad.add_(weight * _per_row(self.activity[i], weight))
        self.activity.clear()
        super().combine_gradients()
        for weight in (weight for weights in taught.values() for weight in weights):
            if weight.grad is not None:
                weight.grad.mul_(rates(weight, self.rate_power) / (weight.grad.abs().amax() + 1e-30))

    def _teach(self, i: int, trace: StageTrace) -> Tensor:
        u = in_full(trace.h)
        y = soft_winners(u, self.inverse_temperature[i])
        trace.vjp(-y.to(trace.y.dtype))
        self.activity[i] = (y * u).sum([d for d in range(u.ndim) if d != 1])  # sum of y_k u_k, (C,)
        return winners_loss(y)


def soft_winners(u: Tensor, inverse_temperature: float) -> Tensor:
    """Softmax over channels, of u's shape (N, C, ...); negative but for the channel that wins at its place.

    >>> soft_winners(torch.tensor([[0.0, 1.0, 0.0]]), 1.0)
    tensor([[-0.2119,  0.5761, -0.2119]])
    """
    y = -(inverse_temperature * u).softmax(1)
    winner = u.argmax(1, keepdim=True)
    return y.scatter(1, winner, -y.gather(1, winner))


def winners_loss(y: Tensor) -> Tensor:
    """-log of the winner's share, the mean over images, those of all processes, and places, of y (N, C, ...)."""
    return collectives.mean_scalars({"loss": -y.amax(1).log().mean()})["loss"]


def rates(weight: Tensor, power: float) -> Tensor:
    """abs(norm - 1)^power of each row of a weight (C, ...), of a shape that multiplies it."""
    norms = weight.reshape(len(weight), -1).norm(dim=1)
    return _per_row(((norms - 1).abs() + 1e-10).pow(power), weight)


def _per_row(values: Tensor, weight: Tensor) -> Tensor:
    """(C,) -> (C, 1, ...), as many dimensions as the weight."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))
