"""Layer-wise learning: every stage has a head and an objective of its own."""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.losses.objective import Objective
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class LayerwiseLearning(Learner):
    """delta_i = dL_i/dh_i, where L_i is the objective at a linear head of stage i. No stage depends on those above.

    Source: GLL and RLL of Tang et al. 2022 (paper code); the last stage's head is the model's.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`; a loss with parameters is copied for each stage.
        order: ``greedy`` trains stage 1, then 2, ... (GLL); ``random`` one stage drawn for each batch (RLL);
            ``all`` every stage on every batch.
        epochs_per_stage: of ``greedy``; the last stage learns until the training ends.

    Raises:
        ConfigError: the model has no ``shapes``.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> gll = LayerwiseLearning(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.1), epochs_per_stage=2)
    >>> gll.start_epoch(1)
    >>> gll.active_stages()
    [0]
    >>> gll.start_epoch(2)
    >>> gll.active_stages()
    [1]
    """

    trains_all_stages = False
    survives_bf16 = True

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        order: Literal["greedy", "random", "all"] = "greedy",
        epochs_per_stage: PositiveInt = 5,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        if len(model.shapes) != len(model.stages):
            raise ConfigError("layer-wise learning needs the shapes of the stages: build the Network with shapes=")
        self.order = order
        self.epochs_per_stage = epochs_per_stage
        sizes = [int(torch.tensor(shape).prod()) for shape in model.shapes[:-1]]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(size, model.embedding_dim, bias=False)) for size in sizes
        )
        self.losses = nn.ModuleList(copy.deepcopy(self.loss) for _ in sizes)
        parts = zip(self.heads, self.losses, strict=True)
        for i, (head, head_loss) in enumerate(parts, 1):
            group = {"name": f"head{i}", "params": [*head.parameters(), *head_loss.parameters()]}
            self.forward_optimizer.add_param_group(group)
        self.active: list[int] = []
        self.give_target_network([*self.heads, model.head])

    def trace(self, images: Tensor) -> list[StageTrace]:
        """Stages 1..i, where i is the last one that learns from this batch; only those that learn have a graph."""
        self.active = self.active_stages()
        h = self.model.normalise(images)
        traces = []
        for i in range(self.active[-1] + 1):
            stage = self.model.stages[i]
            x = h.detach()
            with torch.set_grad_enabled(i in self.active):
                h = stage(x)
            traces.append(StageTrace(stage, x, h))
        return traces

    def active_stages(self) -> list[int]:
        """The stages that learn from the next batch, counted from 0; with ``order="random"`` a new draw."""
        stages = len(self.model.stages)
        if self.order == "greedy":
            return [min(self.epoch // self.epochs_per_stage, stages - 1)]
        if self.order == "random":
            return [int(collectives.broadcast(torch.randint(stages, ())))]
        return list(range(stages))

    def step_variants(self) -> list[Learner]:
        """One learner a stage, which trains that stage only; this one where every step trains all stages."""
        return [self] if self.order == "all" else [self._only(i) for i in range(len(self.model.stages))]

    def _only(self, stage: int) -> LayerwiseLearning:
        """A learner on the same weights in the first epoch of a stage (counted from 0) of a greedy training."""
        variant = copy.copy(self)
        variant.order, variant.epoch = "greedy", stage * self.epochs_per_stage
        return variant

    def loss_parameters(self) -> list[nn.Parameter]:
        """Those of every stage's objective."""
        return [*super().loss_parameters(), *self.losses.parameters()]

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of each active stage's head; the sum of their losses, and dL/dh of all of them, flat."""
        self.forward_optimizer.zero_grad(set_to_none=True)
        total, errors = torch.zeros((), device=traces[0].x.device), []
        targets = self.target_network(traces[0].x, last=self.active[-1]) if self.target_network else None
        for i in self.active:
            last = i == len(self.model.stages) - 1
            head, loss = (self.model.head, self.loss) if last else (self.heads[i], self.losses[i])
            h = traces[i].h.requires_grad_(True)
            told = targets[i] if targets else None
            value = self.objective(head(h), views, labels, cast(Objective, loss), told)
            errors.append(self.write_gradients(value, [*head.parameters(), *loss.parameters()], h).flatten())
            total = total + value.detach()
        return total, torch.cat(errors)

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """delta_i = dL_i/dh_i for each active stage."""
        errors = top.split([traces[i].y.numel() for i in self.active])
        for i, error in zip(self.active, errors, strict=True):
            traces[i].vjp(error.view_as(traces[i].y))
        return {}
