"""Figures of one run, as PNG."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dtp_lightning.runtime.metrics import metrics_of

if TYPE_CHECKING:  # a report draws without torch, which takes seconds
    from torch import Tensor

# Okabe and Ito (2008): distinguishable with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_views(images: Tensor, views: Tensor, path: Path) -> None:
    """Plot each image above its views.

    Args:
        images: uint8 (B, C, H, W) in 0..255.
        views: (V, B, C, H, W) in [0, 1].
        path: PNG file to write.
    """
    rows = [("image", images.float() / 255), *((f"view {v}", view) for v, view in enumerate(views))]
    figure = Figure(figsize=(0.9 * images.shape[0] + 0.8, 0.95 * len(rows) + 0.1))
    gap = max(1, images.shape[-1] // 16)  # in pixels, and a grey that neither white nor black images run into
    for (name, batch), axis in zip(rows, figure.subplots(len(rows), squeeze=False)[:, 0], strict=True):
        framed = np.pad(batch.cpu().numpy(), [(0, 0), (0, 0), (gap, gap), (gap, gap)], constant_values=0.8)
        strip = np.concatenate([*framed], axis=-1).transpose(1, 2, 0)  # one picture: axes take long to draw
        axis.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip.clip(0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[], ylabel=name)
        axis.spines[:].set_visible(False)
    save(figure, path)


def plot_curves(metrics: Path, path: Path) -> None:
    """Plot objective, local losses, reconstruction losses and validation k-NN accuracy over epochs.

    Args:
        metrics: metrics.csv of a run; without this file there is no figure.
        path: PNG file to write.
    """
    read = metrics_of(metrics)
    names, per_epoch = read.names, read.steps_per_epoch
    panels = [
        ("objective", [n for n in names if n in ("train/loss", "val/loss")], "linear"),
        ("validation k-NN accuracy", [n for n in names if n == "val/knn_acc"], "linear"),
        ("local loss of a stage", [n for n in names if n.startswith("train/local_loss/")], "log"),
        (
            "reconstruction loss of a feedback map",
            [n for n in names if n.startswith("train/reconstruction_loss/")],
            "linear",
        ),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 3.2))
    for axis, (title, columns, scale) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, colour in zip(columns, COLOURS, strict=False):
            points = [((step + 1) / per_epoch, value) for step, value in read.points(name)]
            axis.plot(
                *zip(*points, strict=True),
                color=colour,
                label=name.split("/")[-1 if "stage" in name else 0],
                marker="o",
                ms=2.5,
            )
        above = any(value > 0 for name in columns for _, value in read.points(name))
        style_axis(axis, title, scale if above else "linear")
        if len(columns) > 1:
            axis.legend(frameon=False)
    save(figure, path)


def style_axis(axis: Axes, title: str, scale: str = "linear") -> None:
    """Set title, x label, scale, spines and grid of a plot over epochs."""
    axis.set(title=title, xlabel="epoch", yscale=scale)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def plot_confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str], title: str, path: Path) -> None:
    """Plot a confusion matrix, normalised by row.

    Args:
        labels, predicted: class indices, int64 (N,) in 0..K-1.
        classes: names of the K classes.
        title: above the matrix.
        path: PNG file to write.
    """
    k = len(classes)
    counts = np.zeros((k, k))
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    fraction = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = min(12.0, 1.6 + 0.45 * k)
    figure = Figure(figsize=(side + 0.9, side))
    axis = figure.subplots()
    image = axis.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    if k <= 30:
        upright = max(map(len, classes)) < 3
        axis.set_xticks(range(k), classes, rotation=0 if upright else 60, ha="center" if upright else "right")
        axis.set_yticks(range(k), classes)
    if k <= 12:
        for row in range(k):
            for column in range(k):
                if fraction[row, column] >= 0.005:
                    colour = "white" if fraction[row, column] > 0.5 else "black"
                    axis.text(
                        column,
                        row,
                        f"{100 * fraction[row, column]:.0f}",
                        ha="center",
                        va="center",
                        color=colour,
                        fontsize=8,
                    )
    figure.colorbar(
        image, ax=axis, fraction=0.046, label="share of the true class" + (" (cells in %)" if k <= 12 else "")
    )
    save(figure, path)


def plot_histograms(rows: Mapping[str, Mapping[str, Mapping[str, Tensor]]], path: Path) -> None:
    """Plot densities of groups of values: a row for each encoder, a column for each quantity, with a shared x axis.

    Args:
        rows: encoder -> quantity -> group -> values (M,).
        path: PNG file to write.
    """
    quantities = list(next(iter(rows.values())))
    figure = Figure(figsize=(4.6 * len(quantities), 2.6 * len(rows)))
    grid = figure.subplots(len(rows), len(quantities), squeeze=False, sharex="col")
    for column, quantity in enumerate(quantities):
        all_values = np.concatenate([values for panels in rows.values() for values in panels[quantity].values()])
        bins = np.linspace(all_values.min().item(), all_values.max().item() + 1e-9, 80)
        for axes, (encoder, panels) in zip(grid, rows.items(), strict=True):
            axis = axes[column]
            for (group, values), colour in zip(panels[quantity].items(), COLOURS, strict=False):
                axis.hist(
                    values.numpy(), bins, density=True, histtype="stepfilled", alpha=0.45, color=colour, label=group
                )
                axis.axvline(values.mean().item(), color=colour, lw=1.5, ls="--")
            axis.set(title=f"{encoder}: {quantity}", yticks=[])
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.legend(frameon=False)
        grid[-1][column].set_xlabel(f"{quantity} (dashed: mean)")
    with any_characters():
        figure.tight_layout()
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, and make its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with any_characters():
        figure.savefig(path, dpi=150, bbox_inches="tight")


@contextlib.contextmanager
def any_characters() -> Iterator[None]:
    """A character that the font lacks is drawn as a box, without a warning: names come from users' command lines."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield
