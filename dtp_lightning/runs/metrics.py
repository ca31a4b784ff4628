"""What a run's metrics.csv says of its stages."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path

from dtp_lightning.runtime.metrics import metrics_of

STAGE = re.compile(r"diagnostics/\w+/stage(\d+)(/\w+)?")


def angle_rows(metrics: Path) -> list[tuple[int, dict[int, float]]]:
    """Angles between a rule's weight gradients and backprop's: (step, stage -> degrees) for each step with any.

    Stages that got no gradient at a step are absent. Nothing was measured without ``callbacks=[alignment]``.
    """
    read, measured = metrics_of(metrics), defaultdict[int, dict[int, float]](dict)
    for name, stage in _columns_of("angle/stage<i>/weight", tuple(read.columns)):
        for row, value in zip(*read.columns[name], strict=True):
            measured[row][stage] = value
    return [(read.steps[row], measured[row]) for row in sorted(measured)]


def stage_points(metrics: Path, quantity: str) -> dict[int, list[tuple[int, float]]]:
    """Stage -> (step, value) of what a metrics.csv says of it; stages without any are absent.

    Args:
        metrics: the file.
        quantity: names of its columns after ``diagnostics/``, such as ``mean_abs/stage<i>`` (docs/diagnostics.md).
    """
    read = metrics_of(metrics)
    stages = {stage: read.points(name) for name, stage in _columns_of(quantity, tuple(read.columns))}
    return {stage: points for stage, points in stages.items() if points}


def top_stage(metrics: Path) -> int | None:
    """Number of the last stage that any diagnostics column of a metrics.csv names; None if none does."""
    return _top_of(tuple(metrics_of(metrics).columns))


@functools.lru_cache(maxsize=10_000)  # the runs of a study have the same columns
def _columns_of(quantity: str, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Columns of a quantity, with their stages."""
    column = re.compile(re.escape(f"diagnostics/{quantity}").replace("<i>", r"(\d+)"))
    return [(name, int(m[1])) for name in names if (m := column.fullmatch(name))]


@functools.lru_cache(maxsize=10_000)
def _top_of(names: tuple[str, ...]) -> int | None:
    return max((int(m[1]) for name in names if (m := STAGE.fullmatch(name))), default=None)
