"""Training on several devices: Lightning runs the command once more for each of them, and this tells the runs apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from dtp_lightning.errors import ConfigError


def is_multi_device(trainer: Mapping[str, Any]) -> bool:
    """Whether the configuration's trainer asks for more than one device, or may find more than one."""
    return trainer.get("devices", 1) not in (1, "1")


def is_rank_zero(trainer: Mapping[str, Any]) -> bool:
    """Whether this process owns the run folder, logs and evaluates; the others only train.

    Args:
        trainer: the configuration's; on one device every process is a run of its own, whoever started several.
    """
    return not is_multi_device(trainer) or rank_zero_only.rank == 0  # type: ignore[attr-defined]


def check_launch(trainer: pl.Trainer, devices: Any) -> None:
    """Lightning repeats the whole command line, which must therefore be that of this one run.

    Raises:
        ConfigError: it is a sweep's, or there is none.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if trainer.world_size > 1 and not (HydraConfig.initialized() and HydraConfig.get().mode is RunMode.RUN):
        raise ConfigError(
            f"trainer.devices={devices}: several devices train one run of `dtp train`, not a sweep's job: "
            "set trainer.devices=1"
        )
