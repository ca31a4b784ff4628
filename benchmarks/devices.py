"""What a second device sends and what it saves, for every learning rule: two processes here, by gloo.

    OMP_NUM_THREADS=1 python benchmarks/devices.py [--save results/devices.json] [--page docs/guides/devices.md]

Three kinds of step alternate: one process with the whole batch while the other waits, both with half of it each
(strong scaling), both with a whole one each (weak scaling). Bytes are counted where torch.distributed is called, and
are exact. Times are medians of ratios within a round, by the clock and of the processor: two processes on fewer than
two free cores do not show in the second what they show in the first.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import CONF, learner_of
from pages import rewrite, with_tables
from torch import Tensor

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.learners import Learner
from dtp_lightning.runtime import collectives

IMAGES = ImageSpec(1, 28, 28, mirror_safe=False)
sent: Counter[str] = Counter()


def counted(name: str) -> None:
    """Have torch.distributed's function count the bytes that this process hands to it."""
    function: Callable[..., object] = getattr(dist, name)

    def counting(*args: Any, **kwargs: Any) -> object:
        tensor: Tensor = args[1] if name == "all_gather" else args[0]
        sent[name] += tensor.numel() * tensor.element_size()
        return function(*args, **kwargs)

    setattr(dist, name, counting)


def seconds(learner: Learner, views: Tensor) -> tuple[float, float]:
    """Of a step, by the clock and of the processor; mean over the stages that a layer-wise rule trains in turn."""
    variants = learner.step_variants()
    clock, used = time.perf_counter(), time.process_time()
    for variant in variants:
        variant.step(views, measure=False)
    return (time.perf_counter() - clock) / len(variants), (time.process_time() - used) / len(variants)


def measure(name: str, batch: int, repeats: int) -> dict[str, Any]:
    """One rule's row, in both processes; that of the first counts."""
    torch.manual_seed(0)
    alone, shared = (learner_of(name, IMAGES, []) for _ in range(2))
    for learner in (alone, shared):
        learner.skip_first_phase()
    views = torch.rand(2, batch, IMAGES.channels, IMAGES.height, IMAGES.width)
    ratios: dict[str, list[float]] = {f"{kind} {of}": [] for kind in ("strong", "weak") for of in ("clock", "cpu")}
    for k in range(repeats + 1):  # the first warms up
        one = (1.0, 1.0)
        if dist.get_rank() == 0:
            with collectives.single_process():
                one = seconds(alone, views)
        dist.barrier()
        for kind, share in (("strong", views[:, : batch // 2]), ("weak", views)):
            sent.clear()
            both = seconds(shared, share)
            dist.barrier()
            for of, ours, whole in zip(("clock", "cpu"), both, one, strict=True):
                ratios[f"{kind} {of}"] += [ours / whole] if k else []
    parts = len(shared.step_variants())
    weights = sum(p.numel() * p.element_size() for p in shared.model.parameters())
    return {
        "learner": name, "batch": batch, "weights_bytes": weights,
        "bytes": sum(sent.values()) / parts, **{part: count / parts for part, count in sorted(sent.items())},
        **{kind: round(statistics.median(values), 3) for kind, values in ratios.items()},
    }  # fmt: skip


def worker(rank: int, port: int, arguments: argparse.Namespace) -> None:
    """One of the two processes; the first prints and saves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(minutes=30), 2, rank)
    for name in ("all_gather", "all_reduce", "broadcast"):
        counted(name)
    rows = []
    for name in arguments.learners:
        rows.append(measure(name, arguments.batch, arguments.repeats))
        if rank == 0:
            print(json.dumps(rows[-1]), flush=True)
    dist.destroy_process_group()
    if rank == 0 and arguments.save:
        arguments.save.write_text(json.dumps(rows, indent=1) + "\n")
    if rank == 0 and arguments.page:
        rewrite(arguments.page, lambda text: with_tables(text, lambda _: table(rows)))


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = [
        "| | KiB a step | of them activations | half the batch each | a whole batch each |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        strong, weak = (f"{row[f'{kind} cpu']:.2f} ({row[f'{kind} clock']:.2f})" for kind in ("strong", "weak"))
        gathered = row.get("all_gather", 0) / 1024
        lines.append(f"| `{row['learner']}` | {row['bytes'] / 1024:.1f} | {gathered:.1f} | {strong} | {weak} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print a JSON line for each rule, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=sorted(p.stem for p in (CONF / "learner").glob("*.yaml")))
    parser.add_argument("--batch", type=int, default=100, help="images of the whole batch; two views each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--page", type=Path, help="has the table's place in it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, parser.parse_args()), nprocs=2)


if __name__ == "__main__":
    main()
