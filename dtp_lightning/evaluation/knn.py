"""k-nearest-neighbour evaluation on frozen features."""

from __future__ import annotations

import torch
from lightly.utils.benchmarking import knn_predict
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.data.images import ImageData
from dtp_lightning.errors import ConfigError
from dtp_lightning.evaluation.frozen import ClassProbe, FeatureSplit, FrozenEncoder, Result, accuracy
from dtp_lightning.runtime.signals import guard

USUAL = 20
"""Neighbours of the protocol."""


class NearestNeighbours(ClassProbe):
    """Cosine k-NN with votes weighted by exp(similarity / temperature) (Wu et al. 2018, section 3.4).

    There is no choice of hyper-parameters: k and temperature are given. The feature bank is the training split.

    Args:
        k: number of neighbours, at most the size of the bank. (Where the bank is smaller than the usual 20, all vote.)
        temperature: of the weights of the votes.
    """

    def __init__(self, k: PositiveInt = USUAL, temperature: PositiveFloat = 0.1) -> None:
        self.k = k
        self.temperature = temperature

    def check(self, data: ImageData) -> None:
        """Require as many training images as neighbours.

        Raises:
            ConfigError: there are fewer.
            DataError: there are fewer than two classes, or no validation or test images.
        """
        super().check(data)
        if self.k > max(USUAL, len(data.train)):
            raise ConfigError(
                f"k={self.k} is larger than the {len(data.train)} training images; lower evaluation.knn.k"
            )

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Measure ``val_acc`` and ``test_acc``, in [0, 1]."""
        predicted = self.predict(encoder.test.x, encoder.train)
        val_acc = accuracy(self.predict(encoder.val.x, encoder.train), encoder.val.y)
        return Result({"val_acc": val_acc, "test_acc": accuracy(predicted, encoder.test.y)}, predicted)

    def predict(self, x: Tensor, bank: FeatureSplit) -> Tensor:
        """Predict classes, int64 (N,), of features x (N, F) from a feature bank (M, F) with labels (M,)."""
        feature_bank = F.normalize(bank.x).T.contiguous()
        classes = int(bank.y.max()) + 1
        k = min(self.k, len(bank.y))
        chunks = guard.checked(F.normalize(x).split(1000))
        return torch.cat([knn_predict(c, feature_bank, bank.y, classes, k, self.temperature)[:, 0] for c in chunks])
