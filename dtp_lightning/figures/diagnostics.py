"""The figure of the alignment callback: the diagnostics of each stage over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

from dtp_lightning.figures.plots import COLOURS, save, style_axis
from dtp_lightning.runtime.metrics import Metrics, metrics_of


@dataclass(frozen=True)
class Panel:
    """The plot of one metric of metrics.csv.

    Attributes:
        prefix, suffix: of its columns, without ``diagnostics/``; between them is a stage or another name.
        title: above the panel.
        scale: of the y axis, ``linear`` or ``log``.
        reference, label: y value of a dotted line, and its label.
        ylim: the y axis contains this range.
    """

    prefix: str
    title: str
    suffix: str = ""
    scale: str = "linear"
    reference: float | None = None
    label: str = ""
    ylim: tuple[float, float] = (0, 0)


PANELS = (
    Panel("angle/", "angle to backprop, degrees", "/weight", reference=90, label="unrelated", ylim=(-3, 95)),
    Panel("norm_ratio/", "length of the gradient / backprop's", "/weight", "log", 1, "as backprop", (0.5, 2)),
    Panel("effective_step/", "step of a weight / learning rate", ylim=(0, 0.1)),
    Panel("mean_abs/", "mean $|h|$", ylim=(0, 0.5)),
    Panel("jacobian_cosine/", r"cosine of $J_g u$ and $J_f^\top u$", reference=0, label="unrelated", ylim=(-0.1, 1.02)),
    Panel("reconstruction/", r"$|g(f(h)) - h|^2$ / variance of $h$", reference=1, label="a constant", ylim=(0, 1.05)),
    Panel("effective_rank/", "effective rank", ylim=(1, 2)),
)


def plot_diagnostics(metrics: Path, path: Path, title: str) -> None:
    """Plot the diagnostics over epochs: angle to backprop, effective step, feedback maps, effective rank and others.

    Args:
        metrics: metrics.csv of a run; without columns of the callback there is no figure.
        path: PNG file to write.
        title: above the figure.
    """
    read = metrics_of(metrics)
    names = [name.removeprefix("diagnostics/") for name in read.names if name.startswith("diagnostics/")]
    panels = [
        (panel, [n for n in names if n.startswith(panel.prefix) and n.endswith(panel.suffix)]) for panel in PANELS
    ]
    panels = [(panel, columns) for panel, columns in panels if columns]
    if not panels:
        return
    num_columns = 2 if len(panels) == 4 else min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(4.3 * num_columns, 3.1 * num_rows + 0.7), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    handles: dict[str, Artist] = {}
    per_epoch = read.steps_per_epoch
    end = max(step for name in names for step, _ in read.points(f"diagnostics/{name}")) / per_epoch
    for axis, (panel, columns) in zip(grid, panels, strict=False):
        lines = _draw(axis, panel, columns, read, per_epoch)
        axis.set_xlim(-0.02 * max(end, 1), 1.02 * max(end, 1))
        if "stage" in columns[0]:
            handles |= lines
        else:
            axis.legend(frameon=False)
    for axis in grid[len(panels) :]:
        axis.set_visible(False)
    handles = dict(sorted(handles.items()))
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=max(1, len(handles)), frameon=False
    )
    save(figure, path)


def _draw(axis: Axes, panel: Panel, columns: Sequence[str], read: Metrics, per_epoch: float) -> dict[str, Artist]:
    """Plot one line for each column; returns the lines by label."""
    handles: dict[str, Artist] = {}
    for position, column in enumerate(columns):
        label = column.removeprefix(panel.prefix).removesuffix(panel.suffix)
        is_stage = label.startswith("stage")
        # a stage has one colour in all panels; other lines take colours from the end of the list
        index = int(label.removeprefix("stage")) - 1 if is_stage else -1 - position
        label = f"stage {index + 1}" if is_stage else label
        name = f"diagnostics/{column}"
        # a row at step s describes the weights after s batches
        points = [(step / per_epoch, value) for step, value in read.points(name)]
        marker = "o" if len(points) < 30 else ""
        (handles[label],) = axis.plot(
            *zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], label=label, lw=1.8, marker=marker, ms=3.5
        )
    style_axis(axis, panel.title, panel.scale)
    if panel.reference is not None:
        axis.axhline(panel.reference, color="0.45", lw=1, ls=":", zorder=0)
        axis.annotate(
            panel.label, (1, panel.reference), (-2, 5), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=8, color="0.35", zorder=0,
        )  # fmt: skip
    axis.set_ylim(min(axis.get_ylim()[0], panel.ylim[0]), max(axis.get_ylim()[1], panel.ylim[1]))
    if panel.scale == "log":
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    elif panel.prefix == "angle/":
        axis.yaxis.set_major_locator(MultipleLocator(30))
    return handles
