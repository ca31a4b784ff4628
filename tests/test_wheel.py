"""The wheel, in an environment of its own and an empty folder: what somebody without a checkout has.

``make test-wheel``. Everything is downloaded, torch too: some minutes and 5 GB, which are removed afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from dtp_lightning import __version__

pytestmark = pytest.mark.wheel
UNREACHABLE = ("connection", "retries", "could not find a version", "name resolution", "timed out")
"""What pip's errors say where there is no registry."""


def call(command: list[str], cwd: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run with nothing of this environment's: neither its modules nor its settings of threads beyond one."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds)


def pip(python: Path | str, *words: str, cwd: Path) -> None:
    done = call([str(python), "-m", "pip", *words], cwd, 1800)
    said = done.stdout + done.stderr
    if done.returncode and any(sign in said.lower() for sign in UNREACHABLE):
        pytest.fail(f"no package registry can be reached (see pip config list): {said.strip().splitlines()[-1]}")
    assert done.returncode == 0, said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Scripts of an environment with the wheel; it lies within a git repository that is not ours."""
    folder = tmp_path_factory.mktemp("somebody else's")
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / "bin"
    pip(scripts / "python", "install", "--no-cache-dir", str(wheel), cwd=folder)
    (folder / "empty folder").mkdir()
    yield scripts
    shutil.rmtree(folder)


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("conf", "sweeps"):
        ours = {f"dtp_lightning/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")}
        assert ours == {name for name in names if name.startswith(f"dtp_lightning/{folder}/")}
    listed = subprocess.run(["git", "ls-files", "dtp_lightning"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= names and "dtp_lightning/py.typed" in names, "also what is no Python"
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"dtp_lightning"}, "nothing beside the package"


def test_in_an_empty_folder(installed: Path) -> None:
    """Train, evaluate, report, export, sweep: each by its shortest command."""
    here = installed.parents[1] / "empty folder"

    def dtp(*words: str) -> str:
        done = call([str(installed / "dtp"), *words], here, 900)
        print(f"\n$ dtp {' '.join(words)}\n{done.stdout}{done.stderr}", flush=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "learner: bp, clapp_feedback, ddtp_linear" in dtp("train", "--help")
    assert "run folder" in dtp("train", "experiment=smoke")
    (summary,) = here.glob("outputs/*/*/summary.json")
    run, trained = summary.parent, json.loads(summary.read_text())
    assert trained["epochs"] == 1 and trained["linear/test_acc"] > 0.5 and (run / "checkpoints" / "last.ckpt").exists()
    assert trained["git_commit"] == "unknown", "the repository around it is somebody else's"
    assert f"dtp-lightning={__version__}" in trained["versions"].split(), "in place of the commit"
    assert {"views.png", "curves.png"} <= {path.name for path in (run / "plots").iterdir()}

    dtp("evaluate", "last")
    (again,) = here.glob("evaluations/*/*/summary.json")
    assert json.loads(again.read_text())["linear/test_acc"] == trained["linear/test_acc"]

    assert "| mnist5k | cnn4 | hinge | dtp |" in dtp("report")
    assert str(run.relative_to(here) / "encoder.safetensors") in dtp("export", "last")
    load = "import sys, dtp_lightning as d; print(d.load_encoder(sys.argv[1]).card['learner'], d.__file__)"
    done = call([str(installed / "python"), "-c", load, str(run / "encoder.safetensors")], here, 120)
    learner, _, place = done.stdout.strip().partition(" ")
    assert learner == "dtp" and Path(place).is_relative_to(installed.parent), done.stderr

    assert "4 of 4 jobs finished" in dtp("sweep", "smoke")
    assert len(list(here.glob("multirun/smoke/*/summary.json"))) == 4 and (here / "multirun/smoke/report.html").exists()
    assert dtp("report").count("| mnist5k | cnn4 | hinge |") == 2, "the newest is the sweep now"
