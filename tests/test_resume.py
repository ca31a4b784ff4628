"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from runs import TINY, assert_same_run, during, fail, rows, stored, weights

from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runtime.signals import Interrupted

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_pictures")]

STATES = ("bp", "dtp", "sdtp", "ldrl", "ddtp_linear", "urf", "gll")  # one rule of each kind of state


def command_of(learner: str) -> tuple[str, ...]:
    """One with figures that depend on the weights; ``gll`` moves on to its second stage while we watch."""
    more = {
        "gll": ("learner.epochs_per_stage=2",),
        "dtp": ("evaluation=[knn]", "callbacks=[online_knn]", "callbacks.online_knn.bank_size=500"),
    }
    return (*TINY, f"learner={learner}", "resume=true", *more.get(learner, ()))


@pytest.mark.parametrize("learner", STATES)
def test_resumed_run_equals_the_uninterrupted_one(
    learner: str, run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After an exception (the epoch is run again), and after SIGTERM in the middle of an epoch (no batch is)."""
    command = command_of(learner)
    whole, broken, stopped = tmp_path / "whole", tmp_path / "broken", tmp_path / "stopped"
    run_pipeline(*command, folder=whole)
    during(monkeypatch, 2, 1, fail)
    with pytest.raises(RuntimeError, match="lights"):
        run_pipeline(*command, folder=broken)
    assert not (broken / "summary.json").exists()
    assert (broken / "error.txt").read_text() == "RuntimeError: the lights went out\n"
    during(monkeypatch, 2, 1, lambda module: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        run_pipeline(*command, folder=stopped)
    assert stored(stopped)["global_step"] == 2 * 3 + 2, "up to the batch in which the signal came"
    assert len([row for row in rows(stopped) if "train/loss" in row]) == 2 * 3 + 2, "that one is logged as well"
    assert Checkpoint.read(stopped / "checkpoints" / "last.ckpt").epochs == 2
    during(monkeypatch, None, 0, fail)
    for folder in (broken, stopped):
        run_pipeline(*command, folder=folder)
        assert_same_run(folder, whole)
        assert not (folder / "error.txt").exists()


def test_a_killed_run_loses_an_epoch_at_most(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *command_of("bp"), "trainer.max_epochs=20"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert processes.run([*command, f"hydra.run.dir={whole}"], cwd=tmp_path).returncode == 0
    process = processes.Process([*command, f"hydra.run.dir={killed}"], cwd=tmp_path)
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists(), "killed before its end"
    done = processes.run([*command, f"hydra.run.dir={killed}"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(killed, whole)


def test_a_finished_run_is_not_run_again(
    run_pipeline: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = TINY  # without callbacks that look after the last epoch, whichever that is
    first = run_pipeline(*command, "trainer.max_epochs=1")
    again = run_pipeline(*command, "trainer.max_epochs=1", "resume=true")
    assert again == first and "finished already" in capsys.readouterr().out
    longer = run_pipeline(*command, "trainer.max_epochs=2", "resume=true")
    assert longer["epochs"] == 2, "more epochs: it goes on"
    run_pipeline(*command, "trainer.max_epochs=2", folder=tmp_path / "at_once")
    assert_same_run(tmp_path, tmp_path / "at_once")


def test_another_run_is_not_resumed(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*TINY, "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match=r"another seed \(was 0, now 1\)"):
        run_pipeline(*TINY, "seed=1", "resume=true")


def test_a_run_of_an_older_version_is_resumed(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    """Its config.yaml lacks a parameter that came since, which is at its default now."""
    words = (*TINY, "learner=dtp_autoencoder", "trainer.max_epochs=1")
    run_pipeline(*words)
    path = tmp_path / "config.yaml"
    config = OmegaConf.load(path)
    del config.learner.feedback.fraction
    OmegaConf.save(config, path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"another learner.feedback.fraction \(was 1, now 0.5\)"):
        run_pipeline(*words, "resume=true", "learner.feedback.fraction=0.5")
    assert run_pipeline(*words, "resume=true")["epochs"] == 1


def test_going_on_from_another_folder(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*TINY, "trainer.max_epochs=1", folder=tmp_path / "first")
    run_pipeline(*TINY, "trainer.max_epochs=2", f"resume={tmp_path / 'first'}", folder=tmp_path / "second")
    run_pipeline(*TINY, "trainer.max_epochs=2", folder=tmp_path / "whole")
    ours, theirs = weights(tmp_path / "second"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    (tmp_path / "second" / "checkpoints" / "last.ckpt").unlink()  # as if it had stopped in its first epoch
    (tmp_path / "second" / "summary.json").unlink()
    run_pipeline(*TINY, "trainer.max_epochs=2", "resume=true", folder=tmp_path / "second")
    again = weights(tmp_path / "second")
    assert all(torch.equal(again[key], theirs[key]) for key in theirs), "it begins where it began"
    with pytest.raises(DataError, match="no such checkpoint"):
        run_pipeline(*TINY, f"resume={tmp_path / 'nowhere'}", folder=tmp_path / "third")


def test_a_folder_has_one_process(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    from dtp_lightning.runs.lock import is_locked, locked

    with locked(tmp_path), pytest.raises(ConfigError, match="another process is at work"):
        assert is_locked(tmp_path)
        run_pipeline(*TINY)
    assert not is_locked(tmp_path) and not list(tmp_path.iterdir()), "no lock file is left"


def test_checkpoints_hold_plain_values_alone(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*TINY, "trainer.max_epochs=1", "callbacks=[online_knn,alignment,snapshots]")
    assert isinstance(weights(tmp_path), dict), "loads with weights_only=True"
