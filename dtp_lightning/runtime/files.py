"""How files reach the disk: under a name there is always a whole file, the old one or the new one."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path


def write_atomically(
    path: Path, content: str | bytes | memoryview, *, previous: Path | None = None, shared: bool = False
) -> None:
    """Write beside the name, and take the name once all is on disk.

    Args:
        path: of the file; its folder is made if need be.
        content: text is written as UTF-8.
        previous: what stood under ``path`` takes this name.
        shared: other processes may write this file at the same time, which no lock keeps them from.

    Raises:
        OSError: the disk is full, for example; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if previous is not None and path.exists():
        os.replace(path, previous)
    os.replace(partial, path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv, with "" for an empty cell; none without the file.

    A row that is not whole is left out: a killed process or a full disk may leave half of one, a failing disk anything.
    """
    return metric_rows(path)[0]


def metric_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """The whole rows of a metrics.csv, and how many lines are none, an unfinished last one not counted."""
    if not path.exists():
        return [], 0
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "?")
    lines = text[: text.rfind("\n") + 1].splitlines()
    names = next(csv.reader(lines[:1]), [])
    rows = []
    for line in lines[1:]:
        with contextlib.suppress(ValueError, csv.Error):
            row = dict(zip(names, next(csv.reader([line]), []), strict=True))
            int(row.get("step", ""))
            for value in row.values():
                float(value or 0)
            rows.append(row)
    return rows, max(len(lines) - 1, 0) - len(rows)
