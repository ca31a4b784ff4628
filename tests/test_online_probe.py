"""A probe beside the encoder: it changes nothing, learns, survives resume; early stopping and the best checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import learner_of
from runs import TINY, assert_equal, assert_same_run, during, fail, rows, stored
from torch import Tensor

from dtp_lightning.callbacks import BestCheckpoint, EarlyStopping, OnlineProbe
from dtp_lightning.errors import ConfigError
from dtp_lightning.module import PretrainModule
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runtime.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_pictures")
PROBE = ("callbacks=[online_probe]", "callbacks.online_probe.lr=0.02")


def probed(folder: Path, name: str = "val/online_probe_acc") -> list[float]:
    return [float(row[name]) for row in rows(folder) if name in row]


@pytest.mark.parametrize("learner,loss", [("bp", "cross_entropy"), ("gll", "hinge")])
def test_the_encoder_does_not_notice(
    learner: str, loss: str, run_pipeline: Callable[..., dict], tmp_path: Path
) -> None:
    words = (*TINY, f"learner={learner}", f"loss={loss}", "trainer.max_epochs=1")
    run_pipeline(*words, folder=tmp_path / "without")
    run_pipeline(*words, *PROBE, folder=tmp_path / "with")
    ours, theirs = (stored(tmp_path / name) for name in ("with", "without"))
    for part in ("state_dict", "optimizer_states", "random"):
        assert_equal(ours[part], theirs[part], part)
    assert len(probed(tmp_path / "with")) == 1 and not probed(tmp_path / "without")


def test_it_learns_at_any_stage(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    first = "{_target_:dtp_lightning.callbacks.OnlineProbe,stage:1,lr:0.02}"
    run_pipeline(*TINY, *PROBE, f"+callbacks.first={first}", "learner=bp", "trainer.limit_train_batches=10")
    last, first = probed(tmp_path), probed(tmp_path, "val/online_probe_acc/stage1")
    assert last[-1] > 0.2 and first[-1] > 0.2 and last != first, "of ten digits: by chance 0.1"
    assert len(last) == len(first) == 4


def test_there_must_be_such_a_stage() -> None:
    probe = OnlineProbe(data=None, stage=4)
    with pytest.raises(ConfigError, match="stage=4: this network has 3 stages"):
        probe.on_fit_start(None, SimpleNamespace(learner=learner_of("learner=bp")))


def terminate(module: PretrainModule) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_survives_resume(run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the middle of an epoch."""
    callbacks = "callbacks=[online_probe,best_checkpoint,early_stopping]"
    command = (*TINY, callbacks, "learner=bp", "trainer.max_epochs=3", "resume=true")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_pipeline(*command, folder=whole)
    during(monkeypatch, 1, 1, terminate)
    with pytest.raises(Interrupted):
        run_pipeline(*command, folder=broken)
    during(monkeypatch, None, 0, fail)
    run_pipeline(*command, folder=broken)
    assert_same_run(broken, whole)
    states = [{k: v for k, v in stored(folder)["callbacks"].items() if "Probe" in k} for folder in (broken, whole)]
    assert states[0]
    assert_equal(*states, "probe")
    best = [Checkpoint.read(folder / "checkpoints" / "best.ckpt") for folder in (broken, whole)]
    assert best[0].epochs == best[1].epochs == 1 + max(range(3), key=probed(whole).__getitem__)
    assert_equal(*(dict(checkpoint.weights) for checkpoint in best), "best.ckpt")


def test_training_stops_where_it_no_longer_improves(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    words = (
        *(*TINY, "callbacks=[online_probe,early_stopping]", "learner=bp", "trainer.max_epochs=5", "resume=true"),
        *("callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=1.0"),
    )
    assert run_pipeline(*words)["epochs"] == 3, "the first counts, and two that are not better"
    first = stored(tmp_path)
    assert run_pipeline(*words)["epochs"] == 3, "resumed, it is not trained further"
    assert_equal(stored(tmp_path)["state_dict"], first["state_dict"], "weights")
    assert run_pipeline(*words, "callbacks.early_stopping.patience=3")["epochs"] == 4, "unless it may take longer"


@pytest.mark.parametrize("callback", [EarlyStopping(), BestCheckpoint(Path())])
def test_their_metric_must_be_there(callback: EarlyStopping | BestCheckpoint) -> None:
    trainer = SimpleNamespace(callback_metrics={"val/loss": 1.0}, sanity_checking=False)
    with pytest.raises(ConfigError, match=r"online_probe_acc is not measured in every epoch \(val/loss is\)"):
        callback.on_validation_end(trainer, None)


def test_observers_see_the_activations_of_the_step(views: Tensor) -> None:
    learner = learner_of("learner=gll")
    learner.start_epoch(0)
    seen: list[list] = []
    learner.step(views, observe=seen.append)
    assert len(seen) == 1 and len(seen[0]) == 1, "the first stage alone, in its epochs"
    assert not seen[0][0].h.requires_grad
