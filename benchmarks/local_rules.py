"""Every learning rule under one objective, network, probe and budget: the runs, and results/local_rules.csv.

    python benchmarks/local_rules.py run FOLDER [--seeds 0 1 2] [--only bp dtp] [dataset.root=~/datasets]
    python benchmarks/local_rules.py equal-macs FOLDER # again, on as many images as bp's arithmetic pays for
    python benchmarks/local_rules.py save FOLDER       # results/local_rules.csv and local_rules_curves.csv
    python benchmarks/local_rules.py                   # writes docs/learners/comparison.md and its figure

``run`` takes what sweeps/local_rules.yaml says, in which each rule tries three rates at the first seed; the best of
them by validation runs on the others. What is finished in FOLDER is not run again, and rows of results/local_rules.csv
that FOLDER lacks stay: rules can be run on several days and machines.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from chosen_rates import RATE, ROOT, best_rate, identity, known_runs, parsed, run_sweep
from pages import mistakes_in_one_line, rewrite

from dtp_lightning.report.cells import Run
from dtp_lightning.runs.reader import read_runs, save_runs

RESULTS = ROOT / "results" / "local_rules.csv"
CURVES = ROOT / "results" / "local_rules_curves.csv"
SWEEP = yaml.safe_load((ROOT / "sweeps" / "local_rules.yaml").read_text())
CURVE = "val/knn_acc"
CURVE_OF = ("learner", "settings", "seed")
COLUMNS = (*CURVE_OF, "epoch", "images", "macs", CURVE)
MACS = "cost/macs_per_image"
SHARE = "trainer.limit_train_batches"
EQUAL = 0.05
"""A rule whose step costs bp's within this share has spent equal arithmetic after equal epochs."""
CHOSEN = SWEEP["hydra"]["sweeper"]["params"]
RULES: dict[str, tuple[str, ...]] = {
    **{name: () for name in CHOSEN["learner"].split(",")},
    "gll": ("++learner.epochs_per_stage=1",),
    "scff": ("model=scff", "model.channels=[12,48,192]"),
    "forward_forward": ("model=ff", "model.channels=[16,32,64]"),
    "softhebb": ("model=softhebb", "model.channels=[12,48,192]"),
}
"""Rule -> what it needs beside its name: a number of its own, or its paper's network, at about bp's cost."""
OWN_RATES = {"softhebb": ("0.01", "0.03", "0.1")}  # of plain SGD: the others have Adam


def rule_rate(runs: Sequence[Run], rule: str, seed: int) -> str:
    """The rule's best rate at this seed and equal epochs."""
    return best_rate([run for run in runs if not is_equal_macs(run)], seed, learner=rule)


def is_equal_macs(run: Run) -> bool:
    """Whether its number of images was made to fit bp's arithmetic."""
    return any(word.startswith(f"{SHARE}=") for word in run["settings"].split())


def sweep(folder: Path, rates: Mapping[str, Sequence[str]], seeds: Sequence[int], words: Sequence[str]) -> None:
    """Runs of these rules; those with equal rates share a process, in which an untrained network is probed once.

    Args:
        folder: of the sweep.
        rates: rule -> its rates.
        seeds: of each.
        words: further overrides for all.
    """
    groups: dict[tuple[Sequence[str], ...], list[str]] = {}
    for rule, own in rates.items():
        groups.setdefault((tuple(own), RULES[rule]), []).append(rule)
    for (own, extra), rules in groups.items():
        chosen = (f"learner={','.join(rules)}", *extra, f"{RATE}={','.join(own)}", f"seed={','.join(map(str, seeds))}")
        run_sweep("local_rules", folder, [*chosen, *words])


def run_rules(folder: Path, rules: Sequence[str], seeds: Sequence[int], words: Sequence[str]) -> None:
    """All rates of each rule at the first seed, then the best of them at the others."""
    sweep(folder, {rule: OWN_RATES.get(rule, CHOSEN[RATE].split(",")) for rule in rules}, seeds[:1], words)
    if len(seeds) > 1:
        runs = known_runs(RESULTS, folder)
        sweep(folder, {rule: (rule_rate(runs, rule, seeds[0]),) for rule in rules}, seeds[1:], words)


def run_equal_macs(folder: Path, rules: Sequence[str], seeds: Sequence[int], words: Sequence[str]) -> None:
    """The best rate of each rule on so many images that it spends what bp spends; bp's own rules need no second run."""
    runs = known_runs(RESULTS, folder)
    reference = next(run[MACS] for run in runs if run["learner"] == "bp")
    for rule in rules:
        ratio = next(run[MACS] for run in runs if run["learner"] == rule) / reference
        if abs(ratio - 1) > EQUAL:
            rate = rule_rate(runs, rule, seeds[0])
            sweep(
                folder,
                {rule: (rate,)},
                seeds,
                [f"{SHARE}={SWEEP['trainer']['limit_train_batches'] / ratio:.4f}", *words],
            )


def curve_of(run: Run) -> list[dict[str, object]]:
    """k-NN accuracy after so many images and so much arithmetic: rows of results/local_rules_curves.csv."""
    with (Path(run["folder"]) / "metrics.csv").open(newline="") as metrics:
        measured = [row for row in csv.DictReader(metrics) if row[CURVE]]
    rows = []
    for row in measured:
        images = SWEEP["batch_size"] * (int(row["step"]) + 1)
        values = (run["learner"], run["settings"], run["seed"], int(row["epoch"]) + 1, images)
        rows.append(dict(zip(COLUMNS, (*values, round(images * run[MACS]), row[CURVE]), strict=True)))
    return rows


def save(folder: Path) -> None:
    """Summaries and curves of the folder's runs, beside what is saved of others."""
    runs = known_runs(RESULTS, folder)
    with CURVES.open(newline="") as file:
        curves = list(csv.DictReader(file))
    new = {identity(run, CURVE_OF): curve_of(run) for run in read_runs([folder])}
    rows = [row for row in curves if identity(row, CURVE_OF) not in new] + [row for own in new.values() for row in own]
    save_runs(runs, RESULTS)
    with CURVES.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (identity(row, CURVE_OF), int(str(row["epoch"])))))


def main() -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    for name in ("run", "equal-macs", "save"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name != "save":
            command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
            command.add_argument("--only", nargs="+", choices=list(RULES), default=list(RULES))
    arguments, words = parsed(parser)
    with mistakes_in_one_line():
        if arguments.command == "save":
            save(arguments.folder)
        elif arguments.command:
            runner = run_rules if arguments.command == "run" else run_equal_macs
            runner(arguments.folder, arguments.only, arguments.seeds, words)
        else:
            from local_rules_table import PAGE, draw, filled

            rewrite(PAGE, lambda text: filled(text, RESULTS))
            draw(RESULTS, CURVES)


if __name__ == "__main__":
    main()
