"""The memory of a learning step at several depths: does it grow with the number of stages?

    python benchmarks/memory.py [--save results/memory.csv] [--learners bp local_blocks] [--stages 4 16] [loss=... ...]

Stages are equal (``--channels``, no pooling), so that activations are of one size. Counted are the bytes of all tensors
that are alive at once during a step, the same on every machine; ``activations`` leaves out the gradients of weights,
which every rule needs. Words with a = are overrides for every rule.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from cases import CONF, learner_of

from dtp_lightning.callbacks.memory import peak_bytes
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.learners import Learner
from dtp_lightning.runs.reader import save_runs

COLUMNS = ("learner", "batch", "stages", "peak_mib", "activations_mib", "activations_growth", "growth")
FEW_OPTIONS = ("model.pool=1", "model.embedding_dim=16")


def measured(learner: Learner, views: torch.Tensor) -> tuple[float, float]:
    """MiB at the peak of a step, after one that makes the optimiser's state: all, and without gradients of weights."""
    peaks = []
    learner.skip_first_phase()
    learner.step(views, measure=False)
    for variant in learner.step_variants():
        for parameter in learner.parameters():
            parameter.grad = None
        peak = peak_bytes(partial(variant.step, views, measure=False))
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in learner.parameters() if p.grad is not None)
        peaks.append((peak / 2**20, (peak - gradients) / 2**20))
    return max(peaks)


def main() -> None:
    """Measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=sorted(p.stem for p in (CONF / "learner").glob("*.yaml")))
    parser.add_argument("--stages", nargs="+", type=int, default=(4, 16))
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=20, help="images; two views each")
    parser.add_argument("--images", type=int, nargs=3, default=(3, 32, 32), metavar=("CHANNELS", "HEIGHT", "WIDTH"))
    parser.add_argument("--save", type=Path)
    arguments, overrides = parser.parse_known_args()
    images = ImageSpec(*arguments.images, mirror_safe=True)
    torch.manual_seed(0)
    views = torch.rand(2, arguments.batch, *arguments.images)
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in arguments.learners:
        first: tuple[float, float] | None = None
        for stages in arguments.stages:
            depth = f"model.channels={[arguments.channels] * stages}".replace(" ", "")
            found = measured(learner_of(name, images, [depth, *FEW_OPTIONS, *overrides]), views)
            first = first or found
            values = (name, arguments.batch, stages, f"{found[0]:.2f}", f"{found[1]:.2f}",
                      f"{found[1] / first[1]:.2f}", f"{found[0] / first[0]:.2f}")  # fmt: skip
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print("| " + " | ".join(str(value) for value in values) + " |", flush=True)
    if arguments.save:
        save_runs(rows, arguments.save)


if __name__ == "__main__":
    main()
