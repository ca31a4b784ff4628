"""SIGTERM and Ctrl-C from outside: exit codes, the command that goes on, sweeps, and folders of two processes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from conftest import ROOT
from runs import TINY, assert_same_run, stored

from dtp_lightning.runs.checkpoint_io import whole

pytestmark = pytest.mark.faults
LONG = 120  # seconds: the machine may be busy, or stop us for a while


def train(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *TINY, *words]


def start(command: list[str], cwd: Path) -> processes.Process:
    """In a process group of its own, which a terminal's Ctrl-C reaches as a whole."""
    return processes.Process(command, cwd, start_new_session=True)


def until(condition: Callable[[], object], process: processes.Process | subprocess.Popen[str]) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < LONG
        time.sleep(0.02)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """As SLURM does it; the command that is printed is then run as it is."""
    words = ("learner=bp", "trainer.max_epochs=40")
    run = tmp_path / "a run"
    process = start(train(*words, "hydra.run.dir=a run"), tmp_path)
    until((run / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 143 and "Traceback" not in said, said
    assert "\nSIGTERM: saving after this batch, then leaving (once more: leaving at once)\n" in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("stopped by SIGTERM; to go on: python ")
    command = shlex.split(line.partition("to go on: python ")[2])
    assert command[-2:] == ["resume=true", f"hydra.run.dir={run}"]
    assert 0 < stored(run)["global_step"] < 40 * 3
    for folder, argv in ((run, [sys.executable, *command]), (tmp_path / "b", train(*words, "hydra.run.dir=b"))):
        done = processes.run(argv, cwd=tmp_path, timeout=300)
        assert done.returncode == 0 and (folder / "summary.json").exists(), done.stderr
    assert_same_run(run, tmp_path / "b")


def test_ctrl_c_before_anything_is_loaded(tmp_path: Path) -> None:
    command, pipe = train("hydra.run.dir=run", "trainer.max_epochs=100000"), subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    until((tmp_path / "run" / ".hydra" / "config.yaml").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert said.strip().splitlines()[-1].startswith("stopped by SIGINT")


CARELESS = """
import builtins, os, signal
real = builtins.__import__
def careless(name, *rest):
    if name == MODULE and careless.fresh:
        careless.fresh = False
        try:
            os.kill(os.getpid(), signal.SIGINT)
            [None for _ in range(1000)]  # the handler runs
        except BaseException:
            FATE
    return real(name, *rest)
careless.fresh = True
builtins.__import__ = careless
"""


@pytest.mark.parametrize("module", ["pytorch_lightning", "sklearn.linear_model"])
@pytest.mark.parametrize("fate", ["pass", "raise ImportError(name)"], ids=["swallowed", "taken for another error"])
def test_a_signal_that_a_library_takes_for_its_own(module: str, fate: str, tmp_path: Path) -> None:
    """As an import within a bare except does; libraries load at the start, and in evaluations. They see nothing."""
    code = CARELESS.replace("MODULE", repr(module)).replace("FATE", fate)
    (tmp_path / "sitecustomize.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = train("hydra.run.dir=run", "learner=bp", "trainer.max_epochs=1", "evaluation=[linear,knn]")
    if module == "pytorch_lightning":  # loaded at the start
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONG, env=environment)
    else:
        done = processes.run(command, cwd=tmp_path, timeout=LONG, env=environment)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("stopped by SIGINT; to go on: python "), done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()


WHILE_WRITING = """
import os, signal
real = os.replace
def signalled(source, target):
    if str(target).endswith("summary.json"):
        os.kill(os.getpid(), signal.SIGTERM)
        [None for _ in range(1000)]  # the handler runs
    real(source, target)
os.replace = signalled
"""


def test_a_signal_while_the_summary_is_written_leaves_it_whole(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WHILE_WRITING)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = train("hydra.run.dir=run", "learner=bp", "trainer.max_epochs=1")
    done = processes.run(command, cwd=tmp_path, timeout=LONG, env=environment)
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr
    assert "SIGTERM: leaving as soon as it is safe" in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 1
    assert (tmp_path / "run" / "plots" / "curves.png").exists(), "what was begun is brought to its end"


def test_a_search_takes_its_trial_along(tmp_path: Path) -> None:
    """A signal to the search alone, as a cluster's."""
    pytest.importorskip("optuna", reason="pip install 'dtp-lightning[search]'")
    parameters = "parameters: {seed: {choices: [0, 1]}}"
    (tmp_path / "mine.yaml").write_text(f"metric: knn/val_acc\nfixed: [trainer.max_epochs=100000]\n{parameters}\n")
    words = ["search", "mine.yaml", "--folder", "study", *(word for word in TINY if "max_epochs" not in word)]
    process = start([sys.executable, "-m", "dtp_lightning", *words], tmp_path)
    last = tmp_path / "study" / "trials" / "0" / "checkpoints" / "last.ckpt"
    until(last.exists, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 143 and said.strip().splitlines()[-1] == "stopped by SIGTERM", said
    assert whole(last) and "stopped by SIGTERM; to go on" in (last.parents[1] / "output.txt").read_text()
    assert nobody_is_left(process.pid)


def nobody_is_left(group: int) -> bool:
    """Whether a process group is empty, after some seconds of grace."""
    began = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() - began < 20:
            os.killpg(group, 0)
            time.sleep(0.1)
        return False
    return True


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_ctrl_c_stops_a_sweep(launcher: str, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'dtp-lightning[joblib]'")
    words = ("learner=bp", "seed=0,1,2", "trainer.max_epochs=500", "hydra.sweep.dir=sweep")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2") if launcher == "joblib" else ()
    process = start([*train(*words, *parallel), "-m"], tmp_path)
    until(lambda: list(tmp_path.glob("sweep/*/checkpoints/last.ckpt")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1].startswith("stopped by SIGINT"), said
    assert not (tmp_path / "sweep" / "2").exists(), "no further job was begun"
    for checkpoint in tmp_path.glob("sweep/*/checkpoints/last.ckpt"):
        assert whole(checkpoint)
    assert nobody_is_left(process.pid), "a process was left behind"


def test_two_runs_begun_in_the_same_second(tmp_path: Path) -> None:
    """By default in two folders; one that is given to both takes the first."""
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    both = [start(train(*short, f"seed={seed}"), tmp_path) for seed in (0, 1)]
    said = [process.communicate(timeout=LONG)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = [path.parent for path in tmp_path.glob("outputs/*/*/summary.json")]
    assert len(folders) == 2
    both = [start(train(*short, "hydra.run.dir=same"), tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=LONG)[1] for process in both]
    assert sorted(process.returncode or 0 for process in both) == [0, 2], said
    refused = next(text for text, process in zip(said, both, strict=True) if process.returncode)
    assert "another process is at work in" in refused or "holds a run already" in refused
