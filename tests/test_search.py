"""Search on validation, resumable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from dtp_lightning.cli import search as module
from dtp_lightning.errors import ConfigError, RunError

optuna = pytest.importorskip("optuna", reason="pip install 'dtp-lightning[search]' to run this")
SPEC = {"metric": "knn/val_acc", "parameters": {"x": {"low": 0.0, "high": 1.0}, "k": {"choices": [1, 2]}}}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Trials that only look at their words: better near x = 0.3."""
    calls: list[list[str]] = []

    def run(words: list[str], folder: Path, metric: str) -> float:
        folder.mkdir(parents=True, exist_ok=True)
        calls.append(list(words))
        if len(calls) == 2:
            raise RuntimeError("it broke")
        x = float(next(w for w in words if w.startswith("x=")).removeprefix("x="))
        return 1 - abs(x - 0.3)

    monkeypatch.setattr(module, "run_trial", run)
    return calls


def test_search_goes_on_where_it_stopped(quick: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module.search(SPEC, tmp_path / "study", 3, ["seed=1"])
    assert len(quick) == 4 and "trial 1 FAILED: it broke" in capsys.readouterr().out
    assert all("seed=1" in words for words in quick)
    study = module.search(SPEC, tmp_path / "study", 5, [])
    assert len(quick) == 6, "three were there already"
    assert study.best_value > 0.5


def test_a_killed_trial_is_tried_again_in_its_folder(quick: list, tmp_path: Path) -> None:
    study = optuna.create_study(
        study_name="study", storage=f"sqlite:///{tmp_path}/study.db", direction="maximize", load_if_exists=True
    )
    dead = study.ask()
    x = dead.suggest_float("x", 0.0, 1.0)
    dead.suggest_categorical("k", [1, 2])
    dead.set_user_attr("folder", "0")
    (tmp_path / "trials" / "0").mkdir(parents=True)
    study = module.search({**SPEC}, tmp_path.rename(tmp_path.parent / "study"), 1, [])
    assert f"x={x}" in quick[0]


def test_only_validation_may_be_optimised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choices are made on validation"):
        module.search({**SPEC, "metric": "knn/test_acc"}, tmp_path, 1, [])
    with pytest.raises(ConfigError, match="needs choices"):
        module.suggest(None, {"x": {"low": 1}})


def test_what_fails_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object) -> float:
        raise RuntimeError("no such data")

    monkeypatch.setattr(module, "run_trial", fail)
    with pytest.raises(RunError, match="too many trials failed; the last one: no such data"):
        module.search(SPEC, tmp_path / "study", 1, [])


def test_a_search_is_found_by_name_or_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.touch()
    assert module.spec_file(str(own)) == own and module.spec_file("dtp") == ROOT / "sweeps" / "search" / "dtp.yaml"


def test_one_real_trial(tmp_path: Path) -> None:
    words = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "evaluation.few_labels.draws=1"]
    command = [sys.executable, "-m", "dtp_lightning", "search", "bp", "--trials", "1", "--folder", "a study", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "a study" / "trials" / "0" / "summary.json").exists()
    assert "trial 0: few_labels/10/val_acc = 0." in done.stdout and "dtp train learner=bp" in done.stdout
