"""A multirun's parent waits for its jobs; a signal ends the wait. A callback of Hydra, named by conf/."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dtp_lightning.cli import entry
from dtp_lightning.runtime.signals import Leaving, guard


class Interruptible(Callback):
    """Between jobs, and while other processes run them, a signal raises at once: launchers wait without a check."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """From here to the end of the command; a job that runs in this process collects signals again.

        A value that stands twice in a list ends the program: both jobs would be the same run. (Hydra turns an error
        of a callback into a warning.)
        """
        guard.take(Leaving.AT_ONCE)
        guard.check()
        for override in (override for override in swept(config).values() if override.is_choice_sweep()):
            values = list(override.sweep_string_iterator())
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                entry.stop(f"{override.input_line}: {twice} is there twice; each value makes a run of its own")


def last_words(config: DictConfig) -> dict[str, Override]:
    """What is said of each key: by the sweep file's ``hydra.sweeper.params``, or by the command line, which wins."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return {override.key_or_group: override for override in overrides}


def swept(config: DictConfig) -> dict[str, Override]:
    """What a multirun varies, by key."""
    return {key: override for key, override in last_words(config).items() if override.is_sweep_override()}
