"""What reads a data set beside the training, and must declare so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from dtp_lightning.data.images import ImageData

log = logging.getLogger(__name__)

Part = TypeVar("Part")


class DataReader:
    """Base of evaluations and of diagnostic callbacks: they say before the training whether a data set suits them."""

    needs_labels: ClassVar[bool] = False
    """Whether it reads labels: it is left out, with a warning, where the data set has none."""

    def check(self, data: ImageData) -> None:
        """Accept a data set, or say what it lacks. Every data set is accepted unless a subclass refuses it.

        Raises:
            ConfigError, DataError: it cannot work on this data set.
        """


def usable(parts: Mapping[str, Part], data: ImageData) -> dict[str, Part]:
    """Those that can work on this data: what reads labels is left out, with a warning, where there are none.

    Args:
        parts: name -> evaluation or callback; what is no :class:`DataReader` (a callback of Lightning's own) stays.
        data: what they would read.

    Raises:
        ConfigError, DataError: one cannot work on this data.
    """
    readers = {name: part for name, part in parts.items() if isinstance(part, DataReader)}
    unlabelled = [name for name, reader in readers.items() if reader.needs_labels and not data.classes]
    if unlabelled:
        log.warning("these images have no labels: %s left out", ", ".join(unlabelled))
    for name, reader in readers.items():
        if name not in unlabelled:
            reader.check(data)
    return {name: part for name, part in parts.items() if name not in unlabelled}
