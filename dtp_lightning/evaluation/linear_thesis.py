"""The thesis' linear evaluation: a fixed number of Adam epochs, without a test of convergence."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.evaluation.frozen import ClassProbe, FeatureSplit, FrozenEncoder, Result, accuracy
from dtp_lightning.runtime.signals import guard


class ThesisLinearProbe(ClassProbe):
    """Softmax regression on raw features by Adam, for comparison with the published figures (thesis code).

    It has usually not converged: report it with :class:`LinearProbe`, not instead. Unlike the thesis code, it shuffles
    the batches.

    Args:
        epochs: passes over the training features.
        batch_size: images of a batch.
        lr: learning rate of Adam.
        dropout: probability that a feature is left out while the probe learns (SoftHebb's and SCFF's: 0.5).
    """

    def __init__(
        self,
        epochs: PositiveInt = 100,
        batch_size: PositiveInt = 1000,
        lr: PositiveFloat = 1e-3,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.dropout = dropout

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Measure ``val_acc`` and ``test_acc`` after the last epoch, as the thesis; ``best_val/...`` after the best."""
        generator = torch.Generator().manual_seed(encoder.seed)
        train, val = encoder.train, encoder.val
        weight, bias = self._initialise(train, generator)
        optimizer = torch.optim.Adam([weight, bias], lr=self.lr)
        best_val, best = -1.0, (weight.detach(), bias.detach())
        for _ in guard.checked(range(self.epochs)):
            for index in torch.randperm(len(train.y), generator=generator).split(self.batch_size):
                x = train.x[index]
                if self.dropout:
                    kept = torch.rand(x.shape, generator=generator) >= self.dropout
                    x = x * kept / (1 - self.dropout)
                loss = F.cross_entropy(F.linear(x, weight, bias), train.y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            val_acc = accuracy(predict(val.x, weight, bias), val.y)
            if val_acc > best_val:
                best_val, best = val_acc, (weight.detach().clone(), bias.detach().clone())
        predicted = predict(encoder.test.x, weight, bias)
        metrics = {
            "val_acc": val_acc,
            "test_acc": accuracy(predicted, encoder.test.y),
            "best_val/val_acc": best_val,
            "best_val/test_acc": accuracy(predict(encoder.test.x, *best), encoder.test.y),
        }
        return Result(metrics, predicted)

    @staticmethod
    def _initialise(train: FeatureSplit, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight (K, F) and bias (K,), initialised as nn.Linear's: U(-1/sqrt(F), 1/sqrt(F))."""
        classes, features = int(train.y.max()) + 1, train.x.shape[1]
        bound = features**-0.5
        weight = torch.empty(classes, features).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(classes).uniform_(-bound, bound, generator=generator)
        return nn.Parameter(weight), nn.Parameter(bias)


@torch.no_grad()
def predict(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Predict classes, int64 (N,), of features x (N, F)."""
    return F.linear(x, weight, bias).argmax(1)
