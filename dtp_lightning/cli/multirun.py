"""A multirun's parent waits for its jobs; a signal ends the wait. A callback of Hydra, named by conf/."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dtp_lightning.runtime.signals import Leaving, guard


class Interruptible(Callback):
    """Between jobs, and while other processes run them, a signal raises at once: launchers wait without a check."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """From here to the end of the command; a job that runs in this process collects signals again."""
        guard.take(Leaving.AT_ONCE)
        guard.check()
