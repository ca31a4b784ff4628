"""k-nearest-neighbour evaluation on frozen features."""

from __future__ import annotations

import torch
from lightly.utils.benchmarking import knn_predict
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.evaluation.frozen import ClassProbe, FeatureSplit, FrozenEncoder, Result, accuracy
from dtp_lightning.runtime.signals import guard


class NearestNeighbours(ClassProbe):
    """Cosine k-NN with votes weighted by exp(similarity / temperature) (Wu et al. 2018, section 3.4).

    There is no choice of hyper-parameters: k and temperature are given. The feature bank is the training split.

    Args:
        k: number of neighbours, at most the size of the bank.
        temperature: of the weights of the votes.
    """

    def __init__(self, k: PositiveInt = 20, temperature: PositiveFloat = 0.1) -> None:
        self.k = k
        self.temperature = temperature

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
