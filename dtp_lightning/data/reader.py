"""The base class of evaluations and callbacks that read a data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from dtp_lightning.data.images import ImageData

log = logging.getLogger(__name__)

Component = TypeVar("Component")


class DataReader:
    """Base of evaluations and diagnostic callbacks: whether they can use a data set is checked before training."""

    needs_labels: ClassVar[bool] = False
    """Whether it reads labels; if so, a run on a data set without labels omits it, with a warning."""

    def check(self, data: ImageData) -> None:
        """Raise an error if this data set cannot be used. The base class accepts every data set.

        Raises:
            ConfigError, DataError: the data set cannot be used.
        """


def usable(components: Mapping[str, Component], data: ImageData) -> dict[str, Component]:
    """Select the evaluations or callbacks that can use a data set.

    Those that need labels are omitted, with a warning, if the data set has none. Others that cannot use it raise.

    Args:
        components: name -> evaluation or callback; one that is no :class:`DataReader` (Lightning's own) stays.
        data: the data set.

    Raises:
        ConfigError, DataError: one of them cannot use this data set.
    """
    readers = {name: reader for name, reader in components.items() if isinstance(reader, DataReader)}
    unlabelled = [name for name, reader in readers.items() if reader.needs_labels and not data.classes]
    if unlabelled:
        log.warning("these images have no labels: %s left out", ", ".join(unlabelled))
    for name, reader in readers.items():
        if name not in unlabelled:
            reader.check(data)
    return {name: component for name, component in components.items() if name not in unlabelled}
