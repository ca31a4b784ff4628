"""Supervised controls: ``forward(logits, labels)``. The network's head then gives class scores, not an embedding."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.losses.objective import Objective


class SupervisedLoss(Objective):
    """Base of the objectives that are given labels."""

    supervised = True
    smallest_batch = 1


class CrossEntropy(SupervisedLoss):
    """L = mean_i ( log sum_c exp(u_ic) - u_{i,y_i} ).

    Args:
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).

    >>> CrossEntropy()(torch.zeros(5, 2), torch.tensor([0, 1, 0, 1, 1]))  # log 2
    tensor(0.6931)
    """

    def __init__(self, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits u (N, K) and labels y (N,) in 0..K-1."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class MulticlassHinge(SupervisedLoss):
    """One hinge a class: L = mean_i ( [m - u_{i,y_i}]+ + balance * sum_{c != y_i} [m + u_ic]+ ).

    The error of an output unit is -1, 0 or +balance. It depends on that unit and its label only, not on a sum over
    all units as under a softmax. A supervised counterpart of the contrastive hinge, after Amit (2019), Front. Comput.
    Neurosci. 13:18.

    Args:
        margin: m, in units of the logits.
        balance: weight of the wrong classes, >= 0; None is 1/(K - 1), the same weight for the right class and for all
            wrong ones together.

    >>> MulticlassHinge()(torch.tensor([[2.0, 0.0, -3.0]]), torch.tensor([0]))  # class 1 is within the margin
    tensor(0.5000)
    """

    def __init__(self, margin: PositiveFloat = 1.0, balance: NonNegativeFloat | None = None) -> None:
        super().__init__()
        self.margin = margin
        self.balance = balance

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits u (N, K) and labels y (N,) in 0..K-1."""
        balance = 1 / max(1, logits.shape[1] - 1) if self.balance is None else self.balance
        right = F.one_hot(labels, logits.shape[1]).bool()
        hinges = torch.relu(torch.where(right, self.margin - logits, balance * (self.margin + logits)))
        return hinges.sum() / len(logits)
