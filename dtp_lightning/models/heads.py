"""Projection heads: what stands between the features and the objective."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from dtp_lightning.models.feedback_maps import activation_named

Projector = Sequence[PositiveInt]


def head_of(
    features: int,
    embedding_dim: int,
    *,
    activation: str = "Identity",
    bias: bool = True,
    projector: Projector = (),
    norm: Literal["none", "batch"] = "batch",
    classes: int | None = None,
) -> nn.Sequential:
    """Features (N, ...) -> embeddings (N, D), or logits (N, K) of a supervised control.

    It learns by the gradient of the objective alone, under every rule; probes read the features below it.

    Args:
        features: F, numbers an image.
        embedding_dim: D.
        activation: of the embedding, a class of torch.nn.
        bias: of the last layer.
        projector: widths of hidden layers with a ReLU; without any the head is linear (thesis). [2048] is SimCLR's
            (Chen et al. 2020, no norm), [2048, 2048] that of Barlow Twins (Zbontar et al. 2021, batch norm).
        norm: of the hidden layers, before the ReLU.
        classes: K: one linear layer without activation, whatever else was asked for.

    >>> [type(layer).__name__ for layer in head_of(8, 4, projector=[6])]
    ['Flatten', 'Linear', 'BatchNorm1d', 'ReLU', 'Linear', 'Identity']
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for below, here in pairwise([features, *projector]):
        layers.append(nn.Linear(below, here, bias=norm == "none"))
        layers += [nn.BatchNorm1d(here)] if norm == "batch" else []
        layers.append(nn.ReLU())
    last = nn.Linear([features, *projector][-1], embedding_dim, bias=bias)
    if classes is not None:  # drawn after a head of embeddings, which others have: the numbers of older runs
        return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    return nn.Sequential(*layers, last, activation_named(activation)())
