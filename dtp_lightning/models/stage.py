"""One unit of a backbone: a forward map and the feedback map that undoes it.

The thesis makes difference target propagation live with pooling by calling convolution + max-pool +
non-linearity *one* stage, whose feedback is a strided transposed convolution straight from the pooled map
(Tang et al. 2022, Algorithm 1; thesis code). A target therefore exists only where an inverse exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stage(nn.Module):
    """f: activation below -> activation here, and g: back again.

    Args:
        forward_map: f, maps (N, C_below, H, W) to (N, C, H', W'); layers in a row where it is a Sequential.
        feedback_map: g, called as ``g(u, (H, W), switches)`` with u of f's output shape, returns f's input shape.
            None where nothing below needs a target (the first stage: the image is given).
    """

    def __init__(self, forward_map: nn.Module, feedback_map: nn.Module | None = None) -> None:
        super().__init__()
        self.forward_map = forward_map
        self.feedback_map = feedback_map

    def forward(self, x: Tensor) -> Tensor:
        """h_i = f_i(h_{i-1})."""
        return self.run(x)[0]

    def run(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """f(x), and the max-pool's switches (which pixel won) if the feedback map wants them."""
        switches = None
        for layer in self.layers():
            if isinstance(layer, nn.MaxPool2d) and layer.return_indices:
                x, switches = layer(x)
            else:
                x = layer(x)
        return x, switches

    def layers(self) -> list[nn.Module]:
        """What f consists of, in order."""
        return list(self.forward_map) if isinstance(self.forward_map, nn.Sequential) else [self.forward_map]

    def feedback(self, u: Tensor, like: Tensor, switches: Tensor | None = None) -> Tensor:
        """g_i(u), of the shape of ``like``, the stage's input (only its size is read).

        Args:
            u: of f's output shape.
            like: of f's input shape.
            switches: from :meth:`run`, of the forward pass that u belongs to.

        Raises:
            RuntimeError: this stage was built without a feedback map.
        """
        if self.feedback_map is None:
            raise RuntimeError("this stage has no feedback map: build it with feedback=True")
        return self.feedback_map(u, (like.shape[-2], like.shape[-1]), switches)

    def forward_parameters(self) -> list[nn.Parameter]:
        """Parameters of f."""
        return list(self.forward_map.parameters())

    def feedback_parameters(self) -> list[nn.Parameter]:
        """Parameters of g; empty without one."""
        return [] if self.feedback_map is None else list(self.feedback_map.parameters())


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
        return self.activation(F.conv_transpose2d(u, self.weight, self.bias, self.stride, padding, extra))

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
            spread = F.max_unpool2d(u, switches, [self.pool, self.pool], output_size=inner)
        else:
            spread = F.interpolate(u, scale_factor=self.pool, mode="nearest") / self.pool**2
            spread = F.pad(spread, (0, inner[1] - spread.shape[-1], 0, inner[0] - spread.shape[-2]))
        return super().forward(spread, size)


def conv_stage(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    pool: int = 2,
    pooling: Literal["max", "average"] = "max",
    activation: str = "Tanh",
    activation_below: str = "Tanh",
    bias: bool = True,
    feedback: Literal["strided", "unpool"] | None = "strided",
) -> Stage:
    """Convolution (same padding), pooling and activation as one stage, with its transposed-convolution feedback.

    Args:
        in_channels, out_channels: of the forward map.
        kernel_size: odd, in pixels; the feedback kernel has the same size.
        stride: of the convolution, in pixels.
        pool: window and stride of the pooling, in pixels; 1 for none.
        pooling: ``max`` or ``average``.
        activation: of the forward map, a class of torch.nn.
        activation_below: of the feedback map: the stage below's.
        bias: of both convolutions.
        feedback: ``strided`` transposes pooling and convolution in one strided transposed convolution (thesis);
            ``unpool`` undoes the pooling first, max-pooling by its switches; None builds no g.

    Raises:
        ValueError: there is no such activation; the kernel is even, or smaller than what a strided feedback has to
            spread, so that it could not reach every pixel.
    """
    reach = stride * (pool if feedback != "unpool" else 1)
    if kernel_size % 2 == 0 or kernel_size < reach:
        raise ValueError(f"kernel_size={kernel_size} must be odd and at least {reach} (pool={pool}, stride={stride})")
    switches = feedback == "unpool" and pooling == "max"
    pools = {"max": nn.MaxPool2d(pool, return_indices=switches), "average": nn.AvgPool2d(pool)}
    forward_map = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias),
        pools[pooling] if pool > 1 else nn.Identity(),
        activation_named(activation)(),
    )
    if feedback is None:
        return Stage(forward_map)
    channels = (out_channels, in_channels, kernel_size)
    if feedback == "unpool" and pool > 1:
        return Stage(forward_map, UnpoolFeedback(*channels, stride, pool, activation=activation_below, bias=bias))
    return Stage(forward_map, ConvFeedback(*channels, stride * pool, activation=activation_below, bias=bias))
