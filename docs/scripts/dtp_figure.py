"""Draws what difference target propagation is: ``python docs/scripts/dtp_figure.py`` writes docs/images/dtp.svg."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

IMAGE = Path(__file__).resolve().parents[1] / "images" / "dtp.svg"
WIDTH, HEIGHT = 860, 330
FORWARD, FEEDBACK, LOCAL, INK, PALE = "#3f51b5", "#c75f00", "#2e7d32", "#263238", "#546e7a"
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
TARGETS, STAGES = 105, 225
"""Heights of the two rows: targets and activations."""
COLUMNS = (60, 250, 440, 630)
"""Of the image and of the stages 1 to 3."""
TOP = 790
"""Of the objective."""


def text(x: float, y: float, words: str, colour: str = INK, size: int = 15, weight: str = "normal") -> str:
    """One line, centred at x. ``a_b`` sets the letter b lower."""
    first, *rest = words.split("_")
    small = f'font-size="{size - 4}"'
    lowered = "".join(f'<tspan dy="4" {small}>{part[0]}</tspan><tspan dy="-4">{part[1:]}</tspan>' for part in rest)
    style = f'fill="{colour}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{first}{lowered}</text>'


def box(x: float, y: float, words: str, colour: str, *, dashed: bool = False) -> str:
    """A box around a symbol."""
    shape = f'<rect x="{x - 32}" y="{y - 21}" width="64" height="42" rx="8" fill="#fff"'
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'{shape} stroke="{colour}" stroke-width="2"{dashes}/>' + text(x, y + 5, words, weight="bold")


def line(path: str, colour: str, *, both: bool = False) -> str:
    """An arrow along a path; ``both`` has a head at each end and is dotted."""
    name = colour[1:]
    ends = f'marker-end="url(#{name})"' + (f' marker-start="url(#{name})" stroke-dasharray="2 4"' if both else "")
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5" {ends}/>'


def head(colour: str) -> str:
    """The head of an arrow in a colour."""
    size = 'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto-start-reverse"'
    return f'<marker id="{colour[1:]}" {size}><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'


def stage(i: int, before: float, x: float) -> Iterator[str]:
    """Stage i with its target; ``before`` is the column below it."""
    middle = (before + x) / 2
    yield line(f"M{before + 34} {STAGES} H{x - 34}", FORWARD)
    yield text(middle, STAGES - 10, f"f_{i}", FORWARD, 17, "bold")
    yield text(middle, STAGES + 20, "convolution,", PALE, 12)
    yield text(middle, STAGES + 34, "pool, tanh", PALE, 12)
    yield box(x, STAGES, f"h_{i}", FORWARD)
    yield box(x, TARGETS, f"t_{i}", FEEDBACK, dashed=True)
    yield line(f"M{x} {STAGES - 23} V{TARGETS + 23}", LOCAL, both=True)
    yield text(x + 46, (STAGES + TARGETS) / 2 + 5, f"‖h_{i} − t_{i}‖²", LOCAL, 14)
    if i > 1:
        yield line(f"M{x - 34} {TARGETS} H{before + 34}", FEEDBACK)
        yield text(middle, TARGETS - 10, f"g_{i}", FEEDBACK, 17, "bold")


def objective() -> Iterator[str]:
    """The objective, and how it makes the first target."""
    last = COLUMNS[-1]
    yield line(f"M{last + 34} {STAGES} H{TOP - 44}", FORWARD)
    yield text((last + TOP) / 2 - 4, STAGES - 10, "head", FORWARD, 14)
    yield f'<rect x="{TOP - 42}" y="{STAGES - 24}" width="84" height="48" rx="8" fill="{FORWARD}"/>'
    yield text(TOP, STAGES - 3, "objective", "#fff", 14, "bold")
    yield text(TOP, STAGES + 14, "L(z)", "#fff", 13)
    yield line(f"M{TOP} {STAGES - 26} V{TARGETS} H{last + 36}", FEEDBACK)
    yield text(TOP - 30, TARGETS - 12, "a step along −∂L/∂h_3", FEEDBACK, 13)


def drawing() -> Iterator[str]:
    """The lines of the file."""
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}" text-anchor="middle">'
    yield "<title>Difference target propagation: activations go up, targets come down, each stage learns alone</title>"
    yield f"<defs>{''.join(map(head, (FORWARD, FEEDBACK, LOCAL)))}</defs>"
    yield f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" fill="#fff" stroke="#cfd8dc"/>'
    yield box(COLUMNS[0], STAGES, "h_0", FORWARD)
    yield text(COLUMNS[0], STAGES + 40, "image", PALE, 13)
    for i, (before, x) in enumerate(pairwise(COLUMNS), 1):
        yield from stage(i, before, x)
    yield from objective()
    formula = "Targets come down:  t_k = h_k − g_i(h_i) + g_i(t_i),  k = i − 1"
    yield text(WIDTH / 2, 38, formula, FEEDBACK, 16, "bold")
    sentence = "Activations go up. Each stage changes its own weights only, so that h_i comes closer to t_i."
    yield text(WIDTH / 2, HEIGHT - 20, sentence, FORWARD, 15, "bold")
    yield "</svg>"


if __name__ == "__main__":
    IMAGE.write_text("\n".join(drawing()) + "\n", encoding="utf-8")
