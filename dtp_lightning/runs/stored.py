"""Summaries and configurations as they are read back: whole, or said to be damaged. Disks fail, people edit."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dtp_lightning.errors import DataError
from dtp_lightning.runs.summary import AXES

log = logging.getLogger(__name__)
PLAIN = (str, int, float, list, type(None))


def read_summary(path: Path) -> dict[str, Any] | None:
    """What a summary.json holds; None where there is none. A damaged one is said, and as good as none."""
    if not path.exists():
        return None
    summary = read_json(path)
    if not _whole(summary):
        log.warning("%s is damaged, and not counted: resume=true in its folder writes it again", path)
        return None
    return summary


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; an empty one if there is none in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(summary: Mapping[str, Any]) -> bool:
    """Whether a summary has what reports read, and of the right kind."""
    if summary.get("status") == "failed":
        return True
    if not isinstance(summary.get("seed"), int) or not isinstance(summary.get("epochs"), int):
        return False
    if not all(isinstance(summary.get(axis), str) for axis in AXES if axis != "epochs"):
        return False
    for name, value in summary.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not isinstance(value, PLAIN) or ("/" in name and value is not None and not number):
            return False
    return isinstance(summary.get("warnings", []), list)


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml, nested.

    Raises:
        DataError: it is damaged.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError, AttributeError) as error:
        raise DataError(f"{path} is damaged: write it again, or choose another folder") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise DataError(f"{path} is damaged: write it again, or choose another folder")
    return config  # type: ignore[return-value]
