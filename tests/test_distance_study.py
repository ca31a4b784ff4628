"""The distance study's page: what its runs said, and that the page says it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import distances
import pytest

from dtp_lightning.errors import DataError
from dtp_lightning.report.tables import NONE


def saved_run(folder: Path, loss: str, learner: str, seed: int) -> None:
    """A finished run with distances before, at two epochs, and after training."""
    quantities = {name: 0.5 + seed for name, _, _ in distances.QUANTITIES.values()}
    summary = {
        "learner": learner, "loss": loss, "model": "cnn4", "dataset": "mnist5k", "seed": seed, "epochs": 2,
        **quantities, **{f"random_encoder/{name}": 0.25 for name in quantities},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    names = [f"val/distances/{name}" for name in distances.MEASURED]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["epoch", *names, "val/loss"], [0, 1, 2, 3], [1, "", "", 3], [1, 1.5, 4, ""]])


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(distances, "RESULTS", tmp_path / "runs.csv")
    monkeypatch.setattr(distances, "CURVES", tmp_path / "curves.csv")
    for loss in distances.LOSSES:
        for learner in distances.LEARNERS:
            for seed in (0, 1):
                saved_run(tmp_path / "runs" / f"{loss}{learner}{seed}", loss, learner, seed)
    distances.save([tmp_path / "runs"])
    return tmp_path


def test_curves_begin_untrained(study: Path) -> None:
    with (study / "curves.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"] == "simclr" and row["learner"] == "dtp"]
    assert [(row["seed"], row["epoch"], row["l1/negative_mean"]) for row in rows] == [
        ("0", "0", "0.25"), ("0", "1", "2"), ("0", "2", "4"), ("1", "0", "0.25"), ("1", "1", "2"), ("1", "2", "4"),
    ]  # fmt: skip


def test_an_empty_folder_overwrites_nothing(study: Path) -> None:
    before = (study / "runs.csv").read_text()
    with pytest.raises(DataError, match="no finished run in"):
        distances.save([study / "nothing"])
    assert (study / "runs.csv").read_text() == before


def test_the_table_has_means_over_seeds(study: Path) -> None:
    rows = distances.table(study / "runs.csv").strip().splitlines()[2:]
    assert rows[0].startswith(f"| mnist5k | {NONE} | untrained | 2 | 0.25 | 0.25 |")
    assert rows[1].startswith("| mnist5k | `hinge` | `bp` | 2 | 1.00 | 1.00 | 1.000 | 100 |") and len(rows) == 7


def test_the_page_says_what_the_results_say(tmp_path: Path) -> None:
    text = distances.PAGE.read_text(encoding="utf-8")
    assert distances.filled(text) == text, "python benchmarks/distances.py"
    distances.draw(to=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
