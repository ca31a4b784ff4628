"""Latent predictive learning: predict the next view, keep variance, decorrelate; no negatives."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from dtp_lightning.losses.from_lightly import check_batch
from dtp_lightning.losses.objective import Objective


class LatentPredictive(Objective):
    """predictive L_pred + variance L_Hebb + decorrelation L_decorr, of embeddings or of a stage's mean activity.

        L_pred   = mean_{n,j} (z0_nj - z1_nj)^2
        L_Hebb   = - mean_j log(var_j + epsilon)                       (mean of the views)
        L_decorr = sum_{j != k} C_jk^2 / (M^2 - M)                     (mean of the views)

    var and C are variance and covariance over the batch (divided by B - 1), M the number of units. Source: Halvagal and
    Zenke (2023), whose code has these weights; of one view there is nothing to predict.

    Args:
        predictive, variance, decorrelation: weights of the terms.
        epsilon: of the logarithm.

    >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variances 2/3, not correlated
    >>> f"{LatentPredictive(epsilon=1e-9)(z, z).item():.4f}"  # log 1.5
    '0.4055'
    """

    any_views = True

    def __init__(
        self,
        predictive: NonNegativeFloat = 1.0,
        variance: NonNegativeFloat = 1.0,
        decorrelation: NonNegativeFloat = 10.0,
        epsilon: PositiveFloat = 1e-4,
    ) -> None:
        super().__init__()
        self.weights = {"predictive": predictive, "variance": variance, "decorrelation": decorrelation}
        self.epsilon = epsilon

    def forward(self, *views: Tensor) -> Tensor:
        """Scalar loss of embeddings (B, D), one tensor a view, B >= 2.

        Raises:
            ConfigError: a batch of one image.
        """
        terms = self.terms(*views)
        return torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()

    def terms(self, *views: Tensor) -> dict[str, Tensor]:
        """The three terms, without their weights, by name."""
        check_batch(views[0], self.smallest_batch)
        pairs = list(pairwise(views))
        predictive = [(a - b).square().mean() for a, b in pairs] or [torch.zeros_like(views[0]).sum()]
        found = [self._spread(z) for z in views]
        return {
            "predictive": torch.stack(predictive).mean(),
            "variance": torch.stack([variance for variance, _ in found]).mean(),
            "decorrelation": torch.stack([decorrelation for _, decorrelation in found]).mean(),
        }

    def _spread(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_Hebb and L_decorr of one view."""
        units = z.shape[1]
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (len(z) - 1)
        variances = covariance.diagonal()
        others = covariance.square().sum() - variances.square().sum()
        return -(variances + self.epsilon).log().mean(), others / max(1, units**2 - units)
