"""Feedback maps g of stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.models.blocks import Held
from dtp_lightning.models.convolution import TransposedConv, autocast

Kept = Tensor | Held | None
"""What a feedback map needs of the forward pass that its argument belongs to: the indices of the max-pool, int64 of the
stage's output shape; what a block's pass held (:class:`~dtp_lightning.models.blocks.Held`); or nothing."""


def activation_named(name: str) -> type[nn.Module]:
    """A class of torch.nn by its name, such as ``Tanh``, ``Hardtanh``, ``Identity``.

    Raises:
        ValueError: torch.nn has no such class, or it needs arguments or changes the shape of its input.

    >>> activation_named("Tanh")
    <class 'torch.nn.modules.activation.Tanh'>
    """
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"torch.nn has no activation '{name}': write it as torch does, such as Tanh or Hardtanh")
    try:
        with torch.device("meta"):  # shapes only: nothing is computed, no random number is drawn
            fits = kind()(torch.empty(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"torch.nn.{name} is no activation: one such as Tanh or Hardtanh takes no argument")
    return kind


def unpool(u: Tensor, pool_indices: Tensor, pool: int, size: tuple[int, int]) -> Tensor:
    """Put each value where the maximum of the forward pass was, zeros elsewhere: the backward pass of max-pooling.

    The result of ``F.max_unpool2d``, many times faster on the CPU in channels-last memory.

    Args:
        u: (N, C, H', W').
        pool_indices: of that shape, as max-pooling returns them.
        pool: window and stride, in pixels.
        size: (H, W) of the input of the pooling.
    """
    like = torch.empty((*u.shape[:2], *size), dtype=u.dtype, device=u.device, memory_format=torch.channels_last)
    window = [pool, pool]
    return torch.ops.aten.max_pool2d_with_indices_backward(u, like, window, window, [0, 0], [1, 1], False, pool_indices)


class FeedbackMap(nn.Module, ABC):
    """g_i: maps an activation of stage i back to an activation below it. A stage's ``feedback_map`` derives from it.

    Attributes:
        differs_exactly: whether :meth:`difference` loses no digits of a small e, even in bfloat16.
    """

    differs_exactly: ClassVar[bool] = False

    @abstractmethod
    def forward(self, u: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """g(u), (N, C, H', W') -> (N, C_below, *size).

        Args:
            u: of the shape of the stage's output.
            size: (H, W) of the stage's input, in pixels.
            pool_indices: what the stage's forward pass that u belongs to left for it.
        """

    def jvp(self, u: Tensor, v: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """J_g(u) v, the derivative of g at u in the direction of v, (N, C, H', W') both -> (N, C_below, *size).

        By :func:`torch.func.jvp` of ``forward``, unless a subclass knows a faster way.
        """
        derivative: Tensor = torch.func.jvp(lambda at: self(at, size, pool_indices), (u,), (v,))[1]
        return derivative

    def difference(self, h: Tensor, e: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """g(h) - g(h - e), (N, C, H', W') both -> (N, C_below, *size)."""
        difference: Tensor = self(h, size, pool_indices) - self(h - e, size, pool_indices)
        return difference


class ConvFeedback(FeedbackMap, nn.ConvTranspose2d):
    """g(u) = activation(strided transposed convolution of u), cropped to any size that pools to u's.

    For even sizes and a 3x3 kernel at stride 2 this is padding 1, output padding 1, as in the thesis. Odd sizes, which
    the thesis does not have, use the padding with which every input pixel gets feedback.

    Args:
        in_channels, out_channels, kernel_size, stride, bias: see torch.nn.ConvTranspose2d.
        activation: that of the stage below, so that targets have the range of its activations.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, *, activation: str = "Tanh",
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)
        self.activation = activation_named(activation)()

    def forward(  # type: ignore[override]
        self, u: Tensor, size: tuple[int, int], pool_indices: Kept = None
    ) -> Tensor:
        """(N, C, H', W') -> (N, C_below, *size)."""
        return self.activation(self._convolve(self._spread(u, size, pool_indices), size, self.bias))

    def jvp(self, u: Tensor, v: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """J_g(u) v, the derivative of g at u in the direction of v: (N, C, H', W') both -> (N, C_below, *size).

        Two thirds of the time of ``torch.func.jvp`` on all of g, whose linear part needs none.
        """
        at_u = self._convolve(self._spread(u, size, pool_indices), size, self.bias)
        along_v = self._convolve(self._spread(v, size, pool_indices), size, None)
        derivative: Tensor = torch.func.jvp(self.activation, (at_u,), (along_v,))[1]
        return derivative

    def _spread(self, u: Tensor, size: tuple[int, int], pool_indices: Kept) -> Tensor:
        """Input of the transposed convolution; linear in u."""
        return u

    def _convolve(self, u: Tensor, size: tuple[int, int], bias: Tensor | None) -> Tensor:
        crops = list(self._crops(u, size))
        padding = [p for p, _ in crops]
        extra = [e for _, e in crops]
        u, weight, bias = autocast(u, self.weight, bias)
        convolve = TransposedConv.apply if torch.is_grad_enabled() else F.conv_transpose2d
        convolved: Tensor = convolve(u, weight, bias, self.stride, padding, extra)
        return convolved

    def _crops(self, u: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        for pooled, wanted, kernel, stride in zip(u.shape[-2:], size, self.kernel_size, self.stride, strict=True):
            excess = (pooled - 1) * stride + kernel - wanted
            padding = max(0, (excess + 1) // 2)
            yield padding, 2 * padding - excess


class UnpoolFeedback(ConvFeedback):
    """g(u) = activation(transposed convolution of the unpooled u).

    Unpooling puts each value where the forward pass' maximum was (max-pooling, by its indices), or spreads it evenly
    over its window (average pooling): the transpose of the pooling. The activation comes last, so J_g is the transpose
    of J_f only where both activations are linear; :class:`~dtp_lightning.models.transposable.TransposableFeedback` puts
    it first.

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

    def _spread(self, u: Tensor, size: tuple[int, int], pool_indices: Kept) -> Tensor:
        inner = (-(-size[0] // self.stride[0]), -(-size[1] // self.stride[1]))  # what the forward convolution gave
        if isinstance(pool_indices, Tensor):
            return unpool(u, pool_indices, self.pool, inner)
        if self.pool == 1:
            return u
        spread = F.interpolate(u, scale_factor=self.pool, mode="nearest") / self.pool**2
        return F.pad(spread, (0, inner[1] - spread.shape[-1], 0, inner[0] - spread.shape[-2]))
