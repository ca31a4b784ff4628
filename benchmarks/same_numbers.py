"""Does the code still compute what a commit computed? ``python benchmarks/same_numbers.py REV [--keep FOLDER]``.

Short trainings run by that commit's train.py and by the working tree's, one thread each. Every figure of
summary.json, every row of metrics.csv and everything in the checkpoint is compared to the last bit. One line a run;
exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
JOBS = (
    ("loss=hinge", "learner=bp,dtp,dtp_thesis,ldrl,sdtp,urf,gll,ddtp_linear"),
    ("loss=simclr", "learner=dtp"),
)
SHORT = (
    "dataset=mnist5k",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=6",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "batch_size=50",
    "evaluation=[linear,knn]",
    "logger=none",
    "hydra.sweep.subdir=${hydra:runtime.choices.learner}_${hydra:runtime.choices.loss}",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MEASURED = ("fit/", "cost/seconds", "git_commit", "versions")
"""Figures of this machine and this hour: how a name in summary.json begins."""
COMPARED = ("state_dict", "optimizer_states", "random", "global_step", "epoch")
"""Parts of a checkpoint that numbers depend on; the others hold times, and the configuration."""


def train(tree: Path, folder: Path) -> None:
    """All runs by the train.py of one tree; a run's folder is named ``<learner>_<loss>``."""
    for words in JOBS:
        command = [sys.executable, str(tree / "train.py"), "-m", *words, *SHORT, f"hydra.sweep.dir={folder}"]
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {' '.join(words)} failed in {tree}:\n{done.stdout}\n{done.stderr}")


def train_revision(revision: str, folder: Path) -> None:
    """The same by a commit's code, checked out beside this one for the time being."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run([*git, "add", "--detach", str(tree), revision], capture_output=True, text=True)
        if added.returncode:
            sys.exit(f"error: {added.stderr.strip().splitlines()[-1]}")
        try:
            train(tree, folder)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


def contents(run: Path) -> dict[str, Any]:
    """Everything that must be the same, by where it stands."""
    summary = json.loads((run / "summary.json").read_text())
    figures = {key: value for key, value in summary.items() if not key.startswith(MEASURED)}
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {"summary": figures, "metrics": rows, **{part: checkpoint[part] for part in COMPARED}}


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Where two values are not the same to the last bit."""
    if type(ours) is not type(theirs):
        yield where
    elif isinstance(ours, dict):
        for key in {**ours, **theirs}:
            yield from differences(ours.get(key, KeyError), theirs.get(key, KeyError), f"{where}.{key}".lstrip("."))
    elif isinstance(ours, list | tuple):
        for i, (a, b) in enumerate(zip_longest(ours, theirs, fillvalue=IndexError)):
            yield from differences(a, b, f"{where}[{i}]")
    elif isinstance(ours, torch.Tensor):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape or not torch.equal(bits(ours), bits(theirs)):
            yield where
    elif ours != theirs:
        yield where


def bits(x: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes: NaN equals itself, and -0 is not 0."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def count(value: Any) -> int:
    """Numbers in nested values."""
    if isinstance(value, dict):
        return sum(map(count, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(count, value))
    return value.numel() if isinstance(value, torch.Tensor) else 1


def compare(theirs: Path, ours: Path) -> bool:
    """Print a line a run; whether all are the same."""
    runs = sorted({path.parent.name for folder in (theirs, ours) for path in folder.glob("*/summary.json")})
    same = True
    for name in runs:
        before, after = contents(theirs / name), contents(ours / name)
        found = list(differences(after, before))
        same = same and not found
        print(f"{name}: " + (f"DIFFERS in {', '.join(found[:5])}" if found else f"same, {count(before):,} values"))
        if len(found) > 5:
            print(f"  and {len(found) - 5} other places")
    return same and bool(runs)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="a commit, to be compared with the working tree")
    parser.add_argument(
        "--keep", type=Path, help="folder for the commit's runs; if it has some, they are not run again"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        theirs = arguments.keep.resolve() if arguments.keep else Path(temporary) / "theirs"
        ours = Path(temporary) / "ours"
        if not any(theirs.glob("*/summary.json")):
            train_revision(arguments.revision, theirs)
        train(ROOT, ours)
        sys.exit(0 if compare(theirs, ours) else 1)


if __name__ == "__main__":
    main()
