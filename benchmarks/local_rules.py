"""Every learning rule under one objective, network, probe and budget: runs, results/local_rules.csv, table and figure.

    python benchmarks/local_rules.py run FOLDER [--seeds 0 1 2] [--only bp dtp] [dataset.root=~/datasets]
    python benchmarks/local_rules.py save FOLDER       # results/local_rules.csv and local_rules_curves.csv
    python benchmarks/local_rules.py                   # table and docs/images/local_rules.png, of these files

``run`` takes what sweeps/local_rules.yaml says, in which each rule tries three rates at the first seed; the best of them
by validation runs on the others. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Run
from dtp_lightning.runs.reader import read_runs, save_runs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "local_rules.csv"
CURVES = ROOT / "results" / "local_rules_curves.csv"
RATE = "learner.forward_optimizer.lr"
RATES = ("3e-4", "1e-3", "3e-3")
PROBE = "few_labels/1000"
CURVE = "val/knn_acc"
COMMON = (
    *("bp", "dtp", "dtp_mirror", "ldrl", "dtp_autoencoder", "ddtp_linear", "dfa", "fa", "kolen_pollack", "sign_symmetric"),
    *("dual_propagation", "local_blocks", "loco", "rll", "lpl", "clapp_feedback", "urf", "fwdtp", "sdtp", "tp", "drl"),
)
RULES: dict[str, tuple[str, ...]] = {
    **{name: () for name in COMMON},
    "gll": ("++learner.epochs_per_stage=1",),
    "scff": ("model=scff", "model.channels=[12,48,192]"),
    "forward_forward": ("model=ff", "model.channels=[16,32,64]"),
    "softhebb": ("model=softhebb", "model.channels=[12,48,192]"),
}
"""Rule -> what it needs beside its name: a number of its own, or the network that its paper asks for, at bp's order of cost."""
OWN_RATES = {"softhebb": ("0.01", "0.03", "0.1")}  # of plain SGD: the others have Adam


def rate_of(run: Run) -> str:
    """The rate that the run's command line set."""
    return next(word.partition("=")[2] for word in run["settings"].split() if word.startswith(f"{RATE}="))


def best_rate(runs: Sequence[Run], rule: str, seed: int) -> str:
    """The rate of the run of this rule and seed with the best accuracy on validation.

    Raises:
        DataError: there is no such run.
    """
    tried = [run for run in runs if run["learner"] == rule and run["seed"] == seed]
    if not tried:
        raise DataError(f"no finished run of {rule} at seed {seed}")
    return rate_of(max(tried, key=lambda run: run[f"{PROBE}/val_acc"]))


def run_rules(folder: Path, rules: Sequence[str], seeds: Sequence[int], words: Sequence[str]) -> None:
    """All rates of each rule at the first seed, then the best of them at the others; a rule that fails is passed over."""
    for number, seed in enumerate(seeds):
        for rule in rules:
            rates = OWN_RATES.get(rule, RATES)
            if number:
                rates = (best_rate(read_runs([folder]), rule, seeds[0]),)
            command = [
                *(sys.executable, "-m", "dtp_lightning", "sweep", "local_rules", f"learner={rule}", *RULES[rule]),
                *(f"{RATE}={','.join(rates)}", f"seed={seed}", f"hydra.sweep.dir={folder.absolute()}", *words),
            ]
            print(f"$ {' '.join(command[1:])}", flush=True)
            subprocess.run(command, cwd=ROOT, check=False)


def save(folder: Path) -> None:
    """The summaries of the finished runs and their curves, as CSV files."""
    runs = read_runs([folder])
    save_runs(runs, RESULTS)


def main() -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--only", nargs="+", choices=list(RULES), default=list(RULES))
    saving = commands.add_parser("save")
    saving.add_argument("folder", type=Path)
    arguments, words = parser.parse_known_args()
    try:
        if arguments.command == "run":
            run_rules(arguments.folder, arguments.only, arguments.seeds, words)
        elif arguments.command == "save":
            save(arguments.folder)
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
