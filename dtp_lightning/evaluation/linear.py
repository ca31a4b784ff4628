"""Linear evaluation: multinomial logistic regression on frozen features, trained until it converges."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from dtp_lightning.data.images import ImageData, stratified
from dtp_lightning.errors import DataError
from dtp_lightning.evaluation.frozen import ClassProbe, FeatureSplit, FrozenEncoder, Result, accuracy
from dtp_lightning.runtime.signals import guard

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

log = logging.getLogger(__name__)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Strengths = Annotated[Sequence[PositiveFloat], Field(min_length=1)]


@dataclass(frozen=True)
class Standardiser:
    """Shift and scale of each feature, (F,), taken from the probe's training features."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standardiser:
        """From features (N, F); constant features are left unscaled."""
        std = x.std(0, correction=0)
        return cls(x.mean(0), torch.where(std > 1e-6, std, 1.0))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class FittedProbe:
    """The logistic regression that did best on validation.

    Attributes:
        standardise: applied to features first.
        classifier: fitted on the training features.
        strength: the chosen C, inverse L2 penalty.
        val_acc: its validation accuracy in [0, 1].
    """

    standardise: Standardiser
    classifier: LogisticRegression
    strength: float
    val_acc: float

    def predict(self, x: Tensor) -> Tensor:
        """Classes (N,) of features (N, F)."""
        return torch.from_numpy(self.classifier.predict(self.standardise(x).numpy()))


def fit_probe(train: FeatureSplit, val: FeatureSplit, strengths: Sequence[float], max_iter: int) -> FittedProbe:
    """Fit one regression for each C, strongest penalty first; keep the best on ``val``.

    Each fit starts from the last one's weights. The weaker penalties take longest, so the search ends as soon as
    validation accuracy falls. Ties go to the stronger penalty. A fit that reaches ``max_iter`` is logged as a warning.
    """
    from sklearn.exceptions import ConvergenceWarning  # a third of a second, which a training need not wait for
    from sklearn.linear_model import LogisticRegression

    standardise = Standardiser.of(train.x)
    x, y = standardise(train.x).numpy(), train.y.numpy()
    x_val = standardise(val.x).numpy()
    best: FittedProbe | None = None
    start = None
    for strength in sorted(strengths):
        classifier = LogisticRegression(C=strength, max_iter=max_iter, warm_start=True)
        if start is not None:
            classifier.classes_, classifier.coef_, classifier.intercept_ = start
        with guard.interruptible(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(x, y)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            log.warning(
                "the linear probe did not converge in %d iterations at C=%g: raise max_iter", max_iter, strength
            )
        start = classifier.classes_, classifier.coef_.copy(), classifier.intercept_.copy()
        val_acc = accuracy(torch.from_numpy(classifier.predict(x_val)), val.y)
        if best is None or val_acc > best.val_acc:
            best = FittedProbe(standardise, classifier, strength, val_acc)
        elif val_acc < best.val_acc:
            break
    assert best is not None
    return best


class LinearProbe(ClassProbe):
    """The field's linear evaluation protocol, to convergence.

    Features of the last stage, standardised by the training split, no augmentation; multinomial logistic
    regression with L2 penalty by L-BFGS; C chosen on validation; fitted on train only; test read once.

    Args:
        strengths: values of C (inverse penalty) to choose from, tried upwards until validation accuracy falls.
        max_iter: bound on L-BFGS iterations for each C.
    """

    def __init__(self, strengths: Strengths = STRENGTHS, max_iter: PositiveInt = 2000) -> None:
        self.strengths = strengths
        self.max_iter = max_iter

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """``val_acc``, ``test_acc`` and the chosen ``C``."""
        probe = fit_probe(encoder.train, encoder.val, self.strengths, self.max_iter)
        predicted = probe.predict(encoder.test.x)
        metrics = {"val_acc": probe.val_acc, "test_acc": accuracy(predicted, encoder.test.y), "C": probe.strength}
        return Result(metrics, predicted)


class FewLabels(ClassProbe):
    """The same probe on few labelled images a class, averaged over several draws of them.

    C is chosen on the whole validation split, so the figure is for few *training* labels.

    Args:
        per_class: numbers of labelled images a class; those that a class does not have are left out with a warning.
        draws: independent draws of them.
        strengths, max_iter: see :class:`LinearProbe`.
    """

    def __init__(
        self,
        per_class: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (1, 10, 100),
        draws: PositiveInt = 5,
        strengths: Strengths = STRENGTHS,
        max_iter: PositiveInt = 2000,
    ) -> None:
        self.per_class = per_class
        self.draws = draws
        self.strengths = strengths
        self.max_iter = max_iter

    def check(self, data: ImageData) -> None:
        """Known before training: whether there are enough labels for any of the numbers.

        Raises:
            DataError: there are not.
        """
        super().check(data)
        self._smallest_class(data.train.labels)

    def _smallest_class(self, labels: Tensor) -> int:
        smallest = int(labels.bincount().min())
        if smallest < min(self.per_class):
            raise DataError(
                f"few labels: the smallest class has {smallest} images, fewer than {list(self.per_class)}; "
                "lower evaluation.few_labels.per_class"
            )
        return smallest

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """For each number n, means over draws of ``<n>/val_acc`` and ``<n>/test_acc``, and ``<n>/test_std``.

        Raises:
            DataError: every class number in ``per_class`` is larger than the smallest class.
        """
        smallest = self._smallest_class(encoder.train.y)
        if missing := [n for n in self.per_class if n > smallest]:
            log.warning("few labels: the smallest class has %d images, fewer than %s: left out", smallest, missing)
        metrics: dict[str, float] = {}
        for n in self.per_class:
            if n <= smallest:
                metrics |= {f"{n}/{name}": value for name, value in self._mean_over_draws(encoder, n).items()}
        return Result(metrics)

    def _mean_over_draws(self, encoder: FrozenEncoder, per_class: int) -> dict[str, float]:
        val, test = [], []
        for draw in range(self.draws):
            (chosen,) = stratified(encoder.train.y, [per_class], encoder.seed * 1000 + draw)
            few = FeatureSplit(encoder.train.x[chosen], encoder.train.y[chosen])
            probe = fit_probe(few, encoder.val, self.strengths, self.max_iter)
            val.append(probe.val_acc)
            test.append(accuracy(probe.predict(encoder.test.x), encoder.test.y))
        accuracies = torch.tensor([val, test], dtype=torch.float64)
        spread = accuracies[1].std().item() if self.draws > 1 else 0.0
        return {"val_acc": accuracies[0].mean().item(), "test_acc": accuracies[1].mean().item(), "test_std": spread}
