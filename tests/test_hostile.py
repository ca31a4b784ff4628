"""Files made to take a machine's time or memory are refused within a second of its time and 100 MB of its memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, composed
from runs import TINY

from dtp_lightning.export.encoder import digest
from dtp_lightning.export.writer import export
from dtp_lightning.pipeline import run as run_one

SECONDS, MIB = 1.0, 100
JUDGE = """
import json, re, sys, time, traceback
from pathlib import Path
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict
from hydra import compose, initialize_config_dir
import dtp_lightning
from dtp_lightning.cli import evaluate_checkpoint
from dtp_lightning.errors import UserError

conf, out, *files = sys.argv[1:]

def evaluate(path):
    with initialize_config_dir(conf, version_base="1.3"):
        config = compose("evaluate", [f"checkpoint='{path}'", "evaluation=[knn]"], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    folder = Path(out, Path(path).stem)
    folder.mkdir()
    return lambda: evaluate_checkpoint.evaluate(config, choices, folder, Path.cwd())

def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def judge(task):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before, begun = kib("VmRSS"), time.process_time()
    try:
        task()
        told = "accepted"
    except UserError as error:
        told = "refused: " + str(error)
    except BaseException as error:
        told = traceback.format_exc()
    seconds = time.process_time() - begun
    return told, seconds, (kib("VmHWM") - before) / 1024

tasks = [evaluate(f) if f.endswith(".ckpt") else (lambda f=f: dtp_lightning.load_encoder(f)) for f in files]
for warm in tasks[:2]:  # what is imported at the first use
    told, _, mib = judge(warm)
    assert told == "accepted", told
    assert warm is not tasks[0] or mib > 10, mib  # that memory is seen
for file, task in zip(files[2:], tasks[2:]):
    print(json.dumps([Path(file).stem, *judge(task)]), flush=True)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an export in it."""
    folder = tmp_path_factory.mktemp("run")
    run_one(*composed(*TINY, "trainer.max_epochs=1"), folder)
    export(folder)
    return folder


def judged(files: list[Path], out: Path) -> dict[str, tuple[str, float, float]]:
    """File -> what was said, seconds, MiB; the first two are good ones."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, str(ROOT / "conf"), str(out), *map(str, files)],
        cwd=out, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(files) - 2, done.stdout
    return {name: (told, seconds, mib) for name, told, seconds, mib in lines}


def nested(depth: int, width: int = 10) -> list[Any]:
    """A list that refers to one list so many times, and so on: width ** depth values in a few bytes."""
    value: list[Any] = [0]
    for _ in range(depth):
        value = [value] * width
    return value


def checkpoints(good: Path, folder: Path) -> list[Path]:
    """Copies of a checkpoint, each with one thing wrong."""

    def changed(name: str, change: Callable[[dict[str, Any]], object]) -> None:
        stored = torch.load(good, weights_only=True)
        change(stored)
        torch.save(stored, folder / f"{name}.ckpt")

    def config(stored: dict[str, Any]) -> dict[str, Any]:
        return stored["hyper_parameters"]["config"]

    def expand(stored: dict[str, Any]) -> None:
        key = next(key for key in stored["state_dict"] if key.endswith("head.1.weight"))
        stored["state_dict"][key] = torch.zeros(1).expand(64, 10**9)

    def itself(stored: dict[str, Any]) -> None:
        config(stored)["model"]["channels"] = loop = [0]
        loop.append(loop)

    changed("wide", lambda stored: config(stored)["model"].update(channels=[20_000, 20_000]))
    changed("embedding", lambda stored: config(stored)["model"].update(embedding_dim=10**6))
    changed("deep", lambda stored: config(stored)["model"].update(channels=[4] * 9_000, pool=1))
    changed("image", lambda stored: stored["hyper_parameters"]["images"].update(height=10**6, width=10**6))
    changed("expanded", expand)
    changed("laughs", lambda stored: config(stored).update(extra=nested(30)))
    changed("itself", itself)
    changed("pickle", lambda stored: stored["hyper_parameters"].update(more="x" * 50 * 2**20))
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(folder / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("last/data/99", bytes(400 * 2**20))
    storage = torch.zeros(10)
    torch.save({"state_dict": {"x": storage}}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    path = folder / "legacy.ckpt"
    path.write_bytes(path.read_bytes().replace(b"K\nN", b"J\xff\xff\xff\x3fN").replace(b"K\nt", b"J\xff\xff\xff\x3ft"))
    with (folder / "empty.ckpt").open("wb") as file:
        file.truncate(2**36)
    return sorted(folder.glob("*.ckpt"))


def weights(good: Path, folder: Path) -> list[Path]:
    """Copies of an export, each with one thing wrong, and the card rewritten by someone who means it."""
    whole = (good / "encoder.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    first, second = sorted(name for name in header if name != "__metadata__")[:2]

    def write(name: str, text: str, content: bytes = data, said: int | None = None) -> None:
        (folder / name).mkdir(parents=True)
        path = folder / name / f"{name}.safetensors"
        path.write_bytes((len(text) if said is None else said).to_bytes(8, "little") + text.encode() + content)
        card = json.loads((good / "encoder.json").read_text())
        path.with_suffix(".json").write_text(json.dumps({**card, "sha256": digest(path)}))

    def entry(name: str, **values: Any) -> str:
        return json.dumps({**header, name: {**header[name], **values}})

    write("shape", entry(first, shape=[10**9, 10**9]))
    write("negative", entry(first, shape=[-1]))
    write("beyond", entry(first, data_offsets=[0, 10**12]))
    write("overlap", entry(second, data_offsets=header[first]["data_offsets"]))
    write("gap", json.dumps(header), data + bytes(8))
    write("twice", json.dumps(header)[:-1] + f', "{first}": {json.dumps(header[first])}}}')
    write("long", json.dumps(header), data, said=2**62)
    write("spaces", json.dumps(header) + " " * 2**21)
    write("brackets", "[" * 10**5)
    write("text", entry(first, data_offsets="0,4"))
    write("more", json.dumps({**header, "stranger": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))
    write("sparse", json.dumps(header))
    with (folder / "sparse" / "sparse.safetensors").open("r+b") as file:
        file.truncate(2**36)
    shutil.copytree(good, folder / "card", ignore=shutil.ignore_patterns("checkpoints", "plots"))
    (folder / "card" / "encoder.json").write_text('{"a":' * 10**5)
    (folder / "card" / "encoder.safetensors").rename(folder / "card" / "card.safetensors")
    (folder / "card" / "encoder.json").rename(folder / "card" / "card.json")
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is Linux's to tell")
def test_hostile_files(finished: Path, tmp_path: Path) -> None:
    good, folder = [finished / "checkpoints" / "last.ckpt", finished / "encoder.safetensors"], tmp_path / "hostile"
    folder.mkdir()
    found = judged([*good, *checkpoints(good[0], folder), *weights(finished, folder)], tmp_path / "out")
    for name, (told, seconds, mib) in found.items():
        print(f"{name}: {told} ({seconds:.2f} s, {mib:.0f} MiB)")
        assert told.startswith("refused: ") and "\n" not in told, f"{name}: {told}"
        assert seconds < SECONDS and mib < MIB, f"{name}: {seconds:.2f} s, {mib:.0f} MiB"
    assert len(found) == 24
