"""Files from elsewhere run nothing, nothing connects to anywhere, and secrets are written nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONF, ROOT, choice, composed, options
from test_evaluate import evaluate
from wrong_inputs import Evil, Wrong, attempt

from dtp_lightning.config.schema import checked
from dtp_lightning.errors import DataError, SecretError
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runs.safe_loading import SHIPPED, load, trusted

SHORT = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "evaluation=[knn]",
    "callbacks=[]", "model.channels=[4,6]",
)  # fmt: skip
GUARD = """
import os, socket

def refuse(*arguments, **named):
    address = arguments[-1] if arguments else named
    if isinstance(arguments[0], socket.socket) and arguments[0].family == socket.AF_UNIX:
        return connect(*arguments)  # wandb speaks to its own process
    if isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost"):
        return connect(*arguments)
    with open(os.environ["SOCKET_LOG"], "a") as log:
        log.write(repr(arguments) + "\\n")
    raise OSError(101, "no network in this test")

connect = socket.socket.connect
socket.socket.connect = refuse
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: (
    resolve(host, *rest, **named) if host in (None, "127.0.0.1", "::1", "localhost") else refuse((host,))
)
"""


def test_every_load_in_the_repository_is_of_weights_only() -> None:
    for path in [*(ROOT / "dtp_lightning").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("*.py")]:
        # of a saving it means something else: that the optimisers' state is saved too
        text = re.sub(r"\.save_checkpoint\(.*\)", "", path.read_text())
        loads = re.findall(r"torch\.load\([^)]*\)", text)
        assert all("weights_only=True" in load for load in loads), path
        assert not re.search(r"weights_only=False|import pickle\n[\s\S]*pickle\.loads?\(|load_from_checkpoint", text), (
            path
        )


@pytest.mark.parametrize("how", ["torch", "protocol 2", "protocol 5", "a whole module"])
def test_a_malicious_pickle_is_refused(how: str, tmp_path: Path) -> None:
    import pickle

    path, mark = tmp_path / "evil.ckpt", tmp_path / "pwned"
    if how == "torch":
        torch.save({"state_dict": {}, "hyper_parameters": Evil(mark)}, path)
    elif how == "a whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Evil(mark)}, protocol=int(how[-1])))
    for reader in (load, Checkpoint.read):
        with pytest.raises(DataError) as raised:
            reader(path)
        assert "\n" not in str(raised.value)
        assert "is refused, nothing of it was run" in str(raised.value) or "damaged, or not a checkpoint" in str(
            raised.value
        )
    assert not mark.exists()


@pytest.mark.parametrize("group", ["loss", "model", "dataset", "augment"])
def test_what_is_shipped_is_trusted(group: str, tmp_path: Path) -> None:
    for option in options(group):
        if (CONF / group / f"{option}.yaml").exists():
            trusted(getattr(checked(composed(*choice(group, option))[0]), group), tmp_path)


STRANGERS = [
    {"_target_": "os.system", "command": "true"},
    {"_target_": "dtp_lightning.losses.L1Margin", "margin": {"_target_": "subprocess.run", "args": "true"}},
    {"_target_": "dtp_lightning.losses.L1Margin", "margin": [{"_target_": "builtins.exec"}]},
    {"_target_": "torch.load", "f": "x"},
    {"_target_": "dtp_lightning_evil.losses.Loss"},
    {"_target_": "dtp_lightning.data.image_folder.ThreadPoolExecutor"},  # imported there, not defined there
    {"_target_": "dtp_lightning.cli.entry.run"},
    {"_target_": ["os.system"]},
    {"_target_": ["dtp_lightning.models.conv_net"]},
    {"_target_": {"x": "dtp_lightning.models.conv_net"}},
    {"_target_": {}},
    {"a": {"_target_": "os.system"}, "a._target_": "dtp_lightning.models.conv_net"},  # two of one dotted key
]


@pytest.mark.parametrize("node", STRANGERS, ids=[str(n)[:60] for n in STRANGERS])
def test_a_configuration_in_a_file_names_what_is_shipped_alone(node: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not shipped with dtp_lightning|cannot be imported") as raised:
        trusted(node, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_configuration_in_a_file_reads_no_environment(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="refers to this machine"):
        trusted({"_target_": "dtp_lightning.data.image_folder", "root": "${oc.env:HOME}"}, tmp_path)


def test_ones_own_package_is_trusted_by_name(
    run_pipeline: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line may name any class; a checkpoint may when the user says so."""
    (tmp_path / "own_losses.py").write_text(
        "from dtp_lightning.losses import PositiveOnly\nclass Mine(PositiveOnly): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    run_pipeline(*SHORT, "logger=none", "loss=positive_only", "loss._target_=own_losses.Mine", folder=run)
    asked = f"checkpoint={run}/checkpoints/last.ckpt", "evaluation=[knn]"
    with pytest.raises(DataError, match=r"names own_losses\.Mine, which is not shipped"):
        evaluate(tmp_path / "refused", *asked)
    monkeypatch.setenv("DTP_LIGHTNING_TRUST", "another, own_losses")
    assert "knn/test_acc" in evaluate(tmp_path / "trusted", *asked)


def test_shipped_packages_are_packages_of_ours_and_of_lightlys_losses() -> None:
    assert all(name.startswith("dtp_lightning.") or name == "lightly.loss" for name in SHIPPED)


@pytest.mark.parametrize("logger,mode", [("csv", "online"), ("wandb", "offline")])
def test_nothing_connects(logger: str, mode: str, tmp_path: Path) -> None:
    """Importing everything and a whole run, with every way out watched. (wandb's own process is told offline.)"""
    secret, run = "0123456789abcdef0123456789abcdef01234567", tmp_path / "größe 测试" / "a run"
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    environment = {
        **os.environ, "PYTHONPATH": f"{tmp_path / 'guard'}{os.pathsep}{ROOT}", "SOCKET_LOG": str(tmp_path / "log"),
        "WANDB_MODE": mode, "WANDB_API_KEY": secret, "MY_SERVICE_TOKEN": "hush-hush-hush",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SHORT, f"logger={logger}", f"hydra.run.dir='{run}'"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
    assert (run / "summary.json").exists(), "any path will do"
    for path in run.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert secret.encode() not in content and b"hush-hush-hush" not in content, path
    assert secret not in done.stdout + done.stderr
    checked_guard = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"],
        env=environment, capture_output=True, timeout=60,
    )  # fmt: skip
    assert checked_guard.returncode and (tmp_path / "log").exists(), "the guard guards"


def test_secrets_are_refused_before_they_are_written(tmp_path: Path) -> None:
    """On the command line, and in a configuration file of one's own, of which Hydra keeps a copy."""
    own = tmp_path / "conf" / "logger"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "wandb:\n  _target_: dtp_lightning.loggers.trackers.wandb_logger\n  api_key: 0123456789abcdef\n"
    )
    for words in ("+logger.wandb.api_key=0123456789abcdef", f"--config-dir {tmp_path / 'conf'} logger=mine"):
        run = tmp_path / f"run{len(words)}"
        code, told = attempt(Wrong("", f"{words} hydra.run.dir={run}", ""), {"run": run})
        assert code == 2 and "holds no secrets" in told and "0123456789abcdef" not in told
        assert not [p for p in run.rglob("*") if p.is_file() and b"0123456789abcdef" in p.read_bytes()]


def test_a_secret_of_the_environment_is_not_taken_into_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with pytest.raises(SecretError, match="holds the value of WANDB_API_KEY") as raised:
        checked(composed("logger=wandb", "logger.wandb.entity=${oc.env:WANDB_API_KEY}")[0])
    assert "0123456789abcdef" not in str(raised.value)


@pytest.mark.parametrize("place", ["with spaces", "größe 测试"])
def test_any_path_will_do(place: str, run_pipeline: Callable[..., dict], tmp_path: Path) -> None:
    """Spaces and letters of any alphabet in folders of data, runs and exports; data that may only be read."""
    from test_image_folder import picture

    import dtp_lightning
    from dtp_lightning.export.writer import export

    data, run = tmp_path / place / "images", tmp_path / place / "run"
    for name in ("eine Klasse", "ß"):
        for i in range(8):
            picture(data / "train" / name / f"{place} {i}.png", seed=i)
    everything = [data, *data.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in everything}
    words = "dataset=image_folder", "batch_size=4", "logger=tensorboard"
    run_pipeline(*SHORT, *words, f"dataset.root='{data}'", folder=run)
    assert {path: path.stat().st_mtime_ns for path in [data, *data.rglob("*")]} == before, "nothing is written there"
    evaluate(tmp_path / place / "again", f"checkpoint='{run}/checkpoints/last.ckpt'", "evaluation=[knn]")
    encoder = dtp_lightning.load_encoder(export(run, run / "größe einer Zahl.safetensors"))
    assert encoder.card["classes"] == ["eine Klasse", "ß"]
    assert json.loads((run / "summary.json").read_text())["knn/test_acc"] >= 0
    for path in everything:
        path.chmod(0o755)  # so that the folder can be cleaned up
