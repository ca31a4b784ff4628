"""What a real run adds to the rule's own step: Lightning, logging, data.

    python benchmarks/lightning.py [--learner bp] [--batch 100 500] [--epochs 3] [overrides of dtp train]

Within one run of the default task (its own logging, the metrics file, no evaluation) clocks go while views are drawn
and while the learner and its optimisers are at work; what is left of the time spent in training batches is what the
framework adds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases import train

from dtp_lightning.learners.base import Learner
from dtp_lightning.module import PretrainModule


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Seconds spent in the parts of training steps, and the number of these, while they are watched."""
    spent = dict.fromkeys(("views", "learner", "update", "optimiser", "steps"), 0.0)
    restored: list[tuple[Any, str, Any]] = []
    inside = {"training": False, "update": False}

    def watch(owner: Any, method: str, name: str, where: str = "training") -> None:
        original: Callable = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun, inside[name] = time.perf_counter(), True
            result = original(*args, **kwargs)
            spent[name] += (time.perf_counter() - begun) * inside[where]
            inside[name] = False
            return result

        restored.append((owner, method, original))
        setattr(owner, method, timed)

    def step(module: PretrainModule, batch: Any, index: int) -> None:
        if not hasattr(module.augment, "watched"):
            module.augment.watched = True  # type: ignore[assignment]
            watch(module.augment, "forward", "views")
        spent["steps"] += 1
        inside["training"] = True  # counting multiply-accumulates takes steps too
        original_step(module, batch, index)
        inside["training"] = False

    original_step = PretrainModule.training_step
    restored.append((PretrainModule, "training_step", original_step))
    PretrainModule.training_step = step  # type: ignore[method-assign]
    watch(Learner, "step", "learner")
    watch(PretrainModule, "_counted_update", "update")
    watch(torch.optim.Adam, "step", "optimiser", "update")  # a learner steps those of its feedback itself
    try:
        yield spent
    finally:
        for owner, method, original in reversed(restored):
            setattr(owner, method, original)


def measure(learner: str, batch: int, epochs: int, more: list[str]) -> tuple[float, float]:
    """Milliseconds of a training batch in a run, and of the step in it."""
    words = [f"learner={learner}", f"batch_size={batch}", f"trainer.max_epochs={epochs}", "logger=csv",
             "evaluation=[]", "callbacks=[]", *more]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, clocks() as spent:
        found = train(Path(folder), *words)
    bare = spent["views"] + spent["learner"] - spent["update"] + spent["optimiser"]
    return 1e3 * found["cost/seconds_per_step"], 1e3 * bare / spent["steps"]


def main() -> None:
    """Measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", default="bp")
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--epochs", type=int, default=3)
    arguments, more = parser.parse_known_args()
    rows = [(batch, *measure(arguments.learner, batch, arguments.epochs, more)) for batch in arguments.batch]
    print("\n| learner | batch | ms a batch | ms of its step | ratio |\n|---|---|---|---|---|")
    for batch, whole, bare in rows:
        print(f"| {arguments.learner} | {batch} | {whole:.1f} | {bare:.1f} | {whole / bare:.3f} |")


if __name__ == "__main__":
    main()
