"""Everything that one run logs to: metrics.csv, which is always written, and the trackers that were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger

from dtp_lightning.loggers.metrics_csv import MetricsCSV


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that shows pictures, by the name that Lightning's W&B logger gives to it."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Show image files under a name."""


@runtime_checkable
class FinishableLogger(Protocol):
    """A logger that keeps something open beyond Lightning's ``finalize``."""

    def finish(self, *, failed: bool) -> None:
        """Close it."""


class Loggers:
    """The loggers of a run, open until the end of ``with``.

    Args:
        metrics_csv: the time series on disk; None in processes that log nothing.
        trackers: experiment trackers.
    """

    def __init__(self, metrics_csv: MetricsCSV | None = None, trackers: Sequence[Logger] = ()) -> None:
        self.metrics_csv = metrics_csv
        self.trackers = tuple(trackers)

    @property
    def for_trainer(self) -> list[Logger]:
        """What a Trainer logs to while it trains."""
        return [*([self.metrics_csv] if self.metrics_csv is not None else []), *self.trackers]

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Figures of a run's end: to the trackers, since metrics.csv is a time series and summary.json has them.

        Args:
            scalars: name -> value.
            step: batches that were trained on.
        """
        for tracker in self.trackers:
            tracker.log_metrics(dict(scalars), step=step)

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Pictures, to the trackers that can show them.

        Args:
            images: name -> PNG file.
            step: batches that were trained on.
        """
        for tracker in self.trackers:
            if isinstance(tracker, ImageLogger):
                for name, path in images.items():
                    tracker.log_image(name, [str(path)], step=step)

    def close(self, *, failed: bool) -> None:
        """End the trackers' runs, so that the next job of a multirun starts its own."""
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
