"""Direct feedback: every stage gets its displacement from the error at the embedding, by a matrix of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.noise import normal_like
from dtp_lightning.models.blocks import resting_statistics
from dtp_lightning.models.network import Network
from dtp_lightning.models.stage import Stage
from dtp_lightning.runtime import collectives


class DirectTraining:
    """Each Q_i learns to reconstruct noise at stage i from its effect on z (Meulemans et al. 2020, DDTP-linear).

    h~_i = h_i + sigma * eps runs up to the embedding z~; R_i = mean(((Q_i (z~ - z)) - sigma * eps)^2) / sigma^2.

    Args:
        optimizer: called with one parameter group a stage.
        noise_std: sigma, in units of the activation, > 0.

    >>> from functools import partial
    >>> DirectTraining(partial(torch.optim.Adam, lr=1e-3), noise_std=0.2).noise_std
    0.2
    """

    def __init__(self, optimizer: OptimizerFactory, noise_std: PositiveFloat = 0.1) -> None:
        self.make_optimizer = optimizer
        self.noise_std = noise_std
        self.noise_like: Callable[[Tensor], Tensor] = normal_like


class DirectFeedback(Learner):
    """delta_i = Q_i dL/dz for every stage i; the head follows the objective.

    With Q_i random and fixed this is direct feedback alignment (Noekland 2016), with Q_i trained it is direct
    difference target propagation with linear feedback: t_i = h_i + Q_i t_z - Q_i z (Meulemans et al. 2020). Neither
    needs an inverse of pooling.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`.
        feedback: how Q learns; None leaves its random initial values.

    Raises:
        ConfigError: the model has no ``shapes``.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dfa = DirectFeedback(model, ContrastiveHinge(), sgd)
    >>> [tuple(q.weight.shape) for q in dfa.direct]  # h_1 is (2, 4, 4), h_2 is (3, 2, 2)
    [(32, 4), (12, 4)]
    >>> ddtp_linear = DirectFeedback(model, ContrastiveHinge(), sgd, DirectTraining(sgd))
    >>> sorted(ddtp_linear.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'reconstruction_loss/stage1', 'reconstruction_loss/stage2']
    """

    direct: nn.ModuleList
    """Q_1, ..., Q_L: linear maps without bias, of weight (C * H * W of h_i, D)."""

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        feedback: DirectTraining | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        if not model.shapes:
            raise ConfigError("direct feedback needs the shapes of the stages: build the Network with shapes=")
        self.feedback = feedback
        self.survives_bf16 = feedback is None  # what trains Q is a difference of embeddings
        sizes = [int(torch.tensor(shape).prod()) for shape in model.shapes]
        self.direct = nn.ModuleList(nn.Linear(model.embedding_dim, size, bias=False) for size in sizes)
        self._head = (Stage(model.head),)
        self.feedback_optimizer: Optimizer | None = None
        if feedback is None:
            self.direct.requires_grad_(False)
        else:
            groups = [{"name": f"direct{i}", "params": list(q.parameters())} for i, q in enumerate(self.direct, 1)]
            self.feedback_optimizer = feedback.make_optimizer(groups)

    @property
    def optimizers(self) -> list[Optimizer]:
        """Forward, then feedback if it learns."""
        return [self.forward_optimizer, *([self.feedback_optimizer] if self.feedback_optimizer else [])]

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The error at the embedding."""
        return self.trace_head(traces, self._head[0], views, labels)

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """delta_i = Q_i dL/dz for every stage; then Q learns, before any forward weight changes."""
        *stages, head = traces
        head.vjp(top)
        for trace, q in zip(stages, self.direct, strict=True):
            with torch.no_grad():
                delta = q(top).view_as(trace.h)
            trace.vjp(delta)
        if self.feedback is None or self.feedback_optimizer is None:
            return {}
        return self._train(stages, head.h.detach(), self.feedback)

    def _train(self, stages: list[StageTrace], z: Tensor, feedback: DirectTraining) -> Metrics:
        assert self.feedback_optimizer is not None
        sigma = feedback.noise_std
        metrics: Metrics = {}
        for i, (trace, q) in enumerate(zip(stages, self.direct, strict=True)):
            noise = feedback.noise_like(trace.h.detach()).mul_(sigma)
            with torch.no_grad(), resting_statistics(self.model):
                h = trace.h + noise
                for above in self.model.stages[i + 1 :]:
                    h = above(h)
                difference = self.model.head(h) - z
            loss = (q(difference) - noise.flatten(1)).square().mean() / sigma**2
            (weight,) = q.parameters()
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            metrics[f"reconstruction_loss/stage{i + 1}"] = loss.detach()
        collectives.mean_gradients(self.direct.parameters())
        self.feedback_optimizer.step()
        return metrics
