"""The tables of docs/reproduction.md, from results/*.csv: ``make reproduction-page``.

What stands in the page between ``<!-- table: NAME -->`` and ``<!-- end -->`` is written by this script alone. A verdict
is prose; what it was read from is named in claims.py, and the script stops where the files have come to say something
else.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import objectives
import table_one
import transfer
from claims import CLAIMS, claim_tables, runs_of
from pages import mistakes_in_one_line, rewrite, with_tables

from dtp_lightning.errors import DataError
from dtp_lightning.report.tables import NONE, Entry, Table
from dtp_lightning.runs.reader import read_runs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reproduction.md"
BATCHES = 46_000 // 500  # of an epoch of Table 1


def compute_table(results: Path) -> str:
    """Runs, hours of training, seconds a step and commits of every results file that holds runs."""
    table = Table("compute", ["file", "runs", "epochs", "hours of training", "s per batch", "commits"])
    total, untimed = 0.0, 0
    for path in sorted(results.glob("*.csv")):
        try:
            runs = read_runs([path])
        except DataError:
            continue  # measurements of another kind
        seconds = [run["fit/seconds"] for run in runs if run.get("fit/seconds")]
        steps = [run["cost/seconds_per_step"] for run in runs if run.get("cost/seconds_per_step")]
        total, untimed = total + sum(seconds), untimed + len(runs) - len(seconds)
        hours = f"{sum(seconds) / 3600:.1f}" if seconds else NONE
        hours += f" ({len(seconds)} of {len(runs)} timed)" if len(seconds) < len(runs) else ""
        epochs = sorted({run["epochs"] for run in runs})
        texts = (
            f"[{path.stem}](../results/{path.name})", str(len(runs)), ", ".join(map(str, epochs)), hours,
            f"{min(steps):.2f} to {max(steps):.2f}" if steps else NONE,
            ", ".join(sorted({str(run.get("git_commit", "unknown"))[:7] for run in runs})),
        )  # fmt: skip
        table.rows.append([Entry(text) for text in texts])
    return (
        f"{table.markdown()}\nTogether {total / 3600:.1f} hours of training, without the {untimed} rows of no time.\n"
    )


def hours_table(results: Path) -> str:
    """Hours that each row of Table 1 would take where the CIFAR-10 runs were made, by multiply-accumulates."""
    steps = [
        run["cost/seconds_per_step"]
        for name in ("tuned_cifar10.csv", "transposable_cifar10.csv")
        for run in runs_of(results / name, {"learner": ("bp",), "loss": ("hinge",)})
    ]
    fast, middle, slow = min(steps), statistics.median(steps), max(steps)
    with (results / "table1_cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    reference = next(float(row["macs_per_image"]) for row in rows if row["preset"] == "table1_thesis/bp")
    table = Table("hours", ["preset", "epochs", "M MACs/image", "hours", "at the fastest, slowest batch seen"])
    for row in rows:
        macs, epochs = float(row["macs_per_image"]), int(row["epochs"])
        scale = epochs * BATCHES * macs / reference / 3600
        texts = (
            f"`{row['preset']}`",
            str(epochs),
            f"{macs / 1e6:.1f}",
            f"{scale * middle:.0f}",
            f"{scale * fast:.0f}, {scale * slow:.0f}",
        )
        table.rows.append([Entry(text) for text in texts])
    said = (
        f"By the {len(steps)} backprop runs of cnn4 at batch 500: {middle:.2f} s a batch in the median, {fast:.2f} to "
        f"{slow:.2f}; {BATCHES} batches an epoch; other rows by their multiply-accumulates\n([results/table1_cost.csv]"
        "(../results/table1_cost.csv), `python benchmarks/reproduce.py --cost`), which leaves out what is element by "
        "element.\n"
    )
    return f"{said}\n{table.markdown()}"


TABLES = {
    "compute": compute_table,
    "hours": hours_table,
    "conditions": transfer.judged_table,
    "objectives": objectives.judged_table,
    "table1_differences": table_one.difference_table,
}


def filled(text: str, results: Path) -> str:
    """The page with every table written anew.

    Raises:
        DataError: a table has a name that there is none of, or a verdict no longer fits its files.
    """

    def made(name: str) -> str:
        if name in CLAIMS:
            return claim_tables(name, results)
        if name in table_one.PROTOCOLS:
            return table_one.row_table(name, results)
        if name in TABLES:
            return TABLES[name](results)
        raise DataError(f"docs/reproduction.md: there is no table '{name}'")

    return with_tables(text, made)


def write(page: Path = PAGE, results: Path = ROOT / "results") -> None:
    """Write the page's tables from the results."""
    rewrite(page, lambda text: filled(text, results))


def main() -> None:
    """Write the page."""
    with mistakes_in_one_line():
        write()


if __name__ == "__main__":
    main()
