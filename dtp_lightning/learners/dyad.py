"""A stage of neurons that have two states each, nudged up and down: what dual propagation makes of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation as activations

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import StageTrace
from dtp_lightning.models.aligned import Weighted
from dtp_lightning.models.blocks import is_matrix, is_plain, pool_at, resting_statistics
from dtp_lightning.models.stage import Stage

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
