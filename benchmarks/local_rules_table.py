"""Table and figure of results/local_rules.csv: what every learning rule reaches, for how much arithmetic."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chosen_rates import ROOT, accuracies, difference, mean, over_seeds, rate_of
from local_rules import CURVE, EQUAL, MACS, is_equal_macs, rule_rate
from pages import with_tables

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Run
from dtp_lightning.report.statistics import Interval
from dtp_lightning.report.tables import MINUS, NONE, Entry, Table
from dtp_lightning.runs.reader import read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = ROOT / "docs" / "learners" / "comparison.md"
FIGURE = ROOT / "docs" / "images" / "local_rules.png"
FAMILIES = {
    "error comes down the network": (
        *("bp", "dtp", "dtp_mirror", "ldrl", "dtp_autoencoder", "drl", "tp", "sdtp", "fwdtp"),
        *("fa", "urf", "sign_symmetric", "kolen_pollack", "dual_propagation"),
    ),
    "error comes straight from the embedding": ("dfa", "ddtp_linear"),
    "each stage has an objective": ("local_blocks", "loco", "gll", "rll", "lpl", "clapp_feedback"),
    "no objective above a stage": ("scff", "forward_forward", "softhebb"),
}
SHOWN = ("bp", "dtp", "fa", "dfa", "local_blocks", "lpl", "clapp_feedback", "softhebb")
"""Whose curves are drawn: one or two of each family."""


@dataclass
class Rule:
    """The runs of a rule at its chosen rate.

    Attributes:
        name, rate: which.
        equal_epochs, equal_macs: seed -> run.
    """

    name: str
    rate: str
    equal_epochs: dict[int, Run] = field(default_factory=dict)
    equal_macs: dict[int, Run] = field(default_factory=dict)

    @property
    def macs(self) -> float:
        """Multiply-accumulates of a training step for an image, both views."""
        return next(iter(self.equal_epochs.values()))[MACS]

    @property
    def model(self) -> str:
        """The network, with the channels where they are its own."""
        run = next(iter(self.equal_epochs.values()))
        own = [word.partition("=")[2] for word in run["settings"].split() if word.startswith("model.channels=")]
        return " ".join([run["model"], *own])


def rules_of(path: Path, first_seed: int = 0) -> list[Rule]:
    """The rules of a results file, best mean first.

    Raises:
        DataError: a rule has no run at the first seed, or there is none of bp.
    """
    runs = read_runs([path])
    if not any(run["learner"] == "bp" for run in runs):
        raise DataError(f"{path} has no run of bp: python benchmarks/local_rules.py run FOLDER --only bp, then save")
    found = []
    for name in dict.fromkeys(run["learner"] for run in runs):
        own = [run for run in runs if run["learner"] == name]
        rate = rule_rate(runs, name, first_seed)
        rule = Rule(name, rate)
        for run in own:
            if rate_of(run) == rate:
                (rule.equal_macs if is_equal_macs(run) else rule.equal_epochs)[run["seed"]] = run
        found.append(rule)
    return sorted(found, key=lambda rule: -mean(accuracies(rule.equal_epochs)))


def table(path: Path) -> str:
    """Markdown: a row for each rule; differences are paired by seed."""
    rules = rules_of(path)
    bp = next(rule for rule in rules if rule.name == "bp")
    heads = ["`learner=`", "network", "rate", "n", "test", f"{MINUS} untrained", f"{MINUS} bp", "MACs / bp"]
    made = Table("local_rules", [*heads, "test at bp's MACs", f"{MINUS} bp then"])
    for rule in rules:
        trained, ratio = accuracies(rule.equal_epochs), rule.macs / bp.macs
        beside = accuracies(bp.equal_epochs) if rule.model == bp.model and rule is not bp else {}
        untrained, again = accuracies(rule.equal_epochs, untrained=True), accuracies(rule.equal_macs)
        entries = [f"`{rule.name}`", rule.model, rule.rate, str(len(trained)), over_seeds(trained)]
        entries += [difference(trained, untrained), difference(trained, beside), f"{ratio:.2f}"]
        entries += [over_seeds(again) if again else NONE, difference(again, beside)]
        made.rows.append([Entry(entry) for entry in entries])
    return made.markdown()


def filled(text: str, path: Path) -> str:
    """The page with its table written anew."""
    return with_tables(text, lambda name: table(path))


def draw(path: Path, curves: Path, to: Path = FIGURE) -> None:
    """Accuracy against arithmetic of every rule, and how some of them come there."""
    import matplotlib
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import save
    from dtp_lightning.report.drawing import STYLE

    rules = rules_of(path)
    with matplotlib.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_cost(left, rules)
        _draw_curves(right, rules, curves)
        save(figure, to)


def _colours() -> dict[str, str]:
    from dtp_lightning.report.drawing import COLOURS

    return {name: COLOURS[number] for number, members in enumerate(FAMILIES.values()) for name in members}


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels of these values: as near as can be, in the same order, ``gap`` apart.

    >>> spread([1.0, 5.0, 1.0], 2.0)
    [0.0, 5.0, 2.0]
    """
    groups: list[list[int]] = []
    places = list(values)

    def middle(group: list[int]) -> float:
        return sum(values[i] for i in group) / len(group)

    for i in sorted(range(len(values)), key=lambda i: values[i]):
        groups.append([i])
        while len(groups) > 1:
            below, above = groups[-2:]
            if middle(above) - middle(below) >= gap * (len(above) + len(below)) / 2:
                break
            groups[-2:] = [below + above]
    for group in groups:
        for number, i in enumerate(group):
            places[i] = middle(group) + gap * (number - (len(group) - 1) / 2)
    return places


def _draw_cost(axes: Axes, rules: list[Rule]) -> None:
    colours, labelled = _colours(), set()
    families = {name: family for family, members in FAMILIES.items() for name in members}
    bp = next(rule for rule in rules if rule.name == "bp")
    columns: dict[float, list[tuple[float, float, str]]] = defaultdict(list)
    for rule in rules:
        interval = Interval.of(list(accuracies(rule.equal_epochs).values()))
        x, colour, family = rule.macs / bp.macs, colours[rule.name], families[rule.name]
        if not math.isnan(interval.low):
            axes.plot([x, x], [interval.low, interval.high], color=colour, lw=1.2, alpha=0.5)
        axes.plot(x, interval.mean, "o", color=colour, ms=6, label=None if family in labelled else family)
        labelled.add(family)
        # names stand in columns: right of the dearer rules, left of the others, and of the cheapest
        column = 2.1 if x > 1 + EQUAL else 0.62 if x > 0.5 else 0.28
        columns[column].append((interval.mean, x, rule.name))
    low, high = axes.get_ylim()
    for column, points in columns.items():
        side = "left" if column > 2 else "right"
        for (y, x, name), at in zip(points, spread([y for y, *_ in points], (high - low) / 30), strict=True):
            axes.plot([x, column], [y, at], color=colours[name], lw=0.6, alpha=0.6)
            axes.annotate(name, (column, at), fontsize=7.5, va="center", ha=side, color=colours[name])
    untrained = mean(accuracies(bp.equal_epochs, untrained=True))
    axes.axhline(untrained, color="#1b1f24", lw=1, ls=":")
    axes.annotate(
        "cnn4, untrained", (0.02, untrained), (0, 4), ("axes fraction", "data"), "offset points", fontsize=7.5
    )
    axes.set_xscale("log")
    axes.set_xlim(0.2, 3.2)
    axes.set_xticks([0.3, 0.5, 0.7, 1, 1.5, 2], ["0.3", "0.5", "0.7", "1", "1.5", "2"])
    axes.minorticks_off()
    axes.set_xlabel("multiply-accumulates of a step / backprop's")
    axes.set_ylabel("linear probe, test accuracy, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)


def _draw_curves(axes: Axes, rules: list[Rule], curves: Path) -> None:
    from dtp_lightning.report.drawing import DASHES

    chosen = {rule.name: {run["settings"] for run in rule.equal_epochs.values()} for rule in rules}
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with curves.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["settings"] in chosen.get(row["learner"], ()):
                points[row["learner"]][int(row["images"])].append(100 * float(row[CURVE]))
    colours, ends = _colours(), {}
    used: dict[str, int] = defaultdict(int)
    for name in (name for name in SHOWN if name in points):
        images = sorted(points[name])
        values = [sum(points[name][n]) / len(points[name][n]) for n in images]
        dash = DASHES[used[colours[name]]]
        used[colours[name]] += 1
        axes.plot([n / 1000 for n in images], values, ls=dash, marker=".", color=colours[name])
        ends[name] = images[-1] / 1000, values[-1]
    low, high = axes.get_ylim()
    for (name, (x, _)), at in zip(ends.items(), spread([y for _, y in ends.values()], (high - low) / 28), strict=True):
        axes.annotate(name, (x, at), (6, 0), textcoords="offset points", fontsize=8, va="center", color=colours[name])
    axes.margins(x=0.22)
    axes.set_xlim(left=5)
    axes.set_xlabel("thousands of images seen")
    axes.set_ylabel("k-NN, validation accuracy, %")
