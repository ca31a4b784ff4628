"""The runs' own pictures on the page, the cells side by side: maps of features, neighbours, filters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dtp_lightning.report.cells import Cell, group_label

KINDS = {
    "embedding_map": "Maps of features",
    "neighbours": "Nearest neighbours",
    "filters": "Filters of the first layer",
}
"""File in ``plots/`` that callbacks=pictures leaves -> heading."""


@dataclass(frozen=True)
class Picture:
    """A picture of one run of a cell: the cell's name, the run's seed, and the file's address."""

    learner: str
    group: str
    seed: int
    link: str


def pictures(cells: Sequence[Cell], page: Path) -> dict[str, list[Picture]]:
    """Pictures by heading, of each cell that of its first seed which has one.

    Args:
        cells: of the page.
        page: its path; links are relative to it.
    """
    found = {heading: [_picture(cell, name, page) for cell in cells] for name, heading in KINDS.items()}
    return {heading: present for heading, some in found.items() if (present := [p for p in some if p])}


def _picture(cell: Cell, name: str, page: Path) -> Picture | None:
    for seed, folders in cell.folders.items():
        for folder in folders:
            if (folder / "plots" / f"{name}.png").exists():
                link = f"{link_to(folder, page)}plots/{name}.png"
                return Picture(cell.names["learner"], group_label(cell), seed, link)
    return None


def link_to(path: Path, page: Path) -> str:
    """The address of a file or folder on a page, relative to it."""
    return quote(os.path.relpath(path, page.parent)) + "/" * path.is_dir()
