"""Runs of which each kind tried several rates at the first seed, the best of them by validation at others."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pages import said

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Run
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.report.tables import NONE
from dtp_lightning.runs.reader import read_runs

ROOT = Path(__file__).resolve().parents[1]
RATE = "learner.forward_optimizer.lr"
PROBE = "few_labels/1000"
IDENTITY = ("learner", "loss", "settings", "seed")


def identity(row: Mapping[str, object], keys: Sequence[str] = IDENTITY) -> tuple[str, ...]:
    """What two runs of the same thing have in common."""
    return tuple(str(row[key]) for key in keys)


def known_runs(saved: Path, folder: Path) -> list[Run]:
    """The finished runs of a folder, and the rows of a results file that it lacks, in a fixed order."""
    found = {identity(run): run for run in read_runs([saved, folder])}
    return [found[name] for name in sorted(found)]


def rate_of(run: Run) -> str:
    """The rate that the run's command line set."""
    return next(word.partition("=")[2] for word in run["settings"].split() if word.startswith(f"{RATE}="))


def best_rate(runs: Sequence[Run], seed: int, **kind: str) -> str:
    """The rate of the run of this kind (column -> value) and seed with the best accuracy on validation.

    Raises:
        DataError: there is no such run.
    """
    tried = [run for run in runs if run["seed"] == seed and all(run[name] == value for name, value in kind.items())]
    if not tried:
        raise DataError(f"no finished run of {', '.join(kind.values())} at seed {seed}")
    return rate_of(max(tried, key=lambda run: run[f"{PROBE}/val_acc"]))


def run_sweep(name: str, folder: Path, words: Sequence[str]) -> None:
    """``dtp sweep NAME`` into this folder; one that fails is no reason to leave those after it."""
    command = [sys.executable, "-m", "dtp_lightning", "sweep", name, f"hydra.sweep.dir={folder.absolute()}", *words]
    print(f"$ {' '.join(command[1:])}", flush=True)
    subprocess.run(command, cwd=ROOT, check=False)


def parsed(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Options and overrides of the command line; these apart, since an option of many values would take them."""
    words = [word for word in sys.argv[1:] if "=" in word]
    return parser.parse_args([word for word in sys.argv[1:] if "=" not in word]), words


def accuracies(runs: Mapping[int, Run], *, untrained: bool = False) -> dict[int, float]:
    """Seed -> test accuracy in percent."""
    key = f"{'random_encoder/' if untrained else ''}{PROBE}/test_acc"
    return {seed: 100 * run[key] for seed, run in runs.items()}


def mean(values: Mapping[int, float]) -> float:
    """Over seeds."""
    return sum(values.values()) / len(values)


def over_seeds(values: Mapping[int, float]) -> str:
    """Mean and 95 % interval."""
    return said(Interval.of(list(values.values())))


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """Of seeds that both have, with its 95 % interval."""
    pair = Paired.of(a, b)
    if pair is None:
        return NONE
    d = pair.difference
    return f"{d.mean:+.1f}" + ("" if math.isnan(d.low) else f" [{d.low:+.1f}, {d.high:+.1f}]")
