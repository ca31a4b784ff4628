"""Linear evaluation: multinomial logistic regression on frozen features, to convergence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

WIDE = 2048
"""Number of features above which a probe on few images works in their span; below it, features stay as they are."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Strengths = Annotated[Sequence[PositiveFloat], Field(min_length=1)]


@dataclass(frozen=True)
class Standardiser:
    """Standardises features by mean and standard deviation (F,) of the training features.

    The weights of a regression with an L2 penalty lie in the span of its training features. Where these are many more
    than the images (``WIDE``), their coordinates in that span, (N, N), take minutes less and lead to the same probe.

    Attributes:
        mean, std: (F,).
        basis: of the span, orthonormal, (F, N); None: features stay what they are.
    """

    mean: Tensor
    std: Tensor
    basis: Tensor | None = None

    @classmethod
    def fit(cls, x: Tensor) -> Standardiser:
        """Compute mean and standard deviation of features (N, F); constant features are not scaled."""
        std = x.std(0, correction=0)
        standardise = cls(x.mean(0), torch.where(std > 1e-6, std, 1.0))
        images, features = x.shape
        if features <= WIDE or 4 * images > features:
            return standardise
        return replace(standardise, basis=torch.linalg.qr(standardise(x).T)[0])

    def __call__(self, x: Tensor) -> Tensor:
        """Standardised features (N, F), or their coordinates in the basis."""
        standardised = (x - self.mean) / self.std
        return standardised if self.basis is None else standardised @ self.basis


@dataclass(frozen=True)
class FittedProbe:
    """The logistic regression with the highest validation accuracy.

    Attributes:
        standardise: applied to the features.
        classifier: fitted to the standardised training features.
        strength: the chosen C, the inverse of the L2 penalty.
        val_acc: validation accuracy, in [0, 1].
    """

    standardise: Standardiser
    classifier: LogisticRegression
    strength: float
    val_acc: float

    def predict(self, x: Tensor) -> Tensor:
        """Predict classes, int64 (N,), of features (N, F)."""
        return torch.from_numpy(self.classifier.predict(self.standardise(x).numpy()))


def fit_probe(train: FeatureSplit, val: FeatureSplit, strengths: Sequence[float], max_iter: int) -> FittedProbe:
    """Fit a logistic regression for each C, in increasing order; select the best on ``val``.

    Each fit starts from the weights of the fit before. Fits with weak penalties take longest, so the search ends when
    validation accuracy falls. Of equal accuracies the stronger penalty wins. A fit that does not converge is logged.

    Args:
        train: features (N, F) and labels (N,) to fit.
        val: features (M, F) and labels (M,) to select C.
        strengths: values of C.
        max_iter: largest number of L-BFGS iterations for each C.
    """
    from sklearn.exceptions import ConvergenceWarning  # imported here, as it takes a third of a second
    from sklearn.linear_model import LogisticRegression

    standardise = Standardiser.fit(train.x)
    x, y = standardise(train.x).numpy(), train.y.numpy()
    x_val = standardise(val.x).numpy()
    best: FittedProbe | None = None
    previous = None
    for strength in sorted(strengths):
        classifier = LogisticRegression(C=strength, max_iter=max_iter, warm_start=True)
        if previous is not None:
            classifier.classes_, classifier.coef_, classifier.intercept_ = previous
        with guard.interruptible(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(x, y)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            log.warning(
                "the linear probe did not converge in %d iterations at C=%g: raise max_iter", max_iter, strength
            )
        previous = classifier.classes_, classifier.coef_.copy(), classifier.intercept_.copy()
        val_acc = accuracy(torch.from_numpy(classifier.predict(x_val)), val.y)
        if best is None or val_acc > best.val_acc:
            best = FittedProbe(standardise, classifier, strength, val_acc)
        elif val_acc < best.val_acc:
            break
    assert best is not None
    return best


class LinearProbe(ClassProbe):
    """The usual linear evaluation protocol, to convergence.

    Features of the last stage, standardised by the training split, without augmentation; multinomial logistic
    regression with an L2 penalty by L-BFGS; C selected on the validation split; fitted to the training split only.

    Args:
        strengths: values of C (inverse of the L2 penalty), tried in increasing order until validation accuracy falls.
        max_iter: largest number of L-BFGS iterations for each C.
    """

    def __init__(self, strengths: Strengths = STRENGTHS, max_iter: PositiveInt = 2000) -> None:
        self.strengths = strengths
        self.max_iter = max_iter

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Measure ``val_acc`` and ``test_acc``, in [0, 1], with the selected ``C``."""
        probe = fit_probe(encoder.train, encoder.val, self.strengths, self.max_iter)
        predicted = probe.predict(encoder.test.x)
        metrics = {"val_acc": probe.val_acc, "test_acc": accuracy(predicted, encoder.test.y), "C": probe.strength}
        return Result(metrics, predicted)


class FewLabels(ClassProbe):
    """The linear probe on few labelled images of each class, averaged over several random subsets.

    C is selected on the whole validation split, so only the *training* labels are few.

    Args:
        per_class: numbers of labelled images of each class; numbers above the smallest class are left out, with a
            warning.
        draws: number of independent random subsets.
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
        """Require enough labels for the smallest of the numbers.

        Raises:
            DataError: there are fewer than two classes, too few labels, or no validation or test images.
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
        """Measure ``<n>/val_acc`` and ``<n>/test_acc``, means over draws in [0, 1], and ``<n>/test_std`` over draws.

        Raises:
            DataError: every number in ``per_class`` is larger than the smallest class.
        """
        smallest = self._smallest_class(encoder.train.y)
        if too_large := [n for n in self.per_class if n > smallest]:
            log.warning("few labels: the smallest class has %d images, fewer than %s: left out", smallest, too_large)
        metrics: dict[str, float] = {}
        for n in self.per_class:
            if n <= smallest:
                metrics |= {f"{n}/{name}": value for name, value in self._mean_over_draws(encoder, n).items()}
        return Result(metrics)

    def _mean_over_draws(self, encoder: FrozenEncoder, per_class: int) -> dict[str, float]:
        val, test = [], []
        for draw in range(self.draws):
            (index,) = stratified(encoder.train.y, [per_class], encoder.seed * 1000 + draw)
            subset = FeatureSplit(encoder.train.x[index], encoder.train.y[index])
            probe = fit_probe(subset, encoder.val, self.strengths, self.max_iter)
            val.append(probe.val_acc)
            test.append(accuracy(probe.predict(encoder.test.x), encoder.test.y))
        accuracies = torch.tensor([val, test], dtype=torch.float64)
        test_std = accuracies[1].std().item() if self.draws > 1 else 0.0
        return {"val_acc": accuracies[0].mean().item(), "test_acc": accuracies[1].mean().item(), "test_std": test_std}
