"""Every objective by backprop and by DTP, each pair at its own best rate: results/objectives.csv.

    python benchmarks/objectives.py run FOLDER [--seeds 0 1 2] [dataset.root=~/datasets]
    python benchmarks/objectives.py save FOLDER   # results/objectives.csv
    python benchmarks/objectives.py               # writes docs/losses/comparison.md and its figure

``run`` takes what sweeps/objectives.yaml says, in which each pair tries three rates at the first seed; the best of them
by validation runs on the others. What is finished in FOLDER is not run again. The rows of the hinge are those of the
comparison of rules, which has the same network, probe and budget.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from chosen_rates import (
    RATE,
    ROOT,
    accuracies,
    best_rate,
    difference,
    known_runs,
    mean,
    over_seeds,
    parsed,
    rate_of,
    run_sweep,
)
from claims import BELOW, LEVEL, reading
from local_rules import RESULTS as RULES
from local_rules import is_equal_macs
from pages import mistakes_in_one_line, rewrite, with_tables

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Run
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.report.tables import MINUS, Entry, Table
from dtp_lightning.runs.reader import read_runs, save_runs

RESULTS = ROOT / "results" / "objectives.csv"
PAGE = ROOT / "docs" / "losses" / "comparison.md"
FIGURE = ROOT / "docs" / "images" / "objectives.png"
PARAMS = yaml.safe_load((ROOT / "sweeps" / "objectives.yaml").read_text())["hydra"]["sweeper"]["params"]
LEARNERS = tuple(PARAMS["learner"].split(","))
OBJECTIVES: dict[str, tuple[str, ...]] = {
    **{name: (f"loss={name}",) for name in PARAMS["loss"].split(",")},
    "simclr loss.temperature=0.1": ("loss=simclr", "loss.temperature=0.1"),
}
"""Name -> its words on a command line."""
USUAL = "simclr loss.temperature=0.1"
"""What others are compared with: the temperature of the 2022 paper; the option's is that of the thesis' DTP trainer."""
VERDICT: dict[str, tuple[str, ...]] = {"hinge": (LEVEL, LEVEL), "l1_margin": (LEVEL, BELOW)}
"""Simple objective -> where the interval of its difference to the usual one lies, by each rule."""
SUPERVISED = ("cross_entropy",)


@dataclass
class Pair:
    """The runs of an objective and a rule at their chosen rate: seed -> run."""

    rate: str
    runs: dict[int, Run]

    @property
    def trained(self) -> dict[int, float]:
        """Seed -> test accuracy."""
        return accuracies(self.runs)

    @property
    def untrained(self) -> dict[int, float]:
        """Seed -> that of the network before training."""
        return accuracies(self.runs, untrained=True)


def named(runs: Sequence[Run]) -> list[dict]:
    """The runs with the name of their objective: loss, and what was set of it."""
    words = [[word for word in run["settings"].split() if word.startswith("loss.")] for run in runs]
    return [{**run, "objective": " ".join([run["loss"], *own])} for run, own in zip(runs, words, strict=True)]


def run_objectives(folder: Path, seeds: Sequence[int], words: Sequence[str]) -> None:
    """All rates at the first seed, then the best of each pair at the others."""
    plain = (f"loss={PARAMS['loss']}",)
    for own in (plain, *(own for own in OBJECTIVES.values() if len(own) > 1)):
        run_sweep("objectives", folder, [*own, f"seed={seeds[0]}", *words])
    runs = named(known_runs(RESULTS, folder))
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, (loss, *more) in OBJECTIVES.items():
        for learner in LEARNERS:
            rate = best_rate(runs, seeds[0], objective=name, learner=learner)
            alike[rate, learner, *more].append(loss.partition("=")[2])
    others = ",".join(map(str, seeds[1:]))
    for (rate, learner, *more), losses in alike.items() if others else ():
        chosen = (f"loss={','.join(losses)}", *more, f"learner={learner}", f"{RATE}={rate}", f"seed={others}")
        run_sweep("objectives", folder, [*chosen, *words])


def pairs_of(path: Path, rules: Path, first_seed: int = 0) -> dict[str, dict[str, Pair]]:
    """Objective -> rule -> its runs; the best mean of backprop first.

    Args:
        path: results of this comparison.
        rules: those of the comparison of rules, for the hinge.
        first_seed: at which rates were tried.
    """
    of_rules = [run for run in read_runs([rules]) if run["learner"] in LEARNERS and not is_equal_macs(run)]
    runs = named([*read_runs([path]), *of_rules])
    found: dict[str, dict[str, Pair]] = {}
    for name in dict.fromkeys(run["objective"] for run in runs):
        for learner in LEARNERS:
            rate = best_rate(runs, first_seed, objective=name, learner=learner)
            own = [run for run in runs if (run["objective"], run["learner"], rate_of(run)) == (name, learner, rate)]
            found.setdefault(name, {})[learner] = Pair(rate, {run["seed"]: run for run in own})
    return dict(sorted(found.items(), key=lambda item: -mean(item[1][LEARNERS[0]].trained)))


def table(path: Path = RESULTS, rules: Path = RULES) -> str:
    """Markdown: a row for each objective; differences are paired by seed."""
    pairs = pairs_of(path, rules)
    bp, dtp = LEARNERS
    beside = (f"{MINUS} untrained", f"{MINUS} SimCLR")
    heads = ["`loss=`", "n", "rate, bp", "bp", *beside, "rate, dtp", "dtp", *beside, f"dtp {MINUS} bp"]
    made = Table("objectives", heads)
    for loss, of in pairs.items():
        entries = [f"`{loss}`" + (" (labels)" if loss in SUPERVISED else ""), str(len(of[bp].runs))]
        for learner in (bp, dtp):
            own, usual = of[learner], pairs[USUAL][learner].trained if loss != USUAL else {}
            entries += [own.rate, over_seeds(own.trained), difference(own.trained, own.untrained)]
            entries.append(difference(own.trained, usual))
        made.rows.append([Entry(entry) for entry in [*entries, difference(of[dtp].trained, of[bp].trained)]])
    return made.markdown()


def judged_table(results: Path) -> str:
    """:func:`table`, as long as it says what the verdict of docs/reproduction.md was written for.

    Raises:
        DataError: a simple objective is now elsewhere beside the usual one.
    """
    path, rules = results / RESULTS.name, results / RULES.name
    pairs = pairs_of(path, rules)
    now = {}
    for loss in VERDICT:
        found = [Paired.of(of.trained, pairs[USUAL][name].trained) for name, of in pairs[loss].items()]
        now[loss] = tuple(reading(pair) for pair in found if pair)
    if now != VERDICT:
        raise DataError(f"{path} reads {now}: read claim 3 in docs/reproduction.md again, then mend VERDICT")
    return table(path, rules)


def filled(text: str, path: Path = RESULTS, rules: Path = RULES) -> str:
    """The page with its table written anew."""
    return with_tables(text, lambda name: table(path, rules))


def draw(path: Path = RESULTS, rules: Path = RULES, to: Path = FIGURE) -> None:
    """Accuracy of every objective by both rules, with intervals, and of the untrained network."""
    import matplotlib
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import save
    from dtp_lightning.report.drawing import COLOURS, STYLE

    pairs = pairs_of(path, rules)
    with matplotlib.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(7, 0.42 * len(pairs) + 1.2), layout="constrained")
        axes = figure.subplots()
        for row, of in enumerate(pairs.values()):
            for number, learner in enumerate(LEARNERS):
                interval = Interval.of(list(of[learner].trained.values()))
                y, colour = row + 0.24 * (number - 0.5), COLOURS[number]
                if not math.isnan(interval.low):
                    axes.plot([interval.low, interval.high], [y, y], color=colour, lw=1.5, alpha=0.5)
                axes.plot(interval.mean, y, "os"[number], color=colour, ms=6, label=learner if row == 0 else None)
        untrained = Interval.of(list(pairs[USUAL][LEARNERS[0]].untrained.values()))
        axes.axvline(untrained.mean, color="#1b1f24", lw=1, ls=":", label="untrained")
        axes.set_yticks(range(len(pairs)), [_lines(name) for name in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xlabel("linear probe, test accuracy, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        save(figure, to)


def _lines(name: str) -> str:
    loss, _, more = name.partition(" ")
    more = "labels" if name in SUPERVISED else more.removeprefix("loss.").replace("=", " ")
    return f"{loss}\n({more})" if more else loss


def main() -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    for name in ("run", "save"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name == "run":
            command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments, words = parsed(parser)
    with mistakes_in_one_line():
        if arguments.command == "run":
            run_objectives(arguments.folder, arguments.seeds, words)
        elif arguments.command:
            save_runs(known_runs(RESULTS, arguments.folder), RESULTS)
        else:
            rewrite(PAGE, filled)
            draw()


if __name__ == "__main__":
    main()
