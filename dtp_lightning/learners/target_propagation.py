"""Target propagation: stages are given targets, made by what is above them through learned feedback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.feedback import Feedback
from dtp_lightning.models.feedback_maps import FeedbackMap, Kept
from dtp_lightning.models.network import Network
from dtp_lightning.models.stage import Stage, StageOutput, activation_named
from dtp_lightning.runtime import collectives

# Rules carry errors e_i = h_i - t_i, not targets: the difference of two activations of order 1 keeps few digits of an
# error that is 1e-7 of them.


@torch.no_grad()
def difference_error(trace: StageTrace, error: Tensor) -> Tensor:
    """e_{i-1} = g_i(h_i) - g_i(h_i - e_i), that is t_{i-1} = h_{i-1} - g_i(h_i) + g_i(t_i).

    The difference cancels what g_i reconstructs badly: where the stage's own target asks for nothing
    (t_i = h_i), neither does the one below (Lee et al. 2015). A transposable g loses no digits of a small e_i.

    Args:
        trace: stage i on this batch.
        error: e_i, of h_i's shape.

    Returns:
        e_{i-1}, of h_{i-1}'s shape.
    """
    if trace.stage.differs_exactly:
        return trace.stage.feedback_difference(trace.h, error, trace.x, trace.pool_indices)
    reconstruction = trace.feedback(trace.h - error)
    return torch.sub(trace.reconstruct(), reconstruction, out=reconstruction)


@torch.no_grad()
def linearised_error(trace: StageTrace, error: Tensor) -> Tensor:
    """e_{i-1} = J_{g_i}(h_i) e_i: the difference of targets in the limit of small steps, whatever the precision.

    (A difference of bfloat16 activations would be zero.)
    """
    return trace.stage.feedback_jvp(trace.h, error, trace.x, trace.pool_indices)


@torch.no_grad()
def vanilla_error(trace: StageTrace, error: Tensor) -> Tensor:
    """t_{i-1} = g_i(t_i), whatever g_i reconstructs badly (Bengio 2014; Le Cun 1986)."""
    return trace.x - trace.feedback(trace.h - error)


ERRORS = {"difference": difference_error, "linearised": linearised_error, "vanilla": vanilla_error}


class HeadFeedback(FeedbackMap):
    """g of the head: embedding z (N, D) -> h_L (N, C, H, W), linear and then the last stage's kind of activation."""

    def __init__(self, embedding_dim: int, shape: tuple[int, ...], activation: str) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(embedding_dim, int(torch.tensor(shape).prod()))
        self.activation = activation_named(activation)()

    def forward(self, u: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """(N, D) -> (N, C, H, W)."""
        return self.activation(self.linear(u).unflatten(1, self.shape))


class TargetPropagation(Learner):
    """Targets travel down through learned feedback; each stage moves its own output towards its target.

    t_L = h_L - step * dL/dh_L;  t_{i-1} = h_{i-1} - g_i(h_i) + g_i(t_i);  stage i descends ||h_i - t_i||^2.
    Source: thesis code; Tang et al. 2022, Algorithm 1.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`.
        feedback: how the feedback maps learn, and when.
        target: ``difference`` as above (Lee et al. 2015); ``linearised``, its limit for small steps, e_{i-1} =
            J_{g_i} e_i with e = h - t, which also works in bfloat16; or ``vanilla``, t_{i-1} = g_i(t_i).
        top: where the first target is: at the last ``stage``, one layer of gradient below the objective, or at the
            ``embedding``, t_z = z - step * dL/dz, which reaches the last stage through a learned g of the head.
        target_step: length of the step that makes the top target, in units of ``target_gradient``.
        target_gradient: ``per_sample`` steps along each image's own gradient N * dL/dh_L, so that targets do not
            shrink with the batch; ``batch_mean`` is the thesis' dL/dh_L, whose entries are N times smaller.
        local_loss: ``displacement`` is ||h_i - t_i||^2 / (2 step), summed over features: the top stage's gradient
            equals backprop's and its learning rate carries over. ``thesis`` is mean((h_i - t_i)^2) over images and
            features, whose gradients Adam's epsilon swallows at the thesis' batch size.
        order: ``targets_first`` takes targets with the old feedback and then trains it (thesis);
            ``feedback_first`` the other way round (Algorithm 1 of Tang et al. 2022).
        head_activation: of the head's g, where there is one; None takes the last stage's.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import AutoencoderFeedback
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, AutoencoderFeedback(sgd))
    >>> list(dtp.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'local_loss/stage2', 'local_loss/stage1', 'reconstruction_loss/stage2']
    """

    uses_feedback_maps = True

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        feedback: Feedback,
        target: Literal["difference", "linearised", "vanilla"] = "difference",
        top: Literal["stage", "embedding"] = "stage",
        target_step: PositiveFloat = 0.5,
        target_gradient: Literal["per_sample", "batch_mean"] = "batch_mean",
        local_loss: Literal["displacement", "thesis"] = "displacement",
        order: Literal["targets_first", "feedback_first"] = "targets_first",
        head_activation: str | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        model.complete_feedback()
        self.feedback = feedback
        self.keeps_preactivations = feedback.noise_patterns is not None
        self.head_feedback: nn.Module | None = None
        self._head: tuple[Stage, ...] = ()  # in a tuple: the model owns the head already
        if top == "embedding":
            own = head_activation or model.stages[-1].output_activation
            self.head_feedback = HeadFeedback(model.embedding_dim, model.shapes[-1], own)
            self._head = (Stage(model.head, self.head_feedback),)
        self.feedback_optimizer = feedback.optimizer_for([*model.stages, *self._head])
        self.below = ERRORS[target]
        exact = all(stage.differs_exactly for stage in (*model.stages[1:], *self._head))
        self.survives_bf16 = target == "linearised" or (target == "difference" and exact)
        self.target_step = target_step
        self.target_gradient = target_gradient
        self.local_loss = local_loss
        self.order = order
        self.batches = 0

    @property
    def optimizers(self) -> list[Optimizer]:
        """Forward, then feedback if it learns."""
        return [self.forward_optimizer, *([self.feedback_optimizer] if self.feedback_optimizer else [])]

    def get_extra_state(self) -> Tensor:
        """Batches seen, which the schedule of the feedback counts (no buffer: reading one would wait for the GPU)."""
        return torch.tensor(self.batches)

    def set_extra_state(self, state: Tensor) -> None:
        """From a checkpoint."""
        self.batches = int(state)

    def skip_first_phase(self) -> None:
        """The feedback's."""
        self.batches = max(self.batches, self.feedback.first_phase)

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The error at the last stage, or at the embedding."""
        if self._head:
            return self.trace_head(traces, self._head[0], views, labels)
        return super().compute_head_gradients(traces, views, labels)

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """Targets and feedback training, in the chosen order; no forward weight moves before both are done."""
        optimizer = self.feedback_optimizer if self.feedback.due(self.batches, self.epoch) else None
        metrics: Metrics = {}
        if optimizer and self.order == "feedback_first":
            metrics |= self.feedback.train(traces, optimizer)
        elif optimizer:
            self.feedback.prepare(traces)
        if self.feedback.forward_due(self.batches, self.epoch):
            metrics |= self._compute_stage_gradients(traces, top, measure)
        else:
            self.forward_optimizer.zero_grad(set_to_none=True)
        if optimizer and self.order == "targets_first":
            metrics |= self.feedback.train(traces, optimizer)
        self.batches += 1
        return metrics

    def apply_update(self, update: Callable[[], object]) -> None:
        """Feedback may follow what the forward weights do."""
        self.feedback.before_update()
        super().apply_update(update)
        self.feedback.after_update()

    def run(self, stage: Stage, x: Tensor) -> StageOutput:
        """f(x); within a block whose feedback is its transpose errors travel by the feedback weights, too."""
        return stage.run_aligned(x)

    def _compute_stage_gradients(self, traces: list[StageTrace], top: Tensor, measure: bool) -> Metrics:
        shares = collectives.world_size()  # of the batch that the objective is a mean over
        step = self.target_step * (shares * len(top) if self.target_gradient == "per_sample" else 1)
        metrics = {}
        error = top * step
        for i in range(len(traces), 0, -1):
            trace = traces[i - 1]
            # dL_local/dh = scale * error, whichever reduction the local loss has
            scale = 1 / step if self.local_loss == "displacement" else 2 / (shares * error.numel())
            # a block's transpose: one pass gives the weights' gradient and what is asked of the stage below
            joint = i > 1 and trace.x.requires_grad and self.below is not vanilla_error
            below = trace.vjp(error, to_input=joint, scale=scale)
            if measure:
                name = f"stage{i}" if i <= len(self.model.stages) else "head"
                metrics[f"local_loss/{name}"] = error.square().sum() * (shares * scale / 2)
            if i > 1:
                error = self.below(trace, error) if below is None else below
        return metrics
