"""What a learner must know of an objective, declared by ours and given to those of libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from lightly.utils.scheduler import cosine_schedule
from pydantic import Field
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class TargetMomentum:
    """tau of a target network, which keeps that share of its weights a batch: from ``first`` to ``last`` by a cosine.

    Attributes:
        first: at the beginning of training, in [0, 1].
        last: at its end, in [0, 1]; 1 holds the target network still.

    >>> [round(TargetMomentum(0.9, 1.0).at(k, batches=5), 2) for k in range(5)]
    [0.9, 0.91, 0.95, 0.99, 1.0]
    """

    first: float
    last: float = 1.0

    def at(self, batch: int, batches: int | None) -> float:
        """The share after this batch, counted from 0, of so many; ``first`` where nobody knows how many."""
        if batches is None:
            return self.first
        return cosine_schedule(min(batch, batches - 1), batches, self.first, self.last)


class Objective(nn.Module):
    """A scalar loss of the head's outputs. Losses of this package derive from it.

    Attributes:
        supervised: how ``forward`` is called. False: with one tensor of embeddings (B, D) a view, row i of all from
            image i. True: with logits (N, K) and labels int64 (N,) in 0..K-1.
        any_views: whether ``forward`` takes any number of views. Else it takes two: see :func:`over_pairs`.
        smallest_batch: number of images that a batch must hold. A contrastive loss compares at least 2.
        target_momentum: of the target network that the objective needs; None: it needs none. Where it does, ``forward``
            is given that network's embeddings as well, one tensor (B, D) a view without a graph, after the others.
    """

    supervised: bool = False
    any_views: bool = False
    smallest_batch: int = 2
    target_momentum: TargetMomentum | None = None


class LibraryObjective(Objective):
    """A loss of lightly or torch, with the declarations that it lacks. Made by :func:`as_objective`.

    Args:
        loss: the library's, called with what :class:`Objective` describes.
        supervised: see :class:`Objective`.
    """

    def __init__(self, loss: nn.Module, *, supervised: bool) -> None:
        super().__init__()
        self.loss = loss
        self.supervised = supervised
        self.smallest_batch = 1 if supervised else 2

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scalar loss, the library's own."""
        value: Tensor = self.loss(*inputs)
        return value


CLASSIFICATION = (nn.CrossEntropyLoss, nn.MultiMarginLoss, nn.NLLLoss)
"""Losses of torch that are called with (logits, labels)."""


def as_objective(loss: nn.Module) -> Objective:
    """The loss itself if it is an :class:`Objective`, else the loss of a library with its declarations.

    Losses of lightly compare two views; those of torch in ``CLASSIFICATION`` take logits and labels.

    >>> as_objective(nn.CrossEntropyLoss()).supervised
    True
    """
    if isinstance(loss, Objective):
        return loss
    declared = getattr(loss, "supervised", False)  # a user's own module may say so without deriving from Objective
    return LibraryObjective(loss, supervised=declared or isinstance(loss, CLASSIFICATION))


def over_pairs(loss: Objective, views: Sequence[Tensor], targets: Sequence[Tensor] = ()) -> Tensor:
    """The objective of two views, or its mean over the pairs of more than two, scalar.

    Pairs are those with one of the first two views in them, the large crops: (0, 1), (0, 2), (1, 2), (0, 3), (1, 3),
    ... Caron et al. (2020), Eq. 7, predict every view from the large crops; here both ways round.

    Args:
        loss: not a supervised one.
        views: embeddings, (B, D) each.
        targets: those of the target network, of the same shape, or none.

    >>> from dtp_lightning.losses import PositiveOnly
    >>> over_pairs(PositiveOnly(), [torch.tensor([[x]]) for x in (0.0, 3.0, 9.0)])  # 3, 9 and 6
    tensor(6.)
    """
    if len(views) <= 2 or loss.any_views:
        value: Tensor = loss(*views, *targets)
        return value
    pairs = [(large, other) for other in range(1, len(views)) for large in (0, 1) if large < other]
    values = [loss(*(of[i] for of in (views, targets) if of for i in pair)) for pair in pairs]
    return torch.stack(values).mean()


def check_comparisons(name: str, loss: Objective, views: int, batch_size: int) -> None:
    """A contrastive loss has something to compare.

    Args:
        name: of the loss, for the message.
        loss: a supervised one needs no second view, the others at least ``smallest_batch`` images.
        views: V, of each image.
        batch_size: images.

    Raises:
        ConfigError: one view, or a batch of one image.
    """
    if loss.supervised:
        return
    if views < 2:
        raise ConfigError(f"loss={name} compares two views, and these augmentations give one: choose another")
    if batch_size < loss.smallest_batch:
        raise ConfigError(
            f"batch_size={batch_size}: loss={name} compares the images of a batch and needs at least "
            f"{loss.smallest_batch}"
        )
