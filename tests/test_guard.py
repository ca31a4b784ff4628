"""The guard of signals, and the other small things that a run stands on: atomic writes, the lock, its loggers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from dtp_lightning.errors import ConfigError
from dtp_lightning.loggers.loggers import Loggers
from dtp_lightning.loggers.metrics_csv import MetricsCSV
from dtp_lightning.runs.lock import is_locked, locked
from dtp_lightning.runtime.files import write_atomically
from dtp_lightning.runtime.signals import SIGNALS, Interrupted, Leaving, SignalGuard


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers() -> Any:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before, "handlers are given back"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_raises_nothing_before_the_next_check(number: int, capfd: pytest.CaptureFixture) -> None:
    guard, done = SignalGuard(), []
    with pytest.raises(Interrupted) as raised, guard.collect():
        for item in guard.checked(range(3)):
            send(number)
            done.append(item)
    assert done == [0] and raised.value.exit_code == 128 + number
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\n{name}: leaving as soon as it is safe (once more: leaving at once)\n"
    guard.check()  # outside nothing is left of it


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_leaves_at_once() -> None:
    guard = SignalGuard()
    with pytest.raises(Interrupted, match="SIGTERM"), guard.collect():
        send(signal.SIGINT)
        send(signal.SIGTERM)
        raise AssertionError("still here")


@pytest.mark.usefixtures("handlers")
def test_a_file_that_is_written_when_a_signal_comes_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def signalled(descriptor: int) -> None:
        send()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", signalled)
    guard, path = SignalGuard(), tmp_path / "summary.json"
    with pytest.raises(Interrupted), guard.collect():
        write_atomically(path, "all of it")
        guard.check()
    assert path.read_text() == "all of it" and list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("handlers")
def test_a_wait_that_is_interruptible_ends_at_once(capfd: pytest.CaptureFixture) -> None:
    guard = SignalGuard()
    with pytest.raises(Interrupted), guard.collect(), guard.interruptible():
        send()
        raise AssertionError("still waiting")
    assert not capfd.readouterr().err, "nothing to announce: it leaves"
    with pytest.raises(Interrupted), guard.collect():
        send()
        with guard.interruptible():
            raise AssertionError("a wait that begins after the signal")


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_a_library_swallows_comes_back_after_the_wait() -> None:
    guard, reached = SignalGuard(), []
    with pytest.raises(Interrupted), guard.collect():
        with guard.interruptible(), contextlib.suppress(BaseException):
            send()
        reached.append("after the wait")
    assert not reached


@pytest.mark.usefixtures("handlers")
def test_what_is_nested_does_as_the_inner_one_says() -> None:
    """A multirun waits for jobs, a job collects, and its training saves first."""
    guard = SignalGuard()
    with pytest.raises(Interrupted), guard.collect():
        guard.take(Leaving.AT_ONCE)
        with guard.collect():
            assert guard.leaving is Leaving.AT_CHECK
            guard.take(Leaving.AFTER_BATCH)
            send()
            guard.check()
            with guard.interruptible():
                assert guard.leaving is Leaving.AFTER_BATCH, "in training nothing is interruptible"
        assert guard.leaving is Leaving.AT_ONCE and guard.received == signal.SIGTERM
        guard.check()
    assert guard.leaving is None and guard.received is None


@pytest.mark.usefixtures("handlers")
def test_an_error_after_a_signal_is_the_signal() -> None:
    """Such as that of a process that the same Ctrl-C ended."""
    guard = SignalGuard()
    with pytest.raises(Interrupted) as raised, guard.collect():
        send()
        raise ValueError("a worker died")
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="mine"), guard.collect():
        raise ValueError("mine")


def test_nothing_is_handled_where_nobody_collects() -> None:
    guard = SignalGuard()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), guard.interruptible():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(guard.checked([1, 2])) == [1, 2]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "file.json"
    write_atomically(path, "old\n")
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("full")))
        write_atomically(path, b"new\n")
    assert path.read_text() == "old\n" and list(path.parent.iterdir()) == [path]
    write_atomically(path, "né\n", previous=path.with_name("before"))
    assert path.read_bytes() == "né\n".encode() and path.with_name("before").read_text() == "old\n"


def test_the_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from dtp_lightning.runs.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    assert is_locked(tmp_path)
    with pytest.raises(ConfigError, match="another process is at work in"), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not list(tmp_path.iterdir()), "no lock file is left"


class Tracker:
    """What Loggers asks of a tracker; one that shows no pictures has no ``log_image``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("scalars", metrics, step))

    def finalize(self, status: str) -> None:
        self.calls.append(("finalize", status))


class PictureTracker(Tracker):
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.calls.append(("image", key, images, step))

    def finish(self, *, failed: bool) -> None:
        self.calls.append(("finish", failed))


def test_the_end_of_a_run_reaches_the_trackers_and_not_the_time_series(tmp_path: Path) -> None:
    plain, pictures = Tracker(), PictureTracker()
    with pytest.raises(ValueError), Loggers(MetricsCSV(tmp_path), [plain, pictures]) as loggers:  # type: ignore[list-item]
        assert loggers.for_trainer[1:] == [plain, pictures]
        loggers.log_scalars({"knn/test_acc": 0.5}, step=7)
        loggers.log_images({"plots/views": tmp_path / "views.png"}, step=7)
        raise ValueError
    assert not (tmp_path / "metrics.csv").exists()
    assert plain.calls == [("scalars", {"knn/test_acc": 0.5}, 7), ("finalize", "failed")]
    image = ("image", "plots/views", [str(tmp_path / "views.png")], 7)
    assert pictures.calls == [plain.calls[0], image, plain.calls[1], ("finish", True)]
    assert Loggers().for_trainer == []
