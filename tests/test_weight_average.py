"""``average=ema``: the average is its formula, training does not notice it, evaluation and export use it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import options
from runs import TINY, assert_equal, assert_same_run, during, fail, rows, stored
from test_evaluate import evaluate
from torch import Tensor, nn

from dtp_lightning import load_encoder, pipeline
from dtp_lightning.callbacks import OnlineKNN, WeightAverage
from dtp_lightning.errors import ConfigError
from dtp_lightning.export.writer import export
from dtp_lightning.module import PretrainModule

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_pictures")]

WORDS = (*TINY, "trainer.max_epochs=2", "trainer.accelerator=cpu", "learner=dtp_autoencoder", "evaluation=[knn]")
AVERAGE = ("average=ema", "average.decay=0.6")


def weights_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Filled while a run trains."""
    found: list[dict[str, Tensor]] = []
    step = PretrainModule.training_step

    def remembered(self: PretrainModule, batch: object, batch_idx: int) -> None:
        step(self, batch, batch_idx)
        found.append({name: p.detach().clone() for name, p in self.named_parameters()})

    monkeypatch.setattr(PretrainModule, "training_step", remembered)
    return found


def averaged(weights: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The formula, in float64."""
    a = {name: w.double() for name, w in weights[0].items()}
    for t, after in enumerate(weights[1:], 1):
        d = min(decay, (1 + t) / (10 + t))
        a = {name: d * a[name] + (1 - d) * w.double() for name, w in after.items()}
    return a


def test_it_is_its_formula_and_training_does_not_notice(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = run_pipeline(*WORDS, folder=tmp_path / "plain")
    seen = weights_after_each_batch(monkeypatch)
    summary = run_pipeline(*WORDS, *AVERAGE, folder=tmp_path / "ema")
    last, average = stored(tmp_path / "plain"), stored(tmp_path / "ema")
    assert_equal(average["current_model_state"], last["state_dict"], "the weights are those without an average")
    for part in ("optimizer_states", "random", "global_step"):
        assert_equal(average[part], last[part], part)
    assert len(seen) == 6
    for name, value in averaged(seen, 0.6).items():
        torch.testing.assert_close(average["state_dict"][name], value.float())
        if "forward_map" in name:
            assert not torch.equal(average["state_dict"][name], last["state_dict"][name]), name
    losses = [[row["train/loss"] for row in rows(tmp_path / f) if "train/loss" in row] for f in ("plain", "ema")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    checked = [[row["val/loss"] for row in rows(tmp_path / f) if "val/loss" in row] for f in ("plain", "ema")]
    assert checked[0] != checked[1], "validation sees the average"
    assert summary["weights"] == "WeightAverage(decay=0.6)" and "weights" not in plain


def test_decay_bounds_what_the_beginning_keeps() -> None:
    average, a = WeightAverage(decay=0.2), torch.ones(1)
    for t in range(1, 200):
        average._update([a], [torch.zeros(1)], t)
        assert t > 1 or a.item() == pytest.approx(2 / 11), "(1 + 1) / (10 + 1), which is less than 0.2"
    assert a.item() < 1e-30
    slow, b = WeightAverage(decay=0.999), torch.ones(1)
    for t in range(1, 200):
        slow._update([b], [torch.zeros(1)], torch.tensor(t))
    assert b.item() < 1e-8, "0.999 ** 199 would keep 0.8 of the first weights"


@pytest.mark.parametrize("learner", ["dtp_autoencoder", "dtp_kp"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    learner: str, run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After an exception, after SIGTERM within an epoch, and after its last epoch, when only the evaluation is left."""
    extra = ("model.feedback=transposable", "learner.feedback.batches=2") if learner == "dtp_kp" else ()
    command = (*WORDS, *AVERAGE, f"learner={learner}", *extra, "schedule=cosine", "schedule.forward.batches=9")
    command = (*command, "trainer.max_epochs=3", "resume=true")
    whole, broken, stopped, late = (tmp_path / name for name in ("whole", "broken", "stopped", "late"))
    run_pipeline(*command, folder=whole)
    during(monkeypatch, 1, 1, fail)
    with pytest.raises(RuntimeError, match="lights"):
        run_pipeline(*command, folder=broken)
    during(monkeypatch, 1, 1, lambda module: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(BaseException, match="stopped by SIGTERM"):
        run_pipeline(*command, folder=stopped)
    during(monkeypatch, None, 0, fail)
    evaluated, original = [], pipeline.evaluate_encoders

    def watched(evaluations: dict, trained: nn.Module, *rest: object) -> dict:
        evaluated.append({f"learner.model.{name}": value.clone() for name, value in trained.state_dict().items()})
        return original(evaluations, trained, *rest)

    monkeypatch.setattr(pipeline, "evaluate_encoders", watched)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="evaluate"):
        patch.setattr(pipeline, "evaluate_encoders", lambda *_: (_ for _ in ()).throw(RuntimeError("evaluate")))
        run_pipeline(*command, folder=late)
    for folder in (broken, stopped, late):
        run_pipeline(*command, folder=folder)
        assert_same_run(folder, whole)
        ours, theirs = stored(folder), stored(whole)
        for part in ("averaging_state", "current_model_state"):
            assert_equal(ours[part], theirs[part], part)
        for name, value in evaluated[-1].items():
            assert torch.equal(value, theirs["state_dict"][name]), f"{folder.name} evaluates the average: {name}"


def test_evaluation_callbacks_and_export_use_it(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever comes first on the command line; diagnostics look at the weights themselves."""
    judged: list[dict[str, Tensor]] = []
    original, whole = OnlineKNN.on_validation_epoch_end, pipeline.evaluate_encoders
    evaluated: list[dict[str, Tensor]] = []

    def remembered(self: OnlineKNN, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        judged.append({name: p.detach().clone() for name, p in module.named_parameters()})
        original(self, trainer, module)

    def watched(evaluations: dict, trained: nn.Module, *rest: object) -> dict:
        evaluated.append({name: p.detach().clone() for name, p in trained.named_parameters()})
        return whole(evaluations, trained, *rest)

    monkeypatch.setattr(OnlineKNN, "on_validation_epoch_end", remembered)
    monkeypatch.setattr(pipeline, "evaluate_encoders", watched)
    seen = weights_after_each_batch(monkeypatch)
    looks = ("callbacks=[online_knn,alignment]", "callbacks.online_knn.bank_size=200", "callbacks.alignment.images=10")
    run_pipeline(*WORDS, *AVERAGE, *looks, folder=tmp_path / "ema")
    expected = averaged(seen, 0.6)
    for name, value in judged[-1].items():
        torch.testing.assert_close(value, expected[name].float())
    for name, value in evaluated[0].items():
        assert torch.equal(value, judged[-1][f"learner.model.{name}"])
    encoder = load_encoder(export(tmp_path / "ema", tmp_path / "encoder.safetensors"))
    (name, exported), *_ = encoder.stages.named_parameters()
    assert torch.equal(exported, evaluated[0][f"stages.{name}"])
    assert encoder.card["weights"] == "WeightAverage(decay=0.6)" and encoder.card["config"]["average"]["decay"] == 0.6
    run_pipeline(*WORDS, *looks, folder=tmp_path / "plain")
    ends = [
        [row["diagnostics/mean_abs/stage1"] for row in rows(tmp_path / f) if "diagnostics/mean_abs/stage1" in row][-1]
        for f in ("ema", "plain")
    ]
    assert ends[0] == ends[1]


def test_dtp_evaluate_takes_the_average_and_says_so(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    summary = run_pipeline(*WORDS, *AVERAGE, folder=tmp_path / "ema")
    again = evaluate(tmp_path / "again", f"checkpoint={tmp_path}/ema/checkpoints/last.ckpt", "evaluation=[knn]")
    assert again["weights"] == summary["weights"] and again["knn/test_acc"] == summary["knn/test_acc"]


def test_with_and_without_are_different_runs(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*WORDS, *AVERAGE, folder=tmp_path / "ema")
    with pytest.raises(ConfigError, match=r"another average"):
        run_pipeline(*WORDS, "trainer.max_epochs=3", "resume=true", folder=tmp_path / "ema")
    with pytest.raises(ConfigError, match=r"another average.decay \(was 0.6, now 0.7\)"):
        run_pipeline(*WORDS, "average=ema", "average.decay=0.7", "resume=true", folder=tmp_path / "ema")
    with pytest.raises(ConfigError, match=r"resume with average=ema"):
        run_pipeline(*WORDS, "trainer.max_epochs=3", f"resume={tmp_path / 'ema'}", folder=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"average.decay=1.0"):
        run_pipeline(*WORDS, "average=ema", "average.decay=1.0", folder=tmp_path / "wrong")
    assert json.loads((tmp_path / "ema" / "summary.json").read_text())["weights"] == "WeightAverage(decay=0.6)"


@pytest.mark.parametrize("learner", options("learner"))
def test_every_rule_can_be_averaged(learner: str, run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_epochs=1", "trainer.accelerator=cpu", "evaluation=[]", f"learner={learner}", *AVERAGE]
    run_pipeline(*words)
    assert stored(tmp_path)["averaging_state"]["n_averaged"] == 3
