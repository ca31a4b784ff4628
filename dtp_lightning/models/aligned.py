"""Layers that send the error down by other weights than their own."""

from __future__ import annotations

from collections.abc import Callable
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
        layer = ctx.layer
        b = ctx.backward_weight(layer).to(gradient.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(gradient, b.T), gradient, None, None
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return nn_grad.conv2d_input(ctx.shape, b, gradient, *options), gradient, None, None
