"""How time and memory of a step grow with batch, depth and width: ``python benchmarks/scale.py --figure scale.png``.

Every point is a process of its own: median seconds of a step, and the peak of its memory above what it held before.
Both are divided by the step's multiply-accumulates: a line that does not rise grows no faster than the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cases import ImageSpec, case

from dtp_lightning.callbacks.cost import peak_memory_mib

IMAGES = ImageSpec(3, 32, 32, mirror_safe=True)
AXES: dict[str, list[dict[str, Any]]] = {
    "views": [{"views": n} for n in (128, 512, 2048, 8192)],
    "stages": [{"stages": n} for n in (4, 8, 12, 16)],
    "width": [{"width": n} for n in (0.5, 1, 2, 4)],
}


def overrides(stages: int, width: float) -> list[str]:
    """A network of so many stages, four of which pool by two; channels times width."""
    per = stages // 4
    channels = [max(4, round(width * c)) for c in (32, 64, 128, 256) for _ in range(per)]
    pools = [2 if k == per - 1 else 1 for _ in range(4) for k in range(per)]
    return [f"model.channels={channels}".replace(" ", ""), f"model.pool={pools}".replace(" ", "")]


def point(learner: str, views: int, stages: int, width: float) -> dict[str, float]:
    """Measure in this process."""
    batch = torch.randint(0, 256, (views // 2, 3, 32, 32), dtype=torch.uint8)
    one = case(learner, learner, IMAGES, overrides(stages, width))
    before, seconds = peak_memory_mib(), []
    for _ in range(4):
        begun = time.perf_counter()
        one.step(batch)
        seconds.append(time.perf_counter() - begun)
    return {
        "seconds": statistics.median(seconds[1:]),
        "mib": peak_memory_mib() - before,
        "gmacs": one.macs * views / 1e9,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory for each gigamac, a column for each axis."""
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import COLOURS, save

    figure = Figure(figsize=(10, 5), layout="constrained")
    grid = figure.subplots(2, len(AXES), sharey="row")
    for column, axis_name in enumerate(AXES):
        for k, learner in enumerate(dict.fromkeys(row["learner"] for row in rows)):
            chosen = [row for row in rows if row["axis"] == axis_name and row["learner"] == learner]
            x = [row[axis_name] for row in chosen]
            style = {"color": COLOURS[k], "marker": "os^"[k], "label": learner}
            grid[0, column].plot(x, [1e3 * row["seconds"] / row["gmacs"] for row in chosen], **style)
            grid[1, column].plot(x, [row["mib"] / row["gmacs"] for row in chosen], **style)
        grid[1, column].set_xlabel(axis_name)
        for axis in grid[:, column]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [str(value) for value in x])
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
    for row, values in zip(grid, ("seconds", "mib"), strict=True):
        unit = 1e3 if values == "seconds" else 1
        row[0].set_ylim(0, 1.08 * max(unit * found[values] / found["gmacs"] for found in rows))  # shared by the row
    grid[0, 0].set_ylabel("ms for 1e9 MACs")
    grid[1, 0].set_ylabel("MiB for 1e9 MACs")
    grid[0, 0].legend(frameon=False)
    save(figure, path)


def main() -> None:
    """Measure all points, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=["bp", "dtp"])
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--save", type=Path, help="JSON file")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(point(**json.loads(arguments.point))))
        return
    rows = []
    print("| axis | learner | views | stages | width | seconds | MiB | GMACs |\n|---|---|---|---|---|---|---|---|")
    for axis, settings in AXES.items():
        for setting in settings:
            for learner in arguments.learners:
                asked = {"learner": learner, "views": 500, "stages": 4, "width": 1, **setting}
                command = [sys.executable, __file__, "--point", json.dumps(asked)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({"axis": axis, **asked, **json.loads(done.stdout)})
                shown = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in rows[-1].values()]
                print("| " + " | ".join(shown) + " |", flush=True)
    if arguments.save:
        arguments.save.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
