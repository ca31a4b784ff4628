"""Runs -> a table of learning rules: ``dtp rules FOLDER... [--cost FILE.csv]``.

The report's table, and beside it the mean angle to backprop at the start, in the middle and at the end (from
callbacks=[alignment]; :func:`dtp_lightning.report.angles.angles`), and what a step costs beside backprop's.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dtp_lightning.errors import UserError
from dtp_lightning.report.angles import WHEN, angles, below_the_top
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


def plot_angles(runs: Sequence[Run], path: Path) -> None:
    """A row of panels for each model, a panel for each stage below the last, a line for each rule: angles over batches.

    Args:
        runs: with the alignment callback's columns in metrics.csv; only the first seed of each rule is shown.
        path: PNG to write.

    Raises:
        UserError: no run has angles.
    """
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import COLOURS, save  # torch and matplotlib take seconds; the table needs neither

    curves: dict[tuple[str, str], list[tuple[int, dict[int, float]]]] = {}
    for run in runs:
        if rows := below_the_top(Path(run["folder"]) / "metrics.csv"):
            curves.setdefault((run["model"], f"{run['learner']} {run['settings']}".strip()), rows)
    if not curves:
        raise UserError("no run has angles to draw: train with callbacks=[alignment]")
    models = list(dict.fromkeys(model for model, _ in curves))
    stages = sorted({stage for rows in curves.values() for _, angle in rows for stage in angle})
    figure = Figure(figsize=(3.6 * len(stages), 2.7 * len(models) + 0.6), layout="constrained")
    grid = figure.subplots(len(models), len(stages), squeeze=False, sharex=True, sharey=True)
    names = list(dict.fromkeys(name for _, name in curves))
    for model, axes in zip(models, grid, strict=True):
        for stage, axis in zip(stages, axes, strict=True):
            for k, name in enumerate(names):
                points = [(step, angle[stage]) for step, angle in curves.get((model, name), []) if stage in angle]
                if points:
                    style = {"color": COLOURS[k % len(COLOURS)], "marker": "os^vDPX"[k % 7]}
                    axis.plot(*zip(*points, strict=True), label=name, ms=3.5, lw=1.5, **style)
            axis.axhline(90, color="0.5", lw=0.8, ls=":")
            axis.set(title=f"{model}, stage {stage}", ylim=(0, 125), yticks=(0, 30, 60, 90, 120))
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
    for axis in grid[-1]:
        axis.set_xlabel("batch")
    for axis in grid[:, 0]:
        axis.set_ylabel("angle to backprop, degrees")
    handles = {label: h for axis in grid.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    save(figure, path)


def main() -> None:
    """Print the table; draw the angles; save the runs."""
    parser = argparse.ArgumentParser(prog="dtp rules", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, folders of them, or CSV files of --save")
    parser.add_argument("--cost", type=Path, help="CSV of benchmarks/rules.py")
    parser.add_argument("--probes", nargs="+", default=["linear", "few_labels/10", "knn"], help="accuracies to show")
    parser.add_argument("--figure", type=Path, help="draw the angles over training to this PNG file")
    parser.add_argument("--save", type=Path, help="write every run's summary to this CSV file")
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
    if arguments.figure:
        try:
            plot_angles(runs, arguments.figure)
        except UserError as error:
            parser.error(str(error))
    if arguments.save:
        save_runs(runs, arguments.save)
    print(table(runs, arguments.probes, cost))
    print(f"\ncommit {', '.join(sorted({str(run.get('git_commit', 'unknown')) for run in runs}))}")


if __name__ == "__main__":
    main()
