"""Sweeps: named folders, progress, failures listed, finished jobs skipped, other engines."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import wandb_sweeps
import yaml
from conftest import ROOT, composed
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import TINY, figures

from dtp_lightning.cli import entry
from dtp_lightning.cli.sweep import SweepProgress, clock, expectation, jobs_of
from dtp_lightning.config.keys import WHERE_DATA_LIES
from dtp_lightning.config.schema import checked
from dtp_lightning.module import PretrainModule
from dtp_lightning.runs.status import failures

SWEEPS = sorted(p.stem for p in (ROOT / "sweeps").glob("*.yaml"))
ALSO = ("trainer.max_epochs=2", "trainer.limit_train_batches=3")


def command(folder: Path, *overrides: str) -> list[str]:
    """A small network, which the folders of the jobs do not name."""
    left_out = f"hydra.job.config.override_dirname.exclude_keys=[{','.join((*WHERE_DATA_LIES, 'model.channels'))}]"
    small = ("model.channels=[4,6]", left_out, f"hydra.sweep.dir={folder}")
    return [sys.executable, "-m", "dtp_lightning", "sweep", "smoke", *small, *overrides]


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return processes.run(command(folder, *overrides), cwd=folder.parent, timeout=300)


def figures_of_jobs(folder: Path) -> dict[str, dict]:
    return {path.parent.name: figures(path.parent) for path in sorted(folder.rglob("summary.json"))}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_valid(name: str) -> None:
    config = wandb_sweeps.composed(name)
    hydra = config.hydra
    assert len({*jobs_of(config)}) == len(jobs_of(config)) > 0
    choices = {key: str(value).split(",")[0] for key, value in hydra.sweeper.params.items()}
    checked(composed(*(f"{key}={value}" for key, value in choices.items()))[0])
    assert str(hydra.sweep.dir) == f"multirun/{name}"
    left_out = hydra.job.config.override_dirname.exclude_keys
    assert tuple(left_out) == WHERE_DATA_LIES, "a path would make folders within folders"


def test_one_job_fails_and_the_others_stand(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = run(folder, "learner=bp", "seed=0", "batch_size=100,9999")
    assert done.returncode != 0
    assert "error: batch_size=9999 is larger" in done.stderr
    assert "[2 of 2] FAILED: batch_size=9999" in done.stdout and "1 of 2 jobs finished" in done.stdout
    assert "| mnist5k | cnn4 | hinge | bp | 1 |" in done.stdout, "the table of what there is"
    assert "batch_size=9999" in (folder / "report.html").read_text(), "the page names what is missing"
    (reason,) = failures(folder).values()
    assert reason.startswith("ConfigError: batch_size=9999")
    again = run(folder, "learner=bp", "seed=0", "batch_size=100")
    assert again.returncode == 0 and "finished already" in again.stdout


def test_a_killed_sweep_is_finished_by_the_same_command(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    jobs = (*ALSO, "learner=bp,dtp", "seed=0")
    assert run(whole, *jobs).returncode == 0
    process = processes.Process(command(killed, *jobs), cwd=tmp_path)
    while not list(killed.rglob("last.ckpt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(killed, *jobs).returncode == 0
    assert figures_of_jobs(killed) == figures_of_jobs(whole) and len(figures_of_jobs(whole)) == 2


@pytest.mark.parametrize(
    ("extra", "more"), [("joblib", ["hydra.launcher.n_jobs=2"]), ("ray", ["+hydra.launcher.ray.init.num_cpus=2"])]
)
def test_two_processes_give_the_same(extra: str, more: list[str], tmp_path: Path) -> None:
    if not importlib.util.find_spec("hydra_plugins") or not importlib.util.find_spec(
        f"hydra_plugins.hydra_{extra}_launcher"
    ):
        pytest.skip(f"pip install 'dtp-lightning[{extra}]' to run this")
    jobs = ("learner=bp,dtp", "seed=0")
    assert run(tmp_path / "one", *jobs).returncode == 0
    others = command(tmp_path / "two", *jobs, f"hydra/launcher={extra}", *more)
    done = subprocess.run(others, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    in_sequence, at_once = figures_of_jobs(tmp_path / "one"), figures_of_jobs(tmp_path / "two")
    assert in_sequence == at_once and len(in_sequence) == 2
    assert "2 of 2 jobs finished" in done.stdout


def test_a_job_leaves_nothing_behind(run_pipeline: Callable[..., dict], no_pictures: None) -> None:
    """What chance would collect later: of ten jobs on CIFAR-10 it was 1.6 GB."""
    gc.disable()
    try:
        entry.job(lambda: run_pipeline(*TINY, "trainer.max_epochs=1"))
        assert not [thing for thing in gc.get_objects() if isinstance(thing, PretrainModule)]
    finally:
        gc.enable()


def test_what_wandb_keeps_is_no_failed_job(tmp_path: Path) -> None:
    online = tmp_path / "seed=0" / "wandb" / "run-20260101_000000-abc" / "files"
    online.mkdir(parents=True)
    for path in (online, tmp_path / "seed=0"):
        (path / "config.yaml").write_text("seed: 0\n")
    assert failures(tmp_path) == {"seed=0": "stopped from outside"}


def test_jobs_of_another_sweep_in_the_folder_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    progress = SweepProgress()
    progress.folder, progress.total = tmp_path, 3
    hydra = {"job": {"override_dirname": "seed=0"}}
    for k in range(5):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "summary.json").write_text("{}")
    progress.on_job_end(OmegaConf.create({"hydra": hydra}), JobReturn(status=JobStatus.COMPLETED))
    assert capsys.readouterr().out.startswith("[3 of 3] done: seed=0")


def test_jobs_of_another_sweep_are_not_taken_for_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A job's folder is known before it runs: what another command line left in the folder is not one of ours."""
    config = copy.deepcopy(wandb_sweeps.composed("bp_vs_dtp"))
    config.hydra.overrides.task = ["seed=0,1", "batch_size=50", "dataset.root=/data", "loss=[hinge]"]
    config.hydra.sweep.dir = str(tmp_path)
    jobs = jobs_of(config)
    assert len(jobs) == 4 and "batch_size=50,learner=bp,loss=[hinge],seed=1" in jobs
    for name in (jobs[0], "learner=bp,seed=7", "learner=dtp,seed=7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{}")
    SweepProgress().on_multirun_start(config)
    assert capsys.readouterr().out.startswith(f"4 jobs in {tmp_path}, 1 of them ended; to run: 3 x 10 epochs")


def test_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By runs of the same data set and model below the current folder, or by ours; otherwise after the first job."""
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
        config = compose("bp_vs_dtp", [f"hydra.searchpath=[file://{ROOT / 'conf'}]"], return_hydra_config=True)
    assert expectation(config, 12) == "to run: 12 x 10 epochs, about 12 min 00 s on two CPU cores, and the probes"
    config.trainer.limit_train_batches = 2
    assert expectation(config, 1) == "to run: 1 x 10 epochs; how long they take is said after the first"
    config.trainer.limit_train_batches = 1.0
    for name, dataset, seconds in (("a", "mnist5k", 20.0), ("b", "mnist5k", 40.0), ("c", "cifar10", 9000.0)):
        told = {"dataset": dataset, "model": "cnn4", "epochs": 10, "fit/seconds": seconds}
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "summary.json").write_text(json.dumps(told))
    assert "about 6 min 00 s by the runs that lie here" in expectation(config, 12)
    config.hydra.overrides.task = ["trainer.max_epochs=1,5"]
    assert "after the first" in expectation(config, 24), "jobs of different lengths"


def test_a_value_twice_ends_before_anything_runs(tmp_path: Path) -> None:
    done = run(tmp_path / "sweep", "seed=0,1,0")
    assert done.returncode == 2 and not (tmp_path / "sweep").exists()
    assert done.stderr.splitlines() == ["error: seed=0,1,0: 0 is there twice; each value makes a run of its own"]


def test_clock() -> None:
    assert [clock(s) for s in (4.4, 190, 3725)] == ["4 s", "3 min 10 s", "1 h 02 min"]


@pytest.mark.parametrize("name", sorted(wandb_sweeps.sources()))
def test_a_wandb_sweep_is_that_of_its_source(name: str) -> None:
    """Its keys and values are those that Hydra, or dtp search, would try, and its command takes them."""
    written = (ROOT / "sweeps" / "wandb" / f"{name}.yaml").read_text(encoding="utf-8")
    assert written == wandb_sweeps.text(name), "make wandb-sweeps"
    sweep = yaml.safe_load(written)
    words = [f"{key}={found.get('values', [found.get('min')])[0]}" for key, found in sweep["parameters"].items()]
    program, verb, *rest = sweep["command"][1:]
    given = [word for word in rest if not word.startswith("$")]
    if sweep["method"] == "bayes":
        assert (program, verb) == ("${program}", "train")
        config, metric = composed(*given, *words)[0], sweep["metric"]["name"]
        assert metric.split("/")[0] in config.evaluation and metric.endswith("/val_acc"), "chosen on validation"
    else:
        assert (program, verb, given[0]) == ("${program}", "sweep", name)
        config = wandb_sweeps.composed(name, *given[1:], *words)
        assert "wandb" in config.logger and config.hydra.mode is RunMode.RUN
        grid = OmegaConf.to_container(config.hydra.sweeper.params)
        assert {key: ",".join(map(str, found["values"])) for key, found in sweep["parameters"].items()} == {
            key: ",".join(str(yaml_number(value)) for value in str(values).split(",")) for key, values in grid.items()
        }
        OmegaConf.set_struct(config, False)
        del config["hydra"]
    checked(config)


def yaml_number(text: str) -> str | float | int:
    """What a value of a sweep means."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def test_no_wandb_sweep_is_missing_and_none_is_left_over() -> None:
    there = {path.stem for path in (ROOT / "sweeps" / "wandb").glob("*.yaml")}
    assert there == {*wandb_sweeps.sources()} and {*SWEEPS} - there == {"smoke"}


def test_a_job_alone_is_the_sweeps(tmp_path: Path) -> None:
    """What a W&B agent calls, built as the agent does: no multirun, the sweep's settings, a folder of the sweep's."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "wandb" / "bp_vs_dtp.yaml").read_text())
    words: list[str] = []
    for part in sweep["command"][2:]:
        words += ["learner=bp", "seed=2"] if part == "${args_no_hyphens}" else [part]
    done = processes.run([sys.executable, "-m", "dtp_lightning", *words, "--cfg", "all"], cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert (config.seed, config.trainer.max_epochs, config.hydra.mode) == (2, 10, "RUN")
    assert "distances" in config.evaluation, "as in the sweep's file"
    assert config.hydra.run.dir == "multirun/bp_vs_dtp/learner=bp,logger=wandb,seed=2"


def test_a_killed_worker_is_said_in_one_line() -> None:
    """What joblib raises when the system kills one of its processes."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    said = entry._explain(TerminatedWorkerError("The exit codes of the workers are {SIGKILL(-9)}"), "train")
    assert said and said.startswith("a process that ran jobs was killed") and "\n" not in said
