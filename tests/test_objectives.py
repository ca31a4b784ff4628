"""The comparison of all objectives: who is in it, whose rate counts, and that the page says what the results say."""

from __future__ import annotations

from pathlib import Path

import objectives
import pytest
from chosen_rates import PROBE, RATE
from conftest import options

from dtp_lightning.runs.reader import save_runs


def run(loss: str, learner: str, rate: str, seed: int, val: float, test: float, *words: str) -> dict:
    """A row of results/objectives.csv."""
    return {
        "learner": learner, "model": "cnn4", "loss": loss, "dataset": "cifar10", "seed": seed, "epochs": 4,
        "settings": " ".join([f"{RATE}={rate}", *words]), f"{PROBE}/val_acc": val, f"{PROBE}/test_acc": test,
        f"random_encoder/{PROBE}/test_acc": 0.4,
    }  # fmt: skip


WARM = "loss.temperature=0.1"
OURS = [
    *(run("simclr", "bp", "0.001", seed, 0.6, 0.5 + 0.01 * seed, WARM) for seed in (0, 1)),
    *(run("simclr", "dtp", "0.003", seed, 0.6, 0.6, WARM) for seed in (0, 1)),
    run("simclr", "dtp", "0.001", 0, 0.5, 0.9, WARM),
    *(run("simclr", name, "0.003", 0, 0.9, 0.3) for name in ("bp", "dtp")),
]
HINGE = [*(run("hinge", name, "0.001", seed, 0.6, 0.52) for name in ("bp", "dtp", "fa") for seed in (0, 1))]


def test_the_table_has_each_pair_at_its_own_rate(tmp_path: Path) -> None:
    save_runs(OURS, tmp_path / "ours.csv")
    save_runs(HINGE, tmp_path / "rules.csv")
    _, _, first, second, third = objectives.table(tmp_path / "ours.csv", tmp_path / "rules.csv").strip().splitlines()
    assert first.startswith("| `hinge` | 2 | 0.001 | 52.0") and "| +1.5 [" in first, first
    assert second.startswith("| `simclr loss.temperature=0.1` | 2 | 0.001 | 50.5 [")
    assert third.startswith("| `simclr` | 1 | 0.003 | 30.0 | -10.0 | -20.0 |"), "paired by seed"
    assert "| 0.003 | 60.0 [60.0, 60.0] |" in second, "not the rate whose test accuracy is best"
    assert second.endswith("| +9.5 [+3.1, +15.9] |")


def test_pairs_of_equal_rates_share_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr(objectives, "run_sweep", lambda name, folder, words: called.append(words))
    plain = [name for name, words in objectives.OBJECTIVES.items() if len(words) == 1]
    runs = [
        run(loss, learner, rate, 0, float(rate), 0.5, *words)
        for learner, rate in (("bp", "0.001"), ("bp", "0.003"), ("dtp", "0.001"))
        for loss, words in [*((name, ()) for name in plain), ("simclr", (WARM,))]
    ]
    monkeypatch.setattr(objectives, "known_runs", lambda *_: runs)
    objectives.run_objectives(tmp_path, [0, 1, 2], ["batch_size=7"])
    losses, last = f"loss={','.join(plain)}", ["seed=1,2", "batch_size=7"]
    assert called == [
        [losses, "seed=0", "batch_size=7"],
        ["loss=simclr", WARM, "seed=0", "batch_size=7"],
        [losses, "learner=bp", f"{RATE}=0.003", *last],
        [losses, "learner=dtp", f"{RATE}=0.001", *last],
        ["loss=simclr", WARM, "learner=bp", f"{RATE}=0.003", *last],
        ["loss=simclr", WARM, "learner=dtp", f"{RATE}=0.001", *last],
    ]


def test_every_objective_takes_part() -> None:
    others = {
        "hinge_paper",  # the hinge as a sum: its rate is another's
        "positive_only",  # a control that collapses
        "multiclass_hinge",  # a second control that is told labels
        "clapp", "lpl",  # of rules of their own
    }  # fmt: skip
    assert {*(name.partition(" ")[0] for name in objectives.OBJECTIVES), "hinge"} == set(options("loss")) - others


def test_the_page_says_what_the_results_say(tmp_path: Path) -> None:
    text = objectives.PAGE.read_text(encoding="utf-8")
    assert objectives.filled(text) == text, "python benchmarks/objectives.py"
    objectives.draw(to=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
