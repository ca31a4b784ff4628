"""Runs -> a table of learning rules: ``dtp rules FOLDER... [--cost FILE.csv]``.

Accuracy of the probes, mean angle to backprop at the start, in the middle and at the end (from callbacks=[alignment]),
and what a step costs beside backprop's.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dtp_lightning.figures.plots import COLOURS, save
from dtp_lightning.report.__main__ import read_runs, save_runs, spread

ANGLE = re.compile(r"diagnostics/angle/stage(\d+)/weight")
WHEN = ("start", "middle", "end")


def angle_rows(metrics: Path) -> list[tuple[int, dict[int, float]]]:
    """(step, stage -> angle of its weight gradient to backprop's in degrees) of a run's metrics.csv."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        stages = {int(m[1]): float(v) for name, v in row.items() if v and (m := ANGLE.fullmatch(name))}
        if stages:
            found.append((int(row["step"]), stages))
    return found


def plot_angles(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A row of panels for each model, a panel for each stage below the last, a line for each rule: angles over batches.

    Args:
        runs: with the alignment callback's columns in metrics.csv; the first seed of each rule is drawn.
        path: PNG to write.
    """
    curves: dict[tuple[str, str], list[tuple[int, dict[int, float]]]] = {}
    for run in runs:
        metrics = Path(run["folder"]) / "metrics.csv"
        rows = angle_rows(metrics) if metrics.exists() else []
        if rows:
            curves.setdefault((run["model"], f"{run['learner']} {run['settings']}".strip()), rows)
    models = list(dict.fromkeys(model for model, _ in curves))
    stages = sorted({stage for rows in curves.values() for _, found in rows for stage in found})[:-1]
    figure = Figure(figsize=(3.6 * len(stages), 2.7 * len(models) + 0.6), layout="constrained")
    grid = figure.subplots(len(models), len(stages), squeeze=False, sharex=True, sharey=True)
    names = list(dict.fromkeys(name for _, name in curves))
    for model, axes in zip(models, grid, strict=True):
        for stage, axis in zip(stages, axes, strict=True):
            for k, name in enumerate(names):
                points = [(step, found[stage]) for step, found in curves.get((model, name), []) if stage in found]
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


def angles(metrics: Path) -> dict[str, float]:
    """``angle/start|middle|end``: angle of weight gradients to backprop's in degrees, mean over stages.

    Stages whose turn it was not (layer-wise rules) are left out of the mean. Empty without the callback's columns.
    """
    means = [statistics.mean(stages.values()) for _, stages in angle_rows(metrics)]
    if not means:
        return {}
    return {f"angle/{when}": means[i] for when, i in zip(WHEN, (0, len(means) // 2, -1), strict=True)}


def table(runs: Sequence[Mapping[str, Any]], probes: Sequence[str], cost: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown: a row for each rule and number of epochs; mean ± standard deviation over seeds.

    Args:
        runs: summaries, with the angles.
        probes: accuracies to show, such as ``linear``; the test split's, in percent.
        cost: learner -> ``macs_ratio`` and ``seconds_ratio``.
    """
    cells: dict[tuple[str, str, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        cells[run["learner"], run["model"], run["epochs"], run["settings"]].append(run)
    head = ["learner", "model", "epochs", "n", *probes, *(f"angle, {when}" for when in WHEN), "MACs / bp", "time / bp"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (learner, model, epochs, settings), members in cells.items():
        paid = cost.get(learner, {})
        row = [
            f"{learner} {settings}".strip(), model, str(epochs), str(len(members)),
            *(spread(members, f"{probe}/test_acc", 100) for probe in probes),
            *(spread(members, f"angle/{when}", 1, digits=0) for when in WHEN),
            paid.get("macs_ratio", "-"), paid.get("seconds_ratio", "-"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    for model in dict.fromkeys(run["model"] for run in runs):
        random = list({run["seed"]: run for run in runs if run["model"] == model}.values())
        found = (spread(random, f"random_encoder/{probe}/test_acc", 100) for probe in probes)
        lines.append("| " + " | ".join(["random", model, "0", str(len(random)), *found, *["-"] * 5]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; keep the runs it came from."""
    parser = argparse.ArgumentParser(prog="dtp rules", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--cost", type=Path, help="CSV of benchmarks/rules.py")
    parser.add_argument("--probes", nargs="+", default=["linear", "few_labels/10", "knn"], help="accuracies to show")
    parser.add_argument("--figure", type=Path, help="draw the angles over training to this PNG file")
    parser.add_argument("--save", type=Path, help="write every run's summary to this CSV file")
    arguments = parser.parse_args()
    runs = read_runs(arguments.folders)
    if not runs:
        parser.error(f"no summary.json below {', '.join(map(str, arguments.folders))}")
    for run in runs:
        run["settings"] = " ".join(s for s in run["settings"].split() if not s.startswith("callbacks."))
        metrics = Path(run["folder"]) / "metrics.csv"
        run |= angles(metrics) if metrics.exists() else {}
    cost: dict[str, dict[str, str]] = {}
    if arguments.cost:
        with arguments.cost.open(newline="") as file:
            cost = {row["learner"]: row for row in csv.DictReader(file)}
    if arguments.figure:
        plot_angles(runs, arguments.figure)
    if arguments.save:
        save_runs(runs, arguments.save)
    print(table(runs, arguments.probes, cost))
    print(f"\ncommit {', '.join(sorted({run['git_commit'] for run in runs}))}")


if __name__ == "__main__":
    main()
