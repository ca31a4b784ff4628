"""Base classes of evaluations, and a frozen encoder whose features are computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from dtp_lightning.data.images import ImageData
from dtp_lightning.data.reader import DataReader
from dtp_lightning.errors import DataError
from dtp_lightning.models.network import Network, features_of


@dataclass(frozen=True)
class FeatureSplit:
    """Features x float32 (N, F) and labels y int64 (N,) of one split, on the CPU."""

    x: Tensor
    y: Tensor


@dataclass
class FrozenEncoder:
    """A network that no longer learns, and the data on which it is evaluated.

    Attributes:
        network: in evaluation mode, without gradients.
        data: hyper-parameters of an evaluation are chosen on ``val``; ``test`` gives the reported metrics only.
        seed: of the random numbers of an evaluation.
    """

    network: Network
    data: ImageData
    seed: int = 0

    @cached_property
    def train(self) -> FeatureSplit:
        """Features of the training split."""
        return FeatureSplit(features_of(self.network, self.data.train.images), self.data.train.labels)

    @cached_property
    def val(self) -> FeatureSplit:
        """Features of the validation split."""
        return FeatureSplit(features_of(self.network, self.data.val.images), self.data.val.labels)

    @cached_property
    def test(self) -> FeatureSplit:
        """Features of the test split, computed at the first access."""
        return FeatureSplit(features_of(self.network, self.data.test.images), self.data.test.labels)


@dataclass(frozen=True)
class Result:
    """The metrics of an evaluation, and data for its figures.

    Attributes:
        metrics: name -> value; accuracies ``test_acc`` and ``val_acc`` are in [0, 1].
        test_predictions: predicted classes of the test split, int64 (N,); None if it predicts none.
        histograms: quantity -> group -> values (M,), plotted for the trained and the random encoder in one figure.
    """

    metrics: dict[str, float]
    test_predictions: Tensor | None = field(default=None, repr=False)
    histograms: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)


class Evaluation(DataReader, ABC):
    """Measures a frozen encoder on a data set. A new one derives from this class."""

    needs_labels: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Evaluate the encoder."""


class ClassProbe(Evaluation):
    """An evaluation that predicts classes; it needs two classes or more, and images in every split."""

    def check(self, data: ImageData) -> None:
        """Require two classes, validation images and test images.

        Raises:
            DataError: there are fewer than two classes, or no validation or test images.
        """
        check_classes(data)


def check_classes(data: ImageData) -> None:
    """Require two classes in the training set, validation images and test images, without which there is no probe.

    Raises:
        DataError: there are fewer than two classes, or no validation or test images.
    """
    if len(data.train.labels.unique()) < 2:
        raise DataError(
            f"a probe needs images of two classes or more, and the training images are all of one ({data.classes[0]}): "
            "add classes, or leave the probes out by evaluation=[]"
        )
    for name, split in (("validation", data.val), ("test", data.test)):
        if not len(split):
            raise DataError(f"a probe needs {name} images, and there are none: add some, or set evaluation=[]")


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Fraction of predicted classes (N,) that equal the labels (N,), in [0, 1]."""
    return (predicted == labels).double().mean().item()
