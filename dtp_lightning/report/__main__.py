"""Runs -> one table: ``dtp report FOLDER... [--save results/NAME.csv]``.

Reads every summary.json below the folders; runs that differ in nothing but the seed share a row.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtp_lightning.report.cells import unexpected
from dtp_lightning.runs.summary import AXES, failed, settings_of


def read_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """All summaries of finished runs below these folders, each with its folder and what its command line set."""
    runs = []
    for path in sorted(p for folder in folders for p in folder.rglob("summary.json")):
        summary = json.loads(path.read_text())
        if failed(summary):
            continue
        run = {"folder": str(path.parent), "settings": settings_of(path.parent), **summary}
        if run.get("evaluated_on", run["dataset"]) != run["dataset"]:
            run["settings"] = f"{run['settings']} on {run['evaluated_on']}".strip()
        runs.append(run)
    return runs


def table(runs: Sequence[Mapping[str, Any]], split: str) -> str:
    """Markdown: a row for each cell, accuracies in percent as mean ± standard deviation over seeds.

    Args:
        runs: from :func:`read_runs`.
        split: ``test`` or ``val``.
    """
    cells: dict[tuple, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for run in runs:  # a later evaluation of the same run adds to it
        cell = cells[tuple(str(run[axis]) for axis in (*AXES, "settings"))]
        cell[run["seed"]] = {**cell.get(run["seed"], {}), **run}
    ending = f"/{split}_acc"
    keys = dict.fromkeys(key for run in runs for key in run if key.endswith(ending))
    probes = [key.removesuffix(ending) for key in keys if not key.startswith("random_encoder/")]
    head = [*AXES, "settings", "n", *probes, "fit s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for names, seeds in cells.items():
        members = list(seeds.values())
        row = [*names, str(len(members)), *(spread(members, f"{p}/{split}_acc", 100) for p in probes)]
        lines.append("| " + " | ".join([*row, spread(members, "fit/seconds", 1)]) + " |")
    unique = {run["seed"]: run for run in runs}  # the untrained encoder depends on the seed alone
    if len({(run["dataset"], run["model"]) for run in runs}) == 1:
        random = [spread(list(unique.values()), f"random_encoder/{p}/{split}_acc", 100) for p in probes]
        lines.append("| " + " | ".join([*names[:2], "-", "random", "0", "", str(len(unique)), *random, "-"]) + " |")
    return "\n".join(lines)


def spread(runs: Sequence[Mapping[str, Any]], key: str, factor: float, digits: int = 1) -> str:
    """Mean ± standard deviation of a quantity over runs that have it; ``-`` where none has."""
    values = [factor * run[key] for run in runs if run.get(key) is not None]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def save_runs(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every run's summary as a row of a CSV file (without its paths, which are this machine's business)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for run in runs for key in run if key not in ("folder", "checkpoint")))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(runs)


def differences(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each key that differs within a row of the table, although neither axes, settings nor seed say so."""
    return [
        f"{cell}: {key} is {' and '.join(values)}"
        for cell, keys in unexpected(runs).items()
        for key, values in keys.items()
    ]


def in_words(runs: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """What may be said about the differences of learners, by the main probe of each task."""
    from dtp_lightning.report.cells import cells_of, probes_of
    from dtp_lightning.report.page_tables import paired

    _, sentences = paired(cells_of(runs), probes_of(runs, split), split)
    return [f"{probe}, {sentence}" for probe, sentence, main in sentences if main]


def main() -> None:
    """Print the table; keep the runs it came from."""
    parser = argparse.ArgumentParser(prog="dtp report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which accuracies to show")
    parser.add_argument("--save", type=Path, help="write every run's summary to this CSV file")
    parser.add_argument(
        "--html", type=Path, help="write a page with figures and paired differences; and its files beside it"
    )
    parser.add_argument("--title", help="of the page; default is what the folders are called")
    parser.add_argument("--allow-differences", action="store_true", help="average runs whose configurations differ")
    arguments = parser.parse_args()
    runs = read_runs(arguments.folders)
    if not runs:
        parser.error(f"no summary.json below {', '.join(map(str, arguments.folders))}")
    said = differences(runs)
    if said:
        print("\n".join(said), file=sys.stderr)
        if not arguments.allow_differences:
            sys.exit("error: these runs are not of one kind; give other folders, or --allow-differences")
    if arguments.save:
        save_runs(runs, arguments.save)
    print("\n".join([table(runs, arguments.split), "", *in_words(runs, arguments.split)]))
    print(f"\ncommit {', '.join(sorted({run['git_commit'] for run in runs}))}")
    if arguments.html:
        from dtp_lightning.cli.sweep import failures
        from dtp_lightning.report.page import write_page  # matplotlib and Hydra take seconds; a table needs neither

        title = arguments.title or ", ".join(folder.resolve().name for folder in arguments.folders)
        lost = {f"{folder}/{job}": why for folder in arguments.folders for job, why in failures(folder).items()}
        write_page(runs, arguments.html, title, arguments.split, lost)
        print(f"page {arguments.html}")


if __name__ == "__main__":
    main()
