"""The distance study: distances of two views of an image, and of views of different images."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.data.images import ImageData, Split
from dtp_lightning.errors import DataError
from dtp_lightning.evaluation.frozen import Evaluation, FrozenEncoder, Result
from dtp_lightning.models.network import Network

VIEWS_SEED = 2_022  # of the views of the fixed batch, independent of the run's seed


class Distances(Evaluation):
    """Distances of embeddings on one fixed augmented batch of validation images.

    Positive pairs are the two views of an image, negative pairs all pairs of views of different images. For the l1
    distance (that of the hinge loss) and for cosine similarity: means, and the AUC, the probability that a positive
    pair is closer than a negative one (0.5 is chance). For l1 also the fractions of pairs that have a hinge loss.
    Alignment and uniformity are those of Wang and Isola (2020, alpha = 2, t = 2), on the unit sphere; lower is better.

    Args:
        augment: the augmentation of the run.
        images: B, the number of validation images at most, evenly spaced.
        pos_margin, neg_margin: margins of the hinge, in l1 distance: a positive pair beyond the first and a negative
            pair within the second have a loss.
    """

    needs_labels = False

    def __init__(
        self,
        augment: nn.Module,
        images: Annotated[int, Field(ge=2)] = 500,
        pos_margin: NonNegativeFloat = 1.0,
        neg_margin: NonNegativeFloat = 3.0,
    ) -> None:
        self.augment = augment
        self.images = images
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin

    def check(self, data: ImageData) -> None:
        """Require two validation images, the fewest that have a negative pair.

        Raises:
            DataError: there are fewer than two validation images.
        """
        if len(data.val) < 2:
            raise DataError(f"distances compare images, and there are {len(data.val)} for validation: add some")

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Measure ``l1/...``, ``cosine/...``, ``alignment`` and ``uniformity``, with histograms of both distances."""
        return self.compute(self.embeddings(encoder.network, encoder.data.val))

    @torch.no_grad()
    def embeddings(self, network: Network, split: Split) -> Tensor:
        """Embeddings z of the first two views, float32 (2, B, D) on the CPU; the views are the same in each call."""
        device = next(network.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(VIEWS_SEED)
            views = self.augment(split.subset(self.images).images)[:2]  # on the CPU, to be the same for every device
        return network(views.flatten(0, 1).to(device)).float().cpu().unflatten(0, views.shape[:2])

    def compute(self, embeddings: Tensor) -> Result:
        """Metrics and histograms of embeddings of two views, (2, B, D), B >= 2."""
        z0, z1 = embeddings
        z = torch.cat([z0, z1])
        index = torch.arange(len(z))
        negative_mask = (index[:, None] % len(z0) != index % len(z0)).triu()
        unit0, unit1, unit = F.normalize(z0), F.normalize(z1), F.normalize(z)
        pairs = {
            "l1 distance": ((z0 - z1).abs().sum(1), torch.cdist(z, z, p=1)[negative_mask]),
            "cosine similarity": ((unit0 * unit1).sum(1), (unit @ unit.T)[negative_mask]),
        }
        positive, negative = pairs["l1 distance"]
        metrics = {
            "l1/positive_mean": positive.mean(),
            "l1/negative_mean": negative.mean(),
            "l1/positive_beyond_margin": (positive > self.pos_margin).float().mean(),
            "l1/negative_within_margin": (negative < self.neg_margin).float().mean(),
            "l1/auc": _auc(-positive, -negative),
            "cosine/positive_mean": pairs["cosine similarity"][0].mean(),
            "cosine/negative_mean": pairs["cosine similarity"][1].mean(),
            "cosine/auc": _auc(*pairs["cosine similarity"]),
            "alignment": (unit0 - unit1).square().sum(1).mean(),
            "uniformity": torch.cdist(unit, unit)[negative_mask].square().mul(-2).exp().mean().log(),
        }
        histograms = {name: {"positive pairs": p, "negative pairs": n} for name, (p, n) in pairs.items()}
        return Result({name: float(value) for name, value in metrics.items()}, histograms=histograms)


def _auc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive pair scores above a negative one; ties count half."""
    from sklearn.metrics import roc_auc_score  # imported here, as it takes a third of a second

    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    return float(roc_auc_score(labels.numpy(), torch.cat([positive, negative]).numpy()))
