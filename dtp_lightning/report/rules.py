"""Runs -> a table of learning rules: ``python -m dtp_lightning.report.rules FOLDER... [--cost FILE.csv]``.

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

from dtp_lightning.report.__main__ import read_runs, save_runs, spread

ANGLE = re.compile(r"diagnostics/angle/stage\d+/weight")
WHEN = ("start", "middle", "end")


def angles(metrics: Path) -> dict[str, float]:
    """``angle/start|middle|end``: angle of weight gradients to backprop's in degrees, mean over stages.

    Stages whose turn it was not (layer-wise rules) are left out of the mean. Empty without the callback's columns.
    """
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    means = []
    for row in rows:
        found = [float(value) for name, value in row.items() if value and ANGLE.fullmatch(name)]
        if found:
            means.append(statistics.mean(found))
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
    cells: dict[tuple[str, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        cells[run["learner"], run["epochs"], run["settings"]].append(run)
    head = ["learner", "epochs", "n", *probes, *(f"angle, {when}" for when in WHEN), "MACs / bp", "time / bp"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (learner, epochs, settings), members in cells.items():
        paid = cost.get(learner, {})
        row = [
            f"{learner} {settings}".strip(), str(epochs), str(len(members)),
            *(spread(members, f"{probe}/test_acc", 100) for probe in probes),
            *(spread(members, f"angle/{when}", 1, digits=0) for when in WHEN),
            paid.get("macs_ratio", "-"), paid.get("seconds_ratio", "-"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    random = list({run["seed"]: run for run in runs}.values())
    row = ["random", "0", str(len(random)), *(spread(random, f"random_encoder/{p}/test_acc", 100) for p in probes)]
    lines.append("| " + " | ".join([*row, *["-"] * 5]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; keep the runs it came from."""
    parser = argparse.ArgumentParser(prog="python -m dtp_lightning.report.rules", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--cost", type=Path, help="CSV of benchmarks/rules.py")
    parser.add_argument("--probes", nargs="+", default=["linear", "few_labels/10", "knn"], help="accuracies to show")
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
    if arguments.save:
        save_runs(runs, arguments.save)
    print(table(runs, arguments.probes, cost))
    print(f"\ncommit {', '.join(sorted({run['git_commit'] for run in runs}))}")


if __name__ == "__main__":
    main()
