"""lightly's objectives that mean nothing on a batch of one image: they say so instead of returning infinity."""

from __future__ import annotations

from lightly.loss import BarlowTwinsLoss, DCLLoss, VICRegLoss
from pydantic import NonNegativeFloat
from torch import Tensor

from dtp_lightning.errors import ConfigError
from dtp_lightning.losses.objective import Objective


def check_batch(z: Tensor, smallest: int) -> None:
    """A batch of embeddings (B, D) is large enough to be compared.

    Raises:
        ConfigError: B < smallest.
    """
    if len(z) < smallest:
        raise ConfigError(f"this loss compares the images of a batch: it needs at least {smallest} (batch_size)")


class BarlowTwins(Objective):
    """scale * ( sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2 ), C the cross-correlation of the views.

    Zbontar et al. (2021), computed by lightly; C is divided by the actual batch (the thesis code divides by a
    constant 2,000). Thesis settings: lambda 4e-3, scale 1/32.

    Args:
        lambda_param: weight of the off-diagonal terms.
        scale: factor of the loss.

    >>> import torch
    >>> z = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> f"{BarlowTwins(lambda_param=0, scale=1)(z, -z):.2f}"  # C_ii = -1 for both coordinates
    '8.00'
    """

    def __init__(self, lambda_param: NonNegativeFloat = 4e-3, scale: float = 1 / 32) -> None:
        super().__init__()
        self.loss = BarlowTwinsLoss(lambda_param)
        self.scale = scale

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss of embeddings z0, z1 (B, D), B >= 2.

        Raises:
            ConfigError: a batch of one image.
        """
        check_batch(z0, self.smallest_batch)
        return self.scale * self.loss(z0, z1)


class CheckedBatch(Objective):
    """Stands before a loss of lightly in the bases of a class: refuses a batch of one image."""

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Scalar loss of embeddings z0, z1 (B, D), B >= 2.

        Raises:
            ConfigError: a batch of one image.
        """
        check_batch(z0, self.smallest_batch)
        return super().forward(z0, z1)


class VICReg(CheckedBatch, VICRegLoss):
    """Variance-invariance-covariance regularisation (Bardes et al. 2022), lightly's.

    >>> import torch
    >>> z = torch.tensor([[0.0, 9.0], [9.0, 9.0], [9.0, 0.0]])  # covariance -13.5, in both views
    >>> f"{VICReg()(z, z):.1f}"
    '364.5'
    """


class DCL(CheckedBatch, DCLLoss):
    """Decoupled contrastive loss (Yeh et al. 2022), lightly's: NT-Xent without the positive in the denominator.

    >>> import torch
    >>> f"{DCL()(torch.eye(3), torch.eye(3)):.4f}"  # -1 / 0.1 + log 4
    '-8.6137'
    """
