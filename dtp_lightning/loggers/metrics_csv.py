"""metrics.csv, all logged metrics of a run: complete rows after any interruption, no duplicate rows after a resume."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from dtp_lightning.runtime.files import metric_rows, read_rows, write_atomically

log = logging.getLogger(__name__)


class MetricsCSV(CSVLogger):
    """``metrics.csv`` in the run folder, on disk after every logged step.

    Args:
        folder: the run folder.
        up_to_step: number of batches of the checkpoint of a resumed run; later rows are deleted.
        ended: whether the training has ended; if so, rows logged after its last batch are not deleted.
    """

    def __init__(self, folder: Path, up_to_step: int = 0, *, ended: bool = False) -> None:
        super().__init__(str(folder), name="", version="", flush_logs_every_n_steps=1)
        path = folder / "metrics.csv"
        rows, damaged = metric_rows(path) if up_to_step else ([], 0)
        if damaged:
            kept = path.with_name("metrics.damaged.csv")
            shutil.copyfile(path, kept)
            log.warning("%s: %d damaged rows are left out; the file as it was is %s", path, damaged, kept)
        previous_rows = [_filled(row) for row in rows if int(row["step"]) < up_to_step + ended]
        self._experiment: _Writer = _Writer(str(folder), previous_rows)


class _Writer(ExperimentWriter):
    """Lightning's writer, with rows of before a resume, and an atomic rewrite of the file for a new column."""

    def __init__(self, folder: str, previous_rows: Sequence[Mapping[str, str]]) -> None:
        super().__init__(folder)
        self.metrics_keys = sorted({name for row in previous_rows for name in row})
        path = Path(self.metrics_file_path)
        if previous_rows:
            _write(path, self.metrics_keys, previous_rows)
        else:
            path.unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Accept existing files: they are those of this run. Lightning warns of them."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, map(_filled, read_rows(path)))


def _filled(row: Mapping[str, str]) -> dict[str, str]:
    """A row without its empty cells."""
    return {name: value for name, value in row.items() if value}


def _write(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
