"""W&B may fail in any way: the training goes on, metrics.csv is complete, and the user is told once."""

from __future__ import annotations

import http.server
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb
from conftest import ROOT, composed
from runs import TINY, during, fail, rows
from test_pipeline import records

from dtp_lightning import pipeline
from dtp_lightning.callbacks import OnlineKNN
from dtp_lightning.cli.train import presets_of
from dtp_lightning.loggers import guarded_wandb, identity

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_pictures")]
COMMAND = (*TINY, "logger=wandb")
ROWS = 4 * (3 + 1)  # four epochs of three logged batches and a validation


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No account of whoever runs the tests; short patience; nothing of W&B's left behind."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(guarded_wandb, "INIT_TIMEOUT", 3.0)
    monkeypatch.setattr(guarded_wandb, "FINISH_TIMEOUT", 2.0)
    monkeypatch.setattr(wandb, "run", None)  # nor a run that a test before could not end: login does nothing beside it
    yield
    wandb.teardown()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "W&B" in r.getMessage()]


class Broken:
    """A run of wandb that fails from one of its calls on."""

    id, offline = "abc", True

    def __init__(self, call: str) -> None:
        self.call = call
        self.step = 0

    def __getattr__(self, name: str) -> Callable[..., object]:
        def called(*args: object, **kwargs: object) -> None:
            if name == self.call:
                raise OSError(28, "No space left on device")

        return called


@pytest.mark.parametrize("call", ["init", "define_metric", "log", "log_artifact", "finish"])
def test_every_call_may_fail(
    call: str, run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def init(**kwargs: object) -> Broken:
        if call == "init":
            raise wandb.errors.CommError("the server says no")
        return Broken(call)

    def finish(**kwargs: object) -> None:
        if call == "finish":
            raise BrokenPipeError("gone")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "finish", finish)
    summary = run_pipeline(*COMMAND)
    assert summary["epochs"] == 4 and len(rows(tmp_path)) == ROWS
    (line,) = told(caplog)
    assert "this run goes on without it; metrics.csv has everything" in line


@pytest.mark.skipif(not shutil.which("pgrep"), reason="no pgrep on PATH, which finds the helper")
def test_its_helper_dies_in_the_middle(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the next job of the same process has W&B again."""

    def kill(module: object) -> None:
        (pid,) = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(pid), signal.SIGKILL)

    during(monkeypatch, 1, 1, kill)
    run_pipeline(*COMMAND, folder=tmp_path / "first")
    assert len(rows(tmp_path / "first")) == ROWS and len(told(caplog)) == 1
    during(monkeypatch, None, 0, fail)
    run_pipeline(*COMMAND, "trainer.max_epochs=1", folder=tmp_path / "second")
    assert len(told(caplog)) == 1 and "train/loss" in json.dumps(records(tmp_path / "second"))


class Server(http.server.BaseHTTPRequestHandler):
    """As much of W&B's API as a run needs to begin."""

    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        project = {"id": "p", "name": "dtp-lightning", "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "x",
            "name": "abc",
            "displayName": "n",
            "config": "{}",
            "historyLineCount": 0,
            "project": project,
        }
        data = {"upsertBucket": {"bucket": bucket, "inserted": True}} if b"UpsertBucket" in body else {
            "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        }  # fmt: skip
        answer = json.dumps({"data": data}).encode()
        self.send_response(401 if self.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    yield running
    running.shutdown()
    running.server_close()


def test_a_run_that_failed_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside a run that is open W&B's login does nothing: the next job of a sweep would log offline and not say so."""
    run = wandb.init(mode="offline", dir=str(tmp_path))
    logger = guarded_wandb.GuardedWandbLogger(run, tmp_path)
    monkeypatch.setattr(type(run), "log", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no")))
    logger.log_metrics({"train/loss": 1.0}, step=0)
    assert wandb.run is not None
    logger.finish(failed=False)
    assert wandb.run is None


def test_the_server_dies_in_the_middle(
    server: http.server.ThreadingHTTPServer, run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    during(monkeypatch, 1, 1, lambda module: (server.shutdown(), server.server_close()))
    run_pipeline(*COMMAND)
    assert len(rows(tmp_path)) == ROWS
    (online,) = (tmp_path / "wandb").glob("run-*")
    assert list(online.glob("*.wandb")), "for `wandb sync`"


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("how", ["refused", "no network"])
def test_a_login_that_fails_means_offline(
    mode: str, how: str, server: http.server.ThreadingHTTPServer, run_pipeline: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if how == "refused":
        monkeypatch.setattr(Server, "refuses", True)
    else:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run_pipeline(*COMMAND, f"logger.wandb.mode={mode}")
    assert len(rows(tmp_path)) == ROWS
    (line,) = told(caplog)
    assert line.startswith("W&B could not be reached") and "`wandb sync` later" in line
    assert "train/loss" in json.dumps(records(tmp_path))


def test_its_disk_is_full(run_pipeline: Callable[..., dict], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """W&B's own process says nothing about it, and stops nothing."""
    folder = tmp_path / "run"
    (folder / "wandb").mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size=8k tmpfs {folder / 'wandb'} 2>/dev/null"):
        pytest.skip("only root can mount a small disk; a write that fails is tested above")
    try:
        run_pipeline(*COMMAND, folder=folder)
        assert len(rows(folder)) == ROWS
        assert len(told(caplog)) == 1, told(caplog)
    finally:
        wandb.teardown()
        os.system(f"umount -l {folder / 'wandb'}")


def inspected(folder: Path) -> list[list[dict]]:
    """The records of each part of an offline run, the first part first, as W&B's own viewer reads them."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    parts = []
    for offline in sorted((folder / "wandb").glob("offline-run-*")):
        done = subprocess.run([*command, str(offline)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        parts.append([json.loads(line) for line in done.stdout.splitlines()])
    return parts


def of_kind(kind: str, records: list[dict]) -> list[dict]:
    return [record[kind] for record in records if kind in record]


def test_a_resumed_run_is_one_run(
    run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both parts have the same id, and ask the server to go on with it; the best value is that of both."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- loss=hinge\n- learner.target.lr=0.5\n- seed=0\n")
    values = iter([0.3, 0.9, 0.4, 0.5])
    monkeypatch.setattr(OnlineKNN, "on_validation_epoch_end", lambda self, trainer, module: module.log(
        "val/knn_acc", next(values)))  # fmt: skip
    during(monkeypatch, 2, 1, fail)
    words = (*COMMAND, "resume=true", "callbacks=[online_knn]", "trainer.num_sanity_val_steps=0")
    with pytest.raises(RuntimeError, match="lights"):
        run_pipeline(*words)
    during(monkeypatch, None, 0, fail)
    run_pipeline(*words)
    parts = inspected(tmp_path)
    first, second = (of_kind("run", part)[0] for part in parts)
    for key in ("run_id", "display_name", "run_group"):
        assert first[key] == second[key], key
    assert first["resume"] and second["resume"], "what `wandb sync` sends asks to append"
    assert first["display_name"] == "dtp-hinge-cnn4-seed0 learner.target.lr=0.5", "rule, loss, model, seed, settings"
    assert first["run_group"] == "mnist5k-cnn4-hinge-dtp-4ep learner.target.lr:0.5", "seeds fold together"
    bests = [
        [update["update"]["val/knn_acc"] for update in of_kind("summary", part) if "val/knn_acc" in update["update"]]
        for part in parts
    ]
    assert [best["max"] for best in bests[0]] == [pytest.approx(0.3), pytest.approx(0.9)]
    assert bests[1][-1] == {"last": pytest.approx(0.5), "max": pytest.approx(0.9)}, "W&B's own begins anew"


@pytest.mark.parametrize("system", [True, False])
def test_system_statistics_can_be_turned_off(system: bool, run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    run_pipeline(*COMMAND, f"logger.wandb.system={str(system).lower()}", "trainer.max_epochs=1")
    (part,) = inspected(tmp_path)
    assert bool(of_kind("stats", part)) == system


def test_tags_and_notes_are_the_presets(run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    presets = presets_of("bp_vs_dtp", "paper_table1", [ROOT / "sweeps", ROOT / "conf"])
    words = (*COMMAND, "trainer.max_epochs=1", "logger.wandb.tags=[mine]")
    pipeline.run(*composed(*words), tmp_path, presets)
    (part,) = inspected(tmp_path)
    (run,) = of_kind("run", part)
    assert sorted(run["tags"]) == ["bp_vs_dtp", "mine", "paper_table1"]
    assert run["notes"].startswith("The comparison this project is about") and "Table 1" in run["notes"]
    assert presets_of("train", None, [ROOT / "conf"]) == {}


def test_long_names_stay_apart() -> None:
    names = {"learner": "dtp", "loss": "hinge", "model": "cnn4", "dataset": "mnist5k"}
    one, other = (identity.cell_of({**names, "settings": "a=1 " * 50 + last}, 4) for last in ("b=1", "b=2"))
    assert one != other and len(one) == len(other) == identity.LONGEST
    assert identity.cell_of({**names, "settings": "experiment=table1/bp"}, None).endswith("experiment:table1.bp")
