"""The loggers of a run: metrics.csv, which is always written, and the chosen experiment trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger

from dtp_lightning.loggers.metrics_csv import MetricsCSV
from dtp_lightning.loggers.predictions import PredictionLogger, Predictions
from dtp_lightning.loggers.tables import HistogramLogger


@runtime_checkable
class ImageLogger(Protocol):
    """A logger of images, with the method of Lightning's W&B logger."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log image files under a name."""


@runtime_checkable
class FinishableLogger(Protocol):
    """A logger that must be closed after Lightning's ``finalize``."""

    def finish(self, *, failed: bool) -> None:
        """Close the logger.

        Args:
            failed: whether the run raised an error.
        """


@runtime_checkable
class EncoderLogger(Protocol):
    """A tracker that keeps exported encoders, if it wants to."""

    wants_encoder: bool

    def log_encoder(self, weights: Path, checkpoint: Path) -> None:
        """Log the ``.safetensors`` file, with the card beside it, and where the checkpoint lies that it is from."""


class Loggers:
    """The loggers of a run; a context manager that closes them.

    Args:
        metrics_csv: the logger of metrics.csv; None in processes of other ranks than 0.
        trackers: experiment trackers.
    """

    def __init__(self, metrics_csv: MetricsCSV | None = None, trackers: Sequence[Logger] = ()) -> None:
        self.metrics_csv = metrics_csv
        self.trackers = tuple(trackers)

    @property
    def for_trainer(self) -> list[Logger]:
        """The loggers of the Trainer."""
        return [*([self.metrics_csv] if self.metrics_csv is not None else []), *self.trackers]

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log final scalars to the trackers; on disk they are in summary.json, since metrics.csv is a time series.

        Args:
            scalars: name -> value.
            step: number of training batches.
        """
        for tracker in self.trackers:
            tracker.log_metrics(dict(scalars), step=step)

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Log images to the trackers that accept them.

        Args:
            images: name -> PNG file.
            step: number of training batches.
        """
        for tracker in self.trackers:
            if isinstance(tracker, ImageLogger):
                for name, path in images.items():
                    tracker.log_image(name, [str(path)], step=step)

    def log_predictions(self, predictions: Predictions, step: int) -> None:
        """Log what evaluations found image by image, to the trackers that show it.

        Args:
            predictions: of the test split, and histograms.
            step: number of training batches.
        """
        for tracker in self.trackers:
            if isinstance(tracker, PredictionLogger):
                tracker.log_predictions(predictions, step)
            if isinstance(tracker, HistogramLogger) and predictions.histograms:
                tracker.log_histograms(predictions.histograms, step)

    def log_encoder(self, export: Callable[[], Mapping[Path, Path]]) -> None:
        """Log encoders to the trackers that want them; where none does, nothing is exported.

        Args:
            export: writes them; file of weights -> checkpoint.
        """
        wanting = [t for t in self.trackers if isinstance(t, EncoderLogger) and t.wants_encoder is True]
        if wanting:
            for weights, checkpoint in export().items():
                for tracker in wanting:
                    tracker.log_encoder(weights, checkpoint)

    def close(self, *, failed: bool) -> None:
        """Close all loggers, so that the next job of a multirun starts its own.

        Args:
            failed: whether the run raised an error.
        """
        for logger in self.for_trainer:
            logger.finalize("failed" if failed else "success")
            if isinstance(logger, FinishableLogger):
                logger.finish(failed=failed)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)
