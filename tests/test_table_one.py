"""Table 1: our rows beside the paper's, the differences from backprop, the figure."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import table_one
from conftest import ROOT, composed
from reproduction import BATCHES

from dtp_lightning.errors import DataError
from dtp_lightning.report.tables import MINUS, NONE
from dtp_lightning.runs.reader import save_runs

THESIS = "experiment=table1_thesis/"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder for table1.csv, with the epochs of each row."""
    shutil.copy(ROOT / "results" / "table1_cost.csv", tmp_path)
    return tmp_path


def line(settings: str, epochs: int, seed: int, acc: float) -> dict:
    """A row of results/table1.csv."""
    return {
        "settings": settings, "learner": "bp", "loss": "hinge_paper", "model": "conv6", "dataset": "cifar100",
        "seed": seed, "epochs": epochs, "transfer/cifar10/test_acc": acc, "git_commit": "0123456789",
        "random_encoder/transfer/cifar10/test_acc": 0.5,
    }  # fmt: skip


def test_lines_of_table_1_stand_at_their_epochs(results: Path) -> None:
    runs = [
        line("experiment=table1/bp", 10, 0, 0.60),
        line("experiment=table1/bp", 10, 1, 0.62),
        line("experiment=table1/bp learner.forward_optimizer.lr=0.1", 30, 0, 0.99),  # not the preset
        line("experiment=table1/gll learner.epochs_per_stage=30", 150, 0, 0.63),
    ]
    save_runs(runs, results / "table1.csv")
    lines = table_one.row_table("table1", results).splitlines()[2:]
    cells = {row.split(" | ")[3]: row.strip("| ").split(" | ")[4:] for row in lines}
    assert cells.pop("`table1/bp`") == ["71.44", "61.0 [48.3, 73.7] (n = 2)", *["not run"] * 3, "0123456"]
    assert cells.pop("`table1/gll`") == ["72.76", "not run", "63.0 (n = 1)", *["not run"] * 2, "0123456"]
    assert cells.pop("comes with each")[:2] == ["61.23", "50.0 [50.0, 50.0] (n = 2)"]
    presets = [found for name, found in cells.items() if name.startswith("`")]
    assert presets and all(found[1:] == [*["not run"] * 4, NONE] for found in presets)


def test_precisions_stand_apart(results: Path) -> None:
    half = f"{THESIS}bp trainer.precision=bf16-mixed"
    save_runs([line(f"{THESIS}bp", 10, 0, 0.6), line(half, 10, 0, 0.5), line(half, 10, 1, 0.5)], results / "table1.csv")
    rows = [row.split(" | ")[3:5] for row in table_one.row_table("table1_thesis", results).splitlines()]
    assert ["`table1_thesis/bp`", "60.0 (n = 1)"] in rows
    assert ["`table1_thesis/bp`, bfloat16", "50.0 [50.0, 50.0] (n = 2)"] in rows


@pytest.fixture
def three_rows(results: Path) -> Path:
    """Rows of bp, dtp and gll: dtp shares two seeds with bp, and the seed of gll is another's."""
    runs = [
        *(line(f"{THESIS}bp", 10, seed, 0.60 + seed / 100) for seed in (0, 1)),
        *(line(f"{THESIS}dtp", 10, seed, 0.61 + seed / 100) for seed in (0, 1)),
        line(f"{THESIS}gll learner.epochs_per_stage=10", 40, 2, 0.9),
        line(f"{THESIS}bp_few", 10, 0, 0.5),
        line(f"{THESIS}fa_few", 10, 0, 0.4),
    ]
    save_runs(runs, results / "table1.csv")
    return results


def test_differences_are_paired_over_shared_seeds(three_rows: Path) -> None:
    found = {(row.preset, other): pair for row, other, _, pair in table_one.differences("table1_thesis", three_rows)}
    names = {tuple(table_one.short(name) for name in key): pair.difference for key, pair in found.items()}
    assert {key: (pytest.approx(d.mean), d.n) for key, d in names.items()} == {
        ("dtp", "bp"): (1.0, 2),
        ("bp_few", "bp"): (-10.0, 1),
        ("fa_few", "bp_few"): (-10.0, 1),
    }
    assert "| -0.15 |" in next(row for row in table_one.difference_table(three_rows).splitlines() if "dtp" in row)


def test_a_verdict_that_turned_stops_the_table(three_rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_one, "VERDICT", {(f"dtp {MINUS} bp", "", 10): "below 0"})
    with pytest.raises(DataError, match=r"dtp . bp, 10 epochs: the interval is now 'above 0'"):
        table_one.difference_table(three_rows)


def test_the_figure_needs_a_row(three_rows: Path) -> None:
    picture = three_rows / "table1.png"
    table_one.draw(three_rows, picture)
    assert picture.stat().st_size > 10_000
    save_runs([line("experiment=table1/bp", 10, 0, 0.6)], three_rows / "table1.csv")
    with pytest.raises(DataError, match="no row of the thesis' protocol"):
        table_one.draw(three_rows, picture)


@pytest.mark.parametrize("preset", ["table1/dtp", "table1_thesis/dtp"])
def test_a_training_as_long_as_published_keeps_what_the_weights_began_with(preset: str) -> None:
    """A decay of 5e-4 a batch took three points away in a tenth of it."""
    config, _ = composed(f"experiment={preset}")
    kept = (1 - config.learner.feedback.decay) ** (config.trainer.max_epochs * BATCHES)
    assert config.trainer.max_epochs == 400 and 0.8 < kept < 1
