"""Layers that send the error down by other weights than their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as nn_grad

Weighted = nn.Conv2d | nn.Linear
"""Layers with a matrix of weights, which feedback has one of its own for."""


def aligned(x: Tensor, y: Tensor, layer: Weighted, backward_weight: Callable[[Weighted], Tensor]) -> Tensor:
    """The layer's output y, whose gradient reaches x by B in place of W.

    Args:
        x: input of the layer, on a graph.
        y: the layer's output for ``x.detach()``; the gradient of its weights is the usual one.
        layer: torch's own convolution, or a linear layer.
        backward_weight: called in the backward pass, gives B of W's shape.
    """
    sent: Tensor = AlignedInputGradient.apply(x, y, layer, backward_weight)
    return sent


class AlignedInputGradient(torch.autograd.Function):
    """Identity on a layer's output y. Backward: the gradient itself for y (the weights' graph), B^T of it for x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, layer: nn.Module, backward_weight: Callable[[nn.Module], Tensor]
    ) -> Tensor:
        ctx.shape, ctx.layer, ctx.backward_weight = x.shape, layer, backward_weight
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        b = ctx.backward_weight(ctx.layer).to(gradient.dtype)
        return input_gradient(ctx.layer, b, gradient, ctx.shape), gradient, None, None


def input_gradient(layer: Weighted, weight: Tensor, gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """What a layer sends down of its output's gradient by a weight of its own weight's shape; of its input's shape."""
    if isinstance(layer, nn.Linear):
        return F.linear(gradient, weight.T)
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    below: Tensor = nn_grad.conv2d_input(shape, weight, gradient, *options)
    return below
