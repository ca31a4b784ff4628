"""What reads a data set beside the training must declare."""

from __future__ import annotations

from typing import ClassVar

from dtp_lightning.data.images import ImageData


class DataReader:
    """Base of evaluations and of diagnostic callbacks: they say before the training whether a data set suits them."""

    needs_labels: ClassVar[bool] = False
    """Whether it reads labels: it is left out, with a warning, where the data set has none."""

    def check(self, data: ImageData) -> None:
        """Accept a data set, or say what it lacks. Every data set is accepted unless a subclass refuses it.

        Raises:
            ConfigError, DataError: it cannot work on this data set.
        """
