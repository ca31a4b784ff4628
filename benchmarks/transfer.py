"""What labels are worth before a transfer: table and figure of results/transfer.csv.

``python benchmarks/transfer.py`` prints the table of docs/transfer.md and draws docs/images/transfer.png. The runs are
those of the sweeps transfer_contrastive, transfer_noise, transfer_coarse and transfer_few_labels.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from claims import ABOVE, BELOW, reading
from pages import said

from dtp_lightning.errors import DataError
from dtp_lightning.report.cells import Run
from dtp_lightning.report.statistics import Interval, Paired
from dtp_lightning.report.tables import MINUS, NONE, Entry, Table
from dtp_lightning.runs.reader import read_runs

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "images" / "transfer.png"
CONTRASTIVE, SUPERVISED = "contrastive", "supervised"
CONDITIONS = {  # word of the settings -> what the supervised loss is told
    "dataset.label_noise=0.0": "all labels",
    "dataset.label_noise=0.4": "40 % of labels wrong",
    "dataset.label_noise=0.8": "80 % of labels wrong",
    "dataset.labels=coarse": "2 coarse classes",
    "dataset.labelled_fraction=0.1": "labels of 10 %",
    "dataset.labelled_fraction=0.01": "labels of 1 %",
}
PROBES = ("linear", "knn")
VERDICT = {  # where the interval of the gain by the first probe lay when docs/reproduction.md was written
    "all labels": BELOW,
    "80 % of labels wrong": ABOVE,
    "2 coarse classes": ABOVE,
    "labels of 1 %": ABOVE,
}

Values = dict[str, dict[int, Run]]


def conditions_of(runs: Sequence[Run]) -> Values:
    """Condition -> seed -> run; ``contrastive`` for the runs that were told nothing.

    Raises:
        DataError: a run of a supervised loss has no condition, or two runs are one condition and seed.
    """
    found: Values = defaultdict(dict)
    for run in runs:
        name = CONTRASTIVE
        if run["loss"] == "cross_entropy":
            names = [CONDITIONS[word] for word in run["settings"].split() if word in CONDITIONS]
            if len(names) != 1:
                raise DataError(f"{run['settings']}: not one of the conditions {', '.join(CONDITIONS)}")
            name = names[0]
        if run["seed"] in found[name]:
            raise DataError(f"two runs of '{name}', seed {run['seed']}")
        found[name][run["seed"]] = run
    return found


def accuracies(runs: Mapping[int, Run], probe: str, split: str = "test") -> dict[int, float]:
    """Seed -> accuracy in percent."""
    key = f"{probe}/{split}_acc"
    return {seed: 100 * run[key] for seed, run in runs.items() if run.get(key) is not None}


def gains(found: Values, probe: str) -> dict[str, Paired]:
    """Condition -> accuracy of contrastive minus supervised pre-training, paired by seed, in points."""
    contrastive = accuracies(found[CONTRASTIVE], probe)
    pairs = {name: Paired.of(contrastive, accuracies(found.get(name, {}), probe)) for name in CONDITIONS.values()}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def table(results: Path) -> str:
    """Markdown: a row for each condition with its supervised encoder's accuracies, and what contrastive gains on it."""
    found = conditions_of(read_runs([results / "transfer.csv"]))
    heads = [head for probe in PROBES for head in (probe, f"contrastive {MINUS} it, {probe}")]
    made = Table("transfer", ["pre-training told", "n", *heads])
    differences = {probe: gains(found, probe) for probe in PROBES}
    random = {
        seed: {name.removeprefix("random_encoder/"): value for name, value in run.items() if "random_" in name}
        for seed, run in found[CONTRASTIVE].items()
    }
    rows = [(name, found[name]) for name in CONDITIONS.values() if name in found]
    for name, runs in [("nothing: contrastive (hinge)", found[CONTRASTIVE]), *rows, ("random encoder", random)]:
        entries = []
        for probe in PROBES:
            values = list(accuracies(runs, probe).values())
            entries.append(said(Interval.of(values)) if values else NONE)
            pair = differences[probe].get(name) or (
                Paired.of(accuracies(found[CONTRASTIVE], probe), accuracies(runs, probe)) if runs is random else None
            )
            entries.append(said(pair.difference) if pair else NONE)
        made.rows.append([Entry(entry) for entry in (name, str(len(runs)), *entries)])
    return made.markdown()


def judged_table(results: Path) -> str:
    """:func:`table`, as long as it says what the verdict was written for.

    Raises:
        DataError: a gain lies elsewhere now, or a condition is new.
    """
    found = gains(conditions_of(read_runs([results / "transfer.csv"])), PROBES[0])
    now = {name: reading(pair) for name, pair in found.items()}
    if now != VERDICT:
        raise DataError(
            f"results/transfer.csv reads {now}: read claim 5 in docs/reproduction.md again, then mend VERDICT"
        )
    return table(results)


def stage_probes(run: Run) -> list[str]:
    """Probes of the stages, from the first one up, then that of the features."""
    stages = sorted({name.split("/")[1] for name, value in run.items() if name.startswith("layerwise/") and value})
    return [*(f"layerwise/{stage}" for stage in stages), "linear"]


def draw(results: Path, path: Path = FIGURE) -> None:
    """The gain under every condition, at the features and at every stage, with intervals and the seeds as dots."""
    import matplotlib
    from matplotlib.figure import Figure

    from dtp_lightning.figures.plots import save
    from dtp_lightning.report.drawing import COLOURS, STYLE

    found = conditions_of(read_runs([results / "transfer.csv"]))
    probes = stage_probes(next(iter(found[CONTRASTIVE].values())))
    with matplotlib.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, probe in enumerate(probes):
            shown = gains(found, probe)
            for place, (name, pair) in enumerate(shown.items()):
                x = place + (number - (len(probes) - 1) / 2) * 0.8 / len(probes)
                d, last = pair.difference, number == len(probes) - 1
                low, high = (d.mean, d.mean) if math.isnan(d.low) else (d.low, d.high)
                colour = COLOURS[0] if last else "#8a939c"
                axes.plot([x, x], [low, high], color=colour, lw=2, alpha=0.9)
                title = "features (linear probe)" if last else "stages 1 to 4"
                label = title if place == 0 and number in (0, len(probes) - 1) else None
                axes.plot(x, d.mean, "o", color=colour, ms=7 if last else 4, label=label)
                ours, theirs = accuracies(found[CONTRASTIVE], probe), accuracies(found[name], probe)
                dots = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs)]
                axes.plot([x] * len(dots), dots, ".", color=colour, ms=4, alpha=0.6)
        axes.axhline(0, color="#1b1f24", lw=1)
        axes.set_xticks(range(len(shown)), [name.replace(" of ", " of\n", 1) for name in shown])
        axes.set_ylabel(f"contrastive {MINUS} supervised, points")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper left")
        save(figure, path)


def main() -> None:
    """Print the table and draw the figure."""
    try:
        print(table(ROOT / "results"))
        draw(ROOT / "results")
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
