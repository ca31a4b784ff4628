"""Goodness: the mean square of a layer's positive activity, and the loss that tells real activity from made-up one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

GoodnessOf = Literal["place", "layer"]


def goodness(activity: Tensor, of: GoodnessOf = "place") -> Tensor:
    """G = mean of relu(a)^2: over the channels at each ``place``, (N, C, ...) -> (N, places), or over the ``layer``.

    Hinton (2022) sums over the layer; a mean has the same gradient but for its length. SCFF's is of places.

    >>> import torch
    >>> goodness(torch.tensor([[[3.0, -1.0], [1.0, -2.0]]]))
    tensor([[5., 0.]])
    >>> goodness(torch.tensor([[[3.0, -1.0], [1.0, -2.0]]]), of="layer")
    tensor([[2.5000]])
    """
    squares = F.relu(activity).square().flatten(2) if activity.ndim > 2 else F.relu(activity).square()[..., None]
    return squares.mean(1) if of == "place" else squares.mean((1, 2))[:, None]


def goodness_loss(positive: Tensor, negative: Tensor, thresholds: tuple[float, float], penalty: float = 0.0) -> Tensor:
    """Positive goodness is to lie above one threshold, negative goodness below another.

        L = mean softplus(theta_+ - G_+) + mean softplus(G_- - theta_-) + penalty * mean_n ||G_+[n]||_2

    Hinton (2022), equation 1, has one threshold and no penalty; this is SCFF's form (Chen et al. 2025, its code).

    Args:
        positive, negative: G (N, places), see :func:`goodness`.
        thresholds: theta_+, theta_-, in units of G.
        penalty: lambda, weight of the length of the positive goodness over its places.

    >>> import torch
    >>> goodness_loss(torch.tensor([[50.0]]), torch.tensor([[-50.0]]), (1.0, 1.0)).item() < 1e-9
    True
    """
    value = F.softplus(thresholds[0] - positive).mean() + F.softplus(negative - thresholds[1]).mean()
    return value + penalty * positive.norm(dim=1).mean() if penalty else value
