"""The comparison of all rules: who is in it, which rate counts, and that the page says what the results say."""

from __future__ import annotations

from pathlib import Path

import pytest
from chosen_rates import PROBE, RATE
from conftest import options
from local_rules import CURVES, RESULTS, RULES, rule_rate, sweep
from local_rules_table import FAMILIES, PAGE, draw, filled, rules_of, table

from dtp_lightning.errors import DataError
from dtp_lightning.runs.reader import save_runs


def run(learner: str, rate: str, seed: int, val: float, test: float, *words: str) -> dict:
    """A row of results/local_rules.csv."""
    return {
        "learner": learner, "model": "cnn4", "loss": "hinge", "dataset": "cifar10", "seed": seed, "epochs": 4,
        "settings": " ".join(sorted([f"{RATE}={rate}", *words])), f"{PROBE}/val_acc": val, f"{PROBE}/test_acc": test,
        f"random_encoder/{PROBE}/test_acc": 0.4, "cost/macs_per_image": {"bp": 100, "gll": 25}[learner],
    }  # fmt: skip


RUNS = [
    *(run("bp", "0.001", seed, 0.6, 0.55 + 0.01 * seed) for seed in (0, 1)),
    run("bp", "0.003", 0, 0.5, 0.9),
    run("gll", "0.003", 0, 0.5, 0.5),
    run("gll", "0.003", 0, 0.9, 0.57, "trainer.limit_train_batches=0.6"),
    run("gll", "0.001", 0, 0.4, 0.8),
]


def test_the_rate_is_chosen_on_validation_at_equal_epochs() -> None:
    assert rule_rate(RUNS, "bp", 0) == "0.001", "not the one whose test accuracy is best"
    assert rule_rate(RUNS, "gll", 0) == "0.003"
    with pytest.raises(DataError, match="no finished run of dtp at seed 0"):
        rule_rate(RUNS, "dtp", 0)


def test_the_table_pairs_by_seed(tmp_path: Path) -> None:
    save_runs(RUNS, tmp_path / "runs.csv")
    _, _, bp, gll = table(tmp_path / "runs.csv").strip().splitlines()
    assert bp.startswith("| `bp` | cnn4 | 0.001 | 2 | 55.5") and "| 1.00 |" in bp
    assert gll == "| `gll` | cnn4 | 0.003 | 1 | 50.0 | +10.0 | -5.0 | 0.25 | 57.0 | +2.0 |"
    assert [len(rule.equal_macs) for rule in rules_of(tmp_path / "runs.csv")] == [0, 1]


def test_rules_of_equal_rates_share_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: called.append(command[5:]))
    sweep(tmp_path, {"bp": ["1"], "gll": ["1"], "fa": ["1"], "dtp": ["2"]}, [1, 2], ["batch_size=7"])
    first, last = f"hydra.sweep.dir={tmp_path}", ["seed=1,2", "batch_size=7"]
    assert called == [
        [first, "learner=bp,fa", f"{RATE}=1", *last],
        [first, "learner=gll", "++learner.epochs_per_stage=1", f"{RATE}=1", *last],
        [first, "learner=dtp", f"{RATE}=2", *last],
    ]


def test_every_rule_takes_part() -> None:
    twice = {"dtp_kp", "dtp_thesis"}  # dtp by another name; dtp_autoencoder with other numbers
    assert RULES.keys() == set(options("learner")) - twice
    assert sorted(name for members in FAMILIES.values() for name in members) == sorted(RULES)


def test_the_page_says_what_the_results_say(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "python benchmarks/local_rules.py"
    draw(RESULTS, CURVES, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
