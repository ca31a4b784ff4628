"""A run's metrics.csv as figures and reports read it: whole columns, small in memory, each file parsed once."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtp_lightning.runtime.files import read_rows, version_of


@dataclass(frozen=True)
class Metrics:
    """A metrics.csv. Most of its fields are empty; they take no memory here.

    Attributes:
        steps: of each row.
        columns: name -> numbers of the rows that have a value, in order, and these values; a column without any too.
    """

    steps: Sequence[int]
    columns: Mapping[str, tuple[Sequence[int], Sequence[float]]]

    @property
    def names(self) -> list[str]:
        """Names of the metrics that have a value in any row, sorted."""
        return sorted({name for name, (rows, _) in self.columns.items() if len(rows)} - {"epoch", "step"})

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
