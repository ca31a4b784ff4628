"""What figures over many runs share: colours, style, how a cell looks, and how a figure becomes SVG and PNG."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dtp_lightning.figures import plots
from dtp_lightning.report.cells import Cell

# SVG leaves out a black that is pure, and what is left out cannot become light on a dark page
COLOURS = tuple("#010101" if colour == "#000000" else colour for colour in plots.COLOURS)
INK = "#1b1f24"  # text and axes; on the page it becomes the text's colour
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # 9 of them beside 7 colours: 63 different series
DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)))
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "page", "font.family": "sans-serif", "font.size": 10,
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "legend.frameon": False,
    "grid.color": INK, "grid.alpha": 0.13, "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.8,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: of its files.
        title, caption: beside it on the page.
        figure: with white paper or none behind it.
        wide: whether it takes a whole row of the page.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False

    def svg(self) -> str:
        """For inside an HTML page: its colours are the page's, its ids its own, no names that look like addresses."""
        file = io.BytesIO()
        with matplotlib.rc_context(STYLE), plots.any_characters():
            self.figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        text = file.getvalue().decode()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for number, colour in enumerate(COLOURS):
            text = text.replace(colour.lower(), f"var(--c{number})")
        text = text.replace(INK, "currentColor")
        return text.replace("<svg", f'<svg role="img" aria-label="{self.title}"', 1)

    def save(self, folder: Path) -> None:
        """As SVG and PNG, on white."""
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}), plots.any_characters():
            self.figure.savefig(folder / f"{self.name}.svg", bbox_inches="tight", metadata={"Date": None})
            self.figure.savefig(folder / f"{self.name}.png", dpi=200, bbox_inches="tight")


@dataclass(frozen=True)
class Line:
    """A cell in a figure.

    Attributes:
        cell, label: which.
        number: of its colour, marker and dash, the same in every figure.
    """

    cell: Cell
    label: str
    number: int

    @property
    def look(self) -> dict[str, Any]:
        """Told apart three times over."""
        return {
            "color": COLOURS[self.number % len(COLOURS)],
            "marker": MARKERS[self.number % len(MARKERS)],
            "ls": DASHES[self.number % len(DASHES)],
        }


def slug(text: str) -> str:
    """A file's name out of a title."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
