"""What every evaluation receives: a frozen encoder, a labelled data set, and features computed once."""

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
    """A network that no longer learns, and the data it is judged on.

    Attributes:
        network: in evaluation mode.
        data: labelled; evaluations choose on ``val`` and read ``test`` for the reported figure only.
        seed: of whatever an evaluation draws.
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
        """Features of the test split, first computed when an evaluation reports on it."""
        return FeatureSplit(features_of(self.network, self.data.test.images), self.data.test.labels)


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        metrics: name -> number; accuracies in [0, 1], called ``test_acc`` and ``val_acc``.
        test_predictions: predicted classes of the test split (N,), where there are any.
        histograms: quantity -> group -> its values (M,), to be drawn for both encoders in one figure.
    """

    metrics: dict[str, float]
    test_predictions: Tensor | None = field(default=None, repr=False)
    histograms: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)


class Evaluation(DataReader, ABC):
    """Measures a frozen encoder on a data set. A new one derives from this class."""

    needs_labels: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, encoder: FrozenEncoder) -> Result:
        """What it measures, by name."""


class ClassProbe(Evaluation):
    """An evaluation that predicts classes: it needs two of them, and images in every split."""

    def check(self, data: ImageData) -> None:
        """See :func:`check_classes`.

        Raises:
            DataError: there are not two classes, or no validation or test images.
        """
        check_classes(data)


def check_classes(data: ImageData) -> None:
    """A probe tells classes apart, so it needs two of them, and images to be chosen and judged by.

    Raises:
        DataError: there are not.
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
    """Share of (N,) predictions that equal the labels, in [0, 1]."""
    return (predicted == labels).double().mean().item()
