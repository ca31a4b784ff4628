"""What W&B is given beside curves: tables, confusion matrices, encoders, and the run of an evaluation."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, composed
from runs import TINY
from test_evaluate import evaluate
from test_wandb_faults import inspected, of_kind

from dtp_lightning import load_encoder, pipeline
from dtp_lightning.errors import DataError
from dtp_lightning.loggers.loggers import Loggers
from dtp_lightning.loggers.predictions import SHOWN, Predictions
from dtp_lightning.loggers.wandb_media import MOST_CLASSES, media_of

COMMAND = (
    *TINY, "evaluation=[knn]", "logger=wandb", "logger.wandb.mode=offline", "logger.wandb.project=mine",
    "logger.wandb.group=together", "callbacks=[best_checkpoint]", "callbacks.best_checkpoint.monitor=val/loss",
    "callbacks.best_checkpoint.mode=min",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pipeline.run(*composed(*COMMAND), folder)
    return folder


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict]:
    (part,) = inspected(run)
    return part


@pytest.fixture(scope="module")
def evaluation(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "e"
    evaluate(folder, f"checkpoint={run}/checkpoints/last.ckpt", "evaluation=[knn]")
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def table(folder: Path, key: str) -> list[list]:
    """Rows of a table, from the file that is uploaded."""
    (path,) = (folder / "wandb").glob(f"offline-run-*/files/media/table/{key}_*.table.json")
    return json.loads(path.read_text())["data"]


def artifacts(records: list[dict]) -> dict[str, dict]:
    """Alias -> artifact of the type encoder; of two with one alias the later, as on the server."""
    encoders = [found for found in of_kind("artifact", records) if found["type"] == "encoder"]
    return {alias: found for found in encoders for alias in found["aliases"]}


def test_tables_say_what_the_probe_said(run: Path, records: list[dict]) -> None:
    summary = summary_of(run)
    rows = table(run, "tables/per_class")
    assert {probe for probe, *_ in rows} == {"knn"} and len(rows) == 10
    images = sum(count for _, _, count, _ in rows)
    right = sum(count * accuracy for _, _, count, accuracy in rows)
    assert right / images == pytest.approx(summary["knn/test_acc"])
    confusion = table(run, "confusion/knn_table")
    assert sum(count for *_, count in confusion) == images
    assert sum(count for actual, predicted, count in confusion if actual == predicted) == round(right)
    wrong = table(run, "tables/misclassified")
    assert 0 < len(wrong) <= SHOWN and all(actual != predicted for _, _, actual, predicted in wrong)
    (entries,) = (
        found["manifest"]["contents"] for found in of_kind("artifact", records) if "misclassified" in found["name"]
    )
    pictures = [entry for entry in entries if entry["path"].endswith(".png")]
    assert len(pictures) == len(wrong)


def test_the_encoders_of_the_last_and_the_best_checkpoint(run: Path, records: list[dict], tmp_path: Path) -> None:
    found = artifacts(records)
    (identity,) = {run["run_id"] for run in of_kind("run", records)}
    assert {artifact["name"] for artifact in found.values()} == {f"encoder-{identity}"} and set(found) == {
        "best", "latest"
    }  # fmt: skip
    for alias, artifact in found.items():
        downloaded = tmp_path / alias
        downloaded.mkdir()
        for entry in artifact["manifest"]["contents"]:
            shutil.copyfile(entry["local_path"], downloaded / entry["path"])
        encoder = load_encoder(downloaded)
        name = {"latest": "encoder", "best": "encoder_best"}[alias]
        images = torch.rand(2, 1, 28, 28)
        assert torch.equal(encoder(images), load_encoder(run / f"{name}.safetensors")(images))
        assert json.loads(artifact["metadata"])["sha256"] == encoder.card["sha256"]
    assert json.loads(found["latest"]["metadata"])["accuracy"]["knn/test_acc"] == summary_of(run)["knn/test_acc"]


def test_where_the_checkpoints_lie(run: Path, records: list[dict]) -> None:
    (encoder,) = {found["name"] for found in artifacts(records).values()}
    found = [found for found in of_kind("artifact", records) if found["type"] == "checkpoint"]
    assert {record["name"] for record in found} == {encoder.replace("encoder", "checkpoint")}
    for record in found:
        (entry,) = record["manifest"]["contents"]
        path = run / "checkpoints" / ("best.ckpt" if "best" in record["aliases"] else "last.ckpt")
        assert entry["ref"] == path.resolve().as_uri() and "local_path" not in entry, "nothing is uploaded"
        assert entry["digest"] == base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()


def test_nothing_waits_outside_the_run_folder(run: Path, records: list[dict]) -> None:
    """Offline, W&B would leave copies in the home folder, which no `wandb clean` deletes."""
    entries = [entry for found in of_kind("artifact", records) for entry in found["manifest"]["contents"]]
    waiting = [entry["local_path"] for entry in entries if "ref" not in entry]
    assert waiting and all(Path(path).is_relative_to(run) for path in waiting)


def test_an_evaluation_is_a_run_beside_the_one_that_trained(run: Path, evaluation: Path, records: list[dict]) -> None:
    (part,) = inspected(evaluation)
    (ours,), (theirs,) = of_kind("run", part), of_kind("run", records)
    assert ours["run_id"] != theirs["run_id"], "a finished run keeps its numbers"
    assert (ours["project"], ours["run_group"], ours["job_type"]) == ("mine", "together", "evaluation")
    assert ours["display_name"] == "eval mnist5k dtp-hinge-cnn4-seed0"
    config = ours["config"]["update"]
    assert config["names"] == {
        "learner": "dtp", "loss": "hinge", "model": "cnn4", "dataset": "mnist5k", "evaluated_on": "mnist5k",
        "trained_run": theirs["run_id"],
    }  # fmt: skip
    assert config["dataset"] == theirs["config"]["update"]["dataset"] and config["seed"] == 0
    logged = {name: value for row in of_kind("history", part) for name, value in row["item"].items()}
    summary = summary_of(evaluation)
    assert logged["knn/test_acc"] == pytest.approx(summary["knn/test_acc"])
    assert (logged["epoch"], logged["trainer/global_step"]) == (4, 12)
    assert table(evaluation, "tables/per_class") == table(run, "tables/per_class")


def test_an_evaluation_sends_nothing_to_where_a_checkpoint_says(tmp_path: Path, run: Path) -> None:
    """Its maker may have chosen an entity, online; the user's own is taken."""
    folder = tmp_path / "strangers"
    shutil.copytree(run / "checkpoints", folder / "checkpoints")
    path = folder / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    stored["hyper_parameters"]["config"]["logger"]["wandb"] |= {"entity": "thief", "mode": "online", "dir": "/"}
    torch.save(stored, path)
    evaluate(tmp_path / "e", f"checkpoint={path}", "evaluation=[knn]")
    (part,) = inspected(tmp_path / "e")
    (ours,) = of_kind("run", part)
    assert "entity" not in ours and ours["project"] == "mine"
    stored["hyper_parameters"]["config"]["logger"]["wandb"]["_target_"] = "os.system"
    torch.save(stored, path)
    evaluate(tmp_path / "f", f"checkpoint={path}", "evaluation=[knn]")
    assert not (tmp_path / "f" / "wandb").exists()


def test_keys_turn_tables_and_encoder_off(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*COMMAND, "trainer.max_epochs=1", "logger.wandb.tables=false", "logger.wandb.encoder=false")
    (part,) = inspected(tmp_path)
    assert not of_kind("artifact", part) and not list(tmp_path.rglob("*.table.json"))
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_network_that_cannot_be_exported_ends_well(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path) -> Path:
        raise DataError("its network was built by mine.Network")

    monkeypatch.setattr(pipeline, "export", refuse)
    assert run_pipeline(*COMMAND, "trainer.max_epochs=1")["epochs"] == 1
    (part,) = inspected(tmp_path)
    assert not artifacts(part) and "tables/per_class" in json.dumps(of_kind("history", part))


def test_other_trackers_are_not_asked_for_what_they_cannot_show() -> None:
    class Scalars:
        def log_metrics(self, metrics: dict, step: int) -> None:
            raise AssertionError

    loggers = Loggers(None, [Scalars()])  # type: ignore[list-item]
    loggers.log_predictions(Predictions(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), ["a"]), step=0)
    loggers.log_encoder(lambda: pytest.fail("nobody wants it"))


def test_many_classes_have_no_confusion_matrix() -> None:
    classes = [str(i) for i in range(MOST_CLASSES + 1)]
    predictions = Predictions(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 5]), classes)
    predictions.add("knn", torch.tensor([0, 6]))
    media = media_of(predictions)
    assert set(media) == {"tables/per_class", "tables/misclassified"}
    assert media["tables/per_class"].data == [["knn", "0", 1, 1.0], ["knn", "5", 1, 0.0]]
    ((probe, _, label, said),) = media["tables/misclassified"].data
    assert (probe, label, said) == ("knn", "5", "6")


def test_without_wandb_it_is_not_imported(tmp_path: Path) -> None:
    """Neither by a training nor by the evaluation of its checkpoint."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + '/tests')\n"
        "from pathlib import Path; from conftest import composed; from test_evaluate import evaluate\n"
        "from dtp_lightning import pipeline\n"
        "folder = Path(sys.argv[2]); words = sys.argv[3:]\n"
        "pipeline.run(*composed(*words), folder)\n"
        "evaluate(folder / 'e', f'checkpoint={folder}/checkpoints/last.ckpt', 'evaluation=[knn]')\n"
        "assert 'wandb' not in sys.modules and not list(folder.rglob('wandb*')), 'imported'\n"
    )
    words = [*TINY, "trainer.max_epochs=1", "evaluation=[knn]", "logger=none"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(tmp_path), *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
