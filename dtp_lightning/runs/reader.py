"""Reads run folders: summaries, configurations and settings; and saved summaries."""

from __future__ import annotations

import contextlib
import csv
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtp_lightning.config.flatten import flatten
from dtp_lightning.config.keys import OPTIONAL_GROUPS, SINCE, key_of_override
from dtp_lightning.errors import DataError
from dtp_lightning.runs.status import failed
from dtp_lightning.runs.stored import read_flat, read_summary, read_yaml
from dtp_lightning.runs.summary import AXES
from dtp_lightning.runtime.files import version_of

log = logging.getLogger(__name__)

TEXT = (
    "dataset",
    "model",
    "loss",
    "learner",
    "settings",
    "evaluated_on",
    "weights",
    "git_commit",
    "versions",
    "warnings",
)
APART = "; "
"""Between the warnings of a run in a CSV file."""


def read_runs(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """All summaries of finished runs at these paths.

    Args:
        paths: run folders, folders that hold some, or CSV files of :func:`save_runs`.

    Returns:
        a dictionary for each run, folders in the order of their paths: its summary.json, with its ``folder`` (of a row
        of a CSV file, that file) and its ``settings`` (:func:`settings_of`; those of an evaluation on another data set
        than that of the training end with ``on <data set>``). A saved row of a run whose folder is there is left out,
        so that ``dtp report FOLDERS saved.csv --save saved.csv`` may be called after each run.

    Raises:
        DataError: a CSV file does not hold runs.
    """
    paths = list(paths)
    saved = [run for path in paths if path.is_file() for run in _saved_runs(path)]
    runs: list[dict[str, Any]] = []
    for path in sorted(p for folder in paths for p in folder.rglob("summary.json")):
        summary = read_summary(path)
        if summary is not None and not failed(summary):
            runs.append({"folder": str(path.parent), "settings": settings_of(path.parent), **summary})
    for run in [*saved, *runs]:
        words = [word for word in run["settings"].split() if key_of_override(word).splits_cells]
        elsewhere = run.get("evaluated_on", run["dataset"]) != run["dataset"]
        if elsewhere and words[-2:] != ["on", run["evaluated_on"]]:
            words += ["on", run["evaluated_on"]]
        run["settings"] = " ".join(words)
    return [*_not_among(saved, runs), *runs]


def _not_among(saved: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved rows that no run agrees with in all they hold."""
    of_cell: dict[tuple, list[dict[str, Any]]] = {}
    for run in runs:
        of_cell.setdefault((run.get("seed"), *(run.get(axis) for axis in AXES)), []).append(run)

    def is_there(row: Mapping[str, Any]) -> bool:
        alike = of_cell.get((row["seed"], *(row[axis] for axis in AXES)), [])
        return any(all(run.get(name) == value for name, value in row.items() if name != "folder") for run in alike)

    return [row for row in saved if not is_there(row)]


def save_runs(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write every run's summary as a row of a CSV file, without its paths, which only this machine knows.

    Args:
        runs: rows; a key that a run does not have leaves its cell empty.
        path: CSV file; its folder is made if it does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for run in runs for name in run if name not in ("folder", "checkpoint")))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**run, "warnings": APART.join(run.get("warnings", ()))} for run in runs)


def settings_of(folder: Path) -> str:
    """What a run's command line set and no column of a report shows: words ``key=value``, sorted, on one line."""
    overrides = folder / ".hydra" / "overrides.yaml"
    text = overrides.read_text(encoding="utf-8", errors="replace") if overrides.exists() else ""
    # a damaged file may hold what a terminal takes for orders
    lines = ("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in text.splitlines())
    given = [line[2:].strip().removeprefix("++") for line in lines]
    return " ".join(sorted(word for word in given if key_of_override(word).splits_cells))


def config_of(folder: Path, *, defaults: bool = False) -> dict[str, str]:
    """A run's config.yaml as dotted key -> value, both text; empty where there is none.

    Args:
        folder: the run's.
        defaults: also what the file leaves to the defaults of classes, which then have to be imported (seconds).
    """
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    return dict(_config_of(path, defaults, version_of(path)))


@functools.lru_cache(maxsize=20_000)  # a report asks for each several times, and YAML is slow
def _config_of(path: Path, defaults: bool, version: tuple[int, int]) -> dict[str, str]:
    """:func:`config_of` for a version of the file."""
    try:
        stored = read_yaml(path) if defaults else read_flat(path)
    except DataError as error:
        log.warning("%s; its keys are not compared", error)
        return {}
    if defaults:
        from dtp_lightning.config.instantiate import with_defaults  # checks of numbers load torch

        stored = dict(flatten(with_defaults({**dict.fromkeys(OPTIONAL_GROUPS), **stored})))
    sections = {name.partition(".")[0] for name in stored}
    absent = dict.fromkeys(group for group in OPTIONAL_GROUPS if group not in sections)
    later = {} if "checkpoint" in stored else SINCE  # an evaluation has no such keys
    return {name: str(value) for name, value in (later | absent | stored).items()}


def trained_in(folder: Path) -> Path:
    """The folder of this run's training: for an evaluation that of its checkpoint, if it still exists."""
    checkpoint = config_of(folder).get("checkpoint")
    if checkpoint:
        trained = Path(checkpoint).parent.parent
        return trained if (trained / "config.yaml").exists() else folder
    return folder


def _saved_runs(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of :func:`save_runs`, numbers as numbers, without what a row has no value of."""
    runs = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} holds no runs: {error}; give one written by --save") from error
    for row in rows:
        values = {name: value if name in TEXT else _number(value) for name, value in row.items() if value}
        if missing := {*AXES, "seed"} - values.keys():
            raise DataError(f"{path} holds no runs: it has no {', '.join(sorted(missing))}; give one written by --save")
        told = {"warnings": str(values["warnings"]).split(APART)} if "warnings" in values else {}
        runs.append({"folder": str(path), "settings": "", **values, **told})
    return runs


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
