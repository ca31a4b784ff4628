"""Time and peak memory of the l1 objectives, forward and backward, beside the plain broadcast formulas.

    python benchmarks/losses.py [--save results/losses.csv]

Every measurement runs in a process of its own (peak memory above what the inputs need); repeats of the two ways
alternate, so that a drift of the machine's speed hits both. Embeddings lie in clusters: pairs of one are active.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dtp_lightning.callbacks.cost import peak_memory_mib, reset_peak_memory
from dtp_lightning.losses import ContrastiveHinge, L1Margin, PositiveOnly
from dtp_lightning.runs.reader import save_runs

LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "hinge": ContrastiveHinge,
    "hinge_paper": lambda: ContrastiveHinge(pairs="cross", reduction="sum"),
    "l1_margin": L1Margin,
    "positive_only": PositiveOnly,
}
CLUSTERS = 30  # one negative in so many is active, as in training on the default after its first epoch
COLUMNS = ("loss", "views", "way", "seconds", "peak_mib")


def plain(loss: str, way: str, z0: Tensor, z1: Tensor) -> Tensor:
    """The formula left to autograd: over an (N, N, D) difference as in published code, or over torch.cdist."""
    batch, z = len(z0), torch.cat([z0, z1])
    anchors, others = (z0, z1) if loss == "hinge_paper" else (z, z)
    near = (z0 - z1).abs().sum(1)
    if loss == "positive_only":
        return near.mean()
    distances = torch.cdist(anchors, others, p=1) if way == "cdist" else (anchors[:, None] - others).abs().sum(-1)
    other = torch.arange(len(anchors))[:, None] % batch != torch.arange(len(others))[None] % batch
    if loss == "l1_margin":
        triplets = torch.relu(near.repeat(2)[:, None] - distances + 4) * other
        return triplets.sum() / (triplets > 0).sum()
    negatives = torch.relu(3 - distances) * other
    if loss == "hinge_paper":
        return torch.relu(near - 1).sum() + negatives.sum()
    return torch.relu(near - 1).mean() + (negatives.sum(1) / (negatives > 0).sum(1).clamp(min=1)).mean()


def measure(loss: str, views: int, way: str) -> tuple[float, float]:
    """Seconds (best of three after a warm-up) and peak MiB of one forward and backward pass."""
    torch.manual_seed(0)
    kinds = torch.randn(CLUSTERS, 64)[torch.randint(CLUSTERS, (views // 2,))]
    z = [torch.tanh(0.3 * kinds + 0.02 * torch.randn_like(kinds)).requires_grad_() for _ in range(2)]
    ours = LOSSES[loss]()
    call = (lambda: ours(*z)) if way == "ours" else (lambda: plain(loss, way, *z))
    reset_peak_memory()
    before = peak_memory_mib()
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        call().backward()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]), peak_memory_mib() - before


def main() -> None:
    """Measure every loss at every size, each way in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[512, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("LOSS", "VIEWS", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(*measure(arguments.one[0], int(arguments.one[1]), arguments.one[2]))
        return
    rows = []
    for views in arguments.views:
        for loss in LOSSES:
            # at 8,192 views the broadcast needs four times what it needs at 4,096 (up to 50 GiB): it is not run there
            ways = [w for w in ("ours", "cdist", "broadcast") if w != "broadcast" or views <= 4096]
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(arguments.repeats):
                for way in ways:
                    command = [sys.executable, __file__, "--one", loss, str(views), way]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    seconds, peak = map(float, done.stdout.split())
                    found[way].append((seconds, peak))
            for way, values in found.items():
                medians = [statistics.median(column) for column in zip(*values, strict=True)]
                rows.append(
                    dict(zip(COLUMNS, (loss, views, way, round(medians[0], 5), round(medians[1], 1)), strict=True))
                )
                print("| " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
    if arguments.save:
        save_runs(rows, arguments.save)


if __name__ == "__main__":
    main()
