"""Command lines that nobody wrote end well or are answered by one line; a small sample in every run of the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import command_lines, complaint
from hypothesis import HealthCheck, Phase, given, settings

EXAMPLES = int(os.environ.get("FAULTS_EXAMPLES", "2000"))


def tried(examples: int, folder: Path, *, seeded: bool) -> dict[str, list[str]]:
    """Complaint -> the first line that it is about, over so many lines."""
    found: dict[str, list[str]] = {}

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=seeded, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(words=command_lines())
    def attempt(words: list[str]) -> None:
        place = Path(tempfile.mkdtemp(dir=folder))
        told = complaint(words, place / "run")
        if told is not None:
            found.setdefault(told, words)
            with (folder / "found.txt").open("a") as file:
                file.write(f"{words}\n    {told}\n")
        shutil.rmtree(place, ignore_errors=True)

    attempt()
    return found


@pytest.mark.usefixtures("no_pictures")
def test_a_few_lines_that_nobody_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tried(12, tmp_path, seeded=True) == {}


@pytest.mark.slow
@pytest.mark.faults
def test_many_lines_that_nobody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", EXAMPLES)
    monkeypatch.chdir(tmp_path)
    found = tried(EXAMPLES, tmp_path, seeded=False)
    print(f"\n{EXAMPLES} command lines, {len(found)} complaints")
    assert found == {}
