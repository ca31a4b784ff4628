"""evaluate.py: a finished run's encoder, judged again here and elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import CONF, ROOT
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from PIL import Image

from dtp_lightning.cli import evaluate_checkpoint
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.report.text import table
from dtp_lightning.runs.reader import read_runs

SHORT = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "logger=none",
    "model.channels=[4,6,8,10]",
)


def evaluate(folder: Path, *overrides: str) -> dict:
    folder.mkdir(parents=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    return evaluate_checkpoint.evaluate(config, choices, folder, Path.cwd())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small labelled folder of colour images."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.png")
    return root


def test_same_data_same_figures(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    snapshots = "callbacks=[snapshots]", "callbacks.snapshots.every_n_epochs=1"
    found = run_pipeline(*SHORT, *snapshots, "evaluation=[knn,distances]", folder=tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {p.name for p in checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt", "epoch1.ckpt", "epoch2.ckpt"}
    again = evaluate(tmp_path / "last", f"checkpoint={checkpoints}/last.ckpt", "evaluation=[knn,distances]")
    judged = {key: value for key, value in found.items() if "knn/" in key or "distances/" in key}
    assert judged.items() <= again.items(), "the trained and the untrained encoder are found again"
    assert again["epochs"] == 2 and again["learner"] == "dtp" and again["evaluated_on"] == "mnist5k"
    assert json.loads((tmp_path / "last" / "summary.json").read_text()) == again
    assert (tmp_path / "last" / "plots" / "distances.png").exists()
    earlier = evaluate(tmp_path / "first", f"checkpoint={checkpoints}/epoch1.ckpt", "evaluation=[knn]")
    assert earlier["epochs"] == 1


def test_other_data_in_the_encoders_format(run_pipeline: Callable[..., dict], images: Path, tmp_path: Path) -> None:
    run_pipeline(*SHORT, "callbacks=[]", "evaluation=[]", folder=tmp_path / "run")
    found = evaluate(
        tmp_path / "elsewhere", f"checkpoint={tmp_path}/run/checkpoints/last.ckpt",
        "dataset=image_folder", f"dataset.root={images}", "evaluation=[linear]",
    )  # fmt: skip
    assert found["dataset"] == "mnist5k" and found["evaluated_on"] == "image_folder"
    assert {"linear/test_acc", "random_encoder/linear/test_acc"} <= found.keys()
    rows = table(read_runs([tmp_path]), "test")
    assert "on image_folder" in rows


def test_transfer_in_a_run(run_pipeline: Callable[..., dict], images: Path) -> None:
    node = "evaluation.transfer.to.mine"
    found = run_pipeline(
        *SHORT, "callbacks=[]", "evaluation=[transfer]", f"+dataset@{node}=image_folder", f"{node}.root={images}"
    )
    assert {"transfer/mine/test_acc", "random_encoder/transfer/mine/test_acc"} <= found.keys()


def test_missing_transfer_data_is_found_out_before_training(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    node = "evaluation.transfer.to.mine"
    with pytest.raises(DataError, match="there is no folder"):
        run_pipeline("evaluation=[transfer]", f"+dataset@{node}=image_folder", f"{node}.root={tmp_path}/nowhere")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("learner", ["dtp", "bp"])
def test_supervised_run_and_its_checkpoint(learner: str, run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = run_pipeline(
        *SHORT, f"learner={learner}", "loss=cross_entropy", "augment=clean", "callbacks=[]", "evaluation=[knn]",
        folder=run,
    )  # fmt: skip
    again = evaluate(tmp_path / "again", f"checkpoint={run}/checkpoints/last.ckpt", "evaluation=[knn]")
    assert again["knn/test_acc"] == found["knn/test_acc"]


def test_unlabelled_images_train_and_say_what_is_left_out(
    run_pipeline: Callable[..., dict], images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run_pipeline(
        "dataset=image_folder", f"dataset.root={images}/train/a", "batch_size=4", "trainer.max_epochs=1",
        "evaluation=[linear,distances]", "logger=none",
    )  # fmt: skip
    assert 0 < found["distances/l1/auc"] <= 1 and "linear/test_acc" not in found
    assert "no labels: linear left out" in caplog.text and "no labels: online_knn left out" in caplog.text


def test_streaming_and_memory_train_the_same(run_pipeline: Callable[..., dict], images: Path, tmp_path: Path) -> None:
    weights = []
    for loading in ("memory", "stream"):
        folder = tmp_path / loading
        run_pipeline(
            "dataset=image_folder", f"dataset.root={images}", "batch_size=4", "trainer.max_epochs=2", "logger=none",
            "evaluation=[]", "callbacks=[]", f"loading={loading}", folder=folder,
        )  # fmt: skip
        weights.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_views_mode_only_draws(
    run_pipeline: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_pipeline("mode=views", "augment=simclr") == {}
    assert "views.png" in capsys.readouterr().out
    assert Image.open(tmp_path / "plots" / "views.png").size[0] > 500
    assert not (tmp_path / "checkpoints").exists()


def test_contrastive_losses_need_two_views(run_pipeline: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match="loss=hinge compares two views"):
        run_pipeline("augment=clean")


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ([], "checkpoint has no value"),
        (["checkpoint=nowhere.ckpt"], "no such file"),
        (["checkpoint=README.md"], "damaged, or not a checkpoint"),
        (["checkpoint=nowhere.ckpt", "evaluation=[lineer]"], "did you mean 'linear'"),
        (["checkpoint=nowhere.ckpt", "datset=cifar10"], "did you mean 'dataset'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, str(ROOT / "evaluate.py"), *arguments, f"hydra.run.dir={tmp_path}"],
        cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0 and expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
