"""Features in the plane, for maps of them."""

from __future__ import annotations

import importlib.util
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dtp_lightning.errors import ConfigError

Map = Literal["pca", "tsne", "umap"]
SEED = 0
PCA_FIRST = 50
"""Principal components that t-SNE and UMAP get, as van der Maaten and Hinton (2008) do."""


def check_map(kind: Map) -> None:
    """Whether what a map needs is installed.

    Raises:
        ConfigError: it is not.
    """
    if kind == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError("callbacks.pictures.map=umap needs umap-learn: pip install umap-learn, or map=tsne or pca")


def project(features: Tensor, kind: Map) -> tuple[Tensor, tuple[str, str]]:
    """Map features to the plane; the same features always get the same map, and no global generator is used.

    Args:
        features: (N, F), finite, N >= 10.
        kind: ``pca``: two principal components. ``tsne`` (scikit-learn) and ``umap`` (umap-learn): on 50 of them.

    Returns:
        Points (N, 2); labels of their axes, for PCA with the share of the variance. Features that are all equal have a
        PCA alone.
    """
    components, shares = principal_components(features, 2 if kind == "pca" else PCA_FIRST)
    spread = components[:, 0].std()
    if kind == "pca" or spread == 0:  # scikit-learn's t-SNE of equal points ends the process
        components, shares = components[:, :2], shares[:2]
        x, y = (f"principal component {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares))
        return components, (x, y)
    if kind == "tsne":
        from sklearn.manifold import TSNE  # imported here, as it takes a second

        perplexity = min(30.0, (len(features) - 1) / 3)
        mapper = TSNE(init="pca", perplexity=perplexity, random_state=SEED, n_jobs=1)
    else:
        from umap import UMAP

        mapper = UMAP(n_neighbors=min(15, len(features) - 1), random_state=SEED, n_jobs=1)
    points = np.asarray(mapper.fit_transform((components / spread).numpy()))
    return torch.from_numpy(points), ("", "")


def principal_components(features: Tensor, count: int) -> tuple[Tensor, list[float]]:
    """Coordinates (N, ``count``) by decreasing variance, and their shares of it, in [0, 1].

    The sign of a component is such that its largest coordinate is positive. Where there are fewer, columns are 0.
    """
    x = features.double()
    x = x - x.mean(0)
    variances, vectors = torch.linalg.eigh(x @ x.T if len(x) < x.shape[1] else x.T @ x)
    variances, vectors = variances.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count]
    points = vectors * variances.sqrt() if len(x) < x.shape[1] else x @ vectors
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * torch.where(largest < 0, -1.0, 1.0)
    points = torch.nn.functional.pad(points, (0, count - points.shape[1]))
    shares = variances / x.square().sum().clamp(min=1e-300)
    return points.float(), [*shares.tolist(), *[0.0] * (count - len(shares))]
