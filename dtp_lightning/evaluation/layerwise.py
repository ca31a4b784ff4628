"""A probe on the activations of each stage."""

from __future__ import annotations

from dataclasses import replace

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.data.images import ImageData
from dtp_lightning.evaluation.frozen import Evaluation, FrozenEncoder, Result
from dtp_lightning.models.network import Network


class TruncatedNetwork(Network):
    """The first stages of a network, as an encoder.

    Args:
        network: the whole network, with which the stages are shared.
        stage: index of the last stage, from 1.
        max_features: an activation with more features is average-pooled to the largest square grid within this number.
    """

    def __init__(self, network: Network, stage: int, max_features: int) -> None:
        super().__init__(list(network.stages)[:stage], nn.Identity(), mean=network.mean, std=network.std)
        self.max_features = max_features

    def features(self, images: Tensor) -> Tensor:
        """Features (N, F) of images (N, C, H, W) in [0, 1]: h_stage, average-pooled and flattened."""
        return pooled(self.activations(images)[-1], self.max_features)


def pooled(h: Tensor, max_features: int) -> Tensor:
    """Features (N, F) of an activation (N, C, H, W): averaged on the largest square grid with F <= max_features."""
    cells = max(1, int((max_features / h.shape[1]) ** 0.5))
    height, width = (min(cells, side) for side in h.shape[-2:])
    return F.adaptive_avg_pool2d(h, (height, width)).flatten(1)


class Layerwise(Evaluation):
    """The same probe on each stage; large activations are average-pooled, to similar numbers of features.

    Args:
        probe: an evaluation with ``val_acc`` and ``test_acc``.
        max_features: largest number of features of a probe.
        train_images: largest number of training images of a probe, evenly spaced.
    """

    def __init__(self, probe: Evaluation, max_features: PositiveInt = 1024, train_images: PositiveInt = 10_000) -> None:
        self.probe = probe
        self.max_features = max_features
        self.train_images = train_images

    def check(self, data: ImageData) -> None:
        """Check the data set by the probe.

        Raises:
            ConfigError, DataError: from the probe.
        """
        self.probe.check(data)

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Measure ``stage<i>/val_acc`` and ``stage<i>/test_acc``, in [0, 1], for i = 1..L."""
        data = replace(encoder.data, train=encoder.data.train.subset(self.train_images))
        metrics: dict[str, float] = {}
        for i in range(1, len(encoder.network.stages) + 1):
            result = self.probe(
                FrozenEncoder(TruncatedNetwork(encoder.network, i, self.max_features), data, encoder.seed)
            )
            metrics |= {f"stage{i}/{name}": result.metrics[name] for name in ("val_acc", "test_acc")}
        return Result(metrics)
