"""The figure of angles and saturation: a column of panels for each stage, a line for each rule."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dtp_lightning.report.alignment import ANGLE, MEAN_ABS, looks
from dtp_lightning.report.cells import Cell, labels_of
from dtp_lightning.report.drawing import INK, STYLE, Drawing, Line, slug

MOST = 8  # lines that one panel can hold
ROWS = ((ANGLE, "angle to backprop, °"), (MEAN_ABS, "mean $|h|$"))
CAPTION = (
    "Above, the angle between a rule's weight gradients and backprop's: 0 is backprop, 90 unrelated. The top stage is "
    "left out: target propagation has 0 there by construction. Below, mean abs(h): under tanh, near 1 is saturated. "
    "Lines are means over seeds, bands reach from the least to the largest."
)


def grouped(cells: Sequence[Cell]) -> dict[str, list[Line]]:
    """All cells as the lines of one group, or, if these are too many for a panel, a group for each model."""
    labels = labels_of(cells)
    axes = [axis for axis in ("model", "dataset", "loss") if len({cell.names[axis] for cell in cells}) > 1]
    if len(cells) > MOST and "model" in axes:
        axes.remove("model")
        groups = list(dict.fromkeys(cell.names["model"] for cell in cells))
    else:
        groups = [""]
    full = [", ".join([label, *(cell.names[a] for a in axes)]) for cell, label in zip(cells, labels, strict=True)]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(full))}
    lines = [Line(cell, label, numbers[label]) for cell, label in zip(cells, full, strict=True)]
    return {group: [line for line in lines if group in ("", line.cell.names["model"])] for group in groups}


def alignment(groups: Mapping[str, Sequence[Line]]) -> Drawing | None:
    """Angles over batches, and mean abs(h) beneath: two rows of panels for each group, a column for each stage.

    Args:
        groups: title -> lines of its panels; cells without the columns of ``callbacks=[alignment]`` have none.

    Returns:
        None if no cell has any.
    """
    values = {
        (group, quantity, line.number): found
        for group, lines in groups.items()
        for line in lines
        for quantity, found in looks(line.cell, *(quantity for quantity, _ in ROWS)).items()
        if found
    }
    measured = [group for group in groups if any(key[0] == group and key[1] == ANGLE for key in values)]
    stages = sorted({stage for found in values.values() for stage in found})
    if not measured:
        return None
    with matplotlib.rc_context(STYLE):
        width, height = 2.5 * len(stages) + 0.6, 4.4 * len(measured) + 0.6
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(2 * len(measured), len(stages), squeeze=False, sharex=True, sharey="row")
        handles: dict[str, Artist] = {}
        for k, group in enumerate(measured):
            for axes, (quantity, label) in zip(grid[2 * k : 2 * k + 2], ROWS, strict=True):
                for stage, axis in zip(stages, axes, strict=True):
                    for line in groups[group]:
                        seeds = values.get((group, quantity, line.number), {}).get(stage)
                        if seeds:
                            handles.setdefault(line.label, _draw(axis, line, list(seeds.values())))
                _dress(axes, stages, group, quantity, label)
        for axis in grid[-1]:
            axis.set_xlabel("batch")
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _legend(figure, handles)
    full = " ".join(["Angle and saturation of each stage", *(f"· {group}" for group in measured[:1] if group)])
    return Drawing(slug(full), full, CAPTION, figure, wide=True)


def _draw(axis: Axes, line: Line, seeds: Sequence[Sequence[tuple[int, float]]]) -> Artist:
    at: dict[int, list[float]] = defaultdict(list)
    for rows in seeds:
        for batch, value in rows:
            at[batch].append(value)
    batches = sorted(at)
    means = [statistics.fmean(at[batch]) for batch in batches]
    (drawn,) = axis.plot(batches, means, label=line.label, lw=1.8, ms=4.5, markevery=max(1, len(at) // 8), **line.look)
    if len(seeds) > 1:
        low, high = [min(at[batch]) for batch in batches], [max(at[batch]) for batch in batches]
        axis.fill_between(batches, low, high, color=line.look["color"], alpha=0.15, lw=0)
    return drawn


def _dress(axes: Sequence[Axes], stages: Sequence[int], group: str, quantity: str, label: str) -> None:
    """Scales and titles of a row of panels; one without lines (the top stage's angle) says why instead."""
    axes[0].set_ylabel(label)
    for stage, axis in zip(stages, axes, strict=True):
        if quantity == ANGLE:
            axis.set_title(f"{group}, stage {stage}" if group and stage == stages[0] else f"stage {stage}")
            axis.set(ylim=(-3, max(95, axis.get_ylim()[1])), yticks=(0, 15, 30, 45, 60, 75, 90))
            if axis.lines:
                axis.axhline(90, color=INK, lw=0.8, ls=":", alpha=0.6)
            else:
                axis.grid(visible=False)
                axis.text(0.5, 0.42, "top stage:\nnot compared", ha="center", transform=axis.transAxes, alpha=0.7)
        else:
            axis.set_ylim(bottom=0)


def _legend(figure: Figure, handles: Mapping[str, Artist]) -> None:
    """Below all panels, in as many columns as have room."""
    longest = max(map(len, handles))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.075 * longest + 0.7))))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, handlelength=3
    )
