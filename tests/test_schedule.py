"""Rates from batch to batch, per stage, with decay and clipping; and a resumed run that goes on where it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import learner_of, options
from torch import Tensor

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import Course, Schedule


@pytest.mark.parametrize(
    "course,expected",
    [
        (Course(), [1, 1, 1, 1, 1, 1]),
        (Course("constant", warmup=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Course("linear", batches=4, floor=0.2), [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (Course("cosine", warmup=1, batches=5), [1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        (Course("step", every=2, drop=0.5), [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_courses(course: Course, expected: list[float]) -> None:
    assert [course.factor(k) for k in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"shape": "step"}, "shape=step needs every"),
        ({"shape": "linear", "warmup": 9, "batches": 9}, "batches=9 must be more than warmup=9"),
    ],
)
def test_courses_that_cannot_be(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Course(**wrong)


def test_a_course_of_no_length_lasts_as_long_as_training() -> None:
    course, own = Course("cosine", warmup=2), Course("linear", batches=4)
    with pytest.raises(ConfigError, match="shape=cosine needs a number of batches"):
        course.factor(2)
    Schedule(course, own).set_length(6)
    assert course.factor(4) == pytest.approx(0.5) and course.factor(6) == 0 and own.factor(4) == 0
    with pytest.raises(ConfigError, match="batches=2 must be more than warmup=2"):
        Course("cosine", warmup=2).set_length(2)


def test_cosine_ends_with_the_training(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    words = (
        *("learner=bp", "model.channels=[4,6]", "schedule=cosine", "trainer.limit_train_batches=4"),
        *("trainer.limit_val_batches=1", "trainer.max_epochs=2", "trainer.accelerator=cpu", "batch_size=20"),
    )
    run_pipeline(*words, "evaluation=[knn]", "callbacks=[]", "logger=none")
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    rate = state["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate == pytest.approx(5e-4 * (1 + math.cos(math.pi * 7 / 8)) / 2), "of the last of eight batches"


def rates(learner) -> list[dict[str, float]]:
    return [{group["name"]: group["lr"] for group in optimizer.param_groups} for optimizer in learner.optimizers]


def test_rates_of_stages_and_optimizers(views: Tensor) -> None:
    learner = learner_of("learner=dtp_autoencoder")
    forward, feedback = rates(learner)
    learner.follow_schedule(Schedule(Course("linear", batches=2), Course("constant", warmup=2), [1, 2, 0]))
    found = []
    for _ in range(3):
        learner.step(views)
        found.append(rates(learner))
    for (now, back), ahead, behind in zip(found, (1, 0.5, 0), (0.5, 1, 1), strict=True):
        for name, factor in {"stage1": 1, "stage2": 2, "stage3": 0, "head": 1}.items():
            assert now[name] == pytest.approx(forward[name] * factor * ahead)
        assert back == pytest.approx({name: rate * behind for name, rate in feedback.items()})
    with pytest.raises(ConfigError, match="stage_factors has 2 entries for 3 stages"):
        learner.follow_schedule(Schedule(stage_factors=[1, 2]))


def test_weights_decay_and_biases_do_not(views: Tensor) -> None:
    learners = [learner_of("learner=bp") for _ in range(2)]
    learners[1].follow_schedule(Schedule(weight_decay=0.5))
    before = [p.detach().clone() for p in learners[0].model.parameters()]
    for learner in learners:
        learner.step(views)
    rate = rates(learners[0])[0]["head"]
    named = zip(*(learner.model.named_parameters() for learner in learners), before, strict=True)
    for (name, plain), (_, decayed), then in named:
        lost = rate * 0.5 * then if then.ndim > 1 and "feedback_map" not in name else 0 * then
        torch.testing.assert_close(plain - decayed, lost, rtol=1e-2, atol=1e-8)


def test_each_stage_is_clipped_by_itself(views: Tensor) -> None:
    learners = [learner_of("learner=dtp_autoencoder") for _ in range(2)]
    norms = []
    for learner in learners:
        torch.manual_seed(0)
        learner.step(views, update=list)
        groups = [[p.grad for p in stage.forward_parameters()] for stage in learner.model.stages]
        norms.append([torch.cat([g.flatten() for g in group]).norm().item() for group in groups])
        limit = sorted(norms[0])[1]
        learners[1].follow_schedule(Schedule(clip=limit))
    assert norms[1] == pytest.approx([min(norm, limit) for norm in norms[0]], rel=1e-3)
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("name", options("learner"))
def test_every_rule_takes_a_schedule_and_goes_on_from_its_state(name: str, views: Tensor) -> None:
    course = Course("cosine", warmup=2, batches=8)
    learner, other = (learner_of(f"learner={name}", seed=seed) for seed in (0, 9))
    assert not any("schedule" in key for key in learner.state_dict()), "checkpoints of before stay readable"
    for each in (learner, other):
        each.follow_schedule(Schedule(course, weight_decay=0.1, clip=10.0))
    for _ in range(3):
        learner.step(views)
    other.load_state_dict(learner.state_dict())
    for mine, theirs in zip(learner.optimizers, other.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    for each in (learner, other):
        torch.manual_seed(5)
        each.step(views)
    assert rates(learner) == rates(other)
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), other.parameters(), strict=True))


def test_a_resumed_run_is_the_run_that_was_never_stopped(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    """With feedback that has phases, and rates that change."""
    words = (
        *("learner=dtp", "model.channels=[4,6]", "learner.feedback.batches=3"),
        *("schedule=cosine", "schedule.forward.batches=12", "schedule.forward.warmup=2", "schedule.weight_decay=0.1"),
        *("trainer.accelerator=cpu", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1", "batch_size=20"),
        *("evaluation=[knn]", "callbacks=[]", "logger=none"),
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_pipeline(*words, "trainer.max_epochs=2", folder=whole)
    run_pipeline(*words, "trainer.max_epochs=1", folder=broken)
    run_pipeline(*words, "trainer.max_epochs=2", "resume=true", folder=broken)
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (broken, whole)
    )
    assert ours.keys() == theirs.keys() and "learner.schedule._extra_state" in ours
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    with pytest.raises(ConfigError, match=r"another schedule\.forward\.warmup \(was 2, now 1\)"):
        run_pipeline(*words, "trainer.max_epochs=3", "schedule.forward.warmup=1", "resume=true", folder=broken)


def test_a_run_of_before_there_were_schedules_is_resumed(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    words = (
        *("learner=bp", "model.channels=[4,6]", "trainer.accelerator=cpu", "trainer.limit_train_batches=2"),
        *("trainer.limit_val_batches=1", "batch_size=20", "evaluation=[knn]", "callbacks=[]", "logger=none"),
    )
    run_pipeline(*words, "trainer.max_epochs=1")
    config = tmp_path / "config.yaml"
    config.write_text("".join(line for line in config.open() if not line.startswith("schedule")))
    assert run_pipeline(*words, "trainer.max_epochs=2", "resume=true")["epochs"] == 2
