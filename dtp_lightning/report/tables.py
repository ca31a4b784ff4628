"""Tables of cells: what the terminal, the page, Markdown and CSV files show."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtp_lightning.report.cells import Cell, Run, group_label, main_probe, probes_of, random_cells
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.runs.summary import AXES

ALL_PAIRS = 4  # learners up to which every two are compared; more are compared with one
REFERENCE = "bp"
NONE = "\N{EN DASH}"  # no value; sorts last
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Entry:
    """One field of a table.

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
        name: of the HTML element, and in ``#sort=NAME:COLUMN:desc``.
        columns: their heads.
        rows: an entry for each column.
        numeric: columns set flush right.
        faint: numbers of rows that are there for reference.
    """

    name: str
    columns: list[str]
    rows: list[list[Entry]] = field(default_factory=list)
    numeric: frozenset[str] = frozenset()
    faint: set[int] = field(default_factory=set)

    @property
    def kinds(self) -> list[str]:
        """CSS class of each column's fields: ``number``, ``wide`` (may break into lines), or none."""
        wide = ("settings", "where")
        return ["number" if name in self.numeric else "wide" if name in wide else "" for name in self.columns]

    def markdown(self) -> str:
        """The rows as README files want them."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        texts = (" | ".join(f"{e.text} {e.note}".strip().replace("|", "\\|") for e in row) for row in self.rows)
        return "\n".join([*lines, *(f"| {text} |" for text in texts)]) + "\n"

    def save_csv(self, path: Path) -> None:
        """Values in full where there are any, else texts."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows([e.text if e.value is None else e.value for e in row] for row in self.rows)


def comparison_table(
    cells: Sequence[Cell],
    runs: Sequence[Run],
    split: str,
    probes: Sequence[str] | None = None,
    extra: Mapping[str, Callable[[Cell], Entry]] | None = None,
) -> Table:
    """A row for each cell and one for each kind of untrained encoder.

    Args:
        cells: of the runs.
        runs: from :func:`dtp_lightning.runs.reader.read_runs`.
        split: whose accuracies, ``test`` or ``val``; in percent, each a :func:`mean_entry`.
        probes: which accuracies; default is all.
        extra: title of a further column -> its entry for a cell.
    """
    probes = probes_of(runs, split) if probes is None else probes
    extra = extra or {}
    names = [*AXES, *(["settings"] if any(cell.names["settings"] for cell in cells) else [])]
    numeric = ["n", *probes, "fit s", "M MACs/image", *extra]
    table = Table("cells", [*names, *numeric], numeric=frozenset([*numeric, "epochs"]))
    untrained = random_cells(runs)
    table.faint.update(range(len(cells), len(cells) + len(untrained)))
    for number, cell in enumerate([*cells, *untrained]):
        n = len(cell.runs)
        blank = NONE if number in table.faint else ""
        macs = cell.interval("cost/macs_per_image", 1e-6)  # the same for every seed
        table.rows.append(
            [
                *(Entry(cell.names[name] or blank, _number(cell.names[name])) for name in names),
                Entry(str(n), n),
                *(mean_entry(cell.interval(f"{probe}/{split}_acc", 100), n) for probe in probes),
                mean_entry(cell.interval("fit/seconds"), n),
                Entry(f"{macs.mean:.2f}", macs.mean) if macs else Entry(NONE),
                *(entry(cell) for entry in extra.values()),
            ]
        )
    return table


def mean_entry(interval: Interval | None, n: int, digits: int = 1) -> Entry:
    """``97.1 [96.9, 97.3]``: mean with its 95 % t interval, if there is one; ``of k`` where k < n seeds have a value.

    Args:
        interval: of a quantity; None has no entry.
        n: seeds of the cell.
        digits: after the point.
    """
    if interval is None:
        return Entry(NONE)
    note = "" if math.isnan(interval.low) else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    note += f" of {interval.n}" if interval.n < n else ""
    return Entry(f"{interval.mean:.{digits}f}", interval.mean, note.strip())


def extremes_table(cells: Sequence[Cell], probes: Sequence[str], split: str) -> Table:
    """Worst, median and best seed of each cell and probe, in percent."""
    numeric = ["n", "worst", "median", "best"]
    several = len({cell.group for cell in cells}) > 1
    table = Table("extremes", ["learner", *["where"] * several, "probe", *numeric], numeric=frozenset(numeric))
    for cell in cells:
        for probe in probes:
            values = list(cell.values(f"{probe}/{split}_acc", 100).values())
            if not values:
                continue
            extremes = (Entry(f"{v:.1f}", v) for v in (min(values), statistics.median(values), max(values)))
            where = [Entry(group_label(cell, among=cells))] * several
            head = [Entry(cell.names["learner"]), *where, Entry(probe)]
            table.rows.append([*head, Entry(str(len(values)), len(values)), *extremes])
    return table


def csv_table(cells: Sequence[Cell], runs: Sequence[Run], split: str) -> Table:
    """The comparison with every number in a column of its own, unrounded; accuracies in [0, 1]."""
    shown = comparison_table(cells, runs, split)
    first = [c for c in shown.columns if c in AXES or c in ("settings", "n")]
    endings = ("mean", "low95", "high95", "n", "median", "min", "max")
    keys = [*(f"{probe}/{split}_acc" for probe in probes_of(runs, split)), "fit/seconds", "cost/macs_per_image"]
    table = Table("csv", [*first, *(f"{key} {ending}" for key in keys for ending in endings)])
    for row, cell in zip(shown.rows, [*cells, *random_cells(runs)], strict=True):
        entries = row[: len(first)]
        for key in keys:
            interval, each = cell.interval(key), list(cell.values(key).values())
            values: Sequence[float | str] = [""] * len(endings)
            if interval:
                order = (statistics.median(each), min(each), max(each))
                values = [interval.mean, interval.low, interval.high, interval.n, *order]
            entries = [*entries, *(Entry("", "" if v != v else v) for v in values)]
        table.rows.append(entries)
    return table


def pairs(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Cells that differ in the learner alone: every two; of many, each against backprop (or the last)."""
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.group].append(cell)
    for members in groups.values():
        # backprop last, so that it is what is subtracted
        ordered = sorted(members, key=lambda cell: cell.names["learner"] == REFERENCE)
        if len(ordered) <= ALL_PAIRS:
            yield from itertools.combinations(ordered, 2)
        else:
            yield from ((cell, ordered[-1]) for cell in ordered[:-1])


@dataclass(frozen=True)
class Conclusion:
    """What may be said about one difference of two learners.

    Attributes:
        probe: whose accuracies.
        sentence: the difference, its interval, p, and what they allow to say.
        main: whether the probe is the task's main one.
    """

    probe: str
    sentence: str
    main: bool


def paired_table(cells: Sequence[Cell], probes: Sequence[str], split: str) -> tuple[Table, list[Conclusion]]:
    """Differences of learners over the seeds that both have, in percentage points; a conclusion for each row."""
    numeric = ["n", "difference", "95 % interval", "p", "smallest p"]
    several = len({cell.group for cell in cells}) > 1
    where = ["where"] if several else []
    table = Table("pairs", [*where, "probe", "learners", *numeric], numeric=frozenset(numeric))
    conclusions = []
    for a, b in pairs(cells):
        main = main_probe([a, b], split)
        for probe in probes:
            name = f"{probe}/{split}_acc"
            paired = Paired.of(a.values(name, 100), b.values(name, 100))
            if paired is None:
                continue
            d, names = paired.difference, (a.names["learner"], b.names["learner"])
            group = group_label(a, among=cells)
            head = [Entry(group)] if several else []
            interval = NONE if d.n < 2 else f"[{d.low:+.2f}, {d.high:+.2f}]"
            table.rows.append(
                [
                    *head, Entry(probe), Entry(f"{names[0]} {MINUS} {names[1]}"), Entry(str(d.n), d.n),
                    Entry(f"{d.mean:+.2f}", d.mean), Entry(interval, d.low if d.n > 1 else None),
                    _p(paired.p), _p(paired.smallest_p),
                ]
            )  # fmt: skip
            sentence = f"{group}: " * several + paired.sentence(*names)
            conclusions.append(Conclusion(probe, sentence, probe == main))
    return table, conclusions


def _p(value: float) -> Entry:
    return Entry(NONE) if math.isnan(value) else Entry(f"{value:.3f}" if value >= 0.001 else f"{value:.1e}", value)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
