"""What a step of every learning rule costs beside backprop's: multiply-accumulates and seconds.

    python benchmarks/rules.py [--save results/rules_cost.csv] [--learners dtp ldrl] [learner.feedback.steps=5 ...]

Steps of all rules alternate (A B C A B C ...), so that a drift of the machine's speed hits all; medians. The bare
learner on random images: no augmentation, no logging. Words with a = are overrides for every rule.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from cases import CONF, learner_of

from dtp_lightning.callbacks.macs import macs_per_image
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.learners import Learner
from dtp_lightning.runs.reader import save_runs

COLUMNS = ("learner", "model", "batch", "macs_per_image", "macs_ratio", "seconds", "seconds_ratio", "ratio_spread")


def measure(learners: dict[str, Learner], views: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of ``repeats`` steps of each, alternating, after two that warm up; layer-wise rules train each stage."""
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for k in range(repeats + 2):
        for name, learner in learners.items():
            variants = learner.step_variants()
            begun = time.perf_counter()
            for variant in variants:
                variant.step(views, measure=False)
            if k > 1:
                seconds[name].append((time.perf_counter() - begun) / len(variants))
    return seconds


def main() -> None:
    """Measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=sorted(p.stem for p in (CONF / "learner").glob("*.yaml")))
    parser.add_argument("--batch", type=int, default=100, help="images; two views each")
    parser.add_argument("--images", type=int, nargs=3, default=(1, 28, 28), metavar=("CHANNELS", "HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save", type=Path)
    arguments, overrides = parser.parse_known_args()
    images = ImageSpec(*arguments.images, mirror_safe=False)
    model = next((word.removeprefix("model=") for word in overrides if word.startswith("model=")), "cnn4")
    names = ["bp", *(name for name in arguments.learners if name != "bp")]
    learners = {
        name: learner_of(name, images, [w for w in overrides if name != "bp" or not w.startswith("learner.")])
        for name in names
    }
    for learner in learners.values():
        learner.skip_first_phase()
    macs = {name: macs_per_image(learner, images, views=2) for name, learner in learners.items()}
    seconds = measure(learners, torch.rand(2, arguments.batch, *arguments.images), arguments.repeats)
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in names:
        ratios = [ours / bp for ours, bp in zip(seconds[name], seconds["bp"], strict=True)]
        rows.append({
            "learner": name, "model": model, "batch": arguments.batch,
            "macs_per_image": round(macs[name]), "macs_ratio": f"{macs[name] / macs['bp']:.2f}",
            "seconds": f"{statistics.median(seconds[name]):.4f}", "seconds_ratio": f"{statistics.median(ratios):.2f}",
            "ratio_spread": f"{min(ratios):.2f}-{max(ratios):.2f}",
        })  # fmt: skip
        print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    if arguments.save:
        save_runs(rows, arguments.save)


if __name__ == "__main__":
    main()
