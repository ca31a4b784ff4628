"""Transposed convolutions with the weight gradient that is fastest for their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_PIXELS = 16  # height x width of y up to which weight gradients in bfloat16 are a matrix product


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's data type, if autocast is on: it does not act inside a custom autograd function."""
    first = next(t for t in tensors if t is not None)
    if not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def weight_gradient(x: Tensor, at_y: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """dL/dweight of y = conv2d(x, weight).

    In bfloat16 on the CPU, where y has at most ``FEW_PIXELS`` pixels, as one matrix product: 1.2 to 2.2 times as fast
    as oneDNN for the feedback maps of the thesis network (``benchmarks/kernels.py``).

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


class TransposedConv(torch.autograd.Function):
    """Transposed convolution whose weight gradient is that of the convolution which it transposes.

    The same numbers up to rounding. oneDNN computes them in less time as the gradient of that convolution, and without
    the bias, whose gradient is one sum: 1.0 to 1.8 times as fast in float32, 1.6 to 1.8 times in bfloat16
    (``benchmarks/kernels.py``).
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
