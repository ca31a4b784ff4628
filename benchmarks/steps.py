"""What a training step costs: time, share of the machine's peak, memory, and where the time goes.

    python benchmarks/steps.py [--save results/steps.json] [--figure docs/images/steps.png] [--batch 500]
    python benchmarks/steps.py --against COMMIT      # this checkout and another commit, in turns
    python benchmarks/steps.py --only bp dtp --parts --repeats 20

All cases take turns (A B C A B C ...), so that a drift of the machine's speed hits all; medians, and quartiles of the
ratios to bp. A 2,048 x 2,048 matrix product is timed in every round: 100 % is its rate. Images are random bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import ROOT, Case, ImageSpec, case, matmul_rate, plain, plain_dtp

from dtp_lightning.callbacks.cost import peak_memory_mib
from dtp_lightning.runs.summary import provenance

SHARED = "learner.feedback.noise_patterns=50"
HALF = "learner.feedback.fraction=0.5"
LINEAR = "learner.target=linearised"
AUTOENCODER = "dtp_autoencoder"
CASES: dict[str, Callable[..., Case]] = {
    "plain PyTorch loop": lambda name, images, words: plain(images, words),
    "plain PyTorch dtp": lambda name, images, words: plain_dtp(images, words),
    "bp": lambda name, images, words: case(name, "bp", images, words),
    "dtp": lambda name, images, words: case(name, "dtp", images, words),
    "dtp, bf16": lambda name, images, words: case(name, "dtp", images, words, bf16=True),
    "dtp_autoencoder": lambda name, images, words: case(name, AUTOENCODER, images, words),
    "dtp_autoencoder, noise_patterns=50": lambda name, images, words: case(name, AUTOENCODER, images, [*words, SHARED]),
    "dtp_autoencoder, fraction=0.5": lambda name, images, words: case(name, AUTOENCODER, images, [*words, HALF]),
    "dtp_autoencoder, noise_std=0": lambda name, images, words: case(
        name, AUTOENCODER, images, [*words, "learner.feedback.noise_std=0"]
    ),
    "bp, bf16": lambda name, images, words: case(name, "bp", images, words, bf16=True),
    "dtp_autoencoder linearised, bf16": lambda name, images, words: case(
        name, AUTOENCODER, images, [*words, LINEAR], bf16=True
    ),
    "dtp_autoencoder linearised, noise_patterns=50, bf16": lambda name, images, words: case(
        name, AUTOENCODER, images, [*words, LINEAR, SHARED], bf16=True
    ),
    "dtp_autoencoder linearised, fraction=0.5, bf16": lambda name, images, words: case(
        name, AUTOENCODER, images, [*words, LINEAR, HALF], bf16=True
    ),
    "dtp_mirror": lambda name, images, words: case(name, "dtp_mirror", images, words),
    "ldrl, strided": lambda name, images, words: case(name, "ldrl", images, [*words, "model.feedback=strided"]),
    "ldrl": lambda name, images, words: case(name, "ldrl", images, words),
    "ldrl, noise_patterns=50": lambda name, images, words: case(name, "ldrl", images, [*words, SHARED]),
    "ldrl, steps=5": lambda name, images, words: case(name, "ldrl", images, [*words, "learner.feedback.steps=5"]),
    "ldrl, steps=5, noise_patterns=50": lambda name, images, words: case(
        name, "ldrl", images, [*words, "learner.feedback.steps=5", SHARED]
    ),
    "gll": lambda name, images, words: case(name, "gll", images, words),
}  # fmt: skip


def take_turns(cases: Sequence[Case], batch: torch.Tensor, repeats: int) -> list[float]:
    """Fill ``seconds`` of every case; returns the matrix product's rate of every round."""
    rates = []
    for k in range(repeats + 2):
        rates.append(matmul_rate())
        for one in cases:
            begun = time.perf_counter()
            one.step(batch)
            if k > 1:  # two rounds warm up
                one.seconds.append(time.perf_counter() - begun)
    return rates[2:]


def parts(one: Case, batch: torch.Tensor, repeats: int) -> dict[str, float]:
    """Seconds of a step's parts, medians; what is left, and the optimiser's few milliseconds, is ``other``."""
    rule = one.learner
    assert rule is not None
    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def timed(function: Callable, name: str) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before, inner[0] = inner[0], 0.0
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            whole = time.perf_counter() - begun
            spent[name] += whole - inner[0]
            inner[0] = before + whole
            return result

        return wrapper

    from dtp_lightning.learners.base import StageTrace

    pull = StageTrace.vjp
    StageTrace.vjp = timed(pull, "gradients")  # type: ignore[method-assign]
    wrapped = [
        (rule, "trace", "forward"),
        (rule, "compute_head_gradients", "loss and head"),
        (rule, "below", "targets"),
    ]
    if feedback := getattr(rule, "feedback", None):
        wrapped += [(feedback, "prepare", "feedback"), (feedback, "train", "feedback")]
    for owner, method, name in wrapped:
        if hasattr(owner, method):
            object.__setattr__(owner, method, timed(getattr(owner, method), name))
    one.augment.forward = timed(one.augment.forward, "views")  # type: ignore[union-attr]
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        spent.clear()
        begun = time.perf_counter()
        one.step(batch)
        whole = time.perf_counter() - begun
        for name, seconds in spent.items():
            found[name].append(seconds)
        found["other"].append(whole - sum(spent.values()))
    StageTrace.vjp = pull  # type: ignore[method-assign]
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def memory(name: str, arguments: argparse.Namespace, words: list[str]) -> float:
    """Peak resident MiB of a process that takes three steps of one case."""
    command = [sys.executable, __file__, "--only", name, "--peak", "--batch", str(arguments.batch), *words]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def rows_of(cases: Sequence[Case], rates: Sequence[float], views: int) -> list[dict[str, Any]]:
    """A row for each case, ratios to the case named bp (else the first)."""
    control = next((one for one in cases if one.name == "bp"), cases[0])
    peak = statistics.median(rates)
    rows = []
    for one in cases:
        seconds = statistics.median(one.seconds)
        ratios = [a / b for a, b in zip(one.seconds, control.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append({
            "case": one.name, "milliseconds": round(1e3 * seconds, 1), "images_per_second": round(views / 2 / seconds),
            "ratio": round(statistics.median(ratios), 2), "quartiles": f"{low:.2f}-{high:.2f}",
            "macs_ratio": round(one.macs / control.macs, 2),
            "share_of_peak": round(one.macs * views / seconds / peak, 2),
        })  # fmt: skip
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as Markdown."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "-")) for name in names) + " |", flush=True)


def against(commit: str, words: list[str], names: Sequence[str], rounds: int) -> None:
    """This checkout and another commit in turns, a process each; medians of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-f", "--detach", str(other), commit], check=True)
        try:
            found: dict[str, list[float]] = defaultdict(list)
            command = [sys.executable, __file__, "--only", *names, "--repeats", "5", "--json", *words]
            for _ in range(rounds):
                for label, root in (("here", ROOT), (commit, other)):
                    environment = {**os.environ, "BENCHMARK_ROOT": str(root)}
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    for row in json.loads(done.stdout):
                        found[f"{row['case']} @ {label}"].append(row["milliseconds"])
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)], check=True)
    for name in names:
        here, there = (found[f"{name} @ {label}"] for label in ("here", commit))
        ratio = statistics.median(a / b for a, b in zip(here, there, strict=True))
        print(
            f"{name}: {statistics.median(here):.0f} ms here, {statistics.median(there):.0f} ms at {commit}: {ratio:.2f}"
        )


def draw(rows: Sequence[dict[str, Any]], split: dict[str, dict[str, float]], path: Path) -> None:
    """A bar for every case, made of its parts where they are known."""
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import COLOURS, save

    figure = Figure(figsize=(9, 0.34 * len(rows) + 1.3), layout="constrained")
    axis = figure.subplots()
    names = [*dict.fromkeys(name for found in split.values() for name in found if name != "other"), "other"]
    for row in rows:
        found, start = split.get(row["case"], {"other": row["milliseconds"] / 1e3}), 0.0
        for name in names:
            width = 1e3 * found.get(name, 0)
            colour = "0.75" if name == "other" else COLOURS[names.index(name) % len(COLOURS)]
            axis.barh(row["case"], width, left=start, color=colour, label=name)
            start += width
        axis.annotate(f" {row['ratio']:.2f}", (start, row["case"]), va="center", fontsize=8)
    axis.set_xlabel("ms a step (number: ratio to bp)")
    axis.invert_yaxis()
    axis.margins(x=0.06)
    axis.spines[["top", "right"]].set_visible(False)
    handles = {text: handle for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    axis.legend(handles.values(), handles.keys(), loc="center right", frameon=False, fontsize=8)
    save(figure, path)


def publish(arguments: argparse.Namespace, rows: list[dict[str, Any]], split: dict, gflops: float) -> None:
    """Print, write and draw what was found."""
    show(rows)
    threads = torch.get_num_threads()
    machine = f"{threads} threads, torch {torch.__version__}, 2,048 x 2,048 product {gflops:.0f} GFLOP/s"
    print(f"\nbatch {arguments.batch}, {machine}")
    for name, found in split.items():
        print(f"{name}: " + ", ".join(f"{part} {1e3 * seconds:.0f} ms" for part, seconds in found.items()))
    if arguments.save:
        document = {
            "batch": arguments.batch, "threads": threads, "torch": torch.__version__, "matmul_gflops": round(gflops),
            "commit": provenance()["git_commit"], "steps": rows, "parts": split,
        }  # fmt: skip
        arguments.save.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.figure:
        draw(rows, split, arguments.figure)


def main() -> None:
    """Measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--batch", type=int, default=500, help="images; two views each")
    parser.add_argument("--images", type=int, nargs=3, default=(3, 32, 32), metavar=("CHANNELS", "HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--parts", action="store_true", help="where the time goes")
    parser.add_argument("--memory", action="store_true", help="peak memory, each case in a process of its own")
    parser.add_argument("--against", metavar="COMMIT", help="compare with another commit")
    parser.add_argument("--save", type=Path, help="JSON file")
    parser.add_argument("--figure", type=Path, help="PNG file")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    arguments, words = parser.parse_known_args()
    if arguments.against:
        against(arguments.against, words, [n for n in arguments.only if n in ("bp", "dtp", "ldrl")], rounds=3)
        return
    images = ImageSpec(*arguments.images, mirror_safe=True)
    batch = torch.randint(0, 256, (arguments.batch, *arguments.images), dtype=torch.uint8)
    cases = [CASES[name](name, images, words) for name in arguments.only]
    if arguments.peak:
        for _ in range(3):
            cases[0].step(batch)
        print(peak_memory_mib())
        return
    rates = take_turns(cases, batch, arguments.repeats)
    rows = rows_of(cases, rates, 2 * arguments.batch)
    if arguments.memory:
        for row in rows:
            row["peak_mib"] = round(memory(row["case"], arguments, words))
    if arguments.json:
        print(json.dumps(rows))
        return
    split = {}
    if arguments.parts or arguments.figure:
        split = {one.name: parts(one, batch, min(5, arguments.repeats)) for one in cases if one.learner is not None}
    publish(arguments, rows, split, 2 * statistics.median(rates) / 1e9)


if __name__ == "__main__":
    main()
