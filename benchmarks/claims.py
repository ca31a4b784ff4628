"""What each verdict of docs/reproduction.md was read from, as tables; the page is made by reproduction.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Cell, Run, cells_of, random_cells
from dtp_lightning.report.statistics import Paired
from dtp_lightning.report.tables import MINUS, NONE, Entry, Table, comparison_table, mean_entry
from dtp_lightning.runs.reader import read_runs
from dtp_lightning.runs.summary import AXES

RENAMED_AFTER = (  # commits of which learner=dtp is what is dtp_autoencoder today
    "502e36f", "2f0906b", "edc085b", "b64a711", "51a95dd", "9cafbe4", "ac01909", "fcd52c9", "f4d9092", "6f9c6e1",
)  # fmt: skip
ABOVE, BELOW, LEVEL, ONE = "above 0", "below 0", "holds 0", "one seed"


@dataclass(frozen=True)
class Evidence:
    """What a claim was judged by.

    Attributes:
        file: in results/.
        probes: accuracies to show; the first one was judged by.
        vary: axis whose values are compared, or ``random``: with the untrained encoder.
        against: the value that is subtracted.
        expect: readings of the first probe's differences under which the verdict was written.
        keep: axis -> values of the runs that are shown; the others are left out.
        quantities: title -> further quantity to show.
        ignore: axis in which two compared cells may differ.
    """

    file: str
    probes: tuple[str, ...]
    vary: str
    against: str
    expect: tuple[str, ...]
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quantities: Mapping[str, str] = field(default_factory=dict)
    ignore: str = ""


DTP = ("dtp", "dtp_autoencoder")
CIFAR = ("linear_thesis", "knn")
DISTANCES = {
    "l1 positive": "distances/l1/positive_mean",
    "l1 negative": "distances/l1/negative_mean",
    "l1 AUC": "distances/l1/auc",
    "cos positive": "distances/cosine/positive_mean",
    "cos negative": "distances/cosine/negative_mean",
}
CLAIMS: dict[str, tuple[Evidence, ...]] = {
    "pooling": (
        Evidence("tuned_cifar10.csv", CIFAR, "random", "random encoder", (ABOVE,), {"learner": DTP}),
        Evidence("transposable_cifar10.csv", CIFAR, "random", "random encoder", (ABOVE,), {"learner": DTP}),
    ),
    "backprop": (
        Evidence("cifar10.csv", CIFAR, "learner", "bp", (LEVEL,), {"loss": ("hinge",)}),
        Evidence("tuned_cifar10.csv", CIFAR, "learner", "bp", (BELOW,), {"learner": ("bp", *DTP)}),
        Evidence("transposable_cifar10.csv", CIFAR, "learner", "bp", (LEVEL,), {"learner": ("bp", *DTP)}),
        Evidence("transposable_30.csv", CIFAR, "learner", "bp", (LEVEL,), {"learner": ("bp", *DTP)}),
        Evidence(
            "default.csv", ("linear", "few_labels/1", "few_labels/10"), "learner", "bp", (LEVEL, BELOW),
            {"learner": ("bp", *DTP)},
        ),
    ),
    "losses": (Evidence("distances.csv", ("linear", "knn"), "loss", "simclr", (LEVEL, BELOW)),),
    "linear": (
        Evidence("tuned_cifar10.csv", CIFAR, "random", "random encoder", (ABOVE,), {"learner": ("bp", *DTP)}),
        Evidence(
            "default.csv", ("linear", "few_labels/10", "knn"), "random", "random encoder", (ABOVE,),
            {"learner": ("bp", *DTP)},
        ),
    ),
    "transfer": (
        Evidence(
            "letters.csv",
            ("transfer/mnist", "transfer_few_labels/mnist/10", "transfer_few_labels/mnist/1"),
            "loss", "cross_entropy", (ONE,),
        ),
    ),
    "distances": (Evidence("distances.csv", (), "random", "random encoder", (), quantities=DISTANCES),),
    "layerwise": (
        Evidence(
            "rules_macs.csv", ("linear", "few_labels/10", "knn"), "learner", "bp", (LEVEL, ABOVE),
            {"learner": ("bp", "gll", "rll")}, ignore="epochs",
        ),
        Evidence(
            "rules_macs.csv", ("linear", "few_labels/10", "knn"), "learner", "bp", (BELOW,),
            {"learner": ("bp", "fa", "urf")},
        ),
        Evidence(
            "rules_macs.csv", ("linear", "few_labels/10", "knn"), "random", "random encoder", (LEVEL, BELOW),
            {"learner": ("fa", "urf")},
        ),
    ),
}  # fmt: skip


def runs_of(path: Path, keep: Mapping[str, tuple[str, ...]] | None = None) -> list[dict]:
    """Runs of a results file with today's names of learners, and those settings alone that tell cells apart.

    Raises:
        DataError: the file holds no runs, or two of one cell and seed.
    """
    found = []
    for run in read_runs([path]):
        old = str(run.get("git_commit", "")).startswith(RENAMED_AFTER)
        learner = {"dtp": "dtp_autoencoder" if old else "dtp", "dtp_kp": "dtp"}.get(run["learner"], run["learner"])
        words = [word for word in run["settings"].split() if word.startswith(("learner.", "loss.", "model."))]
        named = run | {"learner": learner, "settings": " ".join(words)}
        if all(str(named[axis]) in values for axis, values in (keep or {}).items()):
            found.append(named)
    names = [(run["settings"], *(run[axis] for axis in AXES), run["seed"]) for run in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}: several runs are one cell and seed: {twice}")
    return found


def differences(evidence: Evidence, runs: Sequence[Run]) -> Iterator[tuple[str, str, str, Paired]]:
    """Probe, where, which two, and the difference over shared seeds in points, of every comparison of an evidence."""
    cells, axis = cells_of(runs), evidence.vary
    others = random_cells(runs) if axis == "random" else [c for c in cells if c.names[axis] == evidence.against]
    same = [a for a in AXES if a not in (axis, evidence.ignore)] if axis != "random" else ["dataset", "model"]
    for probe in evidence.probes:
        for cell in cells:
            value = cell.names["learner" if axis == "random" else axis]
            for other in others:
                if value == evidence.against or any(cell.names[a] != other.names[a] for a in same):
                    continue
                name = f"{probe}/test_acc"
                paired = Paired.of(cell.values(name, 100), other.values(name, 100))
                if paired is not None:
                    where = [cell.names[a] for a in ("loss", "learner") if a != axis and value != cell.names[a]]
                    where.append(f"{cell.names['epochs']} epochs")
                    yield probe, ", ".join(where), f"{value} {MINUS} {evidence.against}", paired


def reading(paired: Paired) -> str:
    """Where the 95 % interval of a difference lies."""
    d = paired.difference
    return ONE if d.n < 2 else ABOVE if d.low > 0 else BELOW if d.high < 0 else LEVEL


READ_OUT = ("n", "points", "p", "the interval")


def read_out(paired: Paired) -> tuple[str, str, str, str]:
    """A difference as the columns ``READ_OUT`` say it."""
    points = mean_entry(paired.difference, paired.difference.n, 2)
    p = NONE if math.isnan(paired.p) else f"{paired.p:.3f}"
    return str(paired.difference.n), f"{points.text} {points.note}".strip(), p, reading(paired)


def claim_tables(name: str, results: Path) -> str:
    """Of each evidence of a claim: its runs, and the differences.

    Raises:
        DataError: the differences no longer read as they did when the verdict was written.
    """
    parts = []
    for evidence in CLAIMS[name]:
        runs = runs_of(results / evidence.file, evidence.keep)
        parts.append(f"[results/{evidence.file}](../results/{evidence.file}):\n\n{runs_table(evidence, runs)}")
        table = Table("differences", ["probe", "where", "difference", *READ_OUT])
        for probe, where, which, paired in differences(evidence, runs):
            reads = reading(paired)
            if probe == evidence.probes[0] and reads not in evidence.expect:
                raise DataError(
                    f"claim '{name}', results/{evidence.file}, {probe}, {where}, {which}: the interval is now "
                    f"'{reads}', and the verdict was written for '{' or '.join(evidence.expect)}': read the claim in "
                    "docs/reproduction.md again, then say in CLAIMS what it rests on"
                )
            table.rows.append([Entry(text) for text in (probe, where, which, *read_out(paired))])
        if table.rows:
            parts.append(table.markdown())
    return "\n".join(parts)


def runs_table(evidence: Evidence, runs: Sequence[Run]) -> str:
    """Markdown: a row for each cell and the untrained encoder, with the commits."""
    digits = 2
    extra: dict[str, Callable[[Cell], Entry]] = {
        title: lambda cell, name=quantity: mean_entry(cell.interval(name), len(cell.runs), digits)  # type: ignore[misc]
        for title, quantity in evidence.quantities.items()
    }
    table = comparison_table(cells_of(runs), runs, "test", evidence.probes, extra | {"commit": commits})
    left_out = [i for i, column in enumerate(table.columns) if column in ("fit s", "M MACs/image")]
    keep = [i for i in range(len(table.columns)) if i not in left_out]
    shown = Table(
        "runs", [table.columns[i] for i in keep], [[row[i] for i in keep] for row in table.rows], table.numeric
    )
    return shown.markdown()


def commits(cell: Cell) -> Entry:
    """Those that made a cell's runs, seven letters each."""
    found = sorted({str(run["git_commit"])[:7] for run in cell.runs.values() if run.get("git_commit")})
    return Entry(", ".join(found) or NONE)
