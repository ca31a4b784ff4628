"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.module import PretrainModule

SHORT = (
    "trainer.max_epochs=4",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "evaluation=[knn]",
    "logger=none",
    "callbacks=[online_knn]",
)
TIMES = ("fit/", "cost/seconds")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return stored["state_dict"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def figures(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in summary.items() if not key.startswith(TIMES)}


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    assert rows(one) == rows(other)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture
def fails_in_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let training raise in the middle of an epoch."""
    step = PretrainModule.training_step

    def arrange(epoch: int | None) -> None:
        def failing(self: PretrainModule, batch: object, batch_idx: int) -> None:
            if self.current_epoch == epoch and batch_idx == 1:
                raise RuntimeError("the lights went out")
            step(self, batch, batch_idx)  # type: ignore[arg-type]

        monkeypatch.setattr(PretrainModule, "training_step", failing)

    return arrange


STATES = ("bp", "dtp", "sdtp", "ldrl", "ddtp_linear", "urf", "gll")  # one rule of each kind of state


@pytest.mark.parametrize("learner", STATES)
def test_resumed_run_equals_the_uninterrupted_one(
    learner: str, run_pipeline: Callable[..., dict], fails_in_epoch: Callable, tmp_path: Path
) -> None:
    command = (f"learner={learner}", *SHORT, "model.channels=[4,6]", "batch_size=50", "resume=true")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_pipeline(*command, folder=whole)
    fails_in_epoch(2)
    with pytest.raises(RuntimeError, match="lights"):
        run_pipeline(*command, folder=broken)
    assert not (broken / "summary.json").exists()
    assert (broken / "error.txt").read_text() == "RuntimeError: the lights went out\n"
    fails_in_epoch(None)
    run_pipeline(*command, folder=broken)
    assert_same_run(broken, whole)
    assert not (broken / "error.txt").exists()


def test_a_killed_run_loses_an_epoch_at_most(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "resume=true", *SHORT, "trainer.max_epochs=6"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run([*command, f"hydra.run.dir={whole}"], cwd=tmp_path, capture_output=True).returncode == 0
    process = subprocess.Popen([*command, f"hydra.run.dir={killed}"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists(), "killed before its end"
    done = subprocess.run([*command, f"hydra.run.dir={killed}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(killed, whole)


def test_a_finished_run_is_not_run_again(
    run_pipeline: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = (*SHORT, "callbacks=[]")  # the k-NN callback looks after the last epoch, whichever that is
    first = run_pipeline(*command, "trainer.max_epochs=1")
    again = run_pipeline(*command, "trainer.max_epochs=1", "resume=true")
    assert again == first and "finished already" in capsys.readouterr().out
    longer = run_pipeline(*command, "trainer.max_epochs=2", "resume=true")
    assert longer["epochs"] == 2, "more epochs: it goes on"
    run_pipeline(*command, "trainer.max_epochs=2", folder=tmp_path / "at_once")
    assert_same_run(tmp_path, tmp_path / "at_once")


def test_another_run_is_not_resumed(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*SHORT, "trainer.max_epochs=1", "evaluation=[]")
    with pytest.raises(ConfigError, match=r"another seed \(was 0, now 1\)"):
        run_pipeline(*SHORT, "seed=1", "resume=true")


def test_going_on_from_another_folder(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*SHORT, "trainer.max_epochs=1", folder=tmp_path / "first")
    run_pipeline(*SHORT, "trainer.max_epochs=2", f"resume={tmp_path / 'first'}", folder=tmp_path / "second")
    run_pipeline(*SHORT, "trainer.max_epochs=2", folder=tmp_path / "whole")
    ours, theirs = weights(tmp_path / "second"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    (tmp_path / "second" / "checkpoints" / "last.ckpt").unlink()  # as if it had stopped in its first epoch
    (tmp_path / "second" / "summary.json").unlink()
    run_pipeline(*SHORT, "trainer.max_epochs=2", "resume=true", folder=tmp_path / "second")
    again = weights(tmp_path / "second")
    assert all(torch.equal(again[key], theirs[key]) for key in theirs), "it begins where it began"
    with pytest.raises(DataError, match="no such checkpoint"):
        run_pipeline(*SHORT, f"resume={tmp_path / 'nowhere'}", folder=tmp_path / "third")


def test_a_folder_has_one_process(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    from dtp_lightning.run_folder import claimed

    with claimed(tmp_path, {"seed": 0}), pytest.raises(ConfigError, match="another process is at work"):
        run_pipeline(*SHORT)


def test_checkpoints_hold_plain_values_alone(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*SHORT, "trainer.max_epochs=1", "callbacks=[online_knn,alignment,snapshots]")
    assert isinstance(weights(tmp_path), dict), "loads with weights_only=True"
