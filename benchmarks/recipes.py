"""SimCLR's recipe by several rules on two networks: the table of docs/recipes.md, from results/recipes.csv.

dtp sweep recipes && dtp sweep recipes learner=gll ++learner.order=all
dtp report multirun/recipes --save results/recipes.csv && python benchmarks/recipes.py
"""

from __future__ import annotations

from pathlib import Path

from pages import rewrite, with_tables

from dtp_lightning.report.cells import Run
from dtp_lightning.report.tables import NONE, Entry, Table
from dtp_lightning.runs.reader import read_runs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
RESULTS = ROOT / "results" / "recipes.csv"
NETWORKS = {"cnn4": "`cnn4`, batch norm", "resnet18": "ResNet-18, 16 to 128 channels"}
PROBES = ("linear", "knn")
MACS = "cost/macs_per_image"
RULES = ("bp", "kolen_pollack", "dtp", "gll")


def table(path: Path = RESULTS) -> str:
    """Markdown: for each network the untrained one, then a row for each rule; one seed."""
    runs = read_runs([path])
    made = Table("recipes", ["network", "`learner=`", "epochs", *PROBES, "MACs / bp", "minutes of training"])
    for model, name in NETWORKS.items():
        found = {run["learner"]: run for run in runs if run["model"] == model}
        bp = found["bp"]
        cells = [_percent(bp, f"random_encoder/{probe}") for probe in PROBES]
        made.rows.append([Entry(cell) for cell in (name, "untrained", "0", *cells, NONE, NONE)])
        for rule in (rule for rule in RULES if rule in found):
            run = found[rule]
            cells = [_percent(run, probe) for probe in PROBES]
            cost = (f"{run[MACS] / bp[MACS]:.2f}", f"{run['fit/seconds'] / 60:.0f}")
            made.rows.append([Entry(cell) for cell in (name, f"`{rule}`", str(run["epochs"]), *cells, *cost)])
    return made.markdown()


def filled(text: str, path: Path = RESULTS) -> str:
    """The page with its table written anew."""
    return with_tables(text, lambda name: table(path))


def _percent(run: Run, probe: str) -> str:
    return f"{100 * run[f'{probe}/test_acc']:.1f}"


def main() -> None:
    """Write the page."""
    rewrite(PAGE, filled)


if __name__ == "__main__":
    main()
