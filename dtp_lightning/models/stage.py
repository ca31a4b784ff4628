"""One unit of a backbone: a forward map and the feedback map that undoes it.

The thesis makes difference target propagation live with pooling by calling convolution + max-pool +
non-linearity *one* stage, whose feedback is a strided transposed convolution straight from the pooled map
(Tang et al. 2022, Algorithm 1; thesis code). A target therefore exists only where an inverse exists.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F


class Stage(nn.Module):
    """f: activation below -> activation here, and g: back again.

    Args:
        forward_map: f, maps (N, C_below, H, W) to (N, C, H', W').
        feedback_map: g, called as ``g(u, (H, W))`` with u of f's output shape, returns f's input shape.
            None where nothing below needs a target (the first stage: the image is given).
    """

    def __init__(self, forward_map: nn.Module, feedback_map: nn.Module | None = None) -> None:
        super().__init__()
        self.forward_map = forward_map
        self.feedback_map = feedback_map

    def forward(self, x: Tensor) -> Tensor:
        """h_i = f_i(h_{i-1})."""
        return self.forward_map(x)

    def feedback(self, u: Tensor, like: Tensor) -> Tensor:
        """g_i(u), of the shape of ``like``, the stage's input (only its size is read).

        Raises:
            RuntimeError: this stage was built without a feedback map.
        """
        if self.feedback_map is None:
            raise RuntimeError("this stage has no feedback map: build it with feedback=True")
        return self.feedback_map(u, (like.shape[-2], like.shape[-1]))

    def forward_parameters(self) -> list[nn.Parameter]:
        """Parameters of f."""
        return list(self.forward_map.parameters())

    def feedback_parameters(self) -> list[nn.Parameter]:
        """Parameters of g; empty without one."""
        return [] if self.feedback_map is None else list(self.feedback_map.parameters())


def activation_named(name: str) -> type[nn.Module]:
    """A class of torch.nn by its name, such as ``Tanh``, ``Hardtanh``, ``Identity``.

    Raises:
        ValueError: torch.nn has no such class.
    """
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"torch.nn has no activation '{name}': write it as torch does, such as Tanh or Hardtanh")
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

    def forward(self, u: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
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


def conv_stage(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    pool: int = 2,
    activation: str = "Tanh",
    activation_below: str = "Tanh",
    bias: bool = True,
    feedback: bool = True,
) -> Stage:
    """Convolution (same padding), max-pool and activation as one stage, with its transposed-convolution feedback.

    Args:
        in_channels, out_channels: of the forward map.
        kernel_size: odd and at least ``pool``, in pixels; the feedback kernel has the same size.
        pool: max-pool window and stride, in pixels; 1 for none.
        activation: of the forward map, a class of torch.nn.
        activation_below: of the feedback map: the stage below's.
        bias: of both convolutions.
        feedback: whether to build g.

    Raises:
        ValueError: there is no such activation; the kernel is even, or smaller than the pooling, so that feedback
            could not reach every pixel.
    """
    if kernel_size % 2 == 0 or kernel_size < pool:
        raise ValueError(f"kernel_size={kernel_size} must be odd and at least pool={pool}")
    forward_map = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias),
        nn.MaxPool2d(pool) if pool > 1 else nn.Identity(),
        activation_named(activation)(),
    )
    if not feedback:
        return Stage(forward_map)
    g = ConvFeedback(out_channels, in_channels, kernel_size, stride=pool, activation=activation_below, bias=bias)
    return Stage(forward_map, g)
