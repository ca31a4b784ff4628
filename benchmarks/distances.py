"""The distance study: results/distances.csv, what docs/distances.md shows of it, and its figure.

dtp sweep distances, and the command for CIFAR-10 in docs/distances.md, then
python benchmarks/distances.py save FOLDER FOLDER   # results/distances.csv and distances_curves.csv
python benchmarks/distances.py                      # writes docs/distances.md and its figure
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pages import mistakes_in_one_line, rewrite, with_tables

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Cell, cells_of, random_cells
from dtp_lightning.report.tables import NONE, Entry, Table
from dtp_lightning.runs.reader import read_runs, save_runs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "distances.md"
FIGURE = ROOT / "docs" / "images" / "distances.png"
RESULTS = ROOT / "results" / "distances.csv"
CURVES = ROOT / "results" / "distances_curves.csv"
PAIRS = ("positive", "negative")
OF = ("dataset", "loss", "learner", "seed", "epoch")
MEASURED = tuple(f"l1/{pair}_mean" for pair in PAIRS)
QUANTITIES = {  # column -> quantity of an evaluation, factor, digits
    "l1 positive": ("distances/l1/positive_mean", 1, 2),
    "l1 negative": ("distances/l1/negative_mean", 1, 2),
    "l1 AUC": ("distances/l1/auc", 1, 3),
    "d > 1, %": ("distances/l1/positive_beyond_margin", 100, 0),
    "d < 3, %": ("distances/l1/negative_within_margin", 100, 0),
    "cos positive": ("distances/cosine/positive_mean", 1, 3),
    "cos negative": ("distances/cosine/negative_mean", 1, 3),
    "cos AUC": ("distances/cosine/auc", 1, 3),
    "k-NN, %": ("knn/test_acc", 100, 1),
}
LOSSES = ("hinge", "l1_margin", "simclr")
LEARNERS = ("bp", "dtp")


def save(folders: Sequence[Path]) -> None:
    """Summaries and curves of the finished runs; epoch 0 is the untrained network.

    Raises:
        DataError: there are none; what was saved stays.
    """
    runs = read_runs(folders)
    if not runs:
        raise DataError(f"no finished run in {', '.join(map(str, folders))}: dtp sweep distances")
    save_runs(runs, RESULTS)
    with CURVES.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*OF, *MEASURED))
        for run in runs:
            of = (run["dataset"], run["loss"], run["learner"], run["seed"])
            writer.writerow((*of, 0, *(run[f"random_encoder/distances/{name}"] for name in MEASURED)))
            with (Path(run["folder"]) / "metrics.csv").open(newline="") as metrics:
                for row in csv.DictReader(metrics):
                    if row[f"val/distances/{MEASURED[0]}"]:
                        values = (row[f"val/distances/{name}"] for name in MEASURED)
                        writer.writerow((*of, int(row["epoch"]) + 1, *values))


def table(path: Path = RESULTS) -> str:
    """Markdown: for each data set the untrained network, then a row for each objective and rule; means over seeds."""
    runs = read_runs([path])
    made = Table("distances", ["data", "`loss=`", "`learner=`", "n", *QUANTITIES])
    for dataset in dict.fromkeys(run["dataset"] for run in runs):
        own = [run for run in runs if run["dataset"] == dataset]
        trained = {(cell.names["loss"], cell.names["learner"]): cell for cell in cells_of(own)}
        (untrained,) = random_cells(own)
        made.rows.append(_row(dataset, NONE, "untrained", untrained))
        for loss in LOSSES:
            for learner in LEARNERS:
                made.rows.append(_row(dataset, f"`{loss}`", f"`{learner}`", trained[loss, learner]))
    return made.markdown()


def _row(dataset: str, loss: str, learner: str, cell: Cell) -> list[Entry]:
    texts = []
    for name, factor, digits in QUANTITIES.values():
        interval = cell.interval(name, factor)
        texts.append(NONE if interval is None else f"{interval.mean:.{digits}f}")
    return [Entry(text) for text in (dataset, loss, learner, str(len(cell.runs)), *texts)]


def filled(text: str, path: Path = RESULTS) -> str:
    """The page with its table written anew."""
    return with_tables(text, lambda name: table(path))


def draw(curves: Path = CURVES, to: Path = FIGURE) -> None:
    """Mean l1 distances of positive and negative pairs over training, and the smallest and largest of the seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import save as save_figure
    from dtp_lightning.report.drawing import COLOURS, DASHES, STYLE

    with curves.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for pair, name in zip(PAIRS, MEASURED, strict=True):
            key = (row["dataset"], row["loss"], row["learner"], pair)
            found[key][int(row["epoch"])].append(float(row[name]))
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    with matplotlib.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(11, 3.1 * len(datasets)), layout="constrained")
        grid = figure.subplots(len(datasets), len(LOSSES), sharex="row", squeeze=False)
        for axes_row, dataset in zip(grid, datasets, strict=True):
            for axes, loss in zip(axes_row, LOSSES, strict=True):
                looks = itertools.product(zip(LEARNERS, COLOURS, strict=False), zip(PAIRS, DASHES, strict=False))
                for (learner, colour), (pair, dash) in looks:
                    points = found[dataset, loss, learner, pair]
                    mean = [sum(values) / len(values) for values in points.values()]
                    axes.plot(list(points), mean, dash, color=colour, label=f"{pair}, {learner}")
                    low, high = map(min, points.values()), map(max, points.values())
                    axes.fill_between(list(points), [*low], [*high], color=colour, alpha=0.15, lw=0)
                axes.set_ylim(bottom=0)
                axes.set_title(f"{loss}, {dataset}", fontsize=10)
            axes_row[0].set_ylabel("mean l1 distance")
        for axes in grid[-1]:
            axes.set_xlabel("epochs")
        grid[0][0].legend(fontsize=8)
        save_figure(figure, to)


def main() -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(dest="command").add_parser("save")
    command.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    with mistakes_in_one_line():
        if arguments.command:
            save(arguments.folders)
        else:
            rewrite(PAGE, filled)
            draw()


if __name__ == "__main__":
    main()
