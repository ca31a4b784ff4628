"""Norm of W, and angle between W and B, by stage: ``python benchmarks/feedback_weights.py RUN/checkpoints/*``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from dtp_lightning.report.tables import Entry, Table

STAGE = "learner.model.stages.{}.{}"


def table(checkpoint: Path) -> str:
    """A line for each stage that has feedback weights of its convolution's shape.

    Args:
        checkpoint: of a run of ``conv_net`` on transposable maps.
    """
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    found = Table("weights", ["stage", "norm of W", "norm of W - B", "angle, degrees"])
    stage = 1
    while (name := STAGE.format(stage, "forward_map.0.weight")) in weights:
        w, b = (weights[key].double().flatten() for key in (name, STAGE.format(stage, "feedback_map.weight")))
        degrees = math.degrees(math.acos(min(1, torch.cosine_similarity(w, b, dim=0).item())))
        numbers = (f"{w.norm():.2f}", f"{(w - b).norm():.3f}", f"{degrees:.2f}")
        found.rows.append([Entry(text) for text in (str(stage + 1), *numbers)])
        stage += 1
    return found.markdown()


def main() -> None:
    """Print a table for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    for path in parser.parse_args().checkpoints:
        print(f"{path}\n\n{table(path)}")


if __name__ == "__main__":
    main()
