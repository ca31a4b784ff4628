"""Feedback maps of stages that are more than convolution, pooling and activation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.models import blocks
from dtp_lightning.models.aligned import Weighted
from dtp_lightning.models.blocks import Held
from dtp_lightning.models.feedback_maps import FeedbackMap, Kept

BlockFeedback = Literal["strided", "unpool", "transposable", "decoder"]


class BlockTranspose(FeedbackMap):
    """g(u) = J_f(x)^T u with a weight B of its own for each weight W in J_f; J_g = J_f^T where every B = W.

    J_f is taken at the clean pass x: gates of activations, switches of pools and the statistics of batch norms stay
    where that pass put them. What is left is linear in u. Gains of norms are the forward ones: they belong to a
    neuron, as the slope of its activation does, and connect none.

    A batch norm is differentiated through its statistics, u -> (gain / std) (u - mean(u) - xhat mean(u xhat)), means
    over the batch and pixels, as backprop does it.

    Args:
        block: f, of layers that :func:`~dtp_lightning.models.blocks.parts` knows.

    Raises:
        ConfigError: it does not know a layer.

    >>> block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    >>> g = BlockTranspose(block)
    >>> x = torch.rand(2, 3, 6, 6)
    >>> y, held = g.run(block, x)
    >>> g(y, (6, 6), held).shape
    torch.Size([2, 3, 6, 6])
    """

    differs_exactly: ClassVar[bool] = True

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(_drawn_like(layer.weight) for layer in blocks.weighted_leaves(block))

    def run(self, block: nn.Module, x: Tensor, held: Held | None = None) -> tuple[Tensor, Held]:
        """f(x), and what g needs of this pass: see :func:`dtp_lightning.models.blocks.run`."""
        return blocks.run(block, x, held)

    def run_aligned(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Held]:
        """The same, on a graph that carries errors by the B: the vector-Jacobian product for x is g."""
        return blocks.run(block, x, weights=list(self.weights))

    def pairs(self, block: nn.Module) -> list[tuple[Weighted, nn.Parameter]]:
        """Each weighted layer of f with the B that runs beside it."""
        return list(zip(blocks.weighted_leaves(block), self.weights, strict=True))

    def forward(self, u: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """(k N, C, H', W') -> (k N, C_below, *size), for the N images of the clean pass k times."""
        assert isinstance(pool_indices, Held), "of Stage.run"
        rows = [blocks.transpose(pool_indices, part, list(self.weights)) for part in u.split(len(pool_indices))]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def jvp(self, u: Tensor, v: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """J_g v, which is g(v): (N, C, H', W') both -> (N, C_below, *size)."""
        return self(v, size, pool_indices)

    def difference(self, h: Tensor, e: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """g(h) - g(h - e), which is g(e): (N, C, H', W') both -> (N, C_below, *size)."""
        return self(e, size, pool_indices)


class Decoder(FeedbackMap):
    """A small network from h_i back to h_{i-1}, for any stage and for rules whose feedback learns to reconstruct.

    Maps to (H, W) by nearest neighbours, then two 3x3 convolutions with a ReLU between them.

    Args:
        above, below: (C, H, W) of h_i and h_{i-1}.

    >>> Decoder((8, 3, 3), (4, 6, 6))(torch.rand(2, 8, 3, 3), (6, 6)).shape
    torch.Size([2, 4, 6, 6])
    """

    def __init__(self, above: tuple[int, ...], below: tuple[int, ...]) -> None:
        super().__init__()
        middle = max(above[0], below[0])
        self.layers = nn.Sequential(
            nn.Conv2d(above[0], middle, 3, padding=1), nn.ReLU(), nn.Conv2d(middle, below[0], 3, padding=1)
        )

    def forward(self, u: Tensor, size: tuple[int, int], pool_indices: Kept = None) -> Tensor:
        """(N, C, H', W') -> (N, C_below, *size)."""
        g_u: Tensor = self.layers(u if u.shape[-2:] == size else F.interpolate(u, size, mode="nearest"))
        return g_u


def block_feedback(
    block: nn.Module, kind: BlockFeedback, above: tuple[int, ...], below: tuple[int, ...]
) -> FeedbackMap:
    """The feedback map of any block: its transpose, or a decoder.

    Args:
        block: f.
        kind: ``transposable`` is :class:`BlockTranspose`; the others, which undo one convolution and one pooling where
            a stage is that, are a :class:`Decoder` here.
        above, below: (C, H, W) of its output and its input.

    Raises:
        ConfigError: ``transposable``, and a transpose is not known.
    """
    return BlockTranspose(block) if kind == "transposable" else Decoder(above, below)


def _drawn_like(weight: Tensor) -> nn.Parameter:
    """Drawn as torch draws the weights of convolutions and linear layers."""
    drawn = torch.empty_like(weight)
    nn.init.kaiming_uniform_(drawn, a=5**0.5)
    return nn.Parameter(drawn)
