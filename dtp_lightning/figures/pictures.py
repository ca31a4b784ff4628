"""What an encoder learned, as pictures: map of its features, filters of the first layer, nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from torch import Tensor

from dtp_lightning.figures.plots import save

# Petroff (2021): ten colours that are told apart with every kind of colour vision
TEN = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#717581", "#92dadd", "#e76300", "#a96b59", "#b9ac70", "#94a4a2",
)  # fmt: skip
MARKERS = ("o", "^", "s")
DISTINCT = len(TEN) * len(MARKERS)  # classes; as 10 and 3 share no factor, each has a pair of its own
OTHERS = "#d9d9d9"
SAME, OTHER = "#0072B2", "#D55E00"  # blue and vermilion of Okabe and Ito (2008)
LARGEST_GRID = 64  # filters
FONT = 12


def plot_map(
    points: Tensor, labels: Tensor, classes: Sequence[str], title: str, axes: tuple[str, str], path: Path
) -> None:
    """Plot a map of images in the plane, coloured by class.

    Up to 30 classes have a colour and a marker of their own. Of more classes ten do, evenly spaced; others are grey.

    Args:
        points: (N, 2).
        labels: int64 (N,) in 0..K-1; ignored without classes.
        classes: names of the K classes; empty for images without labels.
        title: above the map.
        axes: labels of x and y; empty where a coordinate has no meaning of its own.
        path: PNG file to write.
    """
    figure = Figure(figsize=(7.4 if classes else 5.8, 5.4), layout="constrained")
    axis = figure.subplots()
    shown = list(range(len(classes)))
    if len(classes) > DISTINCT:
        shown = torch.linspace(0, len(classes) - 1, len(TEN)).long().tolist()
    styles = {label: (TEN[i % len(TEN)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(shown)}
    x, y = points.double().numpy().T
    numbers = labels.tolist() if classes else [-1] * len(x)
    size = float(np.clip(24_000 / len(x), 10, 60))
    if not classes:
        axis.scatter(x, y, size, TEN[0], alpha=0.7, linewidths=0)
    elif len(shown) < len(classes):
        rest = [i for i, label in enumerate(numbers) if label not in styles]
        axis.scatter(x[rest], y[rest], 0.7 * size, OTHERS, linewidths=0)
        size *= 2  # few points stand for a class
    order = [i for i, label in enumerate(numbers) if label in styles]  # in the order of the images: no class on top
    for marker in MARKERS:
        here = [i for i in order if styles[numbers[i]][1] == marker]
        colours = [styles[numbers[i]][0] for i in here]
        axis.scatter(x[here], y[here], size, colours, marker=marker, alpha=0.8, linewidths=0)
    _style(axis, title, axes)
    if classes:
        handles = [
            Line2D([], [], ls="", marker=marker, color=colour, ms=9, label=classes[label])
            for label, (colour, marker) in styles.items()
        ]
        if others := len(classes) - len(shown):
            handles.append(Line2D([], [], ls="", marker="o", color=OTHERS, ms=9, label=f"{others} others"))
        figure.legend(
            handles=handles, loc="outside right center", frameon=False, fontsize=FONT, handletextpad=0.2,
            ncols=1 + (len(handles) > 16), columnspacing=0.8,
        )  # fmt: skip
    save(figure, path)


def _style(axis: Axes, title: str, axes: tuple[str, str]) -> None:
    axis.set_title(title, fontsize=FONT + 2, loc="left", pad=12)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(axes[0], fontsize=FONT)
    axis.set_ylabel(axes[1], fontsize=FONT)
    axis.spines[:].set_color("0.6")
    axis.spines[["top", "right"] if axes[0] else ["top", "right", "left", "bottom"]].set_visible(False)
    axis.margins(0.04)


def plot_filters(weights: Tensor, title: str, path: Path) -> None:
    """Plot filters on images: grey is 0, each filter is scaled by its largest absolute weight.

    Args:
        weights: (F, C, H, W), C = 1 (black is negative) or 3 (colours); at most 64 are drawn.
        title: above them.
        path: PNG file to write.
    """
    weights = weights[:LARGEST_GRID].detach().float().cpu()
    scaled = 0.5 + 0.5 * weights / weights.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    columns = min(len(scaled), 8 if len(scaled) <= 32 else 16)
    rows = -(-len(scaled) // columns)
    figure = Figure(figsize=(0.75 * columns + 0.2, 0.75 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=FONT + 1, x=0.01, ha="left")
    for axis, image in zip(figure.subplots(rows, columns, squeeze=False).flat, scaled, strict=False):
        _image(axis, image)
    for axis in figure.axes[len(scaled) :]:
        axis.set_visible(False)
    save(figure, path)


def plot_neighbours(
    queries: Tensor,
    neighbours: Tensor,
    query_labels: Tensor,
    neighbour_labels: Tensor,
    classes: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Plot images and their nearest neighbours, a row each; frames say whether a neighbour is of the same class.

    Args:
        queries: uint8 (Q, C, H, W).
        neighbours: uint8 (Q, K, C, H, W), the nearest first.
        query_labels, neighbour_labels: int64 (Q,) and (Q, K); ignored without classes.
        classes: names; empty for images without labels.
        title: above them.
        path: PNG file to write.
    """
    rows, columns = neighbours.shape[:2]
    name_width = 0.11 * max((len(classes[label]) for label in query_labels.tolist()), default=0) if classes else 0.0
    size = (0.95 * (columns + 1) + 0.5 + name_width, 0.95 * rows + (1.1 if classes else 0.7))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0))
    grid = figure.subplots(rows, columns + 2, squeeze=False, width_ratios=[1, 0.2, *[1] * columns])
    for row, axes in enumerate(grid):
        axes[1].set_visible(False)
        _image(axes[0], queries[row].float() / 255)
        if classes:
            axes[0].set_ylabel(classes[int(query_labels[row])], rotation=0, ha="right", va="center", fontsize=FONT)
        for column, axis in enumerate(axes[2:]):
            _image(axis, neighbours[row, column].float() / 255)
            if classes:
                _frame(axis, SAME if neighbour_labels[row, column] == query_labels[row] else OTHER)
    grid[0][0].set_title("image", fontsize=FONT)
    grid[0][2].set_title("nearest", fontsize=FONT)
    figure.suptitle(title, fontsize=FONT + 1, x=0.01, ha="left")
    if classes:
        share = (neighbour_labels == query_labels[:, None]).float().mean().item()
        names = {SAME: f"same class ({100 * share:.0f} %)", OTHER: "another class"}
        handles = [Line2D([], [], color=colour, lw=3, label=name) for colour, name in names.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=FONT)
    save(figure, path)


def _image(axis: Axes, image: Tensor) -> None:
    """Draw an image (C, H, W) in [0, 1]."""
    axis.imshow(image.permute(1, 2, 0).squeeze(-1).cpu().numpy().clip(0, 1), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _frame(axis: Axes, colour: str) -> None:
    axis.spines[:].set(visible=True, color=colour, linewidth=3)
