"""The benchmarks run, and say what they measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import feedback_weights
import processes
import pytest
import torch
from cases import plain_recipe, settings
from conftest import ROOT, composed
from runs import TINY

from dtp_lightning.callbacks.macs import count_macs, macs_per_image
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import DataError


def test_steps(tmp_path: Path) -> None:
    only = ("--only", "bp", "dtp", "dtp_autoencoder", "dtp, bf16", "plain PyTorch loop", "plain PyTorch dtp")
    size = ("--batch", "3", "--images", "3", "16", "16", "--repeats", "2")
    command = [sys.executable, "benchmarks/steps.py", *size, *only]
    files = ("--save", str(tmp_path / "steps.json"), "--figure", str(tmp_path / "steps.png"))
    done = processes.run([*command, *files], cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "steps.json").read_text())
    macs = {row["case"]: row["macs_ratio"] for row in found["steps"]}
    assert (
        macs["bp"]
        == macs["plain PyTorch loop"]
        == macs["dtp"]
        == 1
        < macs["dtp_autoencoder"]
        == macs["plain PyTorch dtp"]
    )
    assert {"views", "forward", "gradients", "targets", "feedback"} <= set(found["parts"]["dtp_autoencoder"])
    assert (tmp_path / "steps.png").stat().st_size > 1000


def test_lightning() -> None:
    size = ("--batch", "50", "--epochs", "1", "trainer.limit_train_batches=3", "model.channels=[4,6]")
    command = [sys.executable, "benchmarks/lightning.py", *size]
    done = processes.run(command, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, whole, bare, ratio = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert 0 < float(bare) < 1.5 * float(whole) and float(ratio) > 0.5


@pytest.mark.parametrize("recipe", ["simclr", "barlow"])
def test_plain_pytorch_does_what_the_recipe_does(recipe: str) -> None:
    """As many multiply-accumulates as our network, on images of 8 x 8 pixels; views have a few thousand besides."""
    values = settings(f"experiment={recipe}_cifar10_resnet18")
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    spec = ImageSpec(3, 8, 8, mirror_safe=True)
    learner = build(values["learner"], model=build(values["model"], images=spec), loss=build(values["loss"]))
    step = plain_recipe(values, images)
    ours = macs_per_image(learner, spec, views=2)
    assert count_macs(lambda: step(torch.arange(2))) / 4 == pytest.approx(ours, rel=1e-4)


def test_kernels() -> None:
    command = [sys.executable, "benchmarks/kernels.py", "--batch", "2", "--rounds", "2"]
    done = processes.run(command, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[4:]]
    assert {row[0] for row in rows} == {"TransposedConv", "weight_gradient", "MeanSquare", "LocalDifference"}
    for kernel, case, *_, difference in rows:
        assert float(difference) < (1e-2 if "bfloat16" in case else 1e-5), (kernel, case)


@pytest.mark.slow
def test_devices() -> None:
    command = [sys.executable, "benchmarks/devices.py", "--learners", "bp", "--batch", "4", "--repeats", "1"]
    done = processes.run(command, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    model = build(checked(composed("learner=bp")[0]).model, images=ImageSpec(1, 28, 28, mirror_safe=False))
    learning = [model.head, *(stage.forward_map for stage in model.stages)]
    forward = sum(p.numel() for part in learning for p in part.parameters())
    assert row["all_gather"] == 4 * 2 * 64 * 4, "4 images of 2 views, 64 float32 numbers each"
    assert row["all_reduce"] == 4 * forward and row["bytes"] == row["all_gather"] + row["all_reduce"]


@pytest.mark.usefixtures("no_pictures")
def test_feedback_weights(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    """Of four batches, the first of which teaches feedback alone; backprop's B stays where it was."""
    angles = {}
    for learner in ("bp", "dtp"):
        run_pipeline(*TINY, f"learner={learner}", "trainer.max_epochs=1", folder=tmp_path / learner)
        *_, last = feedback_weights.table(tmp_path / learner / "checkpoints" / "last.ckpt").splitlines()
        stage, norm, distance, angle = (float(text) for text in last.strip("| ").split(" | "))
        assert stage == 2 and norm > 0 and distance > 0
        angles[learner] = angle
    assert angles["dtp"] < 40 < 60 < angles["bp"] < 120
    torch.save({"state_dict": {}}, tmp_path / "of another network")
    with pytest.raises(DataError, match="give a run on transposable maps"):
        feedback_weights.table(tmp_path / "of another network")
