"""Tables and sentences for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from dtp_lightning.report.cells import Run, cells_of, differences_within, probes_of, warnings_of
from dtp_lightning.report.tables import comparison_table, paired_table


def table(runs: Sequence[Run], split: str) -> str:
    """Markdown: a row for each cell; accuracies in percent, as mean [95 % t interval] over seeds; warnings below.

    Args:
        runs: from :func:`dtp_lightning.runs.reader.read_runs`.
        split: ``test`` or ``val``.
    """
    cells = cells_of(runs)
    notes = [f"warning: {sentence}" for sentence in warnings_of(cells)]
    return "\n".join([comparison_table(cells, runs, split).markdown().rstrip(), *([""] if notes else []), *notes])


def conclusions(runs: Sequence[Run], split: str) -> list[str]:
    """What may be said about the differences of learners, by the main probe of each task: a sentence for each pair."""
    _, every = paired_table(cells_of(runs), probes_of(runs, split), split)
    return [f"{conclusion.probe}, {conclusion.sentence}" for conclusion in every if conclusion.main]


def differences(runs: Sequence[Run]) -> list[str]:
    """A line for each key that differs within a row of the table, although neither axes, settings nor seed say so."""
    return [
        f"{cell}: {name} is {' and '.join(values)}"
        for cell, keys in differences_within(cells_of(runs)).items()
        for name, values in keys.items()
    ]
