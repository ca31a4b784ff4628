"""The figure of the alignment callback: how a rule learns, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

from dtp_lightning.figures.plots import COLOURS, dress, names_in, read_rows, save, steps_per_epoch

Rows = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Panel:
    """One quantity of metrics.csv.

    Attributes:
        prefix, suffix: of its columns below ``diagnostics/``; between them a stage, or what ``dashes`` names.
        title: above the panel.
        scale: of the ordinate.
        level, meaning: a dotted line, and what a value there means.
        least: what the ordinate shows at least.
    """

    prefix: str
    title: str
    suffix: str = ""
    scale: str = "linear"
    level: float | None = None
    meaning: str = ""
    least: tuple[float, float] = (0, 0)


PANELS = (
    Panel("angle/", "angle to backprop, degrees", "/weight", level=90, meaning="unrelated", least=(-3, 95)),
    Panel("norm_ratio/", "length of the gradient / backprop's", "/weight", "log", 1, "as backprop", (0.5, 2)),
    Panel("effective_step/", "step of a weight / learning rate", least=(0, 0.1)),
    Panel("mean_abs/", "mean $|h|$", least=(0, 0.5)),
    Panel("jacobian_cosine/", r"cosine of $J_g u$ and $J_f^\top u$", level=0, meaning="unrelated", least=(-0.1, 1.02)),
    Panel("reconstruction/", r"$|g(f(h)) - h|^2$ / variance of $h$", level=1, meaning="a constant", least=(0, 1.05)),
    Panel("effective_rank/", "effective rank", least=(1, 2)),
)


def plot_diagnostics(metrics: Path, path: Path, title: str) -> None:
    """Angle and length against backprop, step size, feedback against J_f^T, reconstruction, effective rank over epochs.

    Args:
        metrics: a run's metrics.csv; no figure without the callback's columns in it.
        path: PNG to write.
        title: above the figure.
    """
    rows = read_rows(metrics)
    names = [name.removeprefix("diagnostics/") for name in names_in(rows) if name.startswith("diagnostics/")]
    shown = [(panel, [n for n in names if n.startswith(panel.prefix) and n.endswith(panel.suffix)]) for panel in PANELS]
    shown = [(panel, columns) for panel, columns in shown if columns]
    if not shown:
        return
    across = 2 if len(shown) == 4 else min(3, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(4.3 * across, 3.1 * down + 0.7), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    handles: dict[str, Artist] = {}
    per_epoch = steps_per_epoch(rows)
    end = max(int(row["step"]) for row in rows if any(row.get(f"diagnostics/{n}") for n in names)) / per_epoch
    for axis, (panel, columns) in zip(grid, shown, strict=False):
        drawn = _draw(axis, panel, columns, rows, per_epoch)
        axis.set_xlim(-0.02 * max(end, 1), 1.02 * max(end, 1))
        if "stage" in columns[0]:
            handles |= drawn
        else:
            axis.legend(frameon=False)
    for axis in grid[len(shown) :]:
        axis.set_visible(False)
    handles = dict(sorted(handles.items()))
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=max(1, len(handles)), frameon=False
    )
    save(figure, path)


def _draw(axis: Axes, panel: Panel, columns: Sequence[str], rows: Rows, per_epoch: float) -> dict[str, Artist]:
    """A line a column; returns their handles by label."""
    handles: dict[str, Artist] = {}
    for position, column in enumerate(columns):
        label = column.removeprefix(panel.prefix).removesuffix(panel.suffix)
        staged = label.startswith("stage")
        # a stage has one colour in all panels; what is no stage takes colours that no stage of a usual network has
        index = int(label.removeprefix("stage")) - 1 if staged else -1 - position
        label = f"stage {index + 1}" if staged else label
        name = f"diagnostics/{column}"
        # a row at step s describes the weights after s batches
        points = [(int(row["step"]) / per_epoch, float(row[name])) for row in rows if row.get(name)]
        marker = "o" if len(points) < 30 else ""
        (handles[label],) = axis.plot(
            *zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], label=label, lw=1.8, marker=marker, ms=3.5
        )
    dress(axis, panel.title, panel.scale)
    if panel.level is not None:
        axis.axhline(panel.level, color="0.45", lw=1, ls=":", zorder=0)
        axis.annotate(
            panel.meaning, (1, panel.level), (-2, 5), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=8, color="0.35", zorder=0,
        )  # fmt: skip
    axis.set_ylim(min(axis.get_ylim()[0], panel.least[0]), max(axis.get_ylim()[1], panel.least[1]))
    if panel.scale == "log":
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    elif panel.prefix == "angle/":
        axis.yaxis.set_major_locator(MultipleLocator(30))
    return handles
