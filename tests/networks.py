"""Networks of linear stages, on which identities are exact."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dtp_lightning.models import FeedbackMap, Network, Stage


class FlatLinear(nn.Linear):
    """(N, 1, H, W) -> (N, 1, 1, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))[:, None, None, :]


class FlatFeedback(FeedbackMap, nn.Linear):
    """A linear g between such shapes."""

    def forward(self, u: Tensor, size: tuple[int, int], pool_indices: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return nn.Linear.forward(self, u.flatten(1)).unflatten(1, (1, *size))


def linear_network(*sizes: int, embedding: int = 4) -> Network:
    torch.manual_seed(0)
    stages = []
    for i, (below, here) in enumerate(itertools.pairwise(sizes)):
        stages.append(Stage(FlatLinear(below, here), FlatFeedback(here, below, bias=False) if i else None))
    head = nn.Sequential(nn.Flatten(), nn.Linear(sizes[-1], embedding))
    return Network(stages, head, shapes=[(1, 1, n) for n in sizes[1:]]).double()
