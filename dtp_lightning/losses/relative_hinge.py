"""The contrastive hinge whose margins follow the spread of the embeddings."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from dtp_lightning.losses.hinge import ContrastiveHinge
from dtp_lightning.losses.l1 import L1Objective


class RelativeHinge(L1Objective):
    """The contrastive hinge with margins that are shares of the mean distance between images, up to fixed margins.

    With s the mean l1 distance of embeddings of different images in the batch (a constant to the gradient):

        positives  [d_ii' - min(pos_margin, pos_share s)]+
        negatives  [min(neg_margin, neg_share s) - d_ij]+  where d_ij >= window_share s, else 0

    At the start every distance is inside the fixed margins of the hinge, which therefore only pushes (Tang 2021, code);
    a relative margin pulls from the first step. The error signal stays a gated sum of signs; the circuit needs one slow
    number more, s. This is a refinement of this project, not of the thesis. Means are as in the thesis' form.

    Args:
        pos_share, neg_share: margins as shares of s.
        window_share: negatives nearer than this share of s, which may be of one class, are spared.
        pos_margin, neg_margin: what the margins are at most, in l1 distance.
        pull: factor of the positives' term.

    >>> z0 = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> z1 = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    >>> RelativeHinge()(z0, z1), ContrastiveHinge()(z0, z1)
    (tensor(0.6275), tensor(1.5000))
    """

    def __init__(
        self,
        pos_share: NonNegativeFloat = 0.33,
        neg_share: NonNegativeFloat = 1.0,
        window_share: NonNegativeFloat = 0.0,
        pos_margin: float = 1.0,
        neg_margin: NonNegativeFloat = 3.0,
        pull: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.pos_share = pos_share
        self.neg_share = neg_share
        self.window_share = window_share
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.pull = pull

    def value_and_error(self, z0: Tensor, z1: Tensor, *, error: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`L1Objective`."""
        spread = float(mean_distance(z0, z1))
        hinge = ContrastiveHinge(
            min(self.pos_margin, self.pos_share * spread),
            min(self.neg_margin, self.neg_share * spread),
            window=self.window_share * spread,
            pull=self.pull,
        )
        return hinge.value_and_error(z0, z1, error=error)


@torch.no_grad()
def mean_distance(z0: Tensor, z1: Tensor) -> Tensor:
    """Mean l1 distance of embeddings of different images, of two views (B, D); 0 for one image.

    By sorting each coordinate: the differences of all pairs of n numbers sum to sum_k (2 k - n - 1) x_(k).

    >>> mean_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [4.0]]))
    tensor(2.5000)
    """
    z = torch.cat([z0, z1])
    n = len(z)
    ranks = torch.arange(1 - n, n, 2, dtype=z.dtype, device=z.device)
    total = (z.sort(0).values * ranks[:, None]).sum() - (z0 - z1).abs().sum()
    return total / max(1, n * (n - 2) // 2)
