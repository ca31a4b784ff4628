"""What a run left alone for a week meets: kill -9 between two files, lost checkpoints, full disks, no locks, clocks."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import processes
import pytest
from runs import TINY, assert_same_run, figures, rows, stored
from test_sweep import command as sweep_command

from dtp_lightning.cli.sweep import SweepProgress
from dtp_lightning.errors import ConfigError, DataError, RunError
from dtp_lightning.runs import lock
from dtp_lightning.runs.checkpoint_io import AtomicCheckpointIO, newest
from dtp_lightning.runs.lock import is_locked, locked
from dtp_lightning.runs.status import failures

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_pictures")]
Run = Callable[..., dict]
COMMAND = (*TINY, "resume=true", "trainer.max_epochs=3", "callbacks=[online_knn]")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process_that_dies(body: Callable[[], object]) -> None:
    """Run something in a fork of this process, which SIGKILL ends."""
    child = os.fork()
    if not child:
        try:
            body()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the same run lies, undisturbed; :func:`whole` makes it."""
    yield tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def whole(undisturbed: Path, run_pipeline: Run) -> Path:
    if not undisturbed.exists():
        run_pipeline(*COMMAND, folder=undisturbed)
    return undisturbed


@pytest.mark.parametrize(
    ("at", "save"),
    [
        ("after the checkpoint", "2"),
        *(
            pytest.param(at, save, marks=pytest.mark.slow)
            for at in ("after the checkpoint", "between its two names", "before the checkpoint")
            for save in ("null", "2")
            if (at, save) != ("after the checkpoint", "2")
        ),
    ],
)
def test_kill_9_between_checkpoint_and_row(
    at: str, save: str, whole: Path, run_pipeline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No row is lost, none is there twice, and the run ends as it would have."""
    command = (*COMMAND, f"trainer.save_every_n_steps={save}")
    saves, write, replace = count(1), AtomicCheckpointIO.save_checkpoint, os.replace

    def saved(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        now = next(saves) == 2  # of epochs, or within the second one
        if now and at == "before the checkpoint":
            die()
        if now and at == "between its two names":
            monkeypatch.setattr(os, "replace", lambda *names: (replace(*names), die()))
        write(self, checkpoint, path, storage_options)
        if now:
            die()

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", saved)
        in_a_process_that_dies(lambda: run_pipeline(*command, folder=tmp_path / "run"))
    assert not (tmp_path / "run" / "summary.json").exists()
    run_pipeline(*command, folder=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    assert len(rows(tmp_path / "run")) == len({(row["step"], "val/loss" in row) for row in rows(whole)})


def test_both_checkpoints_damaged(
    whole: Path, run_pipeline: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on from the newest snapshot that is whole, and says so."""
    run, command = (
        tmp_path / "run",
        (*COMMAND[:-1], "callbacks=[online_knn,snapshots]", "+callbacks.snapshots.epochs=[1,2]"),
    )
    run_pipeline(*command, "trainer.max_epochs=2", folder=run)
    for name in ("last.ckpt", "previous.ckpt"):
        (run / "checkpoints" / name).write_bytes(b"not any longer")
    with caplog.at_level(logging.WARNING):
        run_pipeline(*command, folder=run)
    said = [record.getMessage() for record in caplog.records if "going on" in record.getMessage()]
    assert said and "is damaged, and so is the one before it: going on from the last snapshot" in said[0]
    assert said[0].endswith("epoch2.ckpt")
    assert_same_run(run, whole)
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged, and there is none before it: delete"):
        newest(run)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EDQUOT, errno.EFBIG))]
)
def test_a_full_disk_while_the_summary_is_written(
    number: int, whole: Path, run_pipeline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The training is saved; the same command, with room, leaves the same summary."""
    from dtp_lightning import pipeline

    def full(summary: Any, path: Path) -> None:
        path.with_name("summary.json.partial").write_text("{")
        raise OSError(number, os.strerror(number), str(path))

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunError, match=r"the disk is full \(.*summary\.json\): make room"),
    ):
        patch.setattr(pipeline.summary, "write_summary", full)
        run_pipeline(*COMMAND, folder=tmp_path)
    assert not (tmp_path / "summary.json").exists() and stored(tmp_path)["global_step"] == 9
    run_pipeline(*COMMAND, folder=tmp_path)
    assert_same_run(tmp_path, whole)
    assert not (tmp_path / "error.txt").exists()


def test_a_file_that_may_not_grow(run_pipeline: Run, tmp_path: Path) -> None:
    """The real thing: the system refuses to make any file larger than 10 KB."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            run_pipeline(*COMMAND, folder=tmp_path)
        except RunError as error:
            (tmp_path / "told").write_text(str(error))
            die()

    in_a_process_that_dies(limited)
    assert (tmp_path / "told").read_text().startswith("the disk is full")
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    lock._warn_once.cache_clear()
    for _ in range(2):
        with locked(tmp_path), locked(tmp_path):
            assert not (tmp_path / ".lock").exists()
    assert not is_locked(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].endswith("has no locks: do not start a run twice in one folder")
    monkeypatch.undo()
    with locked(tmp_path), pytest.raises(ConfigError, match="another process is at work"), locked(tmp_path):
        pass


def test_a_job_at_work_is_no_failed_job(tmp_path: Path) -> None:
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "config.yaml").write_text("seed: 0\n")
    with locked(tmp_path / "seed=0"):
        assert failures(tmp_path) == {"seed=0": "at work, in another process"}
    assert failures(tmp_path) == {"seed=0": "stopped from outside"}


def test_a_clock_that_jumps_back(
    whole: Path, run_pipeline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an hour, at every look at it."""
    clock = count(time.time(), -3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        told = run_pipeline(*COMMAND, folder=tmp_path)
        progress = SweepProgress()
        progress.folder, progress.total, progress.began = tmp_path, 3, time.time()
        from hydra.core.utils import JobReturn, JobStatus
        from omegaconf import OmegaConf

        config = OmegaConf.create({"hydra": {"job": {"override_dirname": "seed=0"}}})
        progress.on_job_end(config, JobReturn(status=JobStatus.COMPLETED))
    assert told["fit/seconds"] > 0 and told["cost/seconds_per_step"] >= 0
    assert "; 0 s so far, about 0 s left" in capsys.readouterr().out
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_two_sweeps_at_once_in_one_folder(tmp_path: Path) -> None:
    """Each job runs once; a sweep that meets one at work says so; afterwards all of them are there."""
    jobs = ("learner=bp", "seed=0,1", "trainer.max_epochs=2", "trainer.limit_train_batches=3")
    folder = tmp_path / "sweep"
    both = [processes.Process(sweep_command(folder, *jobs), cwd=tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert all("Traceback" not in err for _, err in said), said
    done = sweep_command(folder, *jobs)
    again = processes.run(done, cwd=tmp_path, timeout=300)
    assert again.returncode == 0, again.stderr
    summaries = sorted(folder.rglob("summary.json"))
    assert [json.loads(path.read_text())["seed"] for path in summaries] == [0, 1]
    for path in summaries:
        steps = [(row["step"], "val/loss" in row) for row in rows(path.parent)]
        assert len(steps) == len(set(steps)) and figures(path.parent)["epochs"] == 2
    assert "</html>" in (folder / "report.html").read_text() and not list(folder.rglob("*.partial"))
