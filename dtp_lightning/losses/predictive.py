"""Objectives without negatives: a predictor maps the embedding of one view to that of the other, a constant."""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, SimSiamPredictionHead
from pydantic import PositiveInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.losses.from_lightly import check_batch
from dtp_lightning.losses.objective import Objective, Share, TargetMomentum


class Predictive(Objective):
    """What both have: a predictor q, which learns with the head, and the cosine of prediction and target.

    Args:
        predict: q, maps (B, D) to (B, D); its batch norm sees one view at a time.
        embedding_dim: D.
    """

    def __init__(self, predict: nn.Module, embedding_dim: int) -> None:
        super().__init__()
        self.predict = predict
        self.embedding_dim = embedding_dim
        self.negative_cosine = NegativeCosineSimilarity()

    def distance(self, z: Tensor, target: Tensor) -> Tensor:
        """-mean_i cos(q(z_i), target_i), scalar in [-1, 1], for z and target (B, D); no gradient reaches the target.

        Raises:
            ConfigError: a batch of one image, whose batch norm is undefined, or embeddings of another size than q's.
        """
        check_batch(z, self.smallest_batch)
        if z.shape[1] != self.embedding_dim:
            raise ConfigError(
                f"loss.embedding_dim={self.embedding_dim}, but embeddings have {z.shape[1]} numbers: "
                "set it to model.embedding_dim"
            )
        value: Tensor = self.negative_cosine(self.predict(z), target.detach())
        return value


class BYOL(Predictive):
    """L = (2 - 2 cos(q(z_0), z'_1)) + (2 - 2 cos(q(z_1), z'_0)), means over the batch; z' is the target network's.

    Grill et al. (2020), Eq. 2, both ways round. The target network is the learner's
    (:class:`dtp_lightning.learners.TargetNetwork`): xi <- tau xi + (1 - tau) theta after each batch.

    Args:
        embedding_dim: D.
        hidden_dim: units of q's hidden layer.
        momentum: tau at the beginning.
        final_momentum: tau at the end of training, which it approaches by a cosine.

    >>> import torch
    >>> loss = BYOL(embedding_dim=2)
    >>> loss.predict = nn.Identity()  # q = 1
    >>> z = torch.eye(2)
    >>> loss(z, z, z, -z)  # cos = -1 and 1
    tensor(4.)
    """

    def __init__(
        self,
        embedding_dim: PositiveInt,
        hidden_dim: PositiveInt = 256,
        momentum: Share = 0.99,
        final_momentum: Share = 1.0,
    ) -> None:
        super().__init__(BYOLPredictionHead(embedding_dim, hidden_dim, embedding_dim), embedding_dim)
        self.target_momentum = TargetMomentum(momentum, final_momentum)

    def forward(self, z0: Tensor, z1: Tensor, target0: Tensor, target1: Tensor) -> Tensor:
        """Scalar loss, in [0, 8], of embeddings z0, z1 and the target network's target0, target1, all (B, D), B >= 2.

        Raises:
            ConfigError: a batch of one image, or embeddings of another size than q's.
        """
        return 4 + 2 * (self.distance(z0, target1) + self.distance(z1, target0))


class SimSiam(Predictive):
    """L = -cos(q(z_0), z_1) / 2 - cos(q(z_1), z_0) / 2, means over the batch; the second of each pair is a constant.

    Chen and He (2021), Eq. 2 and 4: BYOL whose target network is the network itself.

    Args:
        embedding_dim: D.
        hidden_dim: units of q's hidden layer, fewer than D (a bottleneck; the paper's 512 of 2048).

    >>> import torch
    >>> loss = SimSiam(embedding_dim=2)
    >>> loss.predict = nn.Identity()  # q = 1
    >>> loss(torch.eye(2), torch.ones(2, 2))
    tensor(-0.7071)
    """

    def __init__(self, embedding_dim: PositiveInt, hidden_dim: PositiveInt = 32) -> None:
        super().__init__(SimSiamPredictionHead(embedding_dim, hidden_dim, embedding_dim), embedding_dim)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss, in [-1, 1], of embeddings z0, z1 (B, D), B >= 2.

        Raises:
            ConfigError: a batch of one image, or embeddings of another size than q's.
        """
        return (self.distance(z0, z1) + self.distance(z1, z0)) / 2
