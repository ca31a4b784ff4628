"""Workers of Hydra's launchers that are killed in the middle of a training."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import assert_same_run
from test_sweep import command as sweep_command

pytestmark = [pytest.mark.faults, pytest.mark.slow]
JOBS = ("learner=bp", "seed=0,1", "trainer.max_epochs=6", "trainer.limit_train_batches=3")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the launchers set it for their workers: other numbers of threads round otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [int(n) for path in Path(f"/proc/{pid}/task").glob("*/children") for n in path.read_text().split()]


def test_a_killed_worker_of_joblib(tmp_path: Path) -> None:
    """One line says so; the same command runs what is missing, and each run ends as it would have."""
    if not importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
        pytest.skip("pip install 'dtp-lightning[joblib]' to run this")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    folder, alone = tmp_path / "sweep", tmp_path / "alone"
    process = subprocess.Popen(
        sweep_command(folder, *JOBS, *parallel), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(folder.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = [pid for pid in children(process.pid) if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in said, said
    assert "error: a process that ran jobs was killed" in said
    for place, more in ((folder, parallel), (alone, ())):
        run_again(place, *JOBS, *more)
    assert_same_runs(folder, alone)


def run_again(folder: Path, *words: str) -> None:
    """The sweep to its end."""
    done = subprocess.run(sweep_command(folder, *words), cwd=folder.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_same_runs(folder: Path, alone: Path) -> None:
    """Two jobs, which ended as those that nothing happened to."""
    jobs = sorted(path.parent.name for path in alone.glob("*/summary.json"))
    assert jobs == sorted(path.parent.name for path in folder.glob("*/summary.json")) and len(jobs) == 2
    for job in jobs:
        assert_same_run(folder / job, alone / job)


def test_a_killed_worker_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts its job again, which resumes: the same sweep ends as it would have."""
    if not importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("pip install 'dtp-lightning[ray]', in an environment of its own, to run this")
    folder, alone = tmp_path / "sweep", tmp_path / "alone"
    monkeypatch.setenv("OF_THIS_TEST", str(tmp_path))
    process = subprocess.Popen(
        sweep_command(folder, *JOBS, "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not list(folder.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(ray_workers(f"OF_THIS_TEST={tmp_path}")[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    run_again(alone, *JOBS)
    assert_same_runs(folder, alone)


def ray_workers(mark: str) -> list[int]:
    """Processes of Ray that run jobs and have this word in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            runs_job = (path / "cmdline").read_bytes().startswith(b"ray::_run_job")
            if runs_job and mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found
