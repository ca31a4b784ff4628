"""Dual propagation: every neuron has two states, nudged up and down, whose difference is the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation as activations

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.models.aligned import Weighted, input_gradient
from dtp_lightning.models.blocks import is_matrix, is_plain, pool_at, resting_statistics
from dtp_lightning.models.network import Network
from dtp_lightning.models.stage import Stage
from dtp_lightning.runtime import collectives

ACROSS = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU)
"""Activations of torch.nn that are not of each element by itself."""


class Parts(NamedTuple):
    """A stage taken apart: f(x) = act(A x), A the linear layer and what stands between it and the activation."""

    linear: Weighted
    between: Sequence[nn.Module]
    act: nn.Module


@dataclass
class DyadTrace(StageTrace):
    """A stage whose neurons have two states.

    Attributes:
        parts: of the stage.
        c: output of its linear layer in the clean pass, on the graph of that layer alone.
        a: what its activation is given in the clean pass, on the graph.
        switches: indices of the clean pass' max-pools, in order.
        plus, minus: s+ and s-, of h_i's shape; None until the stage is nudged: both are h_i then.
        at_c: what s+ - s- sends back to c, of c's shape.
        at_between: gradients of the parameters between, for s+ - s-.
    """

    parts: Parts = field(kw_only=True)
    c: Tensor = field(kw_only=True)
    a: Tensor = field(kw_only=True)
    switches: list[Tensor] = field(kw_only=True)
    plus: Tensor | None = None
    minus: Tensor | None = None
    at_c: Tensor | None = None
    at_between: Sequence[Tensor] = ()

    def between_parameters(self) -> list[nn.Parameter]:
        """Biases and norms: parameters of the stage that are not the linear layer's."""
        return [p for layer in self.parts.between for p in layer.parameters()]

    def release(self) -> None:
        """Let go of the graph, and of what went down."""
        self.c = self.a = self.y = self.h
        self.at_c, self.at_between = None, ()

    def mean(self, alpha: float) -> Tensor:
        """What the stage above is given, alpha s+ + (1 - alpha) s-, of h_i's shape."""
        if self.plus is None or self.minus is None:
            return self.h
        return torch.lerp(self.minus, self.plus, alpha)


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

    transports_weights = True

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

    def _infer(self, dyads: list[DyadTrace], i: int, error: Tensor) -> None:
        """New states of stage i, counted from 0, from those of its neighbours; ``error`` is e_L."""
        dyad = dyads[i]
        if i + 1 == len(dyads):
            e = error
        elif (at_c := dyads[i + 1].at_c) is not None:
            layer = dyads[i + 1].parts.linear
            e = input_gradient(layer, layer.weight.detach(), at_c, dyad.y.shape)
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


def parts_of(stage: Stage, number: int) -> Parts:
    """A stage's linear layer, what stands between, and its activation; the identity where it has none.

    Raises:
        ConfigError: it is not made of these.
    """
    first, *rest = stage.layers()
    act = rest.pop() if rest and is_activation(rest[-1]) else nn.Identity()
    plain = type(first).forward is nn.Linear.forward or (isinstance(first, nn.Conv2d) and is_plain(first))
    between = [layer for layer in rest if not isinstance(layer, nn.Identity)]
    matrices = any(is_matrix(p) for layer in between for p in layer.parameters())
    bends = any(is_activation(part) or isinstance(part, nn.Dropout) for layer in between for part in layer.modules())
    if not plain or matrices or bends or not isinstance(first, Weighted):
        made_of = ", ".join(type(layer).__name__ for layer in (first, *rest))
        raise ConfigError(
            "learner=dual_propagation needs stages of a convolution or linear layer, then norm and pooling, then an "
            f"activation, and stage {number} is made of {made_of}: take model=cnn4, conv6, vgg6 or mlp, or learner=bp"
        )
    return Parts(first, between, act)


def is_activation(layer: nn.Module) -> bool:
    """Whether a layer is a non-linearity of torch.nn of each element by itself, and not in place."""
    known = type(layer).__module__ == activations.__name__ and not isinstance(layer, ACROSS)
    return known and not getattr(layer, "inplace", False) and not list(layer.parameters())


def through(
    layers: Sequence[nn.Module], x: Tensor, switches: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The layers in turn, and the indices of their max-pools.

    Args:
        layers: between a stage's linear layer and its activation.
        x: (N, C, H, W).
        switches: of another pass, which the max-pools take instead of their own.
    """
    found: list[Tensor] = []
    for layer in layers:
        if not isinstance(layer, nn.MaxPool2d):
            x = layer(x)
        elif switches is None:
            options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
            x, indices = F.max_pool2d(x, *options, return_indices=True)
            found.append(indices)
        else:
            found.append(switches[len(found)])
            x = pool_at(x, found[-1])
    return x, found


@torch.no_grad()
def rerun(dyad: DyadTrace, below: Tensor) -> Tensor:
    """A s: what the stage's activation is given where the mean state below is s, with the clean pass' switches."""
    with resting_statistics(dyad.stage.forward_map):
        return through(dyad.parts.between, dyad.parts.linear(below), dyad.switches)[0]


def write_dyad_gradients(dyad: DyadTrace, below: Tensor, scale: float) -> None:
    """Write scale (s+ - s-) s^T for the linear layer, s the mean state below, and the like for the other parameters."""
    assert dyad.at_c is not None, "each stage is inferred"
    layer = dyad.parts.linear
    at_c = dyad.at_c * scale
    layer.weight.grad = weight_gradient_of(layer, below, at_c)
    if layer.bias is not None:
        channel = 1 if isinstance(layer, nn.Conv2d) else at_c.ndim - 1
        layer.bias.grad = at_c.sum([d for d in range(at_c.ndim) if d != channel])
    for parameter, gradient in zip(dyad.between_parameters(), dyad.at_between, strict=True):
        parameter.grad = gradient * scale


@torch.no_grad()
def weight_gradient_of(layer: Weighted, x: Tensor, at_y: Tensor) -> Tensor:
    """Gradient of the weight of a layer given x, of its weight's shape, for ``at_y`` at its output."""
    if isinstance(layer, nn.Linear):
        return at_y.flatten(0, -2).T @ x.flatten(0, -2)
    options = (None, layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups, [False, True, False])
    gradient: Tensor = torch.ops.aten.convolution_backward(at_y, x, layer.weight, *options)[1]
    return gradient
