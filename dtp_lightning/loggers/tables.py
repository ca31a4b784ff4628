"""Tables and histograms for trackers that show more than numbers. Light: imports no tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """A cell of a table that is an image.

    Attributes:
        pixels: uint8 (C, H, W), C = 1 or 3.
        caption: below it; empty for none.
    """

    pixels: Tensor
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: names of the columns.
        rows: each with a cell for every column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | Picture]]


@runtime_checkable
class TableLogger(Protocol):
    """A tracker that shows tables."""

    def log_tables(self, tables: Mapping[str, Table], step: int) -> None:
        """Log them.

        Args:
            tables: by name.
            step: number of training batches.
        """


@runtime_checkable
class HistogramLogger(Protocol):
    """A tracker that shows histograms."""

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log them.

        Args:
            values: by name; finite, (M,), M >= 1, on the CPU.
            step: number of training batches.
        """
