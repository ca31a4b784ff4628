"""What the evaluations of an encoder found image by image, for trackers that show more than numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

SHOWN = 32
"""Misclassified images of each probe that are shown at most, evenly spaced over all of them."""


class Readable(Protocol):
    """Images uint8 (N, C, H, W) that are read when they are indexed by int64 (M,)."""

    def __getitem__(self, index: Any) -> Tensor: ...


@dataclass(frozen=True)
class Predictions:
    """Classes that probes predicted for the test split, and values of which evaluations have histograms.

    Attributes:
        images: of the test split.
        labels: int64 (N,) in 0..K-1.
        classes: names of the K classes.
        of: probe -> predicted classes, int64 (N,).
        histograms: ``histograms/<evaluation>/<quantity>/<group>``, of the untrained encoder
            ``histograms/random_encoder/...`` -> values (M,).
    """

    images: Readable
    labels: Tensor
    classes: Sequence[str]
    of: dict[str, Tensor] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)

    def add(self, probe: str, predicted: Tensor) -> None:
        """Keep what a probe predicted."""
        self.of[probe] = predicted

    def add_histograms(self, evaluation: str, values: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep the values of an evaluation, quantity -> group -> (M,); those that are not finite are left out."""
        for quantity, groups in values.items():
            for group, found in groups.items():
                if len(finite := found[found.isfinite()]):
                    name = f"histograms/{evaluation}/{quantity}/{group}".replace(" ", "_")
                    self.histograms[name] = finite.cpu()

    def per_class(self) -> list[tuple[str, str, int, float]]:
        """Rows (probe, class, number of test images, accuracy in [0, 1]); classes without test images are left out."""
        rows = []
        for probe, predicted in self.of.items():
            right = predicted == self.labels
            for label, name in enumerate(self.classes):
                inside = self.labels == label
                if count := int(inside.sum()):
                    rows.append((probe, name, count, right[inside].double().mean().item()))
        return rows

    def misclassified(self, probe: str) -> tuple[Tensor, list[str], list[str]]:
        """Some of the images that a probe got wrong: uint8 (M, C, H, W), their classes, and those it predicted."""
        predicted = self.of[probe]
        wrong = (predicted != self.labels).nonzero().flatten()
        wrong = wrong[:: max(1, -(-len(wrong) // SHOWN))]
        label, said = ([self.classes[i] for i in classes[wrong].tolist()] for classes in (self.labels, predicted))
        return self.images[wrong], label, said


@runtime_checkable
class PredictionLogger(Protocol):
    """A tracker that shows predictions."""

    def log_predictions(self, predictions: Predictions, step: int) -> None:
        """Log them.

        Args:
            predictions: of an encoder's probes.
            step: number of training batches.
        """
