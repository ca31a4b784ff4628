"""Figures over many runs: learning curves, accuracy against cost, angles, distances; for the page and for papers."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dtp_lightning.report.alignment_figure import alignment
from dtp_lightning.report.angles import mean_angles
from dtp_lightning.report.cells import Cell, labels_of, main_probe
from dtp_lightning.report.drawing import INK, STYLE, Drawing, Line, slug
from dtp_lightning.runs.reader import config_of, trained_in
from dtp_lightning.runs.summary import RANDOM
from dtp_lightning.runtime.metrics import metrics_of

MOST = 24
"""Lines in a figure; more are not told apart, and take minutes to draw."""
MOST_TASKS = 12
"""Data sets, models and losses with figures of their own."""
Points = list[tuple[float, float]]


def figures(cells: Sequence[Cell], split: str) -> Iterator[Drawing]:
    """All that the runs have numbers for; a figure of each kind for each data set, model and loss.

    Args:
        cells: what is compared.
        split: whose accuracy is set against the cost, ``test`` or ``val``.
    """
    tasks = {task: _told_apart(members) for task, members in _tasks(cells)[:MOST_TASKS]}
    labelled = {task: list(zip(members, labels_of(members), strict=True)) for task, members in tasks.items()}
    numbers = {label: i for i, label in enumerate(dict.fromkeys(name for t in labelled.values() for _, name in t))}
    for task, members in labelled.items():
        lines = [Line(cell, label, numbers[label]) for cell, label in members]
        where = " · ".join(task) if len(tasks) > 1 else ""
        for draw in (_learning, _angles, _distances):
            drawing = draw(_once(lines), where)
            yield from [drawing] if drawing else []
        drawing = alignment({where: _once(lines)})
        yield from [drawing] if drawing else []
        probe = main_probe(tasks[task], split)
        for cost in (_seconds, _macs) if probe else ():
            drawing = _against(lines, where, f"{probe}/{split}_acc", cost)
            yield from [drawing] if drawing else []


def left_out(cells: Sequence[Cell]) -> str:
    """What :func:`figures` does not draw of so many cells, and how to see it; nothing for few."""
    tasks, sentences = _tasks(cells), []
    if len(tasks) > MOST_TASKS:
        sentences.append(f"The first {MOST_TASKS} of {len(tasks)} data sets, models and losses have figures.")
    if any(len(members) > MOST for _, members in tasks[:MOST_TASKS]):
        sentences.append(
            f"Where there are more than {MOST} cells, a figure shows that cell of each learner whose accuracy on "
            "validation is best."
        )
    return " ".join([*sentences, "A report of fewer folders draws the others."] if sentences else [])


def _tasks(cells: Sequence[Cell]) -> list[tuple[tuple[str, ...], list[Cell]]]:
    tasks: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        tasks[cell.task].append(cell)
    return [*tasks.items()]


def _told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """All cells of a task, or of too many the best of each learner by validation, and at most :data:`MOST` of these."""
    if len(cells) <= MOST:
        return [*cells]
    probe = main_probe(cells, "val")
    best: dict[str, tuple[float, Cell]] = {}
    for cell in cells:
        interval = cell.interval(f"{probe}/val_acc")
        mean, learner = interval.mean if interval else -math.inf, cell.names["learner"]
        if learner not in best or mean > best[learner][0]:
            best[learner] = (mean, cell)
    return [cell for _, cell in best.values()][:MOST]


def _once(lines: Sequence[Line]) -> list[Line]:
    """Without those that are an earlier checkpoint of the same trainings: their curve is the beginning of another."""
    longest: dict[tuple[Path, ...], Line] = {}
    for line in sorted(lines, key=lambda line: int(line.cell.names["epochs"])):
        longest[tuple(trained_in(folders[0]) for folders in line.cell.folders.values())] = line
    kept = {id(line) for line in longest.values()}
    return [line for line in lines if id(line) in kept]


def _learning(lines: Sequence[Line], where: str) -> Drawing | None:
    caption = "Validation k-NN accuracy while training: mean over seeds, band from the worst seed to the best."
    return _curves(lines, where, "Learning curves", caption, "validation k-NN, %", _column("val/knn_acc", 100))


def _angles(lines: Sequence[Line], where: str) -> Drawing | None:
    caption = (
        "Angle between a rule's weight gradients and backprop's: mean over seeds and over all stages but the top one, "
        "band over seeds. 0 is backprop, 90 unrelated."
    )
    return _curves(lines, where, "Angle to backprop", caption, "degrees", _angle, x_label="step", level=90)


def _distances(lines: Sequence[Line], where: str) -> Drawing | None:
    caption = (
        "Mean L1 distance of embeddings on validation, mean over seeds: views of one image (filled), of two (open)."
    )
    title, label = "Distances of pairs", "L1 distance"
    drawing = _curves(lines, where, title, caption, label, _column("val/distances/l1/positive_mean"), " positive")
    if drawing:
        axis = drawing.figure.axes[0]
        with matplotlib.rc_context(STYLE):
            _draw(axis, lines, _column("val/distances/l1/negative_mean"), " negative", mfc="none")
            axis.set_ylim(bottom=0)
            _legend(axis, columns=2)  # filled down since the first column: positives left, negatives right
    return drawing


def _curves(
    lines: Sequence[Line], where: str, title: str, caption: str, y_label: str,
    points: Callable[[Path, Cell], Points], suffix: str = "", x_label: str = "epoch", level: float | None = None,
) -> Drawing | None:  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.2))
        axis = figure.subplots()
        if not _draw(axis, lines, points, suffix):
            return None
        if level is not None:
            axis.axhline(level, color=INK, lw=1, ls=":", alpha=0.6)
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(axis)
    full = f"{title}: {where}" if where else title
    return Drawing(slug(full), full, caption, figure)


def _draw(axis: Axes, lines: Sequence[Line], points: Callable[[Path, Cell], Points], suffix: str, **look: Any) -> int:
    """Mean and range over the seeds of each cell; how many cells have any."""
    count = 0
    for line in lines:
        at: dict[float, list[float]] = defaultdict(list)
        for folders in line.cell.folders.values():
            for x, y in points(trained_in(folders[0]), line.cell):
                at[x].append(y)
        if at:
            count += 1
            xs = sorted(at)
            every = max(1, len(xs) // 8)
            means = [statistics.fmean(at[x]) for x in xs]
            style: dict[str, Any] = {**line.look, "ms": 5, "lw": 1.8, "markevery": every, **look}
            axis.plot(xs, means, label=line.label + suffix, **style)
            low, high = [min(at[x]) for x in xs], [max(at[x]) for x in xs]
            axis.fill_between(xs, low, high, color=line.look["color"], alpha=0.16 if len(lines) < 5 else 0.06, lw=0)
    return count


def _against(
    lines: Sequence[Line], where: str, key: str, cost: tuple[str, str, Callable[[Line], dict[int, float]]]
) -> Drawing | None:
    """An accuracy against what it cost: a small mark for each seed, a large one for their mean."""
    name, x_label, cost_of = cost
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.2))
        axis = figure.subplots()
        for line in lines:
            paid, accuracy = cost_of(line), line.cell.values(key, 100)
            points = [(paid[seed], accuracy[seed]) for seed in accuracy if seed in paid]
            if points:
                xs, ys = zip(*points, strict=True)
                look = {"color": line.look["color"], "marker": line.look["marker"], "ls": ""}
                axis.plot(xs, ys, ms=4.5, alpha=0.45, mew=0, **look)
                axis.plot([statistics.fmean(xs)], [statistics.fmean(ys)], ms=9, label=line.label, **look)
        if not axis.lines:
            return None
        random = {s: r for line in lines for s, r in line.cell.values(RANDOM + key, 100).items()}
        if random:
            axis.axhline(
                statistics.fmean(random.values()), color=INK, lw=1.2, ls=":", alpha=0.7, label="random encoder"
            )
        axis.set(xlabel=x_label, ylabel=f"{key.replace('/', ' ').replace('_acc', '')} accuracy, %")
        axis.set_xlim(0, axis.get_xlim()[1] * 1.03)
        axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
        _legend(axis)
    full = f"Accuracy against {name}" + (f": {where}" if where else "")
    return Drawing(slug(full), full, "Small marks are seeds, large ones their means; further left is cheaper.", figure)


def total_macs(folder: Path, macs_per_image: float) -> float | None:
    """Multiply-accumulates of a whole training; None where the folder does not say how many images it saw.

    Args:
        folder: of a training.
        macs_per_image: for one view.
    """
    config, logged = config_of(folder), metrics_of(folder / "metrics.csv").steps
    if not logged or "batch_size" not in config:
        return None
    one = config.get("augment._target_", "").endswith("CleanView")
    views = int(config.get("augment.views", 1 if one else 2))
    steps = 1 + max(logged)
    return macs_per_image * views * steps * int(config["batch_size"])


def _macs_of(line: Line) -> dict[int, float]:
    macs = line.cell.values("cost/macs_per_image")
    totals = {seed: total_macs(trained_in(line.cell.folders[seed][0]), each) for seed, each in macs.items()}
    return {seed: total / 1e12 for seed, total in totals.items() if total is not None}


_seconds = ("training time", "training, seconds", lambda line: line.cell.values("fit/seconds"))
_macs = ("multiply-accumulates", "training, 10¹² multiply-accumulates", _macs_of)


def _column(name: str, factor: float = 1.0) -> Callable[[Path, Cell], Points]:
    def points(folder: Path, cell: Cell) -> Points:
        metrics, last = metrics_of(folder / "metrics.csv"), int(cell.names["epochs"])
        per_epoch = metrics.steps_per_epoch
        at = {(step + 1) / per_epoch: factor * value for step, value in metrics.points(name)}
        return [(x, y) for x, y in at.items() if x <= last + 1e-6]  # a checkpoint may be older than its run

    return points


def _angle(folder: Path, cell: Cell) -> Points:
    return [*dict(mean_angles(folder / "metrics.csv")).items()]


def _legend(axis: Axes, columns: int = 3) -> None:
    """Below the panel, where it hides nothing however long it is."""
    handles, labels = axis.get_legend_handles_labels()
    wrapped = ["\n".join(textwrap.wrap(label, 44)) for label in labels]
    fit = int(4.8 / (0.067 * max(max(map(len, text.split("\n"))) for text in wrapped) + 0.6))  # inches, roughly
    axis.legend(
        handles, wrapped, ncols=max(1, min(columns, fit, len(labels))),
        loc="upper center", bbox_to_anchor=(0.45, -0.17), handlelength=3, columnspacing=1.4, fontsize=9,
    )  # fmt: skip
