"""Positive pairs without negatives: the control that collapses."""

from __future__ import annotations

from torch import Tensor

from dtp_lightning.losses.l1 import L1Objective


class PositiveOnly(L1Objective):
    """L = scale * mean_i ||z_i - z_i'||_1. No negatives: the embeddings collapse.

    The thesis code divides by the number of embeddings once more (``scale=1/n``, n = 2B); here the value does not
    depend on the batch.

    Args:
        scale: factor of the loss.

    >>> import torch
    >>> PositiveOnly()(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    tensor(3.)
    """

    smallest_batch = 1  # a view is compared with the other view of its image

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def value_and_error(self, z0: Tensor, z1: Tensor, *, error: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`L1Objective`."""
        difference = z0 - z1
        weight = self.scale / len(z0)
        attraction = weight * difference.sign()
        return weight * difference.abs().sum(), attraction, -attraction
