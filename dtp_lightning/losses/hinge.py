"""The contrastive hinge loss of the thesis, and the forms that its paper gave it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from dtp_lightning.losses.l1 import (
    L1Objective,
    pair_blocks,
    row_blocks,
    same_image,
    sparse_pairs,
    sums_of_signs,
    sums_over_pairs,
)


class ContrastiveHinge(L1Objective):
    """Pull the two views of an image within ``pos_margin``, push other images beyond ``neg_margin``, in l1 distance.

    With d_ij = ||z_i - z_j||_1, i' the other view of i:

        positives  P_i  = [d_ii' - pos_margin]+
        negatives  N_ij = [neg_margin - d_ij]+

    No normalisation, inner product or exponential: the error signal is a gated sum of signs, simple enough for a
    neural circuit (Tang 2021). The gradient at a tie (d = margin, or equal coordinates) is 0.

    Defaults are the thesis' form (thesis code; its margins m_pos = m_neg = -2 are pos_margin = -1 - m_pos = 1 and
    neg_margin = 1 - m_neg = 3). The paper's form (paper code; threshold 2, delta 1) is ``pairs="cross"``,
    ``reduction="sum"``, with ``gradient_block=True`` and ``diagonals=5`` for its last column.

    Args:
        pos_margin: l1 distance below which a positive pair has no error (paper: threshold - delta); at 0 and below
            every positive pair has one.
        neg_margin: l1 distance beyond which a negative pair has no error (paper: threshold + delta), >= 0.
        window: l1 distance below which a negative pair has no error either, >= 0; 0 spares none.
        pull: factor of the positives' term.
        pairs: ``all`` takes negatives among all 2B embeddings; ``cross`` only between view 0 and view 1.
        reduction: ``active`` divides an anchor's negatives by the number of them inside the margin and means over
            anchors (thesis); ``mean`` means over positives and over negatives; ``sum`` adds everything (paper).
        gradient_block: view 0 is a constant; only view 1 learns.
        diagonals: F takes the positives and the negatives (i, i + k), k = 1..F-1, weighted 1/F (the paper's
            "5 negatives" is F = 5, four negatives); needs ``pairs="cross", reduction="sum"``. None takes all.

    Raises:
        ValueError: ``diagonals`` without the paper's form.

    >>> z0 = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> z1 = torch.tensor([[0.0, 2.0], [1.0, 1.0]])  # positives are 2 and 0 apart, all negatives 2
    >>> ContrastiveHinge()(z0, z1)
    tensor(1.5000)
    >>> ContrastiveHinge(pairs="cross", reduction="sum")(z0, z1)
    tensor(3.)
    """

    def __init__(
        self,
        pos_margin: float = 1.0,
        neg_margin: NonNegativeFloat = 3.0,
        pairs: Literal["all", "cross"] = "all",
        reduction: Literal["active", "mean", "sum"] = "active",
        gradient_block: bool = False,
        diagonals: PositiveInt | None = None,
        window: NonNegativeFloat = 0.0,
        pull: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        if diagonals is not None and (pairs, reduction) != ("cross", "sum"):
            raise ValueError("diagonals are the paper's form of few negatives: set pairs=cross reduction=sum with it")
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.pairs = pairs
        self.reduction = reduction
        self.gradient_block = gradient_block
        self.diagonals = diagonals
        self.window = window
        self.pull = pull

    def value_and_error(self, z0: Tensor, z1: Tensor, *, error: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`L1Objective`. Pairs are processed block by block."""
        difference = z0 - z1
        excess = difference.abs().sum(1) - self.pos_margin
        attraction = difference.sign() * (excess > 0)[:, None]
        weight = self._positive_weight(len(z0))
        value, e0, e1 = weight * excess.relu().sum(), weight * attraction, -weight * attraction
        if self.diagonals is not None:
            pushed, p0, p1 = self._diagonal_negatives(z0, z1, self.diagonals)
        elif self.pairs == "all":
            pushed, push = self._all_negatives(torch.cat([z0, z1]), len(z0), error)
            p0, p1 = push.chunk(2)
        else:
            pushed, p0, p1 = self._cross_negatives(z0, z1, error)
        return value + pushed, torch.zeros_like(e0) if self.gradient_block else e0 + p0, e1 + p1

    def _inside(self, distances: Tensor) -> Tensor:
        """N_ij of l1 distances, of any shape."""
        inside = torch.relu(self.neg_margin - distances)
        return inside.masked_fill_(distances < self.window, 0) if self.window else inside

    def _positive_weight(self, batch: int) -> float:
        """Weight of a positive pair. A sum over all pairs contains it twice, once from each end."""
        if self.reduction != "sum":
            return self.pull / batch
        return self.pull * (2.0 if self.pairs == "all" else 1.0)

    def _all_negatives(self, z: Tensor, batch: int, error: bool) -> tuple[Tensor, Tensor]:
        """Negatives among all embeddings z (2B, D): their value, and its error signal (2B, D).

        Distances and gates are symmetric, so each pair is computed once for both its ends. A first pass counts each
        anchor's active negatives, a second one weights them by that number.
        """
        index = torch.arange(len(z), device=z.device)
        sums, counts = z.new_zeros(len(z)), z.new_zeros(len(z))
        blocks = []
        for rows, columns in pair_blocks(len(z)):
            inside = self._inside(torch.cdist(z[rows], z[columns], p=1))
            inside.masked_fill_(same_image(batch, index[rows], index[columns]), 0)
            for part, along in ((rows, 1), (columns, 0)):
                sums[part] += inside.sum(along)
                counts[part] += (inside > 0).sum(along)
                if rows == columns:
                    break
            blocks.append((rows, columns, sparse_pairs(inside) if error else None))
        if self.reduction == "active":
            share = 1 / (counts.clamp(min=1) * len(z))
        else:
            pairs = max(1, len(z) * (len(z) - 2))
            share = torch.full_like(sums, 1 / pairs if self.reduction == "mean" else 1.0)
        push = torch.zeros_like(z)

        def weights(distances: Tensor) -> Tensor:
            """dL/d(distance) of a block: a pair counts once from each end."""
            active = (self._inside(distances) > 0).masked_fill_(same_image(batch, index[rows], index[columns]), 0)
            return active * (share[rows, None] + share[columns]) * factor

        for rows, columns, sparse in blocks if error else []:
            factor = -0.5 if rows == columns else -1.0  # a block on the diagonal holds every pair twice
            if sparse is None:
                at_rows, at_columns = sums_of_signs(z[rows], z[columns], weights)
            else:
                i, j = sparse
                both = share[rows].index_select(0, i) + share[columns].index_select(0, j)
                at_rows, at_columns = sums_over_pairs(z[rows], z[columns], i, j, both * factor)
            push[rows] += at_rows
            push[columns] += at_columns
        return (sums * share).sum(), push

    def _cross_negatives(self, z0: Tensor, z1: Tensor, error: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Negatives between the views: their value, and its error signals of both."""
        batch = len(z0)
        index = torch.arange(batch, device=z0.device)
        value = z0.new_zeros(())
        p0, p1 = torch.zeros_like(z0), torch.zeros_like(z1)

        def weights(distances: Tensor) -> Tensor:
            """dL/d(distance) of a block of rows; adds their value."""
            inside = self._inside(distances)
            inside.masked_fill_(same_image(batch, index[rows], index), 0)
            active = inside > 0
            if self.reduction == "active":
                share = 1 / (active.sum(1, keepdim=True).clamp(min=1) * batch).to(inside.dtype)
            else:
                share = inside.new_full((), 1 / max(1, batch * (batch - 1)) if self.reduction == "mean" else 1.0)
            value.add_((inside * share).sum())
            return -share * active

        for rows in row_blocks(batch, batch):
            if not error:
                weights(torch.cdist(z0[rows], z1, p=1))
                continue
            at_rows, at_columns = sums_of_signs(z0[rows], z1, weights)
            p0[rows] += at_rows
            p1 += at_columns
        return value, p0, p1

    def _diagonal_negatives(self, z0: Tensor, z1: Tensor, diagonals: int) -> tuple[Tensor, Tensor, Tensor]:
        """Negatives (i, i + k), k = 1..F-1, weighted 1/F: value, error signals of both views."""
        value, p0, p1 = z0.new_zeros(()), torch.zeros_like(z0), torch.zeros_like(z1)
        for k in range(1, min(diagonals, len(z0))):
            difference = z0[:-k] - z1[k:]
            inside = self._inside(difference.abs().sum(1))
            push = difference.sign() * (inside > 0)[:, None] / diagonals
            value = value + inside.sum() / diagonals
            p0[:-k] -= push
            p1[k:] += push
        return value, p0, p1
