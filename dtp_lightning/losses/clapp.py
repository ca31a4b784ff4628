"""The hinge on inner products that CLAPP is made of, for two views of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.losses.objective import Objective


class ClappHinge(Objective):
    """One view predicts the other through a learned map W; the score of a pair is u_ij = <z0_i, W z1_j>.

        L = mean_i [margin - u_ii]+  +  mean_{i != j} [margin + u_ij]+

    After Illing et al. (2021), CLAPP, whose two moments of one fixation are here two views of an image (CLAPP with our
    deformations in Tang et al. 2022; advisor's code: the same scores and hinge, summed). W learns with the head.
    Meant for layer-wise learners, which give every stage its own W.

    Args:
        embedding_dim: D; W is (D, D).
        margin: of both hinges, in units of the score.

    >>> loss = ClappHinge(embedding_dim=2)
    >>> _ = nn.init.eye_(loss.predict.weight)  # W = I
    >>> loss(torch.eye(2), torch.eye(2)).item()  # u_ii = 1 satisfies the margin, u_ij = 0 does not
    1.0
    """

    predict: nn.Linear
    """W."""

    def __init__(self, embedding_dim: PositiveInt, margin: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.predict = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.margin = margin

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss of embeddings z0, z1 (B, D), row i of both from the same image; any B >= 1.

        Raises:
            ConfigError: embeddings of another size than W.
        """
        if z0.shape[1] != self.predict.in_features:
            raise ConfigError(
                f"loss.embedding_dim={self.predict.in_features}, but embeddings have {z0.shape[1]} numbers: "
                "set it to model.embedding_dim"
            )
        return clapp_hinge(z0, self.predict(z1), self.margin)


def clapp_hinge(z: Tensor, predicted: Tensor, margin: float = 1.0, negatives: Literal["all", "next"] = "all") -> Tensor:
    """Scalar: activities z (B, D) are to agree with what is predicted of them (B, D), and not with what is of others.

    Args:
        z, predicted: row i of both from the same image; the score of a pair is their inner product.
        margin: of both hinges, in units of the score.
        negatives: ``all`` other images' activities, or that of the ``next`` image in the batch.
    """
    scores = z @ predicted.T
    right = torch.relu(margin - scores.diagonal()).mean()
    wrong = torch.relu(margin + scores)
    if negatives == "next":
        return right + wrong.roll(-1, 0).diagonal().mean() if len(z) > 1 else right
    others = wrong.sum() - wrong.diagonal().sum()
    return right + others / max(1, len(z) * (len(z) - 1))
