"""A run whose features say nothing says so: in its closing table, in summary.json, and in reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY as SPEC
from runs import TINY
from test_page import write_run

from dtp_lightning.evaluation.health import accuracy_warnings, stage_warnings
from dtp_lightning.models import conv_net
from dtp_lightning.report.page import write_page
from dtp_lightning.report.text import table
from dtp_lightning.runs.reader import read_runs, save_runs
from dtp_lightning.runs.summary import closing_table

IMAGES = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("fill", "activation", "told"),
    [
        (None, "Tanh", []),
        (None, "ReLU", []),
        (0.0, "Tanh", ["stage 2 is dead: 100 %"]),
        (1e6, "Tanh", ["stage 2 is saturated: 100 %"]),
        (-1e6, "ReLU", ["stage 2 is dead: 100 %"]),
    ],
)
def test_dead_and_saturated_stages_are_named(fill: float | None, activation: str, told: list[str]) -> None:
    torch.manual_seed(0)
    network = conv_net(SPEC, channels=[4, 6], embedding_dim=5, activation=activation)
    if fill is not None:
        weight = network.stages[1].forward_parameters()[0]
        torch.nn.init.constant_(weight, fill) if activation == "ReLU" or fill == 0 else weight.data.mul_(fill)
    assert [
        sentence[: len(start)] for sentence, start in zip(stage_warnings(network, IMAGES), told, strict=True)
    ] == told


def test_a_saturated_feedback_map_is_named() -> None:
    torch.manual_seed(0)
    network = conv_net(SPEC, channels=[4, 6], embedding_dim=5)
    for parameter in network.stages[1].feedback_parameters():
        parameter.data.mul_(1e6)
    (told,) = stage_warnings(network, IMAGES)
    assert told.startswith("the feedback map of stage 2 is saturated")


@pytest.mark.parametrize(
    ("trained", "images", "told"), [(0.70, 1000, 1), (0.79, 1000, 0), (0.79, 10**6, 1), (0.9, 9, 0)]
)
def test_worse_than_untrained_means_by_more_than_chance(trained: float, images: int, told: int) -> None:
    found = accuracy_warnings({"knn/val_acc": trained, "random_encoder/knn/val_acc": 0.8}, images)
    assert len(found) == told and all("worse than untrained ones: knn gets" in sentence for sentence in found)


@pytest.mark.usefixtures("no_pictures")
def test_a_rate_of_1e9_is_told_of_to_the_end(
    run_pipeline: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = (*TINY, "trainer.max_epochs=1", "evaluation=[knn]", "learner=dtp", "learner.forward_optimizer.lr=1e9")
    run_pipeline(*given, folder=run)
    told = json.loads((run / "summary.json").read_text())["warnings"]
    assert {"stage 1 is saturated", "stage 2 is saturated"} <= {sentence.partition(":")[0] for sentence in told}
    assert any(sentence.startswith("the features are worse than untrained ones: knn gets") for sentence in told)
    assert "warning: stage 1 is saturated" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_a_feedback_rate_of_1e6_is_told_of_and_a_usual_one_is_not(
    run_pipeline: Callable[..., dict], tmp_path: Path
) -> None:
    given = (*TINY, "trainer.max_epochs=2", "learner=dtp_autoencoder")
    ill = run_pipeline(*given, "learner.feedback.optimizer.lr=1e6", folder=tmp_path / "ill")
    assert any("feedback map of stage 2 is saturated" in sentence for sentence in ill["warnings"])
    assert "warnings" not in run_pipeline(*given, folder=tmp_path / "well")


def test_reports_show_it_and_csv_files_keep_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"seed={seed}", "bp", seed, 0.9, f"seed={seed}")
    path = tmp_path / "runs" / "seed=1" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": ["stage 1 is dead", "stage 2 is <dead>"]}))
    runs = read_runs([tmp_path / "runs"])
    said = "bp (mnist5k · cnn4 · hinge · 2 epochs), 1 of 2 runs, seed 1: stage 1 is dead, stage 2 is <dead>"
    assert f"warning: {said}" in table(runs, "test")
    write_page(runs, tmp_path / "page.html", "A")
    assert said.replace("<dead>", "&lt;dead&gt;") in (tmp_path / "page.html").read_text()
    save_runs(runs, tmp_path / "runs.csv")
    assert [run.get("warnings") for run in read_runs([tmp_path / "runs.csv"])] == [run.get("warnings") for run in runs]
    assert "warning" not in table(read_runs([tmp_path / "runs" / "seed=0"]), "test")
    told = {**runs[1], "epochs": 2, "warnings": ["stage 1 is dead"]}
    del told["fit/seconds"]
    assert "\nwarning: stage 1 is dead\n" in closing_table(told, tmp_path)
