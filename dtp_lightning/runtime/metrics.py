"""A run's metrics.csv as figures and reports read it: whole columns, small in memory, each file parsed once."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
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
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return _read_columns(text)
    except ValueError:  # a damaged row: without it, then
        rows = read_rows(path)
        names = list(rows[0]) if rows else []
        return _from_columns({name: [row[name] for row in rows] for name in names})


def _read_columns(text: str) -> Metrics:
    """A file without a damaged row, which nearly all are, in a fifth of the time that a dictionary for each row takes.

    Raises:
        ValueError: a row is damaged, or a field quoted.
    """
    if '"' in text or "\0" in text:
        raise ValueError("not a table of bare numbers")
    head, *rows = (line.split(",") for line in text[: text.rfind("\n") + 1].splitlines())
    if rows and "step" not in head:
        raise ValueError("no steps")
    return _from_columns(dict(zip(head, zip(*rows, strict=True), strict=True)) if rows else {})


def _from_columns(columns: Mapping[str, Sequence[str]]) -> Metrics:
    """Texts as numbers.

    Raises:
        ValueError: one is not a number.
    """
    steps = array("q", map(int, columns.get("step", ())))
    numbers = {
        name: (array("L", compress(range(len(texts)), texts)), array("d", map(float, filter(None, texts))))
        for name, texts in columns.items()
    }
    return Metrics(steps, numbers)
