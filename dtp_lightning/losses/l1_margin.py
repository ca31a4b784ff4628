"""The l1 margin loss, which the thesis' abstract names and no published code contains."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.losses.hinge import ContrastiveHinge
from dtp_lightning.losses.l1 import L1Objective, pair_blocks, same_image, sums_of_signs


class L1Margin(L1Objective):
    """The other view of an image is nearer than other images by a margin, in l1 distance. Its definition is inferred.

    ``triplet`` (default), after the margin triplet loss that Chen et al. (2020) compare NT-Xent with:

        L = mean over active (i, j) of [d_ii' - d_ij + m]+,  j any embedding of another image

    ``pairs``, after Hadsell et al. (2006): L = (1/n) sum_i (d_ii' + (1/A_i) sum_j [m - d_ij]+), which is the
    contrastive hinge with margins 0 and m. The evidence for both: docs/losses/l1_margin.md.

    Args:
        margin: m; 4 is the unused entry of the published trainers.
        form: ``triplet`` or ``pairs``.
        normalize: scale embeddings to unit l2 norm first (off: the thesis argues for losses without normalisation).

    >>> z0 = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> z1 = torch.tensor([[0.0, 2.0], [1.0, 1.0]])  # positives are 2 and 0 apart, all negatives 2
    >>> L1Margin(margin=4)(z0, z1)
    tensor(3.)
    """

    def __init__(
        self, margin: PositiveFloat = 4.0, form: Literal["triplet", "pairs"] = "triplet", normalize: bool = False
    ) -> None:
        super().__init__()
        self.margin = margin
        self.normalize = normalize
        self.pairs = ContrastiveHinge(0.0, margin) if form == "pairs" else None

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss of embeddings z0, z1 (B, D), row i of both from the same image; any B >= 1."""
        if self.normalize:
            z0, z1 = F.normalize(z0), F.normalize(z1)
        return super().forward(z0, z1)

    def value_and_error(self, z0: Tensor, z1: Tensor, *, error: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`L1Objective`; ``normalize`` is applied by ``forward``, not here."""
        if self.pairs is not None:
            return self.pairs.value_and_error(z0, z1, error=error)
        batch, z = len(z0), torch.cat([z0, z1])
        difference = z0 - z1
        limit = difference.abs().sum(1).repeat(2) + self.margin  # a negative nearer than this is active
        index = torch.arange(len(z), device=z.device)
        total, push = z.new_zeros(()), torch.zeros_like(z)
        count = z.new_zeros(len(z))  # active triplets of each anchor

        def weights(distances: Tensor) -> Tensor:
            """dL/d(distance) of a block, times the number of active triplets; adds their value and number."""
            same = same_image(batch, index[rows], index[columns])
            inside = torch.relu(limit[rows, None] - distances).masked_fill_(same, 0)
            active = (inside > 0).to(z.dtype)
            total.add_(inside.sum())
            count[rows] += active.sum(1)
            if rows == columns:
                return -active
            mirrored = torch.relu(limit[columns] - distances).masked_fill_(same, 0)  # the columns as anchors
            others = (mirrored > 0).to(z.dtype)
            total.add_(mirrored.sum())
            count[columns] += others.sum(0)
            return -(active + others)

        for rows, columns in pair_blocks(len(z)):
            if not error:
                weights(torch.cdist(z[rows], z[columns], p=1))
                continue
            at_rows, at_columns = sums_of_signs(z[rows], z[columns], weights)
            push[rows] += at_rows
            push[columns] += at_columns
        share = 1 / count.sum().clamp(min=1)
        p0, p1 = (share * push).chunk(2)
        # every active triplet of either view pulls the pair together
        attraction = share * difference.sign() * (count[:batch] + count[batch:])[:, None]
        return share * total, p0 + attraction, p1 - attraction
