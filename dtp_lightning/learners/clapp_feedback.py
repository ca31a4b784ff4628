"""CLAPP++: every stage learns to agree with what the top of the network predicts of it, from the other view."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import OptimizerFactory, StageTrace
from dtp_lightning.learners.forward_only import ForwardOnly, in_full, of_each_stage
from dtp_lightning.learners.trace import write_gradients
from dtp_lightning.losses.clapp import clapp_hinge
from dtp_lightning.models.blocks import resting_statistics
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class ClappFeedback(ForwardOnly):
    """Stage i descends the hinge of its activity z_i and W_i c, c the top stage's activity on the other view.

        u_jk = <z_i of image j, W_i c of image k>,   z and c means over a grid of places,   c without a gradient
        L_i = mean_j [margin - u_jj]+  +  mean_{j != k} [margin + u_jk]+,   both views in turn

    Source: Wu, Delrocq, Gerstner and Bellec (2026, ICML), CLAPP++ with direct feedback, and their code. A first pass
    without graphs brings the top's activity; in the second each stage learns while the batch passes it. No error comes
    down: c is an activity. Without feedback the context is the stage's own activity on the other view (CLAPP++), and
    there is one pass.

    Args:
        model, loss, forward_optimizer, epochs: see :class:`ForwardOnly`; the objective reaches the head alone.
        feedback: ``top`` as above (CLAPP++DFB), ``none``, or ``both``, whose losses are added, each with a W.
        grid: places a side to which activities are averaged, at most those of the map; one for all stages, or one
            each. 1 is the mean over the map (CLAPP).
        margin: of both hinges, in units of the score.
        negatives: ``all`` other images of the batch, as ``loss=clapp``; or the ``next`` one (their code).

    Raises:
        ConfigError: the model has no ``shapes``, or a list has not one entry a stage.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> clapp = ClappFeedback(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.01), grid=4)
    >>> [tuple(w.weight.shape) for w in clapp.predict["top"]]  # h_1 is (2, 4, 4), h_2 is (3, 2, 2)
    [(32, 12), (12, 12)]
    >>> sorted(clapp.step(torch.rand(2, 5, 1, 8, 8)))
    ['head_loss', 'local_loss/stage1', 'local_loss/stage2', 'loss']
    """

    reads_preactivation = False
    predict: nn.ModuleDict
    """W_1, ..., W_L of each kind of context: linear maps without bias, of weight (numbers of z_i, numbers of c)."""

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        feedback: Literal["top", "none", "both"] = "top",
        grid: PositiveInt | Sequence[PositiveInt] = 4,
        margin: PositiveFloat = 1.0,
        negatives: Literal["all", "next"] = "all",
        epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer, epochs)
        if len(model.shapes) != len(model.stages):
            raise ConfigError("CLAPP needs the shapes of the stages: build the Network with shapes=")
        self.grid = of_each_stage("grid", grid, model)
        self.margin = margin
        self.negatives: Literal["all", "next"] = negatives
        sizes = [
            prod(on_grid(torch.empty(1, *shape), g).shape) for shape, g in zip(model.shapes, self.grid, strict=True)
        ]
        contexts = {"top": [sizes[-1]] * len(sizes), "same": sizes}
        kinds = {"top": ["top"], "none": ["same"], "both": ["top", "same"]}[feedback]
        self.predict = nn.ModuleDict({
            kind: nn.ModuleList(nn.Linear(c, z, bias=False) for c, z in zip(contexts[kind], sizes, strict=True))
            for kind in kinds
        })  # fmt: skip
        for i in range(len(sizes)):
            self.forward_optimizer.add_param_group({"name": f"predict{i + 1}", "params": self.predictors(i)})
        self.top: Tensor | None = None

    def predictors(self, i: int) -> list[nn.Parameter]:
        """W of stage i, counted from 0, for each kind of context."""
        return [p for maps in self.predict.values() for p in maps[i].parameters()]  # type: ignore[index]

    def loss_parameters(self) -> list[nn.Parameter]:
        """And every W: each process computes its gradient from the whole batch."""
        return [*super().loss_parameters(), *self.predict.parameters()]

    @torch.no_grad()
    def enter(self, h0: Tensor) -> Tensor:
        """The first pass, if the stages are told of the top; batch norms take their statistics from the second."""
        if "top" in self.predict:
            h = h0
            with resting_statistics(self.model.stages):  # type: ignore[arg-type]
                for stage in self.model.stages:
                    h = stage(h)
            self.top = in_full(on_grid(h, self.grid[-1]))
        return h0

    def local_loss(self, i: int, activity: Tensor) -> Tensor:
        """The sum over kinds of context."""
        z = in_full(on_grid(activity, self.grid[i]))
        losses = []
        for kind, maps in self.predict.items():
            c = self.top if kind == "top" else z.detach()
            assert c is not None, "the first pass comes before"
            losses.append(self._hinge(z, c, maps[i]))  # type: ignore[index]
        return torch.stack(losses).sum()

    def _teach(self, i: int, trace: StageTrace) -> Tensor:
        with torch.enable_grad():
            activity = trace.h.requires_grad_(True)
            value = self.local_loss(i, activity)
        (delta,) = write_gradients(value, self.predictors(i), activity)
        trace.vjp(delta)
        return value.detach()

    def _hinge(self, z: Tensor, c: Tensor, w: nn.Linear) -> Tensor:
        """Mean over views of the hinge of z (N, D_i) and W c (N, D_i), each view's context from the view before it."""
        z, c = (collectives.all_gather(t.unflatten(0, (self.views, -1)), dim=1) for t in (z, c))
        predicted = F.linear(c.roll(1, 0), w.weight.to(c.dtype))
        pairs = zip(z, predicted, strict=True)
        return torch.stack([clapp_hinge(own, told, self.margin, self.negatives) for own, told in pairs]).mean()


def on_grid(h: Tensor, side: int) -> Tensor:
    """Means of activities (N, C, H, W) over a grid of at most so many places a side, flat: (N, C * places)."""
    if h.ndim != 4:
        return h.flatten(1)
    return F.adaptive_avg_pool2d(h, (min(side, h.shape[2]), min(side, h.shape[3]))).flatten(1)
