"""Runs -> a table of learning rules: ``dtp rules FOLDER... [--cost FILE.csv] [--angles FILE.csv --figure FILE.png]``.

The report's table, and beside it the mean angle to backprop at the start, in the middle and at the end (from
callbacks=[alignment]; :func:`dtp_lightning.report.angles.angles`), and what a step costs beside backprop's. Then, of
runs with that callback, a row for each rule and stage: angle, step and saturation.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dtp_lightning.errors import UserError
from dtp_lightning.report.alignment import FROM_BATCH, alignment_text, save_stages, stages_of
from dtp_lightning.report.angles import WHEN, angles
from dtp_lightning.report.cells import Cell, Run, cells_of
from dtp_lightning.report.tables import NONE, Entry, comparison_table, mean_entry
from dtp_lightning.runs.reader import read_runs, save_runs

COST = {"MACs / bp": "macs_ratio", "time / bp": "seconds_ratio"}  # title -> column of benchmarks/rules.py


def table(runs: Sequence[Run], probes: Sequence[str], cost: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown: :func:`~dtp_lightning.report.tables.comparison_table` with angles in degrees and costs.

    Args:
        runs: summaries, with the angles.
        probes: accuracies to show, such as ``linear``; the test split's, in percent.
        cost: learner -> ``macs_ratio`` and ``seconds_ratio``.
    """
    extra = {f"angle, {when}": _angle(when) for when in WHEN} | {title: _ratio(cost, title) for title in COST}
    return comparison_table(cells_of(runs), runs, "test", probes, extra).markdown().rstrip()


def _angle(when: str) -> Callable[[Cell], Entry]:
    return lambda cell: mean_entry(cell.interval(f"angle/{when}"), len(cell.runs), digits=0)


def _ratio(cost: Mapping[str, Mapping[str, str]], title: str) -> Callable[[Cell], Entry]:
    return lambda cell: Entry(cost.get(cell.names["learner"], {}).get(COST[title], NONE))


def plot_alignment(runs: Sequence[Run], path: Path) -> None:
    """Angles over batches and saturation: :func:`dtp_lightning.report.alignment_figure.alignment` of all runs.

    Args:
        runs: with the alignment callback's columns in their metrics.csv.
        path: PNG to write.

    Raises:
        UserError: no run has angles.
    """
    from dtp_lightning.figures.plots import save  # matplotlib takes seconds; the table does not need it
    from dtp_lightning.report.alignment_figure import alignment, grouped

    drawing = alignment(grouped(cells_of(runs)))
    if drawing is None:
        raise UserError("no run has angles to draw: train with callbacks=[alignment]")
    save(drawing.figure, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dtp rules", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, folders of them, or CSV files of --save")
    parser.add_argument("--cost", type=Path, help="CSV of benchmarks/rules.py")
    parser.add_argument("--probes", nargs="+", default=["linear", "few_labels/10", "knn"], help="accuracies to show")
    parser.add_argument("--figure", type=Path, help="draw angles and saturation over training to this PNG file")
    parser.add_argument("--angles", type=Path, help="write angles and saturation of each stage to this CSV file")
    parser.add_argument(
        "--from-batch", type=int, default=FROM_BATCH, metavar="N",
        help="angles count from this batch on (default: %(default)s, all looks but the first)",
    )  # fmt: skip
    parser.add_argument("--save", type=Path, help="write every run's summary to this CSV file")
    return parser


def main() -> None:
    """Print the tables; draw and save what was asked for."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        runs = read_runs(arguments.folders)
    except UserError as error:
        parser.error(str(error))
    if not runs:
        parser.error(f"no summary.json below {', '.join(map(str, arguments.folders))}")
    for run in runs:
        run |= angles(Path(run["folder"]) / "metrics.csv")
    cost: dict[str, dict[str, str]] = {}
    if arguments.cost:
        with arguments.cost.open(newline="") as file:
            cost = {row["learner"]: row for row in csv.DictReader(file)}
    stages = stages_of(cells_of(runs), arguments.from_batch)
    try:
        if arguments.angles:
            save_stages(stages, arguments.from_batch, arguments.angles)
        if arguments.figure:
            plot_alignment(runs, arguments.figure)
    except UserError as error:
        parser.error(str(error))
    if arguments.save:
        save_runs(runs, arguments.save)
    print(table(runs, arguments.probes, cost))
    if stages:
        print(f"\n{alignment_text(stages, arguments.from_batch)}")
    print(f"\ncommit {', '.join(sorted({str(run.get('git_commit', 'unknown')) for run in runs}))}")


if __name__ == "__main__":
    main()
