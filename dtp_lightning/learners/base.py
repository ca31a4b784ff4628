"""What all learning rules share.

A rule decides one thing: the *displacement* delta_i, by how much and in which direction the output of stage i
should have been different. Everything else is shared: the weight gradient of stage i is always the local
vector-Jacobian product of delta_i, computed inside a graph that ends at the stage's own input.

    bp    delta_{i-1} = J_{f_i}^T delta_i                              (transports the forward weights)
    fa    the same with other weights in J_{f_i}^T                     (random, updated or signs)
    dfa   delta_i = Q_i dL/dz                                          (random, or learned: ddtp_linear)
    dtp   delta_{i-1} = (g_i(h_i) - g_i(h_i - step * delta_i)) / step  (learned feedback only)
    gll   delta_i = dL_i/dh_i, L_i the objective at a head of stage i  (no feedback at all)
    scff  delta_i = dL_i/dh_i, L_i of the activity of stage i alone    (no objective either)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.learners.optimizers import named_groups
from dtp_lightning.learners.schedule import Schedule
from dtp_lightning.learners.target_network import TargetNetwork
from dtp_lightning.learners.trace import Observe, StageTrace, write_gradients
from dtp_lightning.losses.objective import Objective, as_objective, over_pairs
from dtp_lightning.models.network import Network
from dtp_lightning.models.stage import Stage, StageOutput
from dtp_lightning.runtime import collectives

Metrics = dict[str, Tensor]
OptimizerFactory = Callable[[list[dict]], Optimizer]


class Learner(nn.Module, ABC):
    """One learning rule: :meth:`step` takes views, updates the weights and returns metrics.

    It uses no trainer, logger or config, so it runs in a plain loop. Subclasses implement :meth:`compute_gradients`.
    What a rule owns beyond the model (random feedback weights, heads of stages) is registered on it as parameters or
    buffers, so that devices and checkpoints need no special case.

    Args:
        model: stages and head.
        loss: an :class:`~dtp_lightning.losses.Objective`, or a library's loss that
            :func:`~dtp_lightning.losses.as_objective` understands.
        forward_optimizer: called with one parameter group a stage, one for the head and one for the loss, if they
            have parameters.

    A rule is its displacements. Here every stage gets a random one:

    >>> import torch
    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> class RandomWalk(Learner):
    ...     def compute_gradients(self, traces, top, *, measure):
    ...         for trace in traces:
    ...             trace.vjp(torch.randn_like(trace.h))
    ...         return {}
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> learner = RandomWalk(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.1))
    >>> learner.step(torch.rand(2, 5, 1, 8, 8)).keys()
    dict_keys(['loss'])
    """

    transports_weights: ClassVar[bool] = False
    """Whether displacements below depend on the forward weights above (the weight transport problem)."""
    needs_input_gradients: ClassVar[bool] = False
    """Whether the rule calls :meth:`StageTrace.vjp` with ``to_input``."""
    uses_feedback_maps: ClassVar[bool] = False
    """Whether displacements pass through the feedback maps g_i of the stages."""
    trains_all_stages: ClassVar[bool] = True
    """Whether every stage learns from every batch."""
    survives_bf16: bool = False
    """Whether the rule learns in bfloat16, in which small differences of activations round to 0."""
    keeps_preactivations: bool = False
    """Whether traces store ``preactivation``."""

    def __init__(self, model: Network, loss: nn.Module, forward_optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.model = model
        self.loss = as_objective(loss)
        groups = [(f"stage{i}", stage.forward_parameters()) for i, stage in enumerate(model.stages, 1)]
        top = [("head", model.head.parameters()), ("loss", self.loss.parameters())]
        self.forward_optimizer = forward_optimizer(named_groups([*groups, *top]))
        self.schedule: Schedule | None = None
        self.target_network: TargetNetwork | None = None
        self.give_target_network([self.model.head], [len(model.stages) - 1])
        self.epoch = 0

    def give_target_network(self, heads: Sequence[nn.Module], on: Sequence[int]) -> None:
        """A target network with copies of these heads on these stages, counted from 0, if the objective needs one."""
        if self.loss.target_momentum is not None:
            self.target_network = TargetNetwork(self.model.stages, heads, on, self.loss.target_momentum)

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimisers; the first, the forward one, steps exactly once a batch."""
        return [self.forward_optimizer]

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0, for rules that have a schedule."""
        self.epoch = epoch

    def follow_schedule(self, schedule: Schedule) -> None:
        """Let learning rates and the like change from batch to batch; what has no schedule keeps them.

        Raises:
            ConfigError: the schedule does not fit the network.
        """
        schedule.attach(self.optimizers, len(self.model.stages))
        self.schedule = schedule

    def set_length(self, batches: int) -> None:
        """Tell the schedule and the target network how many batches the whole training has.

        Raises:
            ConfigError: a warm-up longer than training.
        """
        if self.schedule:
            self.schedule.set_length(batches)
        if self.target_network:
            self.target_network.batches = batches

    def skip_first_phase(self) -> None:
        """Go past the batches, if a rule begins with some, from which the forward weights do not learn."""
        return

    def step_variants(self) -> Sequence[Learner]:
        """Learners on these weights that each take one kind of step: all kinds, once each. (To count a step's cost.)

        Most rules have one kind of step. Rules that train some stages on a batch have several.
        """
        return [self]

    @abstractmethod
    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """Compute a displacement for every stage and call its trace's ``vjp`` with it, once.

        Args:
            traces: stages 1..L on this batch, bottom first (and the head, where :meth:`trace_head` added it).
            top: dL/dh of the last trace's h, of its shape. L is a mean over the batch, so this is of order 1/N.
                (Where processes share a batch, over the whole of it: see :mod:`dtp_lightning.runtime.collectives`.)
            measure: whether to compute quantities that are only logged.

        Returns:
            Scalars to log, detached, by name.
        """

    def step(
        self,
        views: Tensor,
        labels: Tensor | None = None,
        *,
        update: Callable[[], object] | None = None,
        observe: Observe | None = None,
        measure: bool = True,
    ) -> Metrics:
        """Learn from one batch.

        Args:
            views: (V, B, C, H, W) in [0, 1]; V >= 2 for the contrastive objectives. Where several processes train,
                each passes its share of the batch; all shares have the same size.
            labels: int64 (B,) in 0..K-1, for a supervised loss.
            update: steps the forward optimiser; default is its own ``step``. (A trainer counts batches here.)
            observe: see :data:`~dtp_lightning.learners.trace.Observe`.
            measure: False leaves out what is only logged; ``loss`` is always there.

        Returns:
            ``loss`` and the rule's own scalars, detached.
        """
        if self.schedule:
            self.schedule.begin(self.optimizers)
        loss, metrics = self.learn(views, labels, measure=measure, observe=observe)
        if measure:
            metrics = collectives.mean_scalars(metrics)
        self.combine_gradients()
        if self.schedule:
            self.schedule.before_update(self.forward_optimizer)
        self.apply_update(update or self.forward_optimizer.step)
        if self.target_network:
            self.target_network.follow()
        return {"loss": loss, **metrics}

    def learn(
        self, views: Tensor, labels: Tensor | None, *, measure: bool, observe: Observe | None = None
    ) -> tuple[Tensor, Metrics]:
        """Write the gradients of all forward weights that this batch teaches; the loss, detached, and scalars to log.

        Rules that need nothing from above override it, to let go of a stage's graph before the next one is made.

        Args:
            views, labels, measure, observe: see :meth:`step`.
        """
        traces = self.trace(views.flatten(0, 1))
        if observe:
            observe(traces)
        loss, top = self.compute_head_gradients(traces, len(views), labels)
        return loss, self.compute_gradients(traces, top, measure=measure)

    def apply_update(self, update: Callable[[], object]) -> None:
        """Move the forward weights, by ``update``; where rules change what follows from their change."""
        update()

    def combine_gradients(self) -> None:
        """Give every process the gradients of the whole batch, where processes share one."""
        if collectives.world_size() == 1:
            return
        of_loss = {id(p) for p in self.loss_parameters()}
        parameters = [p for group in self.forward_optimizer.param_groups for p in group["params"]]
        collectives.sum_gradients(p for p in parameters if id(p) not in of_loss)
        collectives.mean_gradients(p for p in parameters if id(p) in of_loss)

    def loss_parameters(self) -> list[nn.Parameter]:
        """Parameters of the objective; every process computes their gradients from the whole batch."""
        return list(self.loss.parameters())

    def trace(self, images: Tensor) -> list[StageTrace]:
        """Run every stage on images (N, C, H, W) in [0, 1], each with its own autograd graph."""
        h = self.model.normalise(images)
        traces = []
        for i, stage in enumerate(self.model.stages):
            x = h.detach().requires_grad_(self.needs_input_gradients and i > 0)
            h, pool_indices, preactivation = self.run(stage, x)
            if preactivation is not None:
                preactivation = preactivation.detach() if i > 0 and self.keeps_preactivations else None
            traces.append(StageTrace(stage, x, h, pool_indices, preactivation))
        return traces

    def evaluate(self, views: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The objective on views and labels (see :meth:`step`), scalar, and the head's outputs (V * B, D); no step."""
        images = views.flatten(0, 1)
        outputs = self.model(images)
        targets = self.target_outputs(self.model.normalise(images)) if self.target_network else None
        return self.objective(outputs, len(views), labels, targets=targets), outputs

    def target_outputs(self, h0: Tensor) -> Tensor | None:
        """What the target network's head gives of normalised images h_0 (N, C, H, W), (N, D); None without one."""
        return self.target_network(h0)[-1] if self.target_network else None

    def objective(
        self, outputs: Tensor, views: int, labels: Tensor | None = None, loss: Objective | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of a head's outputs, scalar. Where processes share a batch: of the outputs of all of them.

        Args:
            outputs: (V * B, D), view after view.
            views: V.
            labels: (B,), for a supervised loss.
            loss: the learner's, unless another is given.
            targets: the target network's outputs, of the same shape, for an objective that needs them.
        """
        loss = loss or self.loss
        by_view = collectives.all_gather(outputs.unflatten(0, (views, -1)), dim=1)
        if loss.supervised:
            assert labels is not None, "a supervised objective needs labels"
            value: Tensor = loss(by_view.flatten(0, 1), collectives.all_gather(labels).repeat(views))
            return value
        of_target: tuple[Tensor, ...] = ()
        if loss.target_momentum is not None:
            assert targets is not None, "this objective needs the embeddings of a target network"
            of_target = tuple(collectives.all_gather(targets.unflatten(0, (views, -1)), dim=1))
        return over_pairs(loss, tuple(by_view), of_target)

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write the objective's gradient for the head's weights; return the loss and dL/dh_L.

        Most rules train the head by gradient descent, as Lee et al. (2015) take the target of the penultimate layer
        from the gradient of the output layer.

        Args:
            traces: stages 1..L on this batch; rules that treat the head as a stage append its trace.
            views: V.
            labels: (B,), for a supervised loss.

        Returns:
            The loss, scalar and detached; dL/dh of the last trace's h, of its shape.
        """
        h = traces[-1].h.requires_grad_(True)
        loss = self.objective(self.model.head(h), views, labels, targets=self.target_outputs(traces[0].x))
        (top,) = write_gradients(loss, [*self.model.head.parameters(), *self.loss.parameters()], h)
        return loss.detach(), top

    def trace_head(self, traces: list[StageTrace], head: Stage, views: int, labels: Tensor | None) -> tuple:
        """For rules that treat the head as one more stage: append its trace; return the loss and dL/dz."""
        x = traces[-1].h.requires_grad_(self.needs_input_gradients)
        traces.append(StageTrace(head, x, self.run(head, x).y))
        z = traces[-1].h.requires_grad_(True)
        loss = self.objective(z, views, labels, targets=self.target_outputs(traces[0].x))
        (top,) = write_gradients(loss, list(self.loss.parameters()), z)
        return loss.detach(), top

    def run(self, stage: Stage, x: Tensor) -> StageOutput:
        """f(x). Rules that differentiate f with other weights override this."""
        return stage.run(x)
