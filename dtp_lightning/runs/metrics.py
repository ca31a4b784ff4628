"""What reports read of a run's metrics.csv: whole columns, small in memory, each file parsed once."""

from __future__ import annotations

import functools
import re
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtp_lightning.runtime.files import read_rows, version_of

STAGE = re.compile(r"diagnostics/\w+/stage(\d+)(/\w+)?")


@dataclass(frozen=True)
class Metrics:
    """A metrics.csv. Most of its fields are empty; they take no memory here.

    Attributes:
        steps: of each row.
        columns: name -> numbers of the rows that have a value, in order, and these values; a column without any too.
    """

    steps: Sequence[int]
    columns: Mapping[str, tuple[Sequence[int], Sequence[float]]]

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the rows that have one; none for a column that is not there."""
        rows, values = self.columns.get(name, ((), ()))
        return [(self.steps[row], value) for row, value in zip(rows, values, strict=True)]

    @property
    def steps_per_epoch(self) -> float:
        """Batches per epoch, from the last row with a validation loss, logged at the last batch of its epoch."""
        ends, _ = self.columns.get("val/loss", ((), ()))
        epochs = dict(zip(*self.columns.get("epoch", ((), ())), strict=True))
        if not ends or ends[-1] not in epochs:
            return 1.0
        return (self.steps[ends[-1]] + 1) / (epochs[ends[-1]] + 1)


def metrics_of(path: Path) -> Metrics:
    """A metrics.csv; empty without the file."""
    return _metrics_of(path, version_of(path)) if path.exists() else Metrics((), {})


@functools.lru_cache(maxsize=20_000)  # a report with a page asks for each eleven times
def _metrics_of(path: Path, version: tuple[int, int]) -> Metrics:
    """:func:`metrics_of` for a version of the file."""
    rows = read_rows(path)
    columns: dict[str, tuple[array[int], array[float]]] = {
        name: (array("L"), array("d")) for row in rows[:1] for name in row
    }
    for number, row in enumerate(rows):
        for name, text in row.items():
            if text:
                at, values = columns[name]
                at.append(number)
                values.append(float(text))
    return Metrics(array("q", (int(row["step"]) for row in rows)), columns)


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
