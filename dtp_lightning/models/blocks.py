"""What a block is made of, its forward pass that keeps what feedback needs, and its transpose.

A stage may be any module. A feedback map that is to become the transpose of a block of several layers has to know how
they are put together: :func:`parts` says that of a type of block, and is the one place to teach it a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dtp_lightning.errors import ConfigError
from dtp_lightning.models.aligned import Weighted, aligned, input_gradient
from dtp_lightning.models.convolution import autocast


class Chain(NamedTuple):
    """Layers in a row."""

    layers: Sequence[nn.Module]


class Residual(NamedTuple):
    """after(main(x) + shortcut(x)); an empty sequence of layers is the identity."""

    main: Sequence[nn.Module]
    shortcut: Sequence[nn.Module] = ()
    after: Sequence[nn.Module] = ()


@singledispatch
def parts(block: nn.Module) -> Chain | Residual | None:
    """The layers that a block is made of, by its type; None for a layer, which is not taken apart.

    To teach it a type:

    >>> class Doubled(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(2, 2, 1)
    ...     def forward(self, x):
    ...         return self.conv(x) + x
    >>> @parts.register
    ... def _(block: Doubled) -> Residual:
    ...     return Residual([block.conv])
    >>> [type(layer).__name__ for layer in leaves(Doubled())]
    ['Conv2d']
    """
    return None


@parts.register
def _(block: nn.Sequential) -> Chain:
    return Chain(list(block))


class ResidualBlock(nn.Module):
    """after(main(x) + shortcut(x)): two branches that are added, and an activation.

    Args:
        main, shortcut: branches whose outputs have one shape; an empty Sequential is the identity.
        after: activation of the sum.
    """

    def __init__(self, main: nn.Sequential, shortcut: nn.Sequential, after: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut, self.after = main, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        y: Tensor = self.after(self.main(x) + self.shortcut(x))
        return y


@parts.register
def _(block: ResidualBlock) -> Residual:
    return Residual(list(block.main), list(block.shortcut), [block.after])


def leaves(block: nn.Module) -> Iterator[nn.Module]:
    """The layers of a block in the order in which its forward pass uses them; one that is used twice comes twice."""
    made_of = parts(block)
    if made_of is None:
        yield block
        return
    for branch in made_of if isinstance(made_of, Residual) else [made_of.layers]:
        for layer in branch:
            yield from leaves(layer)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter connects different neurons; a gain or a bias belongs to one (or to one channel).

    >>> is_matrix(torch.empty(3, 2, 1, 1)), is_matrix(torch.empty(3, 1, 1))
    (True, False)
    """
    return sum(size > 1 for size in parameter.shape) > 1


def weighted_leaves(block: nn.Module) -> list[Weighted]:
    """The convolutions and linear layers of a block, in order.

    Raises:
        ConfigError: a transpose is not known of a layer of this block.
    """
    weighted: list[Weighted] = []
    for layer in leaves(block):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and is_plain(layer)):
            weighted.append(layer)
        elif any(is_matrix(p) for p in layer.parameters()) or (isinstance(layer, nn.Dropout) and layer.p > 0):
            raise ConfigError(
                f"model.feedback=transposable knows no transpose of {type(layer).__name__}: take a rule without "
                "feedback maps (learner=bp, kolen_pollack, dfa or gll), or learner=dtp_autoencoder "
                "model.feedback=decoder, or teach dtp_lightning.models.blocks.parts"
            )
    return weighted


def is_plain(layer: nn.Conv2d) -> bool:
    """Whether a convolution is torch's own, padded with a given number of zeros."""
    return (
        type(layer).forward is nn.Conv2d.forward
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


@contextmanager
def resting_statistics(module: nn.Module) -> Iterator[None]:
    """Within, batch norms normalise by their batch and keep their running statistics as they are.

    One pass a step counts towards these: the clean one. Noisy passes do not.
    """
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


@dataclass(frozen=True)
class Held:
    """What a block's clean pass leaves for its feedback: gates, switches and statistics follow from it.

    Attributes:
        block: that ran.
        inputs: of each of its leaves, in order, (N, ...) each.
    """

    block: nn.Module
    inputs: tuple[Tensor, ...]

    def __getitem__(self, rows: slice) -> Held:
        """Of some rows of the batch."""
        return replace(self, inputs=tuple(x[rows] for x in self.inputs))

    def __len__(self) -> int:
        """N."""
        return len(self.inputs[0])


def run(
    block: nn.Module, x: Tensor, held: Held | None = None, weights: Sequence[Tensor] | None = None
) -> tuple[Tensor, Held]:
    """The block's output, and what its feedback needs of this pass.

    Args:
        block: of layers that :func:`weighted_leaves` knows.
        x: its input, (N, C, H, W).
        held: of another pass, whose max-pools took the pixels that they are to take here.
        weights: those by which the graph of this pass carries errors down, as :func:`transpose` does; None: its own.
    """
    forward = _Pass(held.inputs if held else None, None if weights is None else list(weights))
    y = forward.through(block, x)
    return y, Held(block, tuple(forward.inputs))


class _Pass:
    """A forward pass that keeps the input of each leaf."""

    def __init__(self, fixed: Sequence[Tensor] | None, weights: list[Tensor] | None) -> None:
        self.fixed, self.weights = fixed, weights
        self.inputs: list[Tensor] = []

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        made_of = parts(block)
        if made_of is None:
            return self._leaf(block, x)
        if isinstance(made_of, Chain):
            return self._row(made_of.layers, x)
        total = self._row(made_of.main, x)
        return self._row(made_of.after, total + self._row(made_of.shortcut, x))

    def _row(self, layers: Sequence[nn.Module], x: Tensor) -> Tensor:
        for layer in layers:
            x = self.through(layer, x)
        return x

    def _leaf(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.inputs.append(x.detach())
        if self.fixed is not None and isinstance(layer, nn.MaxPool2d):
            return pool_at(x, _switches(layer, self.fixed[len(self.inputs) - 1]))
        if self.weights is not None and isinstance(layer, Weighted):
            b = self.weights.pop(0)
            return aligned(x, layer(x.detach()), layer, lambda _: b) if x.requires_grad else layer(x)
        y: Tensor = layer(x)
        return y


def _switches(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    indices: Tensor = F.max_pool2d(x, *options, return_indices=True)[1]
    return indices


def pool_at(x: Tensor, pool_indices: Tensor) -> Tensor:
    """What a max-pool with these indices (N, C, H', W') would give of x (N, C, H, W), whichever values are largest."""
    rows, places = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x, pool_indices))  # as they lie in memory
    taken = rows.gather(1, places)
    return taken.unflatten(1, pool_indices.shape[-2:]).permute(0, 3, 1, 2)


def transpose(held: Held, v: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """J^T v with other weights in J: the derivative of the block at the clean pass, the other way round.

    Args:
        held: of the clean pass.
        v: of the block's output shape.
        weights: one for each of :func:`weighted_leaves`, in order and of its weight's shape.

    Returns:
        Of the shape of the block's input.
    """
    inputs, backward = list(held.inputs), list(weights)
    below = _transpose(held.block, v, inputs, backward)
    assert not inputs and not backward, "each layer is passed once"
    return below


def _transpose(block: nn.Module, v: Tensor, inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Takes what it used off the ends of the lists."""
    made_of = parts(block)
    if made_of is None:
        return _leaf(block, inputs.pop(), v, weights)
    if isinstance(made_of, Chain):
        return _back(made_of.layers, v, inputs, weights)
    v = _back(made_of.after, v, inputs, weights)
    by_shortcut = _back(made_of.shortcut, v, inputs, weights)
    return _back(made_of.main, v, inputs, weights) + by_shortcut


def _back(layers: Sequence[nn.Module], v: Tensor, inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    for layer in reversed(layers):
        v = _transpose(layer, v, inputs, weights)
    return v


def _leaf(layer: nn.Module, x: Tensor, v: Tensor, weights: list[Tensor]) -> Tensor:
    if isinstance(layer, Weighted):
        v, weight = autocast(v, weights.pop())
        return input_gradient(layer, weight, v, x.shape)
    if isinstance(layer, nn.ReLU):
        gated: Tensor = torch.ops.aten.threshold_backward(v, x, 0)
        return gated
    # a layer without a matrix: its own derivative, for batch norm through the statistics of the batch as well
    with torch.enable_grad(), resting_statistics(layer):
        x = x.detach().requires_grad_(True)
        y = layer(x)
    (at_x,) = torch.autograd.grad(y, x, v.to(y.dtype), create_graph=v.requires_grad)
    return at_x
