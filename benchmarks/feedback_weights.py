"""Norm of W, and angle between W and B, by stage: ``python benchmarks/feedback_weights.py RUN/checkpoints/*``."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from pages import mistakes_in_one_line

from dtp_lightning.callbacks.measures import angle
from dtp_lightning.errors import DataError
from dtp_lightning.report.tables import Entry, Table


def table(checkpoint: Path) -> str:
    """A line for each stage that has feedback weights of its convolution's shape.

    Args:
        checkpoint: of a run of ``conv_net`` on transposable maps.

    Raises:
        DataError: it is of another network.
    """
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    found = Table("weights", ["stage", "norm of W", "norm of W - B", "angle, degrees"])
    for stage in itertools.count(1):  # the first sends nothing down
        w, b = (
            weights.get(f"learner.model.stages.{stage}.{name}.weight") for name in ("forward_map.0", "feedback_map")
        )
        if w is None or b is None or w.shape != b.shape:
            break
        numbers = (f"{w.norm():.2f}", f"{(w - b).norm():.3f}", f"{angle(w, b):.2f}")
        found.rows.append([Entry(text) for text in (str(stage + 1), *numbers)])
    if not found.rows:
        raise DataError(f"{checkpoint}: no feedback weights of a convolution's shape; give a run on transposable maps")
    return found.markdown()


def main() -> None:
    """Print a table for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    checkpoints = parser.parse_args().checkpoints
    with mistakes_in_one_line():
        for path in checkpoints:
            print(f"{path}\n\n{table(path)}")


if __name__ == "__main__":
    main()
