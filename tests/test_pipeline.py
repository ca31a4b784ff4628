"""The main job from end to end: run folder, summary, logs, trackers, and that a run is reproducible."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from conftest import ROOT, options
from PIL import Image

from dtp_lightning.errors import ConfigError, DataError

SHORT = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=2",
)
SMALL = "model.channels=[4,6,8]"
CHEAP = ("evaluation=[knn]", "logger=none", SMALL)
KEYS = {
    *("learner", "loss", "model", "dataset", "seed", "epochs", "git_commit", "versions"),
    *("linear/test_acc", "linear/val_acc", "knn/test_acc"),
    *("random_encoder/linear/test_acc", "random_encoder/knn/test_acc"),
    *("fit/seconds", "fit/images_per_second", "fit/peak_memory_mib"),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run with everything on, by the command that the README names."""
    folder = tmp_path_factory.mktemp("command line")  # a path with a space
    command = [sys.executable, str(ROOT / "train.py"), "loss=hinge", "learner=dtp", *SHORT, "hydra.run.dir=run"]
    done = processes.run(command, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "run" / "stdout").write_text(done.stdout)
    (folder / "run" / "stderr").write_text(done.stderr)
    return folder / "run"


def records(folder: Path) -> list[dict]:
    """What W&B stored, as its own viewer reads it back."""
    (offline,) = (folder / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_summary_is_flat_and_complete(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    assert set(summary) >= KEYS
    flat = {name: value for name, value in summary.items() if name != "warnings"}  # sentences, where there are some
    assert all(isinstance(value, str | int | float) for value in flat.values())
    assert (summary["learner"], summary["loss"], summary["model"], summary["dataset"]) == (
        "dtp",
        "hinge",
        "cnn4",
        "mnist5k",
    )
    assert (summary["seed"], summary["epochs"]) == (0, 2)
    assert all(0 <= value <= 1 for key, value in summary.items() if key.endswith("_acc"))
    assert summary["random_encoder/knn/test_acc"] > 0.8, "random convolutions are good at MNIST; chance is 0.1"
    assert summary["fit/peak_memory_mib"] > 50 and summary["fit/images_per_second"] > 1
    assert "torch=" in summary["versions"]


def test_run_folder_holds_what_the_readme_says(run_folder: Path) -> None:
    for name in ("config.yaml", "summary.json", "metrics.csv", "checkpoints/last.ckpt", ".hydra/overrides.yaml"):
        assert (run_folder / name).stat().st_size > 0, name
    for name in ("views", "curves", "confusion_linear", "confusion_knn"):
        with Image.open(run_folder / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").getcolors()) > 20, "not an empty picture"


def test_output_is_quiet_without_a_terminal_and_ends_with_the_table(run_folder: Path) -> None:
    out, err = (run_folder / "stdout").read_text(), (run_folder / "stderr").read_text()
    assert not err.strip(), err
    assert "\r" not in out
    lines = out.strip().splitlines()
    assert len(lines) < 20, out
    for expected in ("random   trained", "linear ", "knn ", "images/s", "peak memory", f"run folder {run_folder}"):
        assert expected in out


def test_metrics_csv_has_every_quantity_on_its_axis(run_folder: Path) -> None:
    rows = list(csv.DictReader((run_folder / "metrics.csv").open()))
    trained = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in trained] == [1, 3, 5, 7, 9], "every second batch, counted from 0"
    for name in ("local_loss/stage1", "local_loss/stage4"):
        assert all(row[f"train/{name}"] for row in trained)
    assert [int(row["epoch"]) for row in rows if row["val/loss"]] == [0, 1]
    assert [int(row["epoch"]) for row in rows if row["val/knn_acc"]] == [1], "after the last epoch, whatever k is"


def test_rows_hold_what_their_batch_measured(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    """Feedback learns alone from three batches, and its loss is not repeated in the rows of later ones."""
    words = ("learner=dtp", "learner.feedback.batches=3", "trainer.max_epochs=1", "trainer.limit_train_batches=6")
    run_pipeline(*words, "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1", *CHEAP, "callbacks=[]")
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["train/loss"]]
    assert [bool(row["train/reconstruction_loss/stage2"]) for row in rows] == [True] * 3 + [False] * 3
    assert [bool(row["train/local_loss/stage1"]) for row in rows] == [False] * 3 + [True] * 3


def test_wandb_received_config_metrics_and_pictures(run_folder: Path) -> None:
    by_kind: dict[str, list] = {}
    for record in records(run_folder):
        for kind, content in record.items():
            by_kind.setdefault(kind, []).append(content)
    text = json.dumps(by_kind)
    for name in ("train/loss", "train/local_loss/stage1", "val/loss", "val/knn_acc", "linear/test_acc", "plots/views"):
        assert name in text, name
    (run,) = by_kind["run"]
    config = run["config"]["update"]
    assert config["batch_size"] == 100
    assert config["learner"]["feedback"]["first"]["noise_std"] == 1.0, "nested plain values, not strings"
    assert config["names"] == {"learner": "dtp", "loss": "hinge", "model": "cnn4", "dataset": "mnist5k"}
    assert run["job_type"] == "train" and run["run_group"].startswith("mnist5k-cnn4-hinge-dtp-2ep")
    assert run["display_name"].startswith("dtp-hinge-cnn4-seed0")
    axes = {m.get("name") or m.get("glob_name"): m.get("step_metric") for m in by_kind["metric"]}
    assert axes["*"] == "trainer/global_step"
    assert axes["val/*"] == "epoch"
    steps = [r["item"]["trainer/global_step"] for r in by_kind["history"] if "train/loss" in r["item"]]
    assert steps == [1, 3, 5, 7, 9]


def test_checkpoint_counts_batches_and_loads_safely(run_folder: Path) -> None:
    checkpoint = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 10
    assert len(checkpoint["optimizer_states"]) == 2
    assert checkpoint["hyper_parameters"]["config"]["learner"]["target_step"] == 0.5


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("learner", options("learner"))
def test_global_step_is_the_number_of_batches(learner: str, run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(f"learner={learner}", *SHORT, *CHEAP, "evaluation=[]", "callbacks=[]")
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 10


def test_same_command_same_numbers(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    summaries = [run_pipeline(*SHORT, *CHEAP, folder=tmp_path / name) for name in ("a", "b")]
    weights = [
        torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for n in ("a", "b")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert summaries[0]["knn/test_acc"] == summaries[1]["knn/test_acc"]


def test_seeds_differ_and_learners_share_their_start(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    random = [
        run_pipeline(*SHORT, *CHEAP, *more, folder=tmp_path / str(i))["random_encoder/knn/test_acc"]
        for i, more in enumerate((("learner=dtp",), ("learner=bp",), ("learner=bp", "seed=1")))
    ]
    assert random[0] == random[1], "same seed, same initial weights: learners can be compared in pairs"
    assert random[1] != random[2]


def test_distance_study(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    summary = run_pipeline(*SHORT, SMALL, "evaluation=[distances]", "callbacks=[online_distances]", "logger=none")
    for prefix in ("", "random_encoder/"):
        assert summary[f"{prefix}distances/l1/negative_mean"] > summary[f"{prefix}distances/l1/positive_mean"] > 0
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    (logged,) = [row["val/distances/l1/auc"] for row in rows if row["val/distances/l1/auc"]]
    assert float(logged) == pytest.approx(summary["distances/l1/auc"], abs=1e-5), "the same batch in both places"
    assert (tmp_path / "plots" / "distances.png").stat().st_size > 0


def test_a_folder_holds_one_run(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("another run's")
    with pytest.raises(ConfigError, match="holds a run already"):
        run_pipeline(*SHORT, *CHEAP)
    assert (tmp_path / "config.yaml").read_text() == "another run's"


def test_a_run_that_could_not_begin_leaves_its_folder_free(
    run_pipeline: Callable[..., dict], no_pictures: None, tmp_path: Path
) -> None:
    missing = ("dataset=mnist", f"dataset.root={tmp_path / 'nowhere'}", "dataset.download=false")
    with pytest.raises(DataError, match="missing or damaged"):
        run_pipeline(*SHORT, *CHEAP, *missing, folder=tmp_path / "run")
    assert (tmp_path / "run" / "error.txt").exists()
    run_pipeline(*SHORT, *CHEAP, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "error.txt").exists()
    with pytest.raises(ConfigError, match="holds a run already"):
        run_pipeline(*SHORT, *CHEAP, folder=tmp_path / "run")


def test_short_last_batch_and_no_evaluation(run_pipeline: Callable[..., dict]) -> None:
    summary = run_pipeline(
        "batch_size=2999",
        "trainer.max_epochs=1",
        "model.channels=[2,2]",
        "callbacks=[]",
        "evaluation=[]",
        "logger=none",
    )
    assert summary["epochs"] == 1
    assert not any(key.endswith("_acc") for key in summary)


def test_a_run_too_short_to_log_still_ends_well(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline("trainer.max_steps=2", *CHEAP, "callbacks=[]")
    assert (tmp_path / "summary.json").exists()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_tensorboard(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*SHORT, SMALL, "evaluation=[knn]", "logger=tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/loss", "val/loss", "knn/test_acc"} <= set(events.Tags()["scalars"])
    assert "plots/views" in events.Tags()["images"]


def test_two_jobs_of_a_multirun_are_two_wandb_runs(tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, str(ROOT / "train.py"), "-m", "learner=bp,dtp", *SHORT, SMALL, "evaluation=[knn]",
         "hydra.sweep.dir=sweep"],
        cwd=tmp_path, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [next(r["run"] for r in records(tmp_path / "sweep" / job) if "run" in r) for job in ("0", "1")]
    assert runs[0]["run_id"] != runs[1]["run_id"]
    assert [run["config"]["update"]["names"]["learner"] for run in runs] == ["bp", "dtp"]


def test_a_failing_job_of_a_multirun_leaves_the_others(tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, str(ROOT / "train.py"), "-m", "batch_size=9999,500", *SHORT, *CHEAP, "hydra.sweep.dir=sweep"],
        cwd=tmp_path, timeout=240,
    )  # fmt: skip
    assert done.returncode != 0
    assert "batch_size=9999 is larger" in done.stderr
    assert not (tmp_path / "sweep" / "0" / "summary.json").exists()
    assert json.loads((tmp_path / "sweep" / "1" / "summary.json").read_text())["epochs"] == 2


@pytest.fixture
def own_rules(tmp_path: Path) -> Path:
    """A rule outside the repository, once honest about transporting weights and once not."""
    (tmp_path / "signed.py").write_text(
        "from dtp_lightning.learners import Learner\n\n\n"
        "class SignedBackprop(Learner):\n"
        "    transports_weights = True\n"
        "    needs_input_gradients = True\n\n"
        "    def compute_gradients(self, traces, top, *, measure):\n"
        "        delta = top\n"
        "        for trace in reversed(traces):\n"
        "            signs = delta.sign() * delta.abs().mean()\n"
        "            delta = trace.vjp(signs, to_input=trace is not traces[0])\n"
        "        return {}\n\n\n"
        "class SaysItIsLocal(SignedBackprop):\n"
        "    transports_weights = False\n"
    )
    group = tmp_path / "conf" / "learner"
    group.mkdir(parents=True)
    optimiser = "forward_optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 5e-4}\n"
    (group / "signed_bp.yaml").write_text("_target_: signed.SignedBackprop\n" + optimiser)
    (group / "says_it_is_local.yaml").write_text("_target_: signed.SaysItIsLocal\n" + optimiser)
    return tmp_path


def test_a_new_rule_is_one_python_file_and_one_yaml_file(own_rules: Path) -> None:
    """Outside the repository, found through Hydra's search path."""
    done = processes.run(
        [sys.executable, str(ROOT / "train.py"), "--config-dir", str(own_rules / "conf"), "learner=signed_bp",
         *SHORT, *CHEAP, "hydra.run.dir=run"],
        cwd=own_rules, env={"PYTHONPATH": str(own_rules), "PATH": "/usr/bin:/bin"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((own_rules / "run" / "summary.json").read_text())["learner"] == "signed_bp"


def test_the_contracts_judge_a_new_rule(own_rules: Path) -> None:
    done = processes.run(
        [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "test_learners.py"), "-k", "signed_bp or says_it"],
        cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{own_rules}:{ROOT}", "DTP_LIGHTNING_CONF": str(own_rules / "conf")},
    )  # fmt: skip
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "weight_transport_is_as_declared[says_it_is_local]" in failed[0], done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


def test_what_this_machine_cannot_do_is_one_line(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: several devices train one run of"):
        run_pipeline("trainer.devices=2", "trainer.accelerator=cpu", *CHEAP, folder=tmp_path / "two")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="trainer: "):
            run_pipeline("trainer.accelerator=gpu", *CHEAP, folder=tmp_path / "gpu")
