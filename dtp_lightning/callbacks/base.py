"""The base class of diagnostic callbacks."""

from __future__ import annotations

import pytorch_lightning as pl

from dtp_lightning.data.reader import DataReader


class DataCallback(pl.Callback, DataReader):
    """Base of callbacks that evaluate a learner on a data set during training.

    Attributes:
        overhead_seconds: time of the measurements so far; :class:`Cost` subtracts it from the training time.
    """

    overhead_seconds: float = 0.0
