"""What the l1 objectives share: distances, gated sums of signs, and losses that know their own error signal.

The thesis' point is that these objectives have an error signal which a neural circuit could compute: sums of signs,
gated by comparisons. So each of them *is* that signal here: ``value_and_error`` writes it down, and the backward
pass uses it instead of autograd's. As a side effect nothing of size N^2 D is ever stored (a broadcast of 4,096
views takes 4 GB), nor anything of size N^2: pairs are met block by block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dtp_lightning.losses.objective import Objective

BLOCK = 2**20  # distances held at once: 4 MiB in float32, which stays in the cache
SIDE = 512  # of a square block of symmetric distances
FEW = 8  # where one pair in so many is active, or fewer, active pairs are met one by one


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows so that a block of the (rows, columns) matrix has about ``BLOCK`` entries."""
    size = max(1, BLOCK // max(1, columns))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def pair_blocks(n: int) -> Iterator[tuple[slice, slice]]:
    """Blocks (rows, columns) of the (n, n) matrix that meet every unordered pair once: on and right of its diagonal."""
    size = max(1, int(SIDE))
    starts = range(0, n, size)
    for i in starts:
        for j in starts:
            if j >= i:
                yield slice(i, min(i + size, n)), slice(j, min(j + size, n))


def pairs_if_few(gates: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of the gates (M, N) that are not zero, (P,) each, if they are few; else None.

    None off the CPU, where counting them would wait for the device.
    """
    if gates.device.type != "cpu" or torch.count_nonzero(gates) * FEW > gates.numel():
        return None
    rows, columns = gates.nonzero(as_tuple=True)
    return rows.int(), columns.int()


def sums_over_pairs(
    anchors: Tensor, others: Tensor, rows: Tensor, columns: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """What :func:`sums_of_signs` returns, for pairs (rows, columns), (P,) each, with weights (P,)."""
    signs = anchors.index_select(0, rows).sub_(others.index_select(0, columns)).sign_().mul_(weights[:, None])
    at_others = torch.zeros_like(others).index_add_(0, columns, signs, alpha=-1)
    return torch.zeros_like(anchors).index_add_(0, rows, signs), at_others


def sums_of_signs(anchors: Tensor, others: Tensor, weights: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """sum_j w_ij sign(a_i - b_j) for every anchor and sum_i w_ij sign(b_j - a_i) for every other, with sign(0) = 0.

    Args:
        anchors: a, (M, D).
        others: b, (N, D).
        weights: called with the l1 distances (M, N), returns w, (M, N), and may do with the distances what it likes.

    Returns:
        (M, D) and (N, D).
    """
    with torch.enable_grad():  # the gradient of the l1 distance is the sign
        a, b = anchors.detach().requires_grad_(), others.detach().requires_grad_()
        distances = torch.cdist(a, b, p=1)
    gates = weights(distances.detach())
    pairs = pairs_if_few(gates)
    if pairs is not None:
        return sums_over_pairs(anchors.detach(), others.detach(), *pairs, gates[pairs])
    at_anchors, at_others = torch.autograd.grad(distances, [a, b], gates)
    return at_anchors, at_others


def same_image(batch: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Whether embeddings ``rows`` (M,) and ``columns`` (N,) of stacked views belong to one image; bool (M, N)."""
    return rows[:, None] % batch == columns[None] % batch


class L1Objective(Objective, ABC):
    """A loss of two views with a written-down error signal."""

    @abstractmethod
    def value_and_error(self, z0: Tensor, z1: Tensor, *, error: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its error signals dL/dz0, dL/dz1.

        Args:
            z0, z1: (B, D) embeddings, row i of both from the same image.
            error: False skips the error signals; zeros are returned in their place.
        """

    def error_signal(self, z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dz0 and dL/dz1, (B, D) each, as sums of gated signs."""
        return self.value_and_error(z0.detach(), z1.detach())[1:]

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss of embeddings z0, z1 (B, D), row i of both from the same image; any B >= 1."""
        return _WithOwnError.apply(z0, z1, self)


class _WithOwnError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z0: Tensor, z1: Tensor, loss: L1Objective) -> Tensor:
        learns = any(ctx.needs_input_grad)
        value, *errors = loss.value_and_error(z0, z1, error=learns)
        if learns:
            ctx.save_for_backward(*errors)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        e0, e1 = ctx.saved_tensors
        return gradient * e0, gradient * e1, None
