"""What the l1 objectives share: distances, gated sums of signs, and losses with their error signal in closed form.

The thesis argues that a neural circuit could compute the error signal of these objectives: sums of signs, gated by
comparisons. ``value_and_error`` computes that signal, and the backward pass uses it in place of autograd's.
Pairs are processed block by block: no tensor of size N^2 D is stored (4,096 views would take 4 GB), nor one of N^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dtp_lightning.losses.objective import Objective

BLOCK = 2**20  # distances in a block of rows: 4 MiB in float32, which stays in the cache
SIDE = 512  # rows and columns of a square block of symmetric distances
SPARSITY = 8  # pairs are gathered one by one where at most one pair in so many is active


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows so that a block of the (rows, columns) matrix has about ``BLOCK`` entries."""
    size = max(1, BLOCK // max(1, columns))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def pair_blocks(n: int) -> Iterator[tuple[slice, slice]]:
    """Blocks (rows, columns) of the (n, n) matrix that cover each unordered pair once: on and right of its diagonal."""
    size = max(1, int(SIDE))
    starts = range(0, n, size)
    for i in starts:
        for j in starts:
            if j >= i:
                yield slice(i, min(i + size, n)), slice(j, min(j + size, n))


def sparse_pairs(gates: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of the non-zero gates, int32 (P,) each, where at most one in ``SPARSITY`` is; else None.

    None on every device but the CPU: counting the gates would wait for the device.

    Args:
        gates: (M, N).
    """
    if gates.device.type != "cpu" or torch.count_nonzero(gates) * SPARSITY > gates.numel():
        return None
    rows, columns = gates.nonzero(as_tuple=True)
    return rows.int(), columns.int()


def sums_over_pairs(
    anchors: Tensor, others: Tensor, rows: Tensor, columns: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """What :func:`sums_of_signs` returns, of some pairs only.

    Args:
        anchors, others: see :func:`sums_of_signs`.
        rows, columns: of the pairs, (P,) each.
        weights: of the pairs, (P,).
    """
    signs = anchors.index_select(0, rows).sub_(others.index_select(0, columns)).sign_().mul_(weights[:, None])
    at_others = torch.zeros_like(others).index_add_(0, columns, signs, alpha=-1)
    return torch.zeros_like(anchors).index_add_(0, rows, signs), at_others


def sums_of_signs(anchors: Tensor, others: Tensor, weights: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """sum_j w_ij sign(a_i - b_j) for every anchor and sum_i w_ij sign(b_j - a_i) for every other, with sign(0) = 0.

    Args:
        anchors: a, (M, D).
        others: b, (N, D).
        weights: called with the l1 distances (M, N), which it may overwrite; returns w, (M, N).

    Returns:
        (M, D) and (N, D).

    >>> a, b = torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    >>> sums_of_signs(a, b, torch.ones_like)
    (tensor([[-2.,  1.]]), tensor([[ 1., -1.],
            [ 1.,  0.]]))
    """
    with torch.enable_grad():  # the gradient of the l1 distance is the sign
        a, b = anchors.detach().requires_grad_(), others.detach().requires_grad_()
        distances = torch.cdist(a, b, p=1)
    gates = weights(distances.detach())
    pairs = sparse_pairs(gates)
    if pairs is not None:
        return sums_over_pairs(anchors.detach(), others.detach(), *pairs, gates[pairs])
    at_anchors, at_others = torch.autograd.grad(distances, [a, b], gates)
    return at_anchors, at_others


def same_image(batch: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Whether embeddings ``rows`` (M,) and ``columns`` (N,) of stacked views belong to one image; bool (M, N)."""
    return rows[:, None] % batch == columns[None] % batch


class L1Objective(Objective, ABC):
    """Base of the losses of two views whose error signal dL/dz is known in closed form."""

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
        value: Tensor = _ClosedForm.apply(z0, z1, self)
        return value


class _ClosedForm(torch.autograd.Function):
    """Autograd's view of an :class:`L1Objective`: its backward pass returns the error signals."""

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
