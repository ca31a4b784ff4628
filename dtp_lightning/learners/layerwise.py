"""Layer-wise and block-wise learning: every block of stages has a head and an objective of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Literal, cast

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.trace import Observe, write_gradients
from dtp_lightning.losses.objective import Objective
from dtp_lightning.models.heads import Projector, head_of
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class LayerwiseLearning(Learner):
    """delta_i = dL_k/dh_i, where L_k is the objective at a head of the last stage of block k, to which i belongs.

    Blocks of one stage are layer-wise learning: no stage depends on those above. Blocks of several are backprop within
    the block; where blocks overlap, a stage adds up what its blocks send it. Sources: GLL and RLL of Tang et al. 2022
    (paper code), Greedy InfoMax (Loewe et al. 2019), LoCo (Xiong et al. 2020), blockwise Barlow Twins (Siddiqui et al.
    2023). The last block's head is the model's.

    A step holds the graphs of one block (and of the stages that it shares with the next), whatever the depth.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`; a loss with parameters is copied for each block.
        order: ``greedy`` trains block 1, then 2, ... (GLL); ``random`` one block drawn for each batch (RLL);
            ``all`` every block on every batch.
        epochs_per_stage: of ``greedy``, for each block; the last one learns until the training ends.
        block_size: stages a block; the last block has what is left.
        overlap: stages that two blocks in a row share; 1 with ``block_size=2`` is LoCo.
        projector: widths of the hidden layers of a block's head, see :func:`~dtp_lightning.models.heads.head_of`.
        projector_pool: activations are averaged to a grid of so many places a side before the head; None: not at all.
        stop_gradient: False lets every block's error through all stages below (deep supervision: not local).

    Raises:
        ConfigError: the model has no ``shapes``, or the overlap is not smaller than the block.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> gll = LayerwiseLearning(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.1), epochs_per_stage=2)
    >>> gll.start_epoch(1)
    >>> gll.active_blocks()
    [0]
    >>> gll.start_epoch(2)
    >>> gll.active_blocks()
    [1]
    >>> blocks_of(4, size=2, overlap=1)
    [range(0, 2), range(1, 3), range(2, 4)]
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
        block_size: PositiveInt = 1,
        overlap: NonNegativeInt = 0,
        projector: Projector = (),
        projector_pool: PositiveInt | None = None,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        if len(model.shapes) != len(model.stages):
            raise ConfigError("layer-wise learning needs the shapes of the stages: build the Network with shapes=")
        self.order = order
        self.epochs_per_stage = epochs_per_stage
        self.blocks = blocks_of(len(model.stages), block_size, overlap)
        if not stop_gradient:
            self.blocks = [range(block.stop) for block in self.blocks]
        self.transports_weights = any(len(block) > 1 for block in self.blocks)  # type: ignore[misc]
        self.trains_all_stages = order == "all"  # type: ignore[misc]
        tops = [model.shapes[block.stop - 1] for block in self.blocks[:-1]]
        self.heads = nn.ModuleList(head_of_block(top, model.embedding_dim, projector, projector_pool) for top in tops)
        self.losses = nn.ModuleList(copy.deepcopy(self.loss) for _ in tops)
        parts = zip(self.heads, self.losses, strict=True)
        for i, (head, head_loss) in enumerate(parts, 1):
            group = {"name": f"head{i}", "params": [*head.parameters(), *head_loss.parameters()]}
            self.forward_optimizer.add_param_group(group)
        self.active: list[int] = []
        self.give_target_network([*self.heads, model.head], [block.stop - 1 for block in self.blocks])

    def active_blocks(self) -> list[int]:
        """The blocks that learn from the next batch, counted from 0; with ``order="random"`` a new draw."""
        blocks = len(self.blocks)
        if self.order == "greedy":
            return [min(self.epoch // self.epochs_per_stage, blocks - 1)]
        if self.order == "random":
            return [int(collectives.broadcast(torch.randint(blocks, ())))]
        return list(range(blocks))

    def step_variants(self) -> list[Learner]:
        """One learner a block, which trains that block only; this one where every step trains all."""
        return [self] if self.order == "all" else [self._only(k) for k in range(len(self.blocks))]

    def _only(self, block: int) -> LayerwiseLearning:
        """A learner on the same weights in the first epoch of a block (counted from 0) of a greedy training."""
        variant = copy.copy(self)
        variant.order, variant.epoch = "greedy", block * self.epochs_per_stage
        return variant

    def loss_parameters(self) -> list[nn.Parameter]:
        """Those of every block's objective."""
        return [*super().loss_parameters(), *self.losses.parameters()]

    def learn(
        self, views: Tensor, labels: Tensor | None, *, measure: bool, observe: Observe | None = None
    ) -> tuple[Tensor, Metrics]:
        """Block after block: forward pass, error at its head, gradients; then its graphs go."""
        self._begin()
        h = self.model.normalise(views.flatten(0, 1))
        targets = self._targets(h)
        total, metrics = torch.zeros((), device=h.device), {}
        seen: list[StageTrace] = []
        traces: dict[int, StageTrace] = {}
        waiting: dict[int, Tensor] = {}
        reached = 0
        for k in self.active:
            for i in range(reached, self.blocks[k].stop):
                trace = self._trace_stage(i, h)
                h = trace.h
                if observe:
                    seen.append(StageTrace(trace.stage, trace.x.detach(), h))
                if trace.y.requires_grad:
                    traces[i] = trace
                del trace  # nothing but the dictionary holds a graph
            reached = self.blocks[k].stop
            loss, error = self._error(k, h, len(views), labels, targets)
            self._descend(k, error, traces, waiting)
            total = total + loss
            if len(self.active) > 1:
                metrics[f"block_loss/stage{reached}"] = loss
        if observe:
            observe(seen)
        return total, metrics

    def trace(self, images: Tensor) -> list[StageTrace]:
        """Stages 1..i, where i is the last one that learns from this batch; only those that learn have a graph."""
        self._begin()
        h = self.model.normalise(images)
        traces = []
        for i in range(self.blocks[self.active[-1]].stop):
            traces.append(self._trace_stage(i, h))
            h = traces[-1].h
        return traces

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of each active block's head; the sum of their losses, and dL/dh of all of them, flat."""
        targets = self._targets(traces[0].x)
        found = [self._error(k, traces[self.blocks[k].stop - 1].h, views, labels, targets) for k in self.active]
        return torch.stack([loss for loss, _ in found]).sum(), torch.cat([error.flatten() for _, error in found])

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """delta_i = dL_k/dh_i for each active block k."""
        tops = [traces[self.blocks[k].stop - 1].y for k in self.active]
        waiting: dict[int, Tensor] = {}
        errors = top.split([y.numel() for y in tops])
        for k, y, error in zip(self.active, tops, errors, strict=True):
            self._descend(k, error.view_as(y), dict(enumerate(traces)), waiting)
        return {}

    def _begin(self) -> None:
        self.active = self.active_blocks()
        self.forward_optimizer.zero_grad(set_to_none=True)

    def _trace_stage(self, i: int, h: Tensor) -> StageTrace:
        """Stage i, counted from 0, on h_i; its input passes errors on where a block has stages on both sides of it."""
        learning = [self.blocks[k] for k in self.active if i in self.blocks[k]]
        x = h.detach().requires_grad_(any(i > block.start for block in learning))
        with torch.set_grad_enabled(bool(learning)):
            return StageTrace(self.model.stages[i], x, self.model.stages[i](x))

    def _targets(self, h0: Tensor) -> list[Tensor] | None:
        """What the target network's heads give of h_0, one a block up to the last active one; None without one."""
        return self.target_network(h0, last=self.blocks[self.active[-1]].stop - 1) if self.target_network else None

    def _error(
        self, k: int, h: Tensor, views: int, labels: Tensor | None, targets: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of block k at its head, detached, and dL_k/dh, of h's shape; writes the head's gradients."""
        last = k == len(self.blocks) - 1
        head, loss = (self.model.head, self.loss) if last else (self.heads[k], self.losses[k])
        h = h.requires_grad_(True)
        told = targets[k] if targets else None
        value = self.objective(head(h), views, labels, cast(Objective, loss), told)
        (error,) = write_gradients(value, [*head.parameters(), *loss.parameters()], h)
        return value.detach(), error.contiguous()

    def _descend(self, k: int, delta: Tensor, traces: dict[int, StageTrace], waiting: dict[int, Tensor]) -> None:
        """Carry block k's error down to its first stage; stages that no later block shares get their gradients.

        Args:
            k: an active block.
            delta: dL_k/dh of its last stage.
            traces: of the stages that learn; those that are done are taken out.
            waiting: displacements of stages that a later block shares.
        """
        block = self.blocks[k]
        for i in reversed(block):
            shared = any(i in self.blocks[later] for later in self.active if later > k)
            goes_on = i > block.start
            if not shared and i not in waiting:
                below = traces.pop(i).vjp(delta, to_input=goes_on)
            else:
                waiting[i] = waiting[i] + delta if i in waiting else delta
                below = traces[i].input_vjp(delta) if goes_on else None
                if not shared:
                    traces.pop(i).vjp(waiting.pop(i))
            if below is not None:
                delta = below


def blocks_of(stages: int, size: int, overlap: int) -> list[range]:
    """Stages of each block, counted from 0, bottom first.

    Raises:
        ConfigError: ``overlap`` is not smaller than ``size``.
    """
    if overlap >= size:
        raise ConfigError(f"learner.overlap={overlap} must be smaller than learner.block_size={size}")
    starts = range(0, max(1, stages - overlap), size - overlap)
    return [range(start, min(start + size, stages)) for start in starts]


def head_of_block(shape: Sequence[int], embedding_dim: int, projector: Projector, pool: int | None) -> nn.Sequential:
    """Activations (N, *shape) to embeddings (N, D), without bias; of a grid of ``pool`` means a side, if given."""
    if pool is None or len(shape) != 3:
        return head_of(prod(shape), embedding_dim, bias=False, projector=projector, norm="none")
    sides = (min(pool, shape[1]), min(pool, shape[2]))
    head = head_of(shape[0] * prod(sides), embedding_dim, bias=False, projector=projector, norm="none")
    return nn.Sequential(nn.AdaptiveAvgPool2d(sides), *head)
