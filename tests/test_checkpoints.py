"""Checkpoints on disk: whole or not there, the one before kept, and what happens when they or the disk go bad."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, assert_same_run, during, fail, rows, stored, weights

from dtp_lightning.errors import DataError, RunError
from dtp_lightning.loggers.metrics_csv import MetricsCSV
from dtp_lightning.runs import checkpoint_io
from dtp_lightning.runs.checkpoint_io import AtomicCheckpointIO, Progress, newest, whole
from dtp_lightning.runtime.signals import Interrupted

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_pictures")]


def checkpoint(step: int) -> dict[str, Any]:
    current = {"processed": step}
    return {"global_step": step, "x": torch.ones(1000), "loops": {"fit_loop": {"epoch_progress": {"current": current}}}}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """With a checkpoint of epoch 2, and the one before."""
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    """In the weights, where torch would not notice."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(1000).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, remove])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = (run_folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert newest(run_folder) == last and not caplog.records
    damage(last)
    assert newest(run_folder) == previous and "going on from the checkpoint before it" in caplog.text
    assert len(caplog.records) == 1
    assert newest(run_folder, repair=True) == last and Progress.read(last) == Progress(1, 1)
    damage(last)
    if last.exists():
        with pytest.raises(DataError, match=r"last\.ckpt is damaged, and there is none before it: delete"):
            newest(run_folder)


def test_resume_after_a_truncated_checkpoint(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = (*TINY, "resume=true")
    run_pipeline(*command, folder=tmp_path / "whole")
    during(monkeypatch, 3, 1, fail)
    with pytest.raises(RuntimeError, match="lights"):
        run_pipeline(*command, folder=tmp_path / "broken")
    truncate(tmp_path / "broken" / "checkpoints" / "last.ckpt")
    with (tmp_path / "broken" / "metrics.csv").open("a") as file:
        file.write("3,0.25,1")  # half a row, as a process leaves it that is killed while it writes
    during(monkeypatch, None, 0, fail)
    run_pipeline(*command, folder=tmp_path / "broken")
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_an_end_while_saving_leaves_what_was_there(at: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C, wherever it comes."""
    target, name = {"write": (checkpoint_io, "io"), "fsync": (os, "fsync"), "replace": (os, "replace")}[at]

    class Stopping:
        @staticmethod
        def BytesIO() -> Any:
            raise Interrupted(signal.SIGINT)

    def stop(*args: object) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(target, name, Stopping if at == "write" else stop)
        AtomicCheckpointIO().save_checkpoint(checkpoint(3), run_folder / "checkpoints" / "last.ckpt")
    assert newest(run_folder) == run_folder / "checkpoints" / "last.ckpt"
    assert Progress.read(run_folder / "checkpoints" / "last.ckpt").step == 2


def test_saving_within_an_epoch(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For epochs of hours: what is lost is what came after the last n batches."""
    run_pipeline(*TINY, "resume=true", folder=tmp_path / "whole")
    command = (*TINY, "resume=true", "trainer.save_every_n_steps=2")
    during(monkeypatch, 1, 2, fail)
    with pytest.raises(RuntimeError, match="lights"):
        run_pipeline(*command, folder=tmp_path / "broken")
    assert stored(tmp_path / "broken")["global_step"] == 3 + 2
    during(monkeypatch, None, 0, fail)
    run_pipeline(*command, folder=tmp_path / "broken")
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_streamed_epoch_goes_on_where_it_was(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workers do not hear the signal, and their batches are not read again."""
    command = (*TINY, "resume=true", "loading=stream", "workers=1")
    run_pipeline(*command, folder=tmp_path / "whole")

    def to_the_group(module: object) -> None:  # as a terminal's Ctrl-C, and SLURM's SIGTERM
        (worker,) = multiprocessing.active_children()[:1]
        os.kill(worker.pid, signal.SIGTERM)  # type: ignore[arg-type]
        os.kill(worker.pid, signal.SIGINT)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    during(monkeypatch, 2, 0, to_the_group)
    with pytest.raises(Interrupted, match="SIGINT"):
        run_pipeline(*command, folder=tmp_path / "stopped")
    assert stored(tmp_path / "stopped")["global_step"] == 2 * 3 + 1
    during(monkeypatch, None, 0, fail)
    run_pipeline(*command, folder=tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(("epoch", "batch", "step"), [(1, 2, 6), (3, 2, 12), (0, 0, 1)])
def test_signals_at_the_edges_of_epochs(
    epoch: int,
    batch: int,
    step: int,
    run_pipeline: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """In an epoch's last batch: validation and the epoch's checkpoint come first."""
    command = (*TINY, "resume=true")
    run_pipeline(*command, folder=tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    during(monkeypatch, epoch, batch, lambda module: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Interrupted, match="SIGUSR1"):
        run_pipeline(*command, folder=tmp_path / "stopped")
    assert stored(tmp_path / "stopped")["global_step"] == step
    assert signal.getsignal(signal.SIGTERM) == before, "handlers are given back"
    during(monkeypatch, None, 0, fail)
    run_pipeline(*command, folder=tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_second_signal_does_not_wait(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def twice(module: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still here")

    during(monkeypatch, 2, 1, twice)
    with pytest.raises(Interrupted):
        run_pipeline(*TINY, "resume=true")
    assert whole(tmp_path / "checkpoints" / "last.ckpt") and stored(tmp_path)["global_step"] == 2 * 3


def test_what_was_logged_after_the_last_batch_is_kept(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run ended, its evaluation did not: a callback's last look is not repeated, and not lost."""
    from dtp_lightning import pipeline

    command = (*TINY, "resume=true", "callbacks=[alignment]", "trainer.max_epochs=1")
    run_pipeline(*command, folder=tmp_path / "whole")

    def stopped(*args: object) -> None:
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(pipeline, "evaluate_encoders", stopped)
        run_pipeline(*command, folder=tmp_path / "stopped")
    run_pipeline(*command, folder=tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert any(row["step"] == "3" for row in rows(tmp_path / "whole"))


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt.partial")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {folder} 2>/dev/null"):
        pytest.skip("only root can mount a small disk; the simulated one is tested everywhere")
    yield folder
    os.system(f"umount -l {folder}")


def test_a_full_disk_stops_with_one_line(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = (*TINY, "resume=true")
    run_pipeline(*command, folder=tmp_path / "whole")
    during(monkeypatch, 2, 0, lambda module: monkeypatch.setattr(os, "fsync", full))
    with pytest.raises(RunError, match=r"the disk is full \(last\.ckpt\.partial\): make room; resume=true hydra"):
        run_pipeline(*command, folder=tmp_path / "full")
    assert stored(tmp_path / "full")["global_step"] == 2 * 3, "the last good one"
    assert {p.name for p in (tmp_path / "full" / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    monkeypatch.undo()
    run_pipeline(*command, folder=tmp_path / "full")
    ours, theirs = weights(tmp_path / "full"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_disk_that_is_really_full(run_pipeline: Callable[..., dict], small_disk: Path, tmp_path: Path) -> None:
    command = (*TINY, "resume=true", "trainer.max_epochs=8")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 500_000)  # room for two checkpoints of 160 KB, not for three
    with pytest.raises(RunError, match="the disk is full"):
        run_pipeline(*command, folder=small_disk / "run")
    good = newest(small_disk / "run")
    assert good is not None and Progress.read(good).step >= 3
    ballast.unlink()
    run_pipeline(*command, folder=small_disk / "run")
    run_pipeline(*command, folder=tmp_path / "whole")
    assert_same_run(small_disk / "run", tmp_path / "whole")


def test_a_new_column_never_costs_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """metrics.csv is rewritten beside itself when a quantity appears."""
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "replace", full)
        logger.log_metrics({"b": 2.0}, step=1)
    assert rows(tmp_path) == [{"a": "1.0", "step": "0"}]
    again = MetricsCSV(tmp_path, up_to_step=1)
    again.log_metrics({"b": 2.0}, step=1)
    assert rows(tmp_path) == [{"a": "1.0", "step": "0"}, {"b": "2.0", "step": "1"}]
