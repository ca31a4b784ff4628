"""Convolutions with the weight gradient that is fastest for their size; the arithmetic is torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_PIXELS = 16  # of an output, up to which oneDNN's bfloat16 weight gradients are the slower ones


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """In autocast's data type if it is on: autograd functions of one's own are not looked into."""
    first = next(t for t in tensors if t is not None)
    if not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def weight_gradient(x: Tensor, at_y: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """dL/dweight of y = conv2d(x, weight).

    In bfloat16 on the CPU, where y is small, as one matrix product: two to eight times as fast as oneDNN's own.

    Args:
        x: (N, C, H, W).
        at_y: dL/dy, (N, K, H', W').
        weight: (K, C, *kernel); only its shape and layout are read.
        stride, padding: in pixels, of both axes.
    """
    few = at_y.shape[-2] * at_y.shape[-1] <= FEW_PIXELS
    if not (few and at_y.dtype == torch.bfloat16 and at_y.device.type == "cpu"):
        options = (None, stride, padding, [1, 1], False, [0, 0], 1, [False, True, False])
        gradient: Tensor = torch.ops.aten.convolution_backward(at_y, x, weight, *options)[1]
        return gradient
    (n, k, height, width), (_, c, *kernel) = at_y.shape, weight.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    image, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (n, height, width, *kernel, c), (image, row * stride[0], column * stride[1], row, column, channel)
    )
    product = at_y.permute(0, 2, 3, 1).reshape(-1, k).T @ windows.reshape(n * height * width, -1)
    return product.view(k, *kernel, c).permute(0, 3, 1, 2)


class Convolution(torch.autograd.Function):
    """F.conv2d with :func:`weight_gradient`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.options = bias is not None, (list(stride), list(padding))
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, at_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.options
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        options = (None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False])
        at_x = torch.ops.aten.convolution_backward(at_y, x, weight, *options)[0] if to_x else None
        at_weight = weight_gradient(x, at_y, weight, stride, padding) if to_weight else None
        return at_x, at_weight, at_y.sum((0, 2, 3)) if ctx.bias and to_bias else None, None, None


class TransposedConv(torch.autograd.Function):
    """Transposed convolution whose weight gradient is that of the convolution which it transposes.

    The same numbers; oneDNN computes them in two thirds of the time when the convolution is the one that is named,
    and without the bias, whose gradient is one sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        extra: list[int],
    ) -> Tensor:
        ctx.save_for_backward(u, weight)
        ctx.bias, ctx.options = bias is not None, (list(stride), list(padding))
        return F.conv_transpose2d(u, weight, bias, stride, padding, extra)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        u, weight = ctx.saved_tensors
        stride, padding = ctx.options
        to_u, to_weight, to_bias = ctx.needs_input_grad[:3]
        down = F.conv2d(gradient, weight, None, stride, padding) if to_u else None
        at_weight = weight_gradient(gradient, u, weight, stride, padding) if to_weight else None
        return down, at_weight, gradient.sum((0, 2, 3)) if ctx.bias and to_bias else None, None, None, None


class Conv(nn.Conv2d):
    """nn.Conv2d of one group, undilated, zero padded; bfloat16 gradients on the CPU are :class:`Convolution`'s."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H', W')."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        cast, weight, bias = autocast(x, self.weight, self.bias)
        if cast.dtype != torch.bfloat16:
            return super().forward(x)
        y: Tensor = Convolution.apply(cast, weight, bias, self.stride, self.padding)
        return y
