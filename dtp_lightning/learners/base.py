"""The frame that every learning rule fills in.

A rule decides one thing: the *displacement* delta_i, by how much and in which direction the output of stage i
should have been different. Everything else is shared: the weight gradient of stage i is always the local
vector-Jacobian product of delta_i, computed inside a graph that ends at the stage's own input.

    bp    delta_{i-1} = J_{f_i}^T delta_i                              (transports the forward weights)
    fa    the same with other weights in J_{f_i}^T                     (random, updated or signs)
    dfa   delta_i = Q_i dL/dz                                          (random, or learned: ddtp_linear)
    dtp   delta_{i-1} = (g_i(h_i) - g_i(h_i - step * delta_i)) / step  (learned feedback only)
    gll   delta_i = dL_i/dh_i, L_i the objective at a head of stage i  (no feedback at all)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.models.network import Network
from dtp_lightning.models.stage import Stage, StageOutput
from dtp_lightning.runtime import collectives

Metrics = dict[str, Tensor]
OptimizerFactory = Callable[[list[dict]], Optimizer]


@dataclass
class StageTrace:
    """Stage i on one batch: its input, its output, and between them a graph that reaches nothing else.

    Attributes:
        stage: f_i and g_i.
        x: h_{i-1}, detached, (N, C_below, H, W).
        y: h_i, on the local graph until :meth:`vjp` is called, (N, C, H', W').
        pool_indices: of the stage's max-pool in this forward pass, if its feedback map wants them.
        preactivation: what the stage's first layer made of x, if the rule keeps it (:meth:`Stage.run_perturbed`).
        reconstruction: g_i(h_i) on a graph that reaches the parameters of g_i, if their training has use for it.
    """

    stage: Stage
    x: Tensor
    y: Tensor
    pool_indices: Tensor | None = None
    preactivation: Tensor | None = None
    reconstruction: Tensor | None = None

    def slice(self, start: int, stop: int) -> StageTrace:
        """The same of rows start to stop alone, without graphs."""
        rows = slice(start, stop)
        x, h = self.x.detach()[rows], self.h[rows]
        pool_indices, preactivation = (None if t is None else t[rows] for t in (self.pool_indices, self.preactivation))
        return StageTrace(self.stage, x, h, pool_indices, preactivation)

    @property
    def h(self) -> Tensor:
        """h_i, detached."""
        return self.y.detach()

    def feedback(self, u: Tensor) -> Tensor:
        """g_i(u) for u of h_i's shape, (N, C_below, H, W)."""
        return self.stage.feedback(u, like=self.x, pool_indices=self.pool_indices)

    def reconstruct(self) -> Tensor:
        """g_i(h_i), without a graph; not to be written to."""
        with torch.no_grad():
            return self.feedback(self.h) if self.reconstruction is None else self.reconstruction.detach()

    def vjp(self, delta: Tensor, *, to_input: bool = False, scale: float = 1) -> Tensor | None:
        """Write the forward weights' gradient scale * J_W^T delta, and free the graph.

        Args:
            delta: displacement at the output, of h_i's shape.
            to_input: also return J_x^T delta, of h_{i-1}'s shape (what backprop sends down).
            scale: of the weights' gradient alone; weights are far fewer than activations.
        """
        parameters = self.stage.forward_parameters()
        wanted = [*parameters, self.x] if to_input else parameters
        gradients = torch.autograd.grad(self.y, wanted, delta)
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient if scale == 1 else gradient.mul_(scale)
        return gradients[-1] if to_input else None


class Learner(nn.Module, ABC):
    """One learning rule: views in, metrics out, weights updated. It knows no trainer, logger or config.

    Subclasses implement :meth:`compute_gradients`. What a rule owns beyond the model (random feedback, heads of stages)
    is registered on it as parameters or buffers, so that devices and checkpoints need no special case.

    Args:
        model: stages and head.
        loss: objective, returns a scalar; called with one (B, D) embedding tensor a view, or, where its
            ``supervised`` is true, with logits (V * B, K) and labels (V * B,).
        forward_optimizer: called with one parameter group a stage and one for the head.
    """

    transports_weights: ClassVar[bool] = False
    """Whether displacements below depend on the forward weights above (what biology cannot do)."""
    needs_input_gradients: ClassVar[bool] = False
    """Whether the rule asks :meth:`StageTrace.vjp` for J_x^T delta."""
    uses_feedback_maps: ClassVar[bool] = False
    """Whether displacements travel through the stages' own feedback maps."""
    trains_all_stages: ClassVar[bool] = True
    """Whether every stage learns from every batch."""
    survives_bf16: bool = False
    """Whether the rule learns under ``trainer.precision=bf16-mixed``; differences of activations do not survive it."""
    keeps_preactivations: bool = False
    """Whether traces keep what the stages' first layers gave."""

    def __init__(self, model: Network, loss: nn.Module, forward_optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        groups = [(f"stage{i}", stage.forward_parameters()) for i, stage in enumerate(model.stages, 1)]
        top = [("head", model.head.parameters()), ("loss", loss.parameters())]
        self.forward_optimizer = forward_optimizer(named_groups([*groups, *top]))
        self.epoch = 0
        self.turns = 1
        """How many kinds of steps there are (layer-wise rules: one a stage); ``turn`` fixes one, to count its cost."""
        self.turn: int | None = None

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimisers; the first, the forward one, steps exactly once a batch."""
        return [self.forward_optimizer]

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0, for rules that have a schedule."""
        self.epoch = epoch

    def skip_first_phase(self) -> None:
        """Go past the batches, if a rule begins with some, from which the forward weights do not learn."""
        return

    @abstractmethod
    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """Decide a displacement for every stage and hand each to its trace's ``vjp``, once.

        Args:
            traces: stages 1..L on this batch, bottom first (and the head, where :meth:`trace_head` added it).
            top: dL/dh of the last trace's h, of its shape. L is a mean over the batch, so this is of order 1/N.
                (Where processes share a batch, over the whole of it: see :mod:`dtp_lightning.runtime.collectives`.)
            measure: whether quantities that only a log needs shall be computed.

        Returns:
            Scalars to log, detached.
        """

    def step(
        self,
        views: Tensor,
        labels: Tensor | None = None,
        *,
        update: Callable[[], object] | None = None,
        measure: bool = True,
    ) -> Metrics:
        """Learn from one batch.

        Args:
            views: (V, B, C, H, W) in [0, 1]; V = 2 for the contrastive objectives. Of several processes each has its
                own share of the batch, all of one size.
            labels: (B,) class numbers, for a supervised control alone.
            update: steps the forward optimiser; default is its own ``step``. (A trainer counts batches here.)
            measure: False leaves out what only a log needs; ``loss`` is always there.

        Returns:
            ``loss`` and the rule's own scalars, detached.
        """
        traces = self.trace(views.flatten(0, 1))
        loss, top = self.compute_head_gradients(traces, len(views), labels)
        metrics = self.compute_gradients(traces, top, measure=measure)
        if measure:
            metrics = collectives.mean_scalars(metrics)
        self.combine_gradients()
        self.apply_update(update or self.forward_optimizer.step)
        return {"loss": loss, **metrics}

    def apply_update(self, update: Callable[[], object]) -> None:
        """Move the forward weights, by ``update``; where rules change what follows from their change."""
        update()

    def combine_gradients(self) -> None:
        """Let processes that share a batch have the gradients of the whole batch."""
        if collectives.world_size() == 1:
            return
        whole = {id(p) for p in self.loss_parameters()}
        parameters = [p for group in self.forward_optimizer.param_groups for p in group["params"]]
        collectives.sum_gradients(p for p in parameters if id(p) not in whole)
        collectives.mean_gradients(p for p in parameters if id(p) in whole)

    def loss_parameters(self) -> list[nn.Parameter]:
        """The objective's own, which see the whole batch in every process."""
        return list(self.loss.parameters())

    def trace(self, images: Tensor) -> list[StageTrace]:
        """Run every stage on images (N, C, H, W) in [0, 1], each in a graph of its own."""
        h = self.model.normalise(images)
        traces = []
        for i, stage in enumerate(self.model.stages):
            x = h.detach().requires_grad_(self.needs_input_gradients and i > 0)
            h, pool_indices, preactivation = self.run(stage, x)
            kept = preactivation.detach() if preactivation is not None and i > 0 and self.keeps_preactivations else None
            traces.append(StageTrace(stage, x, h, pool_indices, kept))
        return traces

    def objective(
        self, outputs: Tensor, views: int, labels: Tensor | None = None, loss: nn.Module | None = None
    ) -> Tensor:
        """The loss (the learner's, unless another is given) of a head's outputs (V * B, D), view after view; scalar.

        Where processes share a batch: of the outputs of all of them.
        """
        loss = loss or self.loss
        by_view = collectives.all_gather(outputs.unflatten(0, (views, -1)), dim=1)
        if getattr(loss, "supervised", False):
            assert labels is not None, "a supervised objective is told the labels"
            return loss(by_view.flatten(0, 1), collectives.all_gather(labels).repeat(views))
        return loss(*by_view)

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write the objective's gradient for the head's weights; return the loss and dL/dh_L.

        The head follows the objective directly under most rules, as Lee et al. (2015) take the penultimate
        layer's target from one layer of gradient.
        """
        h = traces[-1].h.requires_grad_(True)
        loss = self.objective(self.model.head(h), views, labels)
        top = self.write_gradients(loss, [*self.model.head.parameters(), *self.loss.parameters()], h)
        return loss.detach(), top

    def trace_head(self, traces: list[StageTrace], head: Stage, views: int, labels: Tensor | None) -> tuple:
        """For rules that treat the head as one more stage: add its trace; return the loss and dL/dz."""
        x = traces[-1].h.requires_grad_(self.needs_input_gradients)
        traces.append(StageTrace(head, x, self.run(head, x).y))
        z = traces[-1].h.requires_grad_(True)
        loss = self.objective(z, views, labels)
        return loss.detach(), self.write_gradients(loss, list(self.loss.parameters()), z)

    def run(self, stage: Stage, x: Tensor) -> StageOutput:
        """f(x); where a rule decides what the way back through f looks like."""
        return stage.run(x)

    @staticmethod
    def write_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], x: Tensor) -> Tensor:
        """Gradient of a loss for parameters (written) and for x (returned)."""
        *gradients, at_x = torch.autograd.grad(loss, [*parameters, x])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return at_x


def named_groups(groups: Iterable[tuple[str, Iterable[nn.Parameter]]]) -> list[dict]:
    """Optimiser parameter groups, each with a name; the empty ones are left out."""
    listed = [{"name": name, "params": list(parameters)} for name, parameters in groups]
    return [group for group in listed if group["params"]]
