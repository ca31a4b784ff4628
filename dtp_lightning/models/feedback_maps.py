"""Feedback maps of convolutional stages: what a stage's g is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def activation_named(name: str) -> type[nn.Module]:
    """A class of torch.nn by its name, such as ``Tanh``, ``Hardtanh``, ``Identity``.

    Raises:
        ValueError: torch.nn has no such class, or it needs arguments or changes the shape of what it is given.
    """
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"torch.nn has no activation '{name}': write it as torch does, such as Tanh or Hardtanh")
    try:
        with torch.device("meta"):  # where nothing is computed and no random number is drawn
            fits = kind()(torch.empty(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"torch.nn.{name} is no activation: one such as Tanh or Hardtanh takes no argument")
    return kind


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
        at_weight = None
        if to_weight:
            options = (None, stride, padding, [1, 1], False, [0, 0], 1, [False, True, False])
            at_weight = torch.ops.aten.convolution_backward(u, gradient, weight, *options)[1]
        return down, at_weight, gradient.sum((0, 2, 3)) if ctx.bias and to_bias else None, None, None, None


def unpool(u: Tensor, switches: Tensor, pool: int, size: tuple[int, int]) -> Tensor:
    """Each value where the forward pass' maximum was, zeros elsewhere: max-pooling's backward pass.

    What ``F.max_unpool2d`` does, many times faster on the CPU in channels-last memory.

    Args:
        u: (N, C, H', W').
        switches: of that shape, as max-pooling returns them.
        pool: window and stride, in pixels.
        size: (H, W) of what was pooled.
    """
    like = torch.empty((*u.shape[:2], *size), dtype=u.dtype, device=u.device, memory_format=torch.channels_last)
    window = [pool, pool]
    return torch.ops.aten.max_pool2d_with_indices_backward(u, like, window, window, [0, 0], [1, 1], False, switches)


class ConvFeedback(nn.ConvTranspose2d):
    """g(u) = activation(strided transposed convolution of u), cropped to any size that pools to u's.

    For even sizes and a 3x3 kernel at stride 2 this is padding 1, output padding 1, as in the thesis; odd
    sizes, which it never met, use the padding that lets every input pixel be reached.

    Args:
        in_channels, out_channels, kernel_size, stride, bias: see torch.nn.ConvTranspose2d.
        activation: that of the stage below, so that targets have the range of what they are targets for.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, *, activation: str = "Tanh",
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)
        self.activation = activation_named(activation)()

    def forward(  # type: ignore[override]
        self, u: Tensor, size: tuple[int, int], switches: Tensor | None = None
    ) -> Tensor:
        """(N, C, H', W') -> (N, C_below, *size)."""
        crops = list(self._crops(u, size))
        padding = [p for p, _ in crops]
        extra = [e for _, e in crops]
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(u.device.type):  # which does not look into functions of one's own
            dtype = torch.get_autocast_dtype(u.device.type)
            u, weight, bias = u.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        convolve = TransposedConv.apply if torch.is_grad_enabled() else F.conv_transpose2d
        return self.activation(convolve(u, weight, bias, self.stride, padding, extra))

    def _crops(self, u: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        for pooled, wanted, kernel, stride in zip(u.shape[-2:], size, self.kernel_size, self.stride, strict=True):
            excess = (pooled - 1) * stride + kernel - wanted
            padding = max(0, (excess + 1) // 2)
            yield padding, 2 * padding - excess


class UnpoolFeedback(ConvFeedback):
    """g(u) = activation(transposed convolution of the unpooled u).

    Unpooling puts each value where the forward pass' maximum was (max-pooling with switches), or spreads it evenly
    over its window (average pooling): the transpose of the pooling, so that g can learn the transpose of f exactly.

    Args:
        in_channels, out_channels, kernel_size, stride, activation, bias: see :class:`ConvFeedback`; the stride is
            that of the forward convolution.
        pool: window and stride of the pooling, in pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, pool: int, *,
        activation: str = "Tanh", bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, activation=activation, bias=bias)
        self.pool = pool

    def forward(  # type: ignore[override]
        self, u: Tensor, size: tuple[int, int], switches: Tensor | None = None
    ) -> Tensor:
        """(N, C, H', W') -> (N, C_below, *size)."""
        inner = (-(-size[0] // self.stride[0]), -(-size[1] // self.stride[1]))  # what the forward convolution gave
        if switches is not None:
            spread = unpool(u, switches, self.pool, inner)
        else:
            spread = F.interpolate(u, scale_factor=self.pool, mode="nearest") / self.pool**2
            spread = F.pad(spread, (0, inner[1] - spread.shape[-1], 0, inner[0] - spread.shape[-2]))
        return super().forward(spread, size)
