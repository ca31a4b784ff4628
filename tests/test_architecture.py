"""Who may import whom: the contracts of pyproject.toml ([tool.importlinter]), and that they would see a breach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
BREACHES = {  # contract -> module, and an import that it forbids there
    "layers": ("models/stage.py", "dtp_lightning.pipeline"),
    "science": ("losses/l1.py", "dtp_lightning.config.keys"),
    "learners": ("learners/bp.py", "hydra"),
    "report": ("report/text.py", "dtp_lightning.data.images"),
    "encoder": ("export/encoder.py", "wandb"),
    "circles": ("data/images.py", "dtp_lightning.data.mnist5k"),
}


def lint(folder: Path) -> str:
    """What import-linter says of the package in a folder, on one line."""
    wide = {"COLUMNS": "400", "PYTHONPATH": str(folder), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, env=os.environ | wide, capture_output=True, text=True, timeout=120
    )
    return " ".join((done.stdout + done.stderr).split())


def test_imports_run_downwards_and_in_no_circle() -> None:
    answer = lint(ROOT)
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in answer, answer


def test_every_contract_sees_a_breach(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dtp_lightning", tmp_path / "dtp_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, forbidden in BREACHES.values():
        path = tmp_path / "dtp_lightning" / module
        path.write_text(f"{path.read_text()}\nimport {forbidden}\n")
    answer = lint(tmp_path)
    assert BREACHES.keys() == {contract["id"] for contract in CONTRACTS}
    for contract in CONTRACTS:
        assert f"{' '.join(contract['name'].split())} BROKEN" in answer, answer
