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
from dtp_lightning.runtime.signals import SIGNALS, Interrupted, SignalGuard


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers() -> Any:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before, "handlers are given back"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_where_nothing_defers_it(number: int) -> None:
    with pytest.raises(Interrupted) as raised, SignalGuard():
        send(number)
        raise AssertionError("still here")
    assert raised.value.exit_code == 128 + number


@pytest.mark.usefixtures("handlers")
def test_a_swallowed_signal_comes_back_at_the_next_seam() -> None:
    guard = SignalGuard()
    with pytest.raises(Interrupted, match="SIGTERM"), guard:
        with contextlib.suppress(BaseException):
            send()
        assert guard.received == signal.SIGTERM
        guard.check()
    guard.check()  # outside nothing is left of it


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("where", ["guard", "seam"])
def test_an_error_that_a_signal_became_is_the_signal(where: str) -> None:
    guard = SignalGuard()
    with pytest.raises(Interrupted) as raised, guard:
        try:
            with guard.seam():
                try:
                    send()
                except BaseException:
                    raise ImportError("a library") from None
        except Interrupted:
            if where == "seam":
                raise
            raise ValueError("another library") from None
    assert isinstance(raised.value.__cause__, ImportError if where == "seam" else ValueError)


@pytest.mark.usefixtures("handlers")
def test_an_error_without_a_signal_is_itself() -> None:
    guard = SignalGuard()
    with pytest.raises(ValueError, match="mine"), guard, guard.seam():
        raise ValueError("mine")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("entered", [True, False])
def test_deferred_signals_wait_and_a_second_one_does_not(entered: bool, capfd: pytest.CaptureFixture) -> None:
    guard = SignalGuard()
    if entered:
        guard.__enter__()
    guard.defer()
    send(signal.SIGINT)
    assert guard.received == signal.SIGINT and "SIGINT: saving after this batch" in capfd.readouterr().err
    with pytest.raises(Interrupted, match="SIGTERM"):
        send()
    guard.release()
    assert guard.received == (signal.SIGTERM if entered else None)
    if entered:
        with pytest.raises(Interrupted):
            guard.defer()
        guard.__exit__(None, None, None)


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
