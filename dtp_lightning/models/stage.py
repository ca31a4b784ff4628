"""One unit of a backbone: a forward map and the feedback map that undoes it.

The thesis makes difference target propagation live with pooling by calling convolution + max-pool +
non-linearity *one* stage, whose feedback is a strided transposed convolution straight from the pooled map
(Tang et al. 2022, Algorithm 1; thesis code). A target therefore exists only where an inverse exists.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as activations
from torch.nn.modules.batchnorm import _BatchNorm

from dtp_lightning.models.block_feedback import BlockTranspose
from dtp_lightning.models.blocks import Held, leaves, pool_at, resting_statistics
from dtp_lightning.models.feedback_maps import ConvFeedback, FeedbackMap, Kept, UnpoolFeedback, activation_named
from dtp_lightning.models.norms import Norm, norms
from dtp_lightning.models.transposable import TransposableFeedback


class StageOutput(NamedTuple):
    """What a stage's forward pass returns.

    Attributes:
        y: f(x), (N, C, H', W').
        pool_indices: where the maxima of the max-pool are, int64 of y's shape, if the feedback map needs them; of a
            block whose feedback is its transpose, what that needs of the whole pass.
        preactivation: output of the first layer where that layer is linear, see :meth:`Stage.run_perturbed`.
    """

    y: Tensor
    pool_indices: Kept = None
    preactivation: Tensor | None = None


class Bias(nn.Module):
    """Adds one number a channel, in place.

    max(a) + b = max(a + b), to the last bit. After a 2 x 2 pool the bias and its gradient read a quarter of the memory.
    """

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same tensor."""
        return x.add_(self.bias[:, None, None].to(x.dtype))


class Stage(nn.Module):
    """f_i, which maps activation h_{i-1} to h_i, and its feedback map g_i, which maps h_i back to h_{i-1}.

    Args:
        forward_map: f, maps (N, C_below, H, W) to (N, C, H', W'); layers in a row where it is a Sequential.
        feedback_map: g. None where nothing below needs a target (the first stage: below it is the image).

    >>> stage = conv_stage(3, 8)
    >>> x = torch.rand(2, 3, 32, 32)
    >>> h = stage(x)
    >>> h.shape
    torch.Size([2, 8, 16, 16])
    >>> stage.feedback(h, like=x).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, forward_map: nn.Module, feedback_map: FeedbackMap | None = None) -> None:
        super().__init__()
        self.forward_map = forward_map
        self.feedback_map = feedback_map

    def forward(self, x: Tensor) -> Tensor:
        """h_i = f_i(h_{i-1})."""
        return self.run(x)[0]

    def run(self, x: Tensor, fixed: Kept = None) -> StageOutput:
        """f(x), and what else the forward pass knows.

        Args:
            x: (N, C_below, H, W).
            fixed: ``pool_indices`` of another forward pass, which the max-pool takes instead of its own.
        """
        if isinstance(self.feedback_map, BlockTranspose):
            return StageOutput(*self.feedback_map.run(self.forward_map, x, fixed if isinstance(fixed, Held) else None))
        layers = self.layers()
        first = layers[0](x)
        y, pool_indices = _through(layers[1:], first, fixed)
        return StageOutput(y, pool_indices, first if _is_linear(layers) else None)

    def run_aligned(self, x: Tensor) -> StageOutput:
        """:meth:`run` on a graph that carries errors by the feedback weights, where g is a block's transpose.

        Errors within the block travel by them too, and the one for x, which then is on the graph, is g of that for y.
        """
        if isinstance(self.feedback_map, BlockTranspose):
            return StageOutput(*self.feedback_map.run_aligned(self.forward_map, x.requires_grad_(True)))
        return self.run(x)

    def rerun(self, x: Tensor, fixed: Kept = None) -> StageOutput:
        """:meth:`run` for a noisy pass: the running statistics of batch norms do not see it."""
        with resting_statistics(self.forward_map):
            return self.run(x, fixed)

    @torch.no_grad()
    def run_perturbed(self, preactivation: Tensor, e: Tensor, fixed: Tensor | None = None) -> StageOutput:
        """f(x + e) where few different e serve many x, at a fraction of the cost: W (x + e) = W x + W e.

        Args:
            preactivation: W x, from :meth:`run` on x (N, C_below, H, W).
            e: (G, C_below, H, W), G <= N; row n of x gets row n modulo G.
            fixed: see :meth:`run`.
        """
        conv, *rest = self.layers()
        response = conv._conv_forward(e, conv.weight, None)  # type: ignore[operator]
        parts = preactivation.split(len(e))
        indices = [None] * len(parts) if fixed is None else fixed.split(len(e))
        runs = [_through(rest, part + response[: len(part)], k) for part, k in zip(parts, indices, strict=True)]
        pool_indices = [s for _, s in runs if s is not None]
        return StageOutput(torch.cat([y for y, _ in runs]), torch.cat(pool_indices) if pool_indices else None)

    def layers(self) -> list[nn.Module]:
        """The layers of f, in order."""
        return list(self.forward_map) if isinstance(self.forward_map, nn.Sequential) else [self.forward_map]

    @property
    def output_activation(self) -> str:
        """Name in torch.nn of the activation that f ends with; Identity if it ends with something else."""
        last = type(list(leaves(self.forward_map))[-1])
        return last.__name__ if last.__module__ == activations.__name__ else "Identity"

    def feedback(self, u: Tensor, like: Tensor, pool_indices: Kept = None) -> Tensor:
        """g_i(u), of the shape of ``like``, the stage's input (only its size is read).

        Args:
            u: of f's output shape.
            like: of f's input shape.
            pool_indices: from :meth:`run`, of the forward pass that u belongs to.

        Raises:
            RuntimeError: this stage was built without a feedback map.
        """
        feedback_map, size = self._feedback_map(like)
        g_u: Tensor = feedback_map(u, size, pool_indices)
        return g_u

    def feedback_jvp(self, u: Tensor, v: Tensor, like: Tensor, pool_indices: Kept = None) -> Tensor:
        """J_{g_i}(u) v, of the shape of ``like``: the derivative of g_i at u in the direction of v.

        Args:
            u, v: of f's output shape.
            like, pool_indices: see :meth:`feedback`.

        Raises:
            RuntimeError: this stage was built without a feedback map.
        """
        feedback_map, size = self._feedback_map(like)
        return feedback_map.jvp(u, v, size, pool_indices)

    def _feedback_map(self, like: Tensor) -> tuple[FeedbackMap, tuple[int, int]]:
        """The feedback map, and the size (H, W) that it maps to."""
        if self.feedback_map is None:
            raise RuntimeError("this stage has no feedback map: build it with feedback=True")
        return self.feedback_map, (like.shape[-2], like.shape[-1])

    def feedback_difference(self, h: Tensor, e: Tensor, like: Tensor, pool_indices: Kept = None) -> Tensor:
        """g_i(h) - g_i(h - e), of the shape of ``like``.

        Args:
            h, e: of f's output shape.
            like, pool_indices: see :meth:`feedback`.

        Raises:
            RuntimeError: this stage was built without a feedback map.
        """
        feedback_map, size = self._feedback_map(like)
        return feedback_map.difference(h, e, size, pool_indices)

    @property
    def differs_exactly(self) -> bool:
        """Whether :meth:`feedback_difference` loses no digits of a small e, even in bfloat16."""
        return self.feedback_map is not None and self.feedback_map.differs_exactly

    def forward_parameters(self) -> list[nn.Parameter]:
        """Parameters of f."""
        return list(self.forward_map.parameters())

    def feedback_parameters(self) -> list[nn.Parameter]:
        """Parameters of g; empty without one."""
        return [] if self.feedback_map is None else list(self.feedback_map.parameters())


def _through(layers: list[nn.Module], x: Tensor, fixed: Kept = None) -> tuple[Tensor, Tensor | None]:
    """The layers in turn; the indices of the max-pool among them that returns some, or takes the fixed ones."""
    pool_indices = None
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d) and layer.return_indices:
            x, pool_indices = (pool_at(x, fixed), fixed) if isinstance(fixed, Tensor) else layer(x)
        else:
            x = layer(x)
    return x, pool_indices


def _is_linear(layers: list[nn.Module]) -> bool:
    if len(layers) == 1 or not isinstance(layers[0], nn.Conv2d) or layers[0].padding_mode != "zeros":
        return False
    return not any(isinstance(layer, _BatchNorm) for layer in layers)  # whose statistics are those of the whole batch


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
    feedback: Literal["strided", "unpool", "transposable"] | None = "strided",
    norm: Norm = "none",
) -> Stage:
    """Convolution (same padding), pooling and activation as one stage, with its transposed-convolution feedback.

    A norm stands between convolution and pooling. The maps that learn to undo f, ``strided`` and ``unpool``, take its
    output as they find it; ``transposable`` holds the clean pass' statistics and is differentiated through them
    (:class:`~dtp_lightning.models.block_feedback.BlockTranspose`).

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
            ``unpool`` undoes the pooling first, max-pooling by its indices; ``transposable`` undoes activation and
            pooling before a linear convolution, so that it can be f's transpose; None builds no g.
        norm: ``none``, ``batch``, ``group`` or ``layer``, see :func:`~dtp_lightning.models.norms.norm_named`. With one
            the convolution has no bias of its own.

    Raises:
        ValueError: there is no such activation, or a transposable feedback does not know it; the kernel is even, or
            smaller than what a strided feedback has to spread, so that it could not reach every pixel.
    """
    reach = stride * (pool if feedback not in ("unpool", "transposable") else 1)
    if kernel_size % 2 == 0 or kernel_size < reach:
        raise ValueError(f"kernel_size={kernel_size} must be odd and at least {reach} (pool={pool}, stride={stride})")
    of_block = feedback == "transposable" and norm != "none"
    return_indices = feedback in ("unpool", "transposable") and pooling == "max" and not of_block
    pools = {"max": nn.MaxPool2d(pool, return_indices=return_indices), "average": nn.AvgPool2d(pool)}
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias and norm == "none"
    )
    pooled = pools[pooling] if pool > 1 else nn.Identity()
    layers = [conv, *norms(out_channels, norm), pooled, activation_named(activation)()]
    if conv.bias is not None and pool > 1:
        layers.insert(2, Bias(nn.Parameter(conv.bias.detach())))
        conv.bias = None
    forward_map = nn.Sequential(*layers)
    if feedback is None:
        return Stage(forward_map)
    if feedback == "transposable" and bias:
        # as many numbers as the other maps draw: forward weights of a seed are the same under any feedback
        torch.empty(in_channels).uniform_()
    if of_block:
        return Stage(forward_map, BlockTranspose(forward_map))
    names = (activation_below, activation)
    return Stage(
        forward_map, _feedback_of(feedback, (out_channels, in_channels, kernel_size), stride, pool, names, bias)
    )


def _feedback_of(
    kind: Literal["strided", "unpool", "transposable"], channels: tuple[int, int, int], stride: int, pool: int,
    activations: tuple[str, str], bias: bool,
) -> FeedbackMap:  # fmt: skip
    """The feedback map of a convolution; ``activations`` are the stage below's and its own."""
    below, own = activations
    if kind == "transposable":
        return TransposableFeedback(*channels, stride, pool, activation=own)
    if kind == "unpool" and pool > 1:
        return UnpoolFeedback(*channels, stride, pool, activation=below, bias=bias)
    return ConvFeedback(*channels, stride * pool, activation=below, bias=bias)
