"""How long tables, page and the start of a sweep take where many runs lie, and how much memory.

    python benchmarks/study.py RUN [--runs 1000] [--cells 100]

Writes copies of a finished run that differ in learner, rate, seed and accuracies, and prints seconds and peak memory
of each command, with the size of the page. The best of so many accuracies means nothing: they are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

LEARNERS = ("bp", "dtp", "dtp_mirror", "kolen_pollack", "fa", "dfa", "sdtp", "tp", "ldrl", "rll")


def write_study(run: Path, folder: Path, runs: int, cells: int, *, rows: int = 200) -> None:
    """Copies of a run, as a sweep over learners, rates and seeds leaves them.

    Args:
        run: a finished run of one epoch.
        folder: to write to.
        runs: how many.
        cells: of how many kinds; the seeds of a kind are ``runs / cells``.
        rows: of each metrics.csv: those of the run again and again.
    """
    draw = random.Random(0)
    summary = json.loads((run / "summary.json").read_text())
    config = (run / "config.yaml").read_text()
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    step = header.split(",").index("step")
    repeated = [header]
    for k in range(rows):
        row = lines[k % len(lines)].split(",")
        row[step] = str(5 * k)
        repeated.append(",".join(row))
    metrics = "\n".join(repeated) + "\n"
    for number in range(runs):
        cell, seed = number % cells, number // cells
        learner, rate = LEARNERS[cell % len(LEARNERS)], f"{1e-4 * (1 + cell // len(LEARNERS)):.4g}"
        job = folder / f"learner={learner},learner.forward_optimizer.lr={rate},seed={seed}"
        (job / ".hydra").mkdir(parents=True)
        words = (f"learner={learner}", f"learner.forward_optimizer.lr={rate}", f"seed={seed}")
        (job / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
        own = config.replace("lr: 0.0005", f"lr: {rate}").replace("seed: 0", f"seed: {seed}", 1)
        (job / "config.yaml").write_text(re.sub(r"learners\.TargetPropagation", f"learners.{learner}", own))
        told = {k: v + draw.gauss(0, 0.01) if k.endswith("_acc") else v for k, v in summary.items() if k != "warnings"}
        (job / "summary.json").write_text(json.dumps(told | {"learner": learner, "seed": seed}))
        (job / "metrics.csv").write_text(metrics)


def measured(command: Sequence[str], folder: Path, until: str | None = None) -> tuple[float, float, float, str]:
    """Seconds by the clock and of the processor, peak MiB, and what it printed; ended at a line with ``until``."""
    begun, said = time.perf_counter(), []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if until and until in line:
                process.kill()
                break
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    used = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - begun, used, usage.ru_maxrss / 1024, "".join(said)


def main() -> None:
    """Write the runs, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of one epoch, with callbacks=[alignment,online_knn]")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="write the runs and the page here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        folder = place / "multirun" / "smoke"
        if not folder.exists():
            write_study(arguments.run, folder, arguments.runs, arguments.cells)
        dtp = [sys.executable, "-m", "dtp_lightning"]
        commands = {
            "dtp report": ([*dtp, "report", str(folder)], None),
            "dtp report --html": ([*dtp, "report", str(folder), "--html", str(place / "page.html")], None),
            "dtp sweep, until it begins": ([*dtp, "sweep", "smoke", "seed=5,6"], "jobs in"),
        }
        print(f"{arguments.runs} runs, {arguments.cells} cells\n")
        print("| command | seconds | of the processor | MiB |\n|---|---|---|---|")
        for name, (command, until) in commands.items():
            seconds, used, memory, said = measured(command, place, until)
            print(f"| {name} | {seconds:.1f} | {used:.1f} | {memory:.0f} |", flush=True)
            if "Traceback" in said or (until and until not in said):
                sys.exit(said)
        print(f"\npage {(place / 'page.html').stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
