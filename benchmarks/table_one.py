"""Table 1 of the paper beside results/table1.csv: rows, differences from backprop, and the figure.

``python benchmarks/table_one.py`` draws docs/images/table1.png; reproduction.py writes the tables into the page.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from claims import LEVEL, READ_OUT, read_out, reading
from pages import mistakes_in_one_line, said

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Cell, Run, cells_of, random_cells
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.report.tables import MINUS, NONE, Entry, Table
from dtp_lightning.runs.reader import read_runs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
FIGURE = ROOT / "docs" / "images" / "table1.png"
PROTOCOLS = ("table1", "table1_thesis")
SNAPSHOTS = (10, 30, 100, 400)
PROBE = "transfer/cifar10/test_acc"
VERDICT = {  # (row - row, precision, epochs) -> where its interval lay when docs/reproduction.md was written
    (f"dtp {MINUS} bp", "bfloat16", 10): LEVEL,
}


class Row(NamedTuple):
    """A row of ours: its preset, such as ``table1/bp``, and the precision it was trained in."""

    preset: str
    precision: str

    @property
    def name(self) -> str:
        """As the page says it."""
        return f"`{self.preset}`" + (f", {self.precision}" if self.precision else "")


def published() -> list[dict[str, str]]:
    """Rows of the paper's Table 1, with the preset of each, if it has one."""
    with (ROOT / "benchmarks" / "published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def costs(results: Path) -> dict[str, int]:
    """Preset -> epochs of its whole training."""
    with (results / "table1_cost.csv").open(newline="") as file:
        return {row["preset"]: int(row["epochs"]) for row in csv.DictReader(file)}


def row_of(run: Run) -> Row | None:
    """The row of a run of a preset as it is, whatever its epochs and precision; None for others."""
    words = dict(word.partition("=")[::2] for word in str(run["settings"]).split())
    words.pop("learner.epochs_per_stage", None)
    precision = words.pop("trainer.precision", "").removesuffix("-mixed").replace("bf16", "bfloat16")
    return Row(words["experiment"], precision) if words.keys() == {"experiment"} else None


def runs_of_rows(protocol: str, results: Path) -> dict[Row, list[Run]]:
    """Row -> its runs; epochs are the paper's: of each stage where stages are trained one by one."""
    path, found, passes = results / "table1.csv", {}, costs(results)
    for run in read_runs([path]) if path.exists() else []:
        row = row_of(run)
        if row and row.preset.startswith(f"{protocol}/"):
            epochs = run["epochs"] // (passes[row.preset] // SNAPSHOTS[-1])
            # CIFAR-100 by torchvision or as a folder are the same images
            found.setdefault(row, []).append(run | {"dataset": "cifar100", "epochs": epochs})
    return found


def cells_by_epochs(runs: Sequence[Run]) -> dict[int, Cell]:
    """Epochs -> the runs of a row over its seeds."""
    return {int(cell.names["epochs"]): cell for cell in cells_of(runs)}


def accuracy(cell: Cell | None) -> str:
    """Mean, interval and n of the transfer's accuracy on CIFAR-10, in percent."""
    interval = cell.interval(PROBE, 100) if cell else None
    return f"{said(interval)} (n = {interval.n})" if interval else "not run"


def row_table(protocol: str, results: Path) -> str:
    """Table 1: published beside ours at each number of epochs; ``not run`` where there is no run."""
    ours = runs_of_rows(protocol, results)
    runs = [run for found in ours.values() for run in found]
    columns = sorted({*SNAPSHOTS, *(run["epochs"] for run in runs)})
    has_published = protocol == PROTOCOLS[0]
    heads = ["loss", "learning", "update", "preset", *["published"] * has_published]
    table = Table(protocol, [*heads, *(f"{n} epochs" for n in columns), "commit"])
    for row in published():
        preset = row["preset"].replace(PROTOCOLS[0], protocol)
        theirs = [row["accuracy"]] * has_published
        if not preset and not has_published:
            continue
        lines = []  # name, accuracies, runs
        if preset == "random":
            untrained = accuracy(next(iter(random_cells(runs)), None))
            lines.append(("comes with each", [untrained, *[NONE] * (len(columns) - 1)], []))
        elif preset:
            for mine in [each for each in ours if each.preset == preset] or [Row(preset, "")]:
                cells = cells_by_epochs(ours.get(mine, []))
                lines.append((mine.name, [accuracy(cells.get(n)) for n in columns], ours.get(mine, [])))
        else:
            lines.append(("none", [NONE] * len(columns), []))
        for name, entries, made in lines:
            commits = ", ".join(sorted({str(run.get("git_commit", "unknown"))[:7] for run in made})) or NONE
            texts = (row["loss"], row["learning"], row["update"], name, *theirs, *entries, commits)
            table.rows.append([Entry(text) for text in texts])
    return table.markdown()


def short(preset: str) -> str:
    """``bp`` for ``table1/bp``."""
    return preset.rpartition("/")[2]


def reference(preset: str) -> str:
    """The row that another is compared with: end-to-end backprop, by few negatives if the other has few."""
    few = preset.endswith("_few") and short(preset) != "bp_few"
    return f"{preset.removesuffix(short(preset))}bp{'_few' if few else ''}"


def differences(protocol: str, results: Path) -> Iterator[tuple[Row, str, int, Paired]]:
    """Row, its reference, epochs, and the difference over shared seeds in points, both in one precision."""
    ours = runs_of_rows(protocol, results)
    for row in sorted(ours):
        against = reference(row.preset)
        if row.preset == against:
            continue
        cells = cells_by_epochs(ours[row])
        others = cells_by_epochs(ours.get(Row(against, row.precision), []))
        for epochs in sorted(cells.keys() & others):
            paired = Paired.of(cells[epochs].values(PROBE, 100), others[epochs].values(PROBE, 100))
            if paired is not None:
                yield row, against, epochs, paired


def difference_table(results: Path) -> str:
    """What each row of the thesis' protocol is above or below backprop, ours beside the paper's.

    Raises:
        DataError: a difference no longer reads as it did when the verdict was written.
    """
    protocol = PROTOCOLS[1]
    theirs = {short(row["preset"]): float(row["accuracy"]) for row in published() if row["preset"]}
    heads = ["rows", "precision", "epochs", *READ_OUT, "published, 400 epochs of conv6"]
    table = Table("table1_differences", heads)
    for row, against, epochs, paired in differences(protocol, results):
        name, other = short(row.preset), short(against)
        which, reads = f"{name} {MINUS} {other}", reading(paired)
        expected = VERDICT.get((which, row.precision, epochs))
        if expected not in (None, reads):
            raise DataError(
                f"results/table1.csv, {which}, {epochs} epochs: the interval is now '{reads}', and the verdict was "
                f"written for '{expected}': read it in docs/reproduction.md again, then say so in table_one.py"
            )
        there = f"{theirs[name] - theirs[other]:.2f}"
        texts = (which, row.precision or "float32", str(epochs), *read_out(paired), there)
        table.rows.append([Entry(text) for text in texts])
    return table.markdown()


def draw(results: Path = RESULTS, to: Path = FIGURE) -> None:
    """What each row gains over the untrained network, at each number of epochs, beside the paper's gain.

    Raises:
        DataError: no row has run.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import save
    from dtp_lightning.report.drawing import COLOURS, INK, STYLE

    ours = runs_of_rows(PROTOCOLS[1], results)
    # a row that ran in two precisions is drawn in the one that has more runs
    best = {short(row.preset): ours[row] for row in sorted(ours, key=lambda row: len(ours[row]))}
    theirs = {short(row["preset"]): row for row in published() if row["preset"]}
    untrained = float(theirs["random"]["accuracy"])
    rows = {name: best[name] for name in theirs if name in best}
    if not rows:
        raise DataError("results/table1.csv holds no row of the thesis' protocol")
    epochs = sorted({run["epochs"] for runs in rows.values() for run in runs})
    with matplotlib.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(8, 0.42 * len(rows) + 1.3), layout="constrained")
        axes = figure.subplots()
        for y, (name, runs) in enumerate(rows.items()):
            for n, gain in gains(runs).items():
                colour = COLOURS[epochs.index(n)]
                if not math.isnan(gain.low):
                    axes.plot([gain.low, gain.high], [y, y], color=colour, lw=1.5, alpha=0.5)
                axes.plot(gain.mean, y, "o", color=colour, ms=6)
            axes.plot(float(theirs[name]["accuracy"]) - untrained, y, "D", color="#8a939c", ms=5)
        for number, n in enumerate(epochs):
            axes.plot([], [], "o", color=COLOURS[number], label=f"ours, {n} epochs (cnn4)")
        axes.plot([], [], "D", color="#8a939c", label="paper, 400 epochs (conv6)")
        axes.axvline(0, color=INK, lw=1, ls=":")
        axes.set_yticks(range(len(rows)), [_title(name, theirs[name]) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"linear probe on CIFAR-10, trained {MINUS} untrained, points")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        save(figure, to)


def gains(runs: Sequence[Run]) -> dict[int, Interval]:
    """Epochs -> what training adds over the untrained network of the same seed, in points."""
    values: dict[int, list[float]] = {}
    for run in runs:
        values.setdefault(run["epochs"], []).append(100 * (run[PROBE] - run[f"random_encoder/{PROBE}"]))
    return {epochs: Interval.of(found) for epochs, found in sorted(values.items())}


def _title(name: str, paper: Mapping[str, str]) -> str:
    return f"{paper['loss'].removeprefix('contrastive ')}, {paper['learning']}: {name.removesuffix('_few')}"


def main() -> None:
    """Draw the figure."""
    with mistakes_in_one_line():
        draw()


if __name__ == "__main__":
    main()
