"""What a real run adds to the rule's own step: Lightning, logging, data.

    python benchmarks/lightning.py [--learner bp] [--batch 100 500] [--epochs 3] [overrides of dtp train]
    python benchmarks/lightning.py --recipe simclr_cifar10_resnet18 [--batch 32] [--steps 20] [overrides]

Within one run of the default task (its own logging, the metrics file, no evaluation) clocks go while views are drawn
and while the learner and its optimisers are at work; what is left of the time spent in training batches is what the
framework adds.

With ``--recipe`` the other side is the same recipe in plain PyTorch: torchvision's ResNet-18, the same images, views,
loss, optimiser and schedule, and nothing else. Its steps are taken between those of one run, in turns, so that both see
the same machine; the figure is the median of the ratios, pair by pair. With one thread (OMP_NUM_THREADS=1) the clock is
the processor's, which other programs on the machine do not move.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases import plain_recipe, settings, train

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


def in_turns(words: list[str], steps: int) -> tuple[list[float], list[float]]:
    """Seconds of a batch of ``dtp train``, from its step to the next one's, and of the plain steps between them."""
    words = ["trainer.max_epochs=1", f"trainer.limit_train_batches={steps + 3}", "trainer.limit_val_batches=0",
             "schedule.forward.warmup=1", "logger=csv", "evaluation=[]", "callbacks=[]", *words]  # fmt: skip
    ours: list[float] = []
    plain: list[float] = []
    begun, clock = 0.0, time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    original = PretrainModule.training_step

    def step(module: PretrainModule, batch: Any, index: int) -> None:
        nonlocal begun, learn, order
        if index == 0:
            images = module.trainer.datamodule.train.images  # type: ignore[attr-defined]
            learn = plain_recipe(settings(*words), images[:])
            order = torch.randperm(len(images)).split(len(batch.images))
        else:
            ours.append(clock() - begun)
        begun = clock()
        learn(order[index])
        plain.append(clock() - begun)
        begun = clock()
        original(module, batch, index)

    learn: Callable[[torch.Tensor], None]
    order: tuple[torch.Tensor, ...]
    PretrainModule.training_step = step  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder), *words)
    finally:
        PretrainModule.training_step = original  # type: ignore[method-assign]
    return ours[2:], plain[2:-1]  # two of each warm up; of the last batch nobody sees the end


def show_recipe(recipe: str, batches: list[int], steps: int, more: list[str]) -> None:
    """Print a table of the recipe by ``dtp train`` beside plain PyTorch."""
    print("\n| recipe | batch | ms a batch | ms in plain PyTorch | ratio | quartiles |\n|---|---|---|---|---|---|")
    for batch in batches:
        ours, plain = in_turns([f"experiment={recipe}", f"batch_size={batch}", *more], steps)
        ratios = [a / b for a, b in zip(ours, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        times = " | ".join(f"{1e3 * statistics.median(seconds):.0f}" for seconds in (ours, plain))
        print(f"| {recipe} | {batch} | {times} | {middle:.3f} | {low:.3f}-{high:.3f} |", flush=True)


def main() -> None:
    """Measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", default="bp")
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--recipe", help="a preset on ResNet-18, beside the same in plain PyTorch")
    parser.add_argument("--steps", type=int, default=20, help="of each side, with --recipe")
    arguments, more = parser.parse_known_args()
    if arguments.recipe:
        show_recipe(arguments.recipe, arguments.batch, arguments.steps, more)
        return
    rows = [(batch, *measure(arguments.learner, batch, arguments.epochs, more)) for batch in arguments.batch]
    print("\n| learner | batch | ms a batch | ms of its step | ratio |\n|---|---|---|---|---|")
    for batch, whole, bare in rows:
        print(f"| {arguments.learner} | {batch} | {whole:.1f} | {bare:.1f} | {whole / bare:.3f} |")


if __name__ == "__main__":
    main()
