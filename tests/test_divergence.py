"""NaN and infinity stop a run at their step, by name; collapse is said once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import TINY, during, stored
from torch import Tensor, nn

from dtp_lightning.callbacks import Nonfinite
from dtp_lightning.errors import DivergedError
from dtp_lightning.learners import Learner
from dtp_lightning.module import PretrainModule
from dtp_lightning.runs.reader import read_runs
from dtp_lightning.runs.status import ended, failures

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_pictures")]
COMMAND = (*TINY, "model.channels=[4,6,8]")
STEP = 2 * 3 + 1  # in the third epoch's second batch


def poison(parameters: list[nn.Parameter], value: float = math.nan) -> None:
    with torch.no_grad():
        parameters[0][(0,) * parameters[0].ndim] = value


def weights_of_stage_2(module: PretrainModule) -> None:
    poison(module.learner.model.stages[1].forward_parameters())


def feedback_of_stage_3(module: PretrainModule) -> None:
    poison(module.learner.model.stages[2].feedback_parameters(), math.inf)


def head(module: PretrainModule) -> None:
    poison(list(module.learner.model.head.parameters()))


def loss(module: PretrainModule) -> None:
    objective = module.learner.objective
    module.learner.objective = lambda *args, **options: objective(*args, **options) + math.inf  # type: ignore[method-assign]


def target_of_stage_2(module: PretrainModule) -> None:
    """What comes out of g_3 is not finite, although its weights are."""
    feedback: Any = module.learner.model.stages[2].feedback_map
    forward = feedback.forward

    def broken(*args: Any) -> Tensor:  # for targets alone, not where the feedback learns
        return forward(*args) if torch.is_grad_enabled() else forward(*args) + math.inf

    feedback.forward = broken


def activations_of_stage_3(module: PretrainModule) -> None:
    module.learner.model.stages[2].layers()[-1].register_forward_hook(lambda *args: args[-1] + math.inf)


def update(module: PretrainModule) -> None:
    for group in module.learner.forward_optimizer.param_groups:
        group["lr"] = math.inf


FAULTS = [
    (weights_of_stage_2, "dtp", "the weights of stage 2"),
    (feedback_of_stage_3, "dtp", "the feedback weights of stage 3"),
    (head, "bp", "the weights of the head"),
    (loss, "bp", "the loss"),
    (
        target_of_stage_2,
        "dtp_autoencoder",
        r"the target of the weights of stage 2 \(and 1 more\) \(seen in their gradient\)",
    ),
    (activations_of_stage_3, "gll", "the activations of stage 3"),
    (update, "bp", "the weights of"),
]


@pytest.mark.parametrize(("fault", "learner", "named"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_stops_at_that_step_and_names_stage_and_quantity(
    fault: Callable[[PretrainModule], None], learner: str, named: str,
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    more = ("learner.epochs_per_stage=1", "trainer.max_epochs=5") if learner == "gll" else ()
    during(monkeypatch, 2, 1, fault)
    with pytest.raises(DivergedError, match=rf"^not finite at step {STEP} \(epoch 2\): {named}"):
        run_pipeline(*COMMAND, f"learner={learner}", *more)
    assert stored(tmp_path)["global_step"] == 2 * 3, "the last good checkpoint"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["learner"], summary["seed"]) == ("failed", learner, 0)
    assert summary["reason"].startswith(f"not finite at step {STEP}")


def test_a_diverged_job_counts_as_failed_and_can_be_run_again(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = tmp_path / "lr=1"
    during(monkeypatch, 2, 1, loss)
    with pytest.raises(DivergedError):
        run_pipeline(*COMMAND, "resume=true", folder=job)
    assert read_runs([tmp_path]) == [] and ended(tmp_path) == 1
    assert failures(tmp_path)["lr=1"].startswith("DivergedError: not finite at step 7")
    during(monkeypatch, None, 0, loss)
    run_pipeline(*COMMAND, "resume=true", folder=job)
    assert len(read_runs([tmp_path])) == 1 and failures(tmp_path) == {} and ended(tmp_path) == 1


def test_warn_goes_on_and_says_it_once(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    during(monkeypatch, 1, 1, loss)
    summary = run_pipeline(*COMMAND, "trainer.on_nonfinite=warn", "evaluation=[linear]", "callbacks=[online_knn]")
    assert summary["epochs"] == 4 and summary["linear/test_acc"] > 0.5, "its gradients were finite"
    said = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert len(said) == 1 and "step 4 (epoch 1): the loss; training goes on" in said[0]


def test_an_encoder_that_is_not_finite_is_not_evaluated(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    during(monkeypatch, 2, 1, weights_of_stage_2)
    with pytest.raises(DivergedError, match="the trained weights are not finite"):
        run_pipeline(*COMMAND, "trainer.on_nonfinite=warn", "evaluation=[linear]")
    assert stored(tmp_path)["global_step"] == 4 * 3
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_away_from_the_cpu_it_looks_when_metrics_are_logged(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Nonfinite, "_checks_each_step", lambda self, module: False)
    looks, look = [], Nonfinite._check

    def counted(self: Nonfinite, trainer: pl.Trainer, module: PretrainModule) -> None:
        looks.append(trainer.global_step)
        look(self, trainer, module)

    monkeypatch.setattr(Nonfinite, "_check", counted)
    during(monkeypatch, 1, 0, loss)
    with pytest.raises(DivergedError, match=r"not finite at step 3 \(epoch 1\)"):
        run_pipeline(*COMMAND, "trainer.log_every_n_steps=5")
    assert looks == [3, 5], "at the end of the first epoch, and at the first logging step"
    assert stored(tmp_path)["global_step"] == 3


def test_away_from_the_cpu_nothing_bad_is_saved(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Nonfinite, "_checks_each_step", lambda self, module: False)
    during(monkeypatch, 2, 1, weights_of_stage_2)
    with pytest.raises(DivergedError, match=r"not finite at step 7 \(epoch 2\)"):
        run_pipeline(*COMMAND, "trainer.log_every_n_steps=100")
    assert stored(tmp_path)["global_step"] == 2 * 3


def test_collapse_is_said_once(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run_pipeline(*COMMAND, folder=tmp_path / "healthy")
    assert "collapsed" not in caplog.text

    def collapse(module: PretrainModule) -> None:
        model = module.learner.model
        direction = torch.linspace(0.1, 0.5, model.embedding_dim)
        forward = type(model).forward

        def line(images: Tensor) -> Tensor:
            return forward(model, images)[:, :1] * direction

        model.forward = line  # type: ignore[method-assign]

    during(monkeypatch, 1, 0, collapse)
    run_pipeline(*COMMAND, "learner=bp", folder=tmp_path / "ill")
    said = [r.getMessage() for r in caplog.records if "collapsed" in r.getMessage()]
    assert len(said) == 1 and "effective rank 1.0" in said[0] and "in epoch 1" in said[0]


def test_large_is_not_infinite() -> None:
    from conftest import learner_of

    from dtp_lightning.callbacks.nonfinite import finite

    learner: Learner = learner_of()
    assert finite(learner.parameters())
    poison(list(learner.parameters()), 1e30)
    assert finite(learner.parameters()), "nor is its square looked at"
    poison(list(learner.parameters()), -math.inf)
    assert not finite(learner.parameters())


def test_figures_of_fewer_epochs_stay(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A finished run that diverges when it is prolonged."""
    short = run_pipeline(*COMMAND, "resume=true", "trainer.max_epochs=2")
    during(monkeypatch, 2, 1, loss)
    with pytest.raises(DivergedError):
        run_pipeline(*COMMAND, "resume=true")
    assert json.loads((tmp_path / "summary.json").read_text()) == short
    assert (tmp_path / "error.txt").read_text().startswith("DivergedError: not finite at step 7")
