"""What a diagnostic callback must declare."""

from __future__ import annotations

import pytorch_lightning as pl

from dtp_lightning.data.reader import DataReader


class DataCallback(pl.Callback, DataReader):
    """Base of the callbacks that measure something on a data set while a learner trains.

    Attributes:
        overhead_seconds: time that it took out of training so far; :class:`Cost` does not charge it to the training.
    """

    overhead_seconds: float = 0.0
