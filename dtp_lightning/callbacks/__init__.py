"""Diagnostics and cost. To add one: a file here, an entry in conf/callbacks/."""

from dtp_lightning.callbacks.alignment import Alignment
from dtp_lightning.callbacks.cost import Cost
from dtp_lightning.callbacks.online_distances import OnlineDistances
from dtp_lightning.callbacks.online_knn import OnlineKNN
from dtp_lightning.callbacks.progress import ProgressBar
from dtp_lightning.callbacks.snapshots import Snapshots

__all__ = ["Alignment", "Cost", "OnlineDistances", "OnlineKNN", "ProgressBar", "Snapshots"]
