"""Projection heads: what stands between the features and the objective."""

from __future__ import annotations

from typing import Literal

from torch import nn

from dtp_lightning.models.feedback_maps import activation_named

Projector = Literal["linear", "mlp"]


def head_of(
    features: int,
    embedding_dim: int,
    *,
    activation: str = "Identity",
    bias: bool = True,
    projector: Projector = "linear",
    hidden: int = 512,
    layers: int = 2,
    norm: Literal["none", "batch"] = "batch",
    classes: int | None = None,
) -> nn.Sequential:
    """Features (N, ...) -> embeddings (N, D), or logits (N, K) of a supervised control.

    It learns by the gradient of the objective alone, under every rule; probes read the features below it.

    Args:
        features: F, numbers an image.
        embedding_dim: D.
        activation: of the embedding, a class of torch.nn.
        bias: of a linear head.
        projector: ``linear`` is one layer (thesis); ``mlp`` has hidden layers with a ReLU before it: SimCLR's (Chen et
            al. 2020) is 2 layers without norm, Barlow Twins' (Zbontar et al. 2021) 3 with batch norm.
        hidden: width of its hidden layers.
        layers: of an ``mlp``, the last one included; at least 2.
        norm: of its hidden layers, before the ReLU.
        classes: K: one linear layer without activation, whatever else was asked for.

    >>> [type(layer).__name__ for layer in head_of(8, 4, projector="mlp", layers=2, norm="batch")]
    ['Flatten', 'Linear', 'BatchNorm1d', 'ReLU', 'Linear', 'Identity']
    """
    given, below = features, [nn.Flatten()]  # type: tuple[int, list[nn.Module]]
    for _ in range(layers - 1 if projector == "mlp" else 0):
        below.append(nn.Linear(features, hidden, bias=norm == "none"))
        below += [nn.BatchNorm1d(hidden)] if norm == "batch" else []
        below.append(nn.ReLU())
        features = hidden
    last = nn.Linear(features, embedding_dim, bias=bias or projector == "mlp")
    if classes is not None:  # drawn after a head of embeddings, which others have: the numbers of older runs
        return nn.Sequential(nn.Flatten(), nn.Linear(given, classes))
    return nn.Sequential(*below, last, activation_named(activation)())
