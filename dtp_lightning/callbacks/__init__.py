"""Callbacks that measure and guard a training. To add one: a file here, an entry in conf/callbacks/."""

from dtp_lightning.callbacks.alignment import Alignment
from dtp_lightning.callbacks.base import DataCallback
from dtp_lightning.callbacks.best import BestCheckpoint, EarlyStopping
from dtp_lightning.callbacks.collapse import Collapse
from dtp_lightning.callbacks.cost import Cost
from dtp_lightning.callbacks.last_checkpoint import LastCheckpoint
from dtp_lightning.callbacks.nonfinite import Nonfinite
from dtp_lightning.callbacks.online_distances import OnlineDistances
from dtp_lightning.callbacks.online_knn import OnlineKNN
from dtp_lightning.callbacks.online_probe import OnlineProbe
from dtp_lightning.callbacks.pictures import Pictures
from dtp_lightning.callbacks.progress import ProgressBar
from dtp_lightning.callbacks.snapshots import Snapshots
from dtp_lightning.callbacks.weight_average import WeightAverage

__all__ = [
    "Alignment",
    "BestCheckpoint",
    "Collapse",
    "Cost",
    "DataCallback",
    "EarlyStopping",
    "LastCheckpoint",
    "Nonfinite",
    "OnlineDistances",
    "OnlineKNN",
    "OnlineProbe",
    "Pictures",
    "ProgressBar",
    "Snapshots",
    "WeightAverage",
]
