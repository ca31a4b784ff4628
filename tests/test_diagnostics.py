"""The alignment callback, what it measures, its figure; multiply-accumulates."""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, composed, learner_of, options
from PIL import Image
from torch import Tensor

from dtp_lightning.callbacks import Cost, DataCallback
from dtp_lightning.callbacks.alignment import diagnose
from dtp_lightning.callbacks.macs import count_macs, macs_per_image
from dtp_lightning.callbacks.measures import (
    angle,
    effective_rank,
    effective_steps,
    jacobian_alignment,
    reconstruction,
    saturation,
    snapshot,
    update_alignment,
)
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.evaluation.health import dead_units
from dtp_lightning.learners.base import StageTrace
from dtp_lightning.models import conv_stage

LABELS = torch.tensor([0, 1, 2, 1])
SHORT = (
    "model.channels=[4,6,8]", "trainer.max_epochs=2", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=2", "evaluation=[]", "logger=none",
)  # fmt: skip
LOOK = ("callbacks=[alignment]", "callbacks.alignment.every_n_steps=4", "callbacks.alignment.images=20")


def diagnostics(folder: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [row for row in rows if row["diagnostics/effective_rank/features"]]


def test_angles_are_exact_near_zero_and_known_elsewhere() -> None:
    a = torch.randn(1000)
    assert angle(a, 3 * a) < 1e-5
    assert angle(a, -a) == pytest.approx(180)
    assert angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0**0.5])) == pytest.approx(60, abs=1e-5)


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
def test_backprop_is_parallel_to_itself(loss: str, views: Tensor) -> None:
    found = update_alignment(learner_of("learner=bp", f"loss={loss}"), views, LABELS)
    assert len(found) == 2 * 2 * 3
    for name, value in found.items():
        assert value == pytest.approx(0 if name.startswith("angle") else 1, abs=1e-3), name


def test_dtp_s_top_stage_follows_backprop_and_the_others_do_not_yet(views: Tensor) -> None:
    found = update_alignment(learner_of("learner=dtp_autoencoder"), views)
    for kind in ("weight", "bias"):
        assert found[f"angle/stage3/{kind}"] < 0.1
        assert found[f"norm_ratio/stage3/{kind}"] == pytest.approx(1, rel=1e-3)
    assert 45 < found["angle/stage1/weight"] < 135, "feedback is random before training"


def test_a_stage_without_a_gradient_is_left_out(views: Tensor) -> None:
    learner = learner_of("learner=bp")
    compute_gradients = learner.compute_gradients

    def gradients_of_the_top_stage(traces: list[StageTrace], top: Tensor, *, measure: bool) -> dict:
        compute_gradients(traces, top, measure=measure)
        for trace in traces[:-1]:
            for parameter in trace.stage.forward_parameters():
                parameter.grad = None
        return {}

    learner.compute_gradients = gradients_of_the_top_stage
    assert {name.split("/")[1] for name in update_alignment(learner, views)} == {"stage3"}


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_jacobian_of_an_exact_transpose(pooling: str) -> None:
    stage = conv_stage(
        2, 3, pooling=pooling, feedback="unpool", activation="Identity", activation_below="Identity", bias=False
    )
    x = torch.randn(5, 2, 8, 8)
    y, pool_indices, _ = stage.run(x)
    trace, probe = StageTrace(stage, x, y, pool_indices), torch.randn_like(y)
    assert abs(jacobian_alignment(trace, probe)[0]) < 0.9
    stage.feedback_map.weight.data = stage.forward_map[0].weight.data.clone()
    assert jacobian_alignment(trace, probe) == pytest.approx((1, 1), abs=1e-5)
    stage.feedback_map.weight.data *= 2
    assert jacobian_alignment(trace, probe) == pytest.approx((1, 2), abs=1e-5)


def test_jacobian_of_feedback_is_a_directional_derivative(views: Tensor) -> None:
    """The length ratio, against finite differences, through tanh and strides."""
    learner = learner_of("learner=dtp_autoencoder").double()
    trace = learner.trace(views.flatten(0, 1).double())[1]
    u, step = torch.randn_like(trace.h), 1e-5
    with torch.no_grad():
        carried = (trace.feedback(trace.h + step * u) - trace.feedback(trace.h - step * u)) / (2 * step)
    x = trace.x.requires_grad_(True)
    (exact,) = torch.autograd.grad(trace.stage(x), x, u)
    cosine, ratio = jacobian_alignment(trace, u)
    assert ratio == pytest.approx((carried.norm() / exact.norm()).item(), rel=1e-6)
    assert cosine == pytest.approx(torch.cosine_similarity(carried.flatten(1), exact.flatten(1)).mean().item())


def test_reconstruction_is_one_for_a_constant_and_zero_for_an_inverse() -> None:
    stage = conv_stage(1, 1, kernel_size=1, pool=1, activation="Identity", activation_below="Identity")
    x = torch.randn(50, 1, 6, 6) + 3
    y = stage(x)
    trace = StageTrace(stage, x, y)
    back = stage.feedback_map
    with torch.no_grad():
        back.weight.zero_()
        back.bias.fill_(x.mean())
        assert reconstruction(trace) == pytest.approx(1, rel=1e-4)
        back.weight.fill_(1 / stage.forward_map[0].weight.item())
        back.bias.copy_(-next(p for p in stage.forward_map.parameters() if p.ndim == 1) * back.weight.flatten())
        assert reconstruction(trace) < 1e-6


@pytest.mark.parametrize("shape", [(400, 30), (30, 400)])
def test_effective_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.cat([torch.ones(shape[0], 1), torch.randn(shape[0], 4)], dim=1))
    right, _ = torch.linalg.qr(torch.randn(shape[1], 4))
    x = left[:, 1:] @ right.T + 7  # four equal singular values, orthogonal to the mean
    assert effective_rank(x) == pytest.approx(4, rel=1e-3)
    assert effective_rank(x[:, :1] * torch.ones(shape[1])) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("activation,values,expected", [
    ("Tanh", [-0.96, 0.0, 0.94, 0.96], {"mean_abs": 0.715, "saturated": 0.5}),
    ("Sigmoid", [0.02, 0.5, 0.97, 0.98], {"mean_abs": 0.6175, "saturated": 0.5}),
    ("ReLU", [0.0, 2.0, 0.0, 4.0], {"mean_abs": 1.5}),
])  # fmt: skip
def test_saturation(activation: str, values: list[float], expected: dict[str, float]) -> None:
    h = torch.tensor(values).view(1, 1, 2, 2)
    assert saturation(StageTrace(conv_stage(1, 1, activation=activation), h, h)) == pytest.approx(expected)


def test_dead_units() -> None:
    h = torch.rand(10, 4, 2, 2)
    h[:, 1] = 1.0
    h[:, 0, 0, 0] = -1.0
    assert dead_units(h) == 5 / 16


def test_effective_step_is_one_after_adam_s_first_and_knows_each_stage_s_rate(views: Tensor) -> None:
    learner = learner_of("learner=bp", "loss=simclr")
    learner.forward_optimizer.param_groups[0]["lr"] = 1e-2
    before = snapshot(learner)
    learner.step(views)
    assert list(effective_steps(learner, before)) == [f"effective_step/stage{i}" for i in (1, 2, 3)]
    assert all(value == pytest.approx(1, abs=0.01) for value in effective_steps(learner, before).values())


@pytest.mark.parametrize("name", options("learner"))
def test_every_rule_can_be_diagnosed_and_the_original_stays(name: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}")
    before = copy.deepcopy(learner.state_dict())
    found = diagnose(copy.deepcopy(learner), views, LABELS)
    assert {f"dead_units/stage{i}" for i in (1, 2, 3)} | {"effective_rank/embeddings"} <= set(found)
    assert any(key.startswith("angle/") for key in found)
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("model", options("model"))
def test_every_model_can_be_diagnosed(model: str) -> None:
    if model == "timm":
        pytest.importorskip("timm", reason="timm is an extra")
    # no weight of a forward-only network's feedback has a forward one beside it
    rule = "dtp_autoencoder" if "forward_only" in composed(f"model={model}")[0].model._target_ else "dtp"
    values, images = checked(composed(f"learner={rule}", f"model={model}")[0]), ImageSpec(3, 35, 33, True)
    learner = build(values.learner, model=build(values.model, images=images), loss=build(values.loss))
    found = diagnose(learner, torch.rand(2, 3, 3, 35, 33))
    assert all(torch.isfinite(torch.tensor(value)) for value in found.values())
    assert all(0.01 < value < 100 for name, value in found.items() if name.startswith("jacobian_norm"))


def test_rules_that_do_not_use_feedback_maps_get_no_feedback_diagnostics(views: Tensor) -> None:
    learner = learner_of("learner=bp")
    learner.uses_feedback_maps = False
    assert not [name for name in diagnose(learner, views) if name.startswith(("jacobian", "reconstruction"))]


def test_a_run_does_not_notice(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    """DTP draws noise in its steps, so any random number taken from the run would show."""
    run_pipeline(*SHORT, *LOOK, folder=tmp_path / "with")
    run_pipeline(*SHORT, "callbacks=[]", folder=tmp_path / "without")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("with", "without")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 10
    assert all(torch.equal(states[0]["state_dict"][key], value) for key, value in states[1]["state_dict"].items())
    losses = [
        [row["train/loss"] + row["val/loss"] for row in csv.DictReader((tmp_path / name / "metrics.csv").open())]
        for name in ("with", "without")
    ]
    assert [x for x in losses[0] if x] == [x for x in losses[1] if x]


def test_rows_of_metrics_csv_and_figure(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    summary = run_pipeline("learner=dtp_autoencoder", *SHORT, *LOOK)
    rows = diagnostics(tmp_path)
    assert [int(row["step"]) for row in rows] == [0, 4, 8, 10], "every fourth batch, and after the last"
    staged = ("angle/stage1/weight", "norm_ratio/stage3/bias", "jacobian_cosine/stage2", "jacobian_norm_ratio/stage3")
    for name in (*staged, "reconstruction/stage2", "effective_rank/embeddings", "dead_units/stage1"):
        assert all(row[f"diagnostics/{name}"] for row in rows), name
    assert [bool(row["diagnostics/effective_step/stage1"]) for row in rows] == [True, True, True, False]
    assert float(rows[0]["diagnostics/effective_step/stage1"]) == pytest.approx(1, abs=0.05)
    with Image.open(tmp_path / "plots" / "diagnostics.png") as picture:
        assert min(picture.size) > 600
        assert len(picture.convert("L").getcolors()) > 20
    assert summary["cost/macs_per_image"] > 0 and summary["cost/seconds_per_step"] > 0


def test_supervised_with_a_short_last_batch(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(
        *LOOK, "loss=cross_entropy", "learner=bp", "model.channels=[2,2]", "batch_size=2999", "trainer.max_epochs=1",
        "evaluation=[]", "logger=none",
    )  # fmt: skip
    rows = diagnostics(tmp_path)
    assert [row["step"] for row in rows] == ["0", "1"]
    assert all(float(row["diagnostics/angle/stage1/weight"]) < 0.1 for row in rows)


def test_macs_of_single_operations() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 8, 8)
    forward = 2 * 5 * 3 * 9 * 64
    assert count_macs(lambda: conv(x)) == forward
    assert count_macs(lambda: conv(x).sum().backward()) == 2 * forward, "the weights' gradient; x wants none"
    assert count_macs(lambda: torch.nn.Linear(7, 4)(torch.randn(6, 7))) == 6 * 7 * 4


@pytest.mark.parametrize("name,expected", [("bp", 44_433_408), ("dtp", 44_433_408), ("dtp_autoencoder", 58_589_184)])
def test_macs_of_the_thesis_network(name: str, expected: int) -> None:
    """One view of 32 x 32 x 3, by hand: f1 = 884,736, f2 = f3 = f4 = 4,718,592, head f5 = 65,536, F their sum;
    g2 = g3 = g4 = f/4 by their stride, G their sum.

    bp: forward F, weights F, inputs F - f1. dtp: forward F, weights F, the head's input f5, targets f2 + f3 + f4 (one
    pass each, at the size before pooling). dtp_autoencoder: forward F, weights F, the head's input f5, targets 2 G
    (g of h and of t apart), feedback training f2 + f3 + f4 (noisy forward) + G (reconstruction) + G (its weights'
    gradient).
    """
    f, f5 = 4_718_592, 65_536
    total = 884_736 + 3 * f + f5
    g = 3 * f // 4
    by_hand = {"bp": 3 * total - 884_736, "dtp": 2 * total + f5 + 3 * f}
    by_hand["dtp_autoencoder"] = 2 * total + f5 + 2 * g + 3 * f + 2 * g
    values, images = checked(composed(f"learner={name}")[0]), ImageSpec(3, 32, 32, True)
    learner = build(values.learner, model=build(values.model, images=images), loss=build(values.loss))
    assert macs_per_image(learner, images, views=2) == expected == by_hand[name]


@pytest.mark.parametrize("loss", options("loss"))
def test_two_images_are_enough_to_count(loss: str) -> None:
    learner = learner_of("learner=dtp", f"loss={loss}")
    state = torch.get_rng_state()
    assert macs_per_image(learner, TINY, views=2) > 0
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in learner.parameters())


def test_time_for_diagnostics_is_not_training_time() -> None:
    cost, look = Cost(), DataCallback()
    look.overhead_seconds = 3.0
    trainer = SimpleNamespace(callbacks=[cost, look], is_last_batch=True, world_size=1)
    cost.on_train_batch_start(trainer, None, None, 0)
    time.sleep(0.05)
    look.overhead_seconds += 0.04
    cost.on_train_batch_end(trainer, None, None, SimpleNamespace(images=[1, 2]), 0)
    assert 0.01 <= cost.training_seconds < 0.04 + 0.5
    assert cost.summary()["cost/seconds_per_step"] == cost.training_seconds
    look.overhead_seconds += 10
    cost.on_train_batch_start(trainer, None, None, 0)
    cost.on_train_epoch_end(trainer, None)
    assert cost.training_seconds > 0, "what was spent between epochs is not taken off"
