"""Tables of the report page: as HTML to sort and filter, as CSV and Markdown for elsewhere."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from dtp_lightning.report.cells import Cell, Run, main_probe, probes_of, random_encoders
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.runs.summary import AXES, RANDOM

ALL_PAIRS = 4  # learners up to which every two are compared; more are compared with one
REFERENCE = "bp"
NONE = "\N{EN DASH}"  # nothing there; sorts last
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Entry:
    """A table's cell.

    Attributes:
        text: shown.
        value: to sort by, and what the CSV file holds; text sorts as text.
        note: smaller, after it.
    """

    text: str
    value: float | int | str | None = None
    note: str = ""


@dataclass
class Table:
    """Columns and rows.

    Attributes:
        name: of the element, and in ``#sort=NAME:COLUMN:desc``.
        numeric: columns set flush right.
        faint: numbers of rows that are there for reference.
    """

    name: str
    columns: list[str]
    rows: list[list[Entry]] = field(default_factory=list)
    numeric: frozenset[str] = frozenset()
    faint: set[int] = field(default_factory=set)

    def html(self, caption: str) -> str:
        """Heads are buttons once the page's script runs; without it the table is still one."""
        head = "".join(
            f'<th scope="col"{self._kind(c)} aria-sort="none"><button type="button">{escape(c)}</button></th>'
            for c in self.columns
        )
        body = "".join(
            f"<tr{' class=faint' if i in self.faint else ''}>"
            + "".join(self._cell(c, e) for c, e in zip(self.columns, row, strict=True))
            + "</tr>\n"
            for i, row in enumerate(self.rows)
        )
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
            f'<table id="{self.name}"><caption>{escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        )

    def markdown(self) -> str:
        """The same rows, as README files want them."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        texts = (" | ".join(f"{e.text} {e.note}".strip().replace("|", "\\|") for e in row) for row in self.rows)
        return "\n".join([*lines, *(f"| {text} |" for text in texts)]) + "\n"

    def save_csv(self, path: Path) -> None:
        """Numbers in full, intervals in columns of their own."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows([e.text if e.value is None else e.value for e in row] for row in self.rows)

    def _kind(self, column: str) -> str:
        return ' class="number"' if column in self.numeric else ""

    def _cell(self, column: str, entry: Entry) -> str:
        kind = ' class="wide"' if column in ("settings", "where") else self._kind(column)
        value = "" if entry.value is None else f' data-value="{escape(str(entry.value))}"'
        note = f" <small>{escape(entry.note)}</small>" if entry.note else ""
        return f"<td{kind}{value}>{escape(entry.text)}{note}</td>"


def comparison(cells: Sequence[Cell], runs: Sequence[Run], split: str) -> Table:
    """A row for each cell and one for each untrained encoder; accuracies in percent with 95 % t intervals."""
    probes = probes_of(runs, split)
    names = [*AXES, *(["settings"] if any(cell.names["settings"] for cell in cells) else [])]
    numbers = ["epochs", "n", *probes, "fit s", "M MACs/image"]
    table = Table("cells", [*names, *numbers[1:]], numeric=frozenset(numbers))
    for cell in cells:
        words = [Entry(cell.names[name], _number(cell.names[name])) for name in names]
        accuracies = [accuracy(cell.interval(f"{probe}/{split}_acc", 100), len(cell.runs)) for probe in probes]
        seconds = cell.interval("fit/seconds")
        macs = cell.interval("cost/macs_per_image", 1e-6)
        table.rows.append(
            [
                *words, Entry(str(len(cell.runs)), len(cell.runs)), *accuracies,
                Entry(f"{seconds.mean:.0f}", seconds.mean) if seconds else Entry(NONE),
                Entry(f"{macs.mean:.2f}", macs.mean) if macs else Entry(NONE),
            ]
        )  # fmt: skip
    for (dataset, model), seeds in random_encoders(runs).items():
        known = {"dataset": dataset, "model": model, "learner": "random encoder", "epochs": "0"}
        members = Cell({}, seeds, {})
        accuracies = [accuracy(members.interval(f"{RANDOM}{p}/{split}_acc", 100), len(seeds)) for p in probes]
        words = [Entry(known.get(name, NONE), _number(known.get(name, NONE))) for name in names]
        table.faint.add(len(table.rows))
        table.rows.append([*words, Entry(str(len(seeds)), len(seeds)), *accuracies, Entry(NONE), Entry(NONE)])
    return table


def accuracy(found: Interval | None, n: int) -> Entry:
    """A mean with its interval, and how many seeds have it where not all n do."""
    if found is None:
        return Entry(NONE)
    note = "" if math.isnan(found.low) else f"[{found.low:.1f}, {found.high:.1f}]"
    return Entry(f"{found.mean:.1f}", found.mean, note + (f" of {found.n}" if found.n < n else ""))


def spread(cells: Sequence[Cell], probes: Sequence[str], split: str) -> Table:
    """Worst, median and best seed of each cell and probe, in percent."""
    numeric = ["n", "worst", "median", "best"]
    several = len({cell.group for cell in cells}) > 1
    table = Table("spread", ["learner", *["where"] * several, "probe", *numeric], numeric=frozenset(numeric))
    for cell in cells:
        for probe in probes:
            values = list(cell.values(f"{probe}/{split}_acc", 100).values())
            if not values:
                continue
            shown = (Entry(f"{v:.1f}", v) for v in (min(values), statistics.median(values), max(values)))
            where = [Entry(place_of(cell, among=cells))] * several
            head = [Entry(cell.names["learner"]), *where, Entry(probe)]
            table.rows.append([*head, Entry(str(len(values)), len(values)), *shown])
    return table


def csv_table(cells: Sequence[Cell], runs: Sequence[Run], split: str) -> Table:
    """The comparison with every number in a column of its own, unrounded."""
    shown = comparison(cells, runs, split)
    members = [(cell, "") for cell in cells]
    members += [(Cell({}, seeds, {}), RANDOM) for seeds in random_encoders(runs).values()]
    probes = probes_of(runs, split)
    first = [c for c in shown.columns if c in AXES or c in ("settings", "n")]
    endings = ("mean", "low95", "high95", "n", "median", "min", "max")
    keys = [*(f"{probe}/{split}_acc" for probe in probes), "fit/seconds", "cost/macs_per_image"]
    table = Table("csv", [*first, *(f"{key} {ending}" for key in keys for ending in endings)])
    for row, (cell, prefix) in zip(shown.rows, members, strict=True):
        texts = row[: len(first)]
        for key in keys:
            found = None if prefix and not key.endswith("_acc") else cell.interval(prefix + key)
            each = list(cell.values(prefix + key).values())
            between = (statistics.median(each), min(each), max(each)) if each else ()
            values = (found.mean, found.low, found.high, found.n, *between) if found else ("",) * len(endings)
            texts = [*texts, *(Entry("", "" if v != v else v) for v in values)]
        table.rows.append(texts)
    return table


def pairs(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Cells that differ in the learner alone: every two; of many, each against backprop (or the first)."""
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.group].append(cell)
    for members in groups.values():
        ordered = sorted(
            members, key=lambda cell: cell.names["learner"] == REFERENCE
        )  # so that it is what is taken off
        if len(ordered) <= ALL_PAIRS:
            yield from itertools.combinations(ordered, 2)
        else:
            yield from ((cell, ordered[-1]) for cell in ordered[:-1])


def paired(cells: Sequence[Cell], probes: Sequence[str], split: str) -> tuple[Table, list[tuple[str, str, bool]]]:
    """Differences of learners over the seeds that both have, in points.

    Returns:
        the table, and for each of its rows: the probe, what may be said about it, whether it is the task's main one.
    """
    numeric = ["n", "difference", "95 % interval", "p", "smallest p"]
    several = len({cell.group for cell in cells}) > 1
    where = ["where"] if several else []
    table = Table("pairs", [*where, "probe", "learners", *numeric], numeric=frozenset(numeric))
    sentences = []
    for a, b in pairs(cells):
        main = main_probe([a, b], split)
        for probe in probes:
            key = f"{probe}/{split}_acc"
            found = Paired.of(a.values(key, 100), b.values(key, 100))
            if found is None:
                continue
            d, names = found.difference, (a.names["learner"], b.names["learner"])
            place = place_of(a, among=cells)
            head = [Entry(place)] if several else []
            interval = NONE if d.n < 2 else f"[{d.low:+.2f}, {d.high:+.2f}]"
            table.rows.append(
                [
                    *head, Entry(probe), Entry(f"{names[0]} {MINUS} {names[1]}"), Entry(str(d.n), d.n),
                    Entry(f"{d.mean:+.2f}", d.mean), Entry(interval, d.low if d.n > 1 else None),
                    _p(found.p), _p(found.smallest_p),
                ]
            )  # fmt: skip
            sentences.append((probe, f"{place}: " * several + found.sentence(*names), probe == main))
    return table, sentences


def place_of(cell: Cell, among: Sequence[Cell] = ()) -> str:
    """What a group of learners has in common, in words; only what is not common to all of ``among``, if given."""
    shown = [a for a in cell.names if a != "learner" and (not among or len({c.names[a] for c in among}) > 1)]
    words = {name: cell.names[name] for name in shown if cell.names[name]}
    return " · ".join(f"{word} epochs" if name == "epochs" else word for name, word in words.items()) or "no settings"


def _p(value: float) -> Entry:
    return Entry(NONE) if math.isnan(value) else Entry(f"{value:.3f}" if value >= 0.001 else f"{value:.1e}", value)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
