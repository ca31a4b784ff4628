"""Dual propagation: every neuron has two states, nudged up and down, whose difference is the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.dyad import DyadTrace, parts_of, rerun, through, write_dyad_gradients
from dtp_lightning.learners.feedback_alignment import initialised_like
from dtp_lightning.learners.kolen_pollack import Decay, Follower
from dtp_lightning.models.aligned import input_gradient
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class DualPropagation(Learner):
    """Stage i infers s+_i and s-_i from below and above at once; their difference is the displacement.

        s+_i = act(A_i s_{i-1} + (1 - alpha) e_i),   s-_i = act(A_i s_{i-1} - alpha e_i)
        e_i = W_{i+1}^T unpool(s+_{i+1} - s-_{i+1}),   e_L = -beta N dL/dh_L,   s_i = alpha s+_i + (1 - alpha) s-_i
        dL/dW_i = -1 / (beta N) unpool(s+_i - s-_i) s_{i-1}^T

    Sources: Hoeier, Staudt and Zach (2023, ICML), and Hoeier and Zach (2024, ICML), whose form for any alpha this is
    (DP^T), and their code. Head and objective together are the paper's loss. As beta goes to 0 it becomes backprop.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`.
        alpha: weight of s+ in the state that is passed up, in [0, 1].
        beta: strength of the nudge, > 0.
        passes: sweeps over the stages after the clean pass.
        order: ``down`` sweeps from the top (and up again between two sweeps); ``up`` from the bottom, so that the
            error comes down one stage a sweep.
        nudging: ``adjoint`` as above; ``original`` swaps alpha and 1 - alpha in s+ and s- (2023), which is the same
            for alpha = 1 / 2, and may diverge in many passes otherwise.
        weights: on the way down: ``forward``, W^T; ``kolen_pollack``, B^T of other weights that take every change of W
            while both decay (KP-DP, 2023; :mod:`dtp_lightning.learners.kolen_pollack`).
        decay: of W and B under ``kolen_pollack``, a batch, in [0, 1).

    Raises:
        ConfigError: a stage is not a linear layer, norm and pooling, and an activation, in this order; or upward
            sweeps are fewer than stages.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> learner = DualPropagation(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.1))
    >>> views = torch.rand(2, 5, 1, 8, 8)
    >>> before, after = learner.step(views)["loss"], learner.step(views)["loss"]
    >>> bool(after < before)
    True
    >>> sweeps(3, passes=2, order="down")
    [2, 1, 0, 1, 2, 1, 0]
    """

    feedback_weights: nn.ParameterList
    """B of every stage above the first, each of its weight's shape, bottom first; empty without ``kolen_pollack``."""

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
        beta: PositiveFloat = 1.0,
        passes: PositiveInt = 1,
        order: Literal["down", "up"] = "down",
        nudging: Literal["adjoint", "original"] = "adjoint",
        weights: Literal["forward", "kolen_pollack"] = "forward",
        decay: Decay = 1e-3,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        self.parts = [parts_of(stage, i) for i, stage in enumerate(model.stages, 1)]
        self.alpha, self.beta = alpha, beta
        self.up = 1 - alpha if nudging == "adjoint" else alpha
        stages = len(model.stages)
        if order == "up" and passes < stages:
            raise ConfigError(
                f"learner.passes={passes} upward sweeps do not bring the error down {stages} stages: "
                f"give at least {stages}, or learner.order=down"
            )
        self.sweeps = sweeps(stages, passes, order)
        self.transports_weights = weights == "forward"  # type: ignore[misc]
        forward = [] if self.transports_weights else [parts.linear.weight for parts in self.parts[1:]]
        self.feedback_weights = nn.ParameterList(
            nn.Parameter(initialised_like(w), requires_grad=False) for w in forward
        )
        self._follower = Follower(zip(forward, self.feedback_weights, strict=True), decay)

    def trace(self, images: Tensor) -> list[StageTrace]:
        """The clean pass."""
        h = self.model.normalise(images)
        traces: list[StageTrace] = []
        for stage, parts in zip(self.model.stages, self.parts, strict=True):
            x = h.detach()
            c = parts.linear(x)
            a, switches = through(parts.between, c)
            y = parts.act(a)
            traces.append(DyadTrace(stage, x, y, parts=parts, c=c, a=a, switches=switches))
            h = y
        return traces

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """Infer the states, then write each stage's gradient, of its own states and the mean state below."""
        dyads = [trace for trace in traces if isinstance(trace, DyadTrace)]
        images = len(top) * collectives.world_size()  # that the objective is a mean over
        error = top * (-self.beta * images)
        last = {i: step for step, i in enumerate(self.sweeps)}
        written: set[int] = set()
        for step, i in enumerate(self.sweeps):
            self._infer(dyads, i, error)
            if last[i] != step:
                continue
            for k in (i + 1, i):  # whose own states, and those below, are final
                final = k < len(dyads) and last[k] <= step and (k == 0 or last[k - 1] <= step)
                if final and k not in written:
                    below = dyads[k - 1].mean(self.alpha) if k > 0 else dyads[k].x
                    write_dyad_gradients(dyads[k], below, -1 / (self.beta * images))
                    written.add(k)
                    _let_go(dyads, k, written)
        return {}

    def apply_update(self, update: Callable[[], object]) -> None:
        """Then B follows W, under ``kolen_pollack``."""
        self._follower.around(update)

    def _infer(self, dyads: list[DyadTrace], i: int, error: Tensor) -> None:
        """New states of stage i, counted from 0, from those of its neighbours; ``error`` is e_L."""
        dyad = dyads[i]
        if i + 1 == len(dyads):
            e = error
        elif (at_c := dyads[i + 1].at_c) is not None:
            layer = dyads[i + 1].parts.linear
            weight = layer.weight if self.transports_weights else self.feedback_weights[i]
            e = input_gradient(layer, weight.detach(), at_c, dyad.y.shape)
        else:
            return  # nothing has come down so far
        nudged_below = i > 0 and dyads[i - 1].plus is not None
        a = rerun(dyad, dyads[i - 1].mean(self.alpha)) if nudged_below else dyad.a.detach()
        with torch.no_grad():
            dyad.plus = dyad.parts.act(torch.add(a, e, alpha=self.up))
            dyad.minus = dyad.parts.act(torch.sub(a, e, alpha=1 - self.up))
            difference = dyad.plus - dyad.minus
        inputs = [dyad.c, *dyad.between_parameters()]
        dyad.at_c, *dyad.at_between = torch.autograd.grad(dyad.a, inputs, difference, retain_graph=True)


def _let_go(dyads: list[DyadTrace], k: int, written: set[int]) -> None:
    """Of the graph of stage k, whose gradient is written, and of states that no stage above needs any more."""
    dyads[k].release()
    for i in (k - 1, k):
        if i in written and (i + 1 in written or i + 1 == len(dyads)):
            dyads[i].plus = dyads[i].minus = None


def sweeps(stages: int, passes: int, order: Literal["down", "up"]) -> list[int]:
    """Which stage, counted from 0, is inferred when."""
    if order == "up":
        return list(range(stages)) * passes
    down = list(reversed(range(stages)))
    return down + (list(range(1, stages - 1)) + down) * (passes - 1)
