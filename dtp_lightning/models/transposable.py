"""A feedback map that can be the transpose of its stage's Jacobian, exactly and at every input.

A stage is f(x) = act(pool(W x + b)), so J_f^T v = W^T unpool_s(act' * v), with s the pooling of this x. The map
g(u) = B unpool_s(phi(u)) with phi'(y) = act'(act^-1(y)) has J_g(y) v = B unpool_s(act' * v): with B = W it is J_f^T.
A map whose non-linearity comes last, activation(B unpool_s(u)), gates on the other side and cannot be it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.models.convolution import autocast, weight_gradient
from dtp_lightning.models.feedback_maps import Kept, UnpoolFeedback

_SLOPE = 0.01  # of torch.nn.LeakyReLU() below zero


class Phi(NamedTuple):
    """phi of an activation: the integral of its derivative, as a function of its value.

    Attributes:
        value: u -> phi(u).
        along: (h, v) -> phi'(h) v, that is act' v where the stage's output is h.
        difference: (h, e) -> phi(h) - phi(h - e), written out, so that a small e keeps all its digits. A unit whose
            derivative is zero at h (ReLU, Hardtanh) passes nothing, as in backprop.
    """

    value: Callable[[Tensor], Tensor]
    along: Callable[[Tensor, Tensor], Tensor]
    difference: Callable[[Tensor, Tensor], Tensor]


def _tanh(u: Tensor) -> Tensor:
    return u - u**3 / 3


def _tanh_along(h: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(v, h)


def _tanh_difference(h: Tensor, e: Tensor) -> Tensor:
    """Equal to e (1 - h^2) + e^2 (h - e / 3)."""
    curvature = torch.sub(h, e, alpha=1 / 3).mul_(e)
    return _tanh_along(h, e).addcmul_(curvature, e)


def _sigmoid(u: Tensor) -> Tensor:
    return u**2 / 2 - u**3 / 3


def _sigmoid_along(h: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward(v, h)


def _sigmoid_difference(h: Tensor, e: Tensor) -> Tensor:
    """Equal to e h (1 - h) + e^2 (h - 1 / 2 - e / 3)."""
    curvature = torch.sub(h, e, alpha=1 / 3).sub_(0.5).mul_(e)
    return _sigmoid_along(h, e).addcmul_(curvature, e)


def _relu_along(h: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(v, h, 0)


def _relu_difference(h: Tensor, e: Tensor) -> Tensor:
    return torch.where(h > 0, torch.minimum(e, h), 0)


def _hardtanh_along(h: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.hardtanh_backward(v, h, -1, 1)


def _hardtanh_difference(h: Tensor, e: Tensor) -> Tensor:
    return torch.where(h.abs() < 1, e.clamp(h - 1, h + 1), 0)


def _leaky(u: Tensor) -> Tensor:
    return F.leaky_relu(u, _SLOPE)


def _leaky_along(h: Tensor, v: Tensor) -> Tensor:
    return torch.where(h > 0, v, _SLOPE * v)


def _leaky_difference(h: Tensor, e: Tensor) -> Tensor:
    target = h - e
    return torch.where((h > 0) == (target > 0), _leaky_along(h, e), _leaky(h) - _leaky(target))


def _elu(u: Tensor) -> Tensor:
    return u + u.clamp(max=0) ** 2 / 2


def _elu_along(h: Tensor, v: Tensor) -> Tensor:
    return v + v * h.clamp(max=0)


def _elu_difference(h: Tensor, e: Tensor) -> Tensor:
    """Equal to e + (min(h, 0)^2 - min(h - e, 0)^2) / 2; the bracket is e (2 h - e) where both are below zero."""
    target = h - e
    apart = (h.clamp(max=0) ** 2 - target.clamp(max=0) ** 2) / 2
    return e + torch.where((h <= 0) & (target <= 0), e * (h - e / 2), apart)


def _same(u: Tensor) -> Tensor:
    return u


def _second(h: Tensor, v: Tensor) -> Tensor:
    return v


PHI: dict[str, Phi] = {
    "Tanh": Phi(_tanh, _tanh_along, _tanh_difference),
    "Sigmoid": Phi(_sigmoid, _sigmoid_along, _sigmoid_difference),
    "ReLU": Phi(F.relu, _relu_along, _relu_difference),
    "Hardtanh": Phi(F.hardtanh, _hardtanh_along, _hardtanh_difference),
    "LeakyReLU": Phi(_leaky, _leaky_along, _leaky_difference),
    "ELU": Phi(_elu, _elu_along, _elu_difference),
    "Identity": Phi(_same, _second, _second),
}
"""By the name of the activation in torch.nn, with torch's default arguments."""


def phi_of(activation: str) -> Phi:
    """The phi that belongs to an activation of torch.nn.

    Raises:
        ValueError: it is not known how its derivative follows from its value.
    """
    if activation not in PHI:
        raise ValueError(
            f"feedback=transposable knows the activations {', '.join(PHI)}, and not {activation}: "
            "choose one of them, or feedback=unpool"
        )
    return PHI[activation]


class TransposableFeedback(UnpoolFeedback):
    """g(u) = B unpool_s(phi(u)): linear after phi, without a bias; J_g = J_f^T where B = W.

    B has the shape of the forward convolution's weight. Unpooling is :class:`UnpoolFeedback`'s, by the indices of the
    forward pass that u belongs to, or evenly for average pooling. A target u outside the activation's range is allowed.

    Args:
        in_channels, out_channels: of g, which are those of f the other way round.
        kernel_size, stride: of the forward convolution, in pixels, whose padding is kernel_size // 2.
        pool: window and stride of the pooling, in pixels; 1 for none.
        activation: of this stage (not of the one below).

    Raises:
        ValueError: see :func:`phi_of`.
    """

    differs_exactly = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, pool: int, *, activation: str = "Tanh"
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, pool, activation="Identity", bias=False)
        self.phi = phi_of(activation)

    def forward(  # type: ignore[override]
        self, u: Tensor, size: tuple[int, int], pool_indices: Kept = None
    ) -> Tensor:
        """(N, C, H', W') -> (N, C_below, *size)."""
        return self._transpose(self.phi.value(u), size, pool_indices)

    def jvp(self, u: Tensor, v: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """J_g(u) v: (N, C, H', W') both -> (N, C_below, *size)."""
        return self._transpose(self.phi.along(u, v), size, pool_indices)

    def difference(self, h: Tensor, e: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """g(h) - g(h - e) in one pass and without cancellation: (N, C, H', W') both -> (N, C_below, *size).

        g is linear after phi, so it is B unpool_s(phi(h) - phi(h - e)). bfloat16 survives it.
        """
        return self._transpose(self.phi.difference(h, e), size, pool_indices)

    def presynaptic(self, v: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """unpool_s(v), what B acts on: (N, C, H', W') -> (N, C, *that of the forward convolution's output)."""
        return self._spread(v, size, pool_indices)

    def transpose(self, a: Tensor, size: tuple[int, int]) -> Tensor:
        """B a: of the shape of :meth:`presynaptic`'s result -> (N, C_below, *size)."""
        return self._convolve(a, size, None)

    def weight_gradient(self, below: Tensor, a: Tensor) -> Tensor:
        """Gradient of <below, B a> in B, of its shape: the summed products of both ends' activities."""
        below, a = autocast(below, a)
        return weight_gradient(below, a, self.weight, self.stride, self._forward_padding).to(self.weight.dtype)

    def squared_reach(self, a: Tensor, size: tuple[int, int]) -> Tensor:
        """M with <B^2, M> = sum over units of a ||B's part of that unit inside the image||^2.

        Args:
            a: of the shape of :meth:`presynaptic`'s result.
            size: see :meth:`transpose`.

        Returns:
            (C, 1, *kernel).
        """
        inside, weight = a.new_ones(1, 1, *size), self.weight[:, :1]
        return weight_gradient(inside, a.sum(0, keepdim=True), weight, self.stride, self._forward_padding)

    @property
    def _forward_padding(self) -> list[int]:
        return [side // 2 for side in self.kernel_size]

    def _transpose(self, v: Tensor, size: tuple[int, int], pool_indices: Kept) -> Tensor:
        return self.transpose(self.presynaptic(v, size, pool_indices), size)

    def _crops(self, u: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Exactly the forward convolution's, also where the stride is larger than the kernel needs."""
        sides = zip(u.shape[-2:], size, self.kernel_size, self.stride, self._forward_padding, strict=True)
        for given, wanted, kernel, stride, padding in sides:
            yield padding, wanted - ((given - 1) * stride + kernel - 2 * padding)
