"""Every wrong input of wrong_inputs.py is answered by one line that says what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import processes
import pytest
import torch
from conftest import ROOT
from wrong_inputs import CASES, Wrong, attempt, places


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return places(tmp_path_factory.mktemp("places"))


@pytest.mark.parametrize("case", CASES, ids=[f"{c.what}: {c.line}" for c in CASES])
def test_wrong_input_is_one_line(case: Wrong, known: dict[str, Path]) -> None:
    if "accelerator=cuda" in case.line and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, told = attempt(case, known)
    assert code == 2, told
    said = [line for line in told.splitlines() if line.startswith("error: ")]
    assert case.answer in said[-1] and len(said) == 1, told
    assert told.splitlines()[-1] == said[-1], "warnings of the log may come before"
    assert "Traceback" not in told and "Error executing job" not in told


def test_there_are_many_and_none_ran_code(known: dict[str, Path]) -> None:
    assert len(CASES) >= 40
    assert not (known["run"].parent / "pwned").exists()


def test_the_page_lists_them_all() -> None:
    page = (ROOT / "docs" / "errors.md").read_text().replace("`_target_`", "_target_")
    missing = [case for case in CASES if f"| {case.what} | `{case.program}" not in page or case.answer not in page]
    missing = [case for case in missing if not any(part in case.line for part in ("{", "cuda"))]
    assert not missing, "make errors"


def test_tracebacks_on_request(tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, str(ROOT / "train.py"), "learner=dpt"],
        cwd=tmp_path, env={**os.environ, "HYDRA_FULL_ERROR": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0 and "Traceback" in done.stderr
