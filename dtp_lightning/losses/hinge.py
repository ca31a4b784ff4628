"""The contrastive hinge loss of the thesis, and the forms that its paper gave it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn


class ContrastiveHinge(nn.Module):
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
        pos_margin: distance below which a positive pair is near enough (paper: threshold - delta).
        neg_margin: distance beyond which a negative is far enough (paper: threshold + delta).
        pairs: ``all`` takes negatives among all 2B embeddings; ``cross`` only between view 0 and view 1.
        reduction: ``active`` divides an anchor's negatives by the number of them inside the margin and means over
            anchors (thesis); ``mean`` means over positives and over negatives; ``sum`` adds everything (paper).
        gradient_block: view 0 is a constant; only view 1 learns.
        diagonals: F keeps the positives and the negatives (i, i + k), k = 1..F-1, weighted 1/F (the paper's
            "5 negatives" is F = 5, four negatives); needs ``pairs="cross", reduction="sum"``. None keeps all.
    """

    def __init__(
        self,
        pos_margin: NonNegativeFloat = 1.0,
        neg_margin: NonNegativeFloat = 3.0,
        pairs: Literal["all", "cross"] = "all",
        reduction: Literal["active", "mean", "sum"] = "active",
        gradient_block: bool = False,
        diagonals: PositiveInt | None = None,
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

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss of embeddings z0, z1 (B, D), row i of both from the same image; any B >= 1."""
        if self.gradient_block:
            z0 = z0.detach()
        if self.diagonals is not None:
            return self._few(z0, z1, self.diagonals)
        positives = torch.relu((z0 - z1).abs().sum(1) - self.pos_margin)
        anchors, others = (z0, z1) if self.pairs == "cross" else (torch.cat([z0, z1]),) * 2
        negatives = torch.relu(self.neg_margin - torch.cdist(anchors, others, p=1))
        negatives = negatives.masked_fill(self._same_image(len(z0), negatives), 0)
        if self.reduction == "sum":
            repeats = len(anchors) // len(z0)  # over all pairs every embedding is an anchor once
            return repeats * positives.sum() + negatives.sum()
        if self.reduction == "mean":
            pairs = len(anchors) * (len(z0) - 1) * (len(anchors) // len(z0))
            return positives.mean() + negatives.sum() / max(1, pairs)
        active = (negatives.detach() > 0).sum(1).clamp(min=1)
        return positives.mean() + (negatives.sum(1) / active).mean()

    @staticmethod
    def _same_image(batch: int, distances: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, device=distances.device) % batch for n in distances.shape)
        return rows[:, None] == columns

    def _few(self, z0: Tensor, z1: Tensor, diagonals: int) -> Tensor:
        loss = torch.relu((z0 - z1).abs().sum(1) - self.pos_margin).sum()
        for k in range(1, min(diagonals, len(z0))):
            distances = (z0[:-k] - z1[k:]).abs().sum(1)
            loss = loss + torch.relu(self.neg_margin - distances).sum() / diagonals
        return loss
