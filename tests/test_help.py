"""Help and shell completion of the ``dtp`` command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, processor
from processes import dtp

from dtp_lightning.cli.help import annotated, comments_of
from dtp_lightning.cli.main import VERBS


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_quick(verb: str, tmp_path: Path) -> None:
    """Processor time, which other programs on this machine hardly change; the clock's is the same on a quiet one."""
    for _ in range(3):  # again, only where something disturbed it
        begun = processor()
        command = [sys.executable, "-m", "dtp_lightning", *verb.split(), "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        seconds = processor() - begun
        if seconds < 2:
            break
    assert done.returncode == 0 and f"dtp {verb}" in done.stdout and "python -m" not in done.stdout, done.stderr
    assert seconds < 2 and not list(tmp_path.iterdir())


def test_help_explains_keys() -> None:
    """By the comments of the YAML files: all of the trainer, and of a learner those of its class in any file."""
    choices = {"learner": "dtp", "trainer": "default", "evaluation": "[linear, knn]"}
    said = comments_of("train", choices)
    trainer = [line.partition(":")[0] for line in (ROOT / "conf/trainer/default.yaml").read_text().splitlines()]
    assert not [key for key in trainer if key.isidentifier() and key[0] != "_" and f"trainer.{key}" not in said]
    assert "batch" in said["learner.feedback.decay"], "of the file that dtp.yaml names"
    assert said["learner.target_step"].startswith("length of the step"), "of another file of the same class"
    assert said["learner"].startswith("Difference target propagation")
    assert "learner.epochs_per_stage" not in said, "of another class"
    shown = annotated("learner: bp, dtp\n\nKeys and\n\nlearner:\n  target_step: 0.5\n  mine: 1\n", "train", choices)
    groups, _, keys = shown.partition("Keys")
    assert "#" not in groups and re.search(r"target_step: 0.5 +# length", keys) and "mine: 1\n" in keys


def test_help_may_be_cut_off(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "dtp_lightning", "train", "--help"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE and not done.stderr


@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        ("dtp ", {"train", "evaluate", "sweep"}, set()),
        ("dtp tr", {"train"}, {"sweep"}),
        ("dtp train learner=", {"learner=bp", "learner=dtp"}, set()),
        ("dtp train learner=bp los", {"loss="}, {"learner="}),
        ("dtp evaluate last evaluation=kn", {"evaluation=knn"}, set()),
        ("dtp sweep bp", {"bp_vs_dtp"}, {"rules"}),
        ("dtp sweep bp_vs_dtp loss=hin", {"loss=hinge"}, set()),
        ("dtp report ", set(), {"learner="}),
    ],
)
def test_shell_completion(line: str, expected: set[str], absent: set[str], tmp_path: Path) -> None:
    done = dtp("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line)
    assert done.returncode == 0, done.stderr
    assert expected <= set(done.stdout.split()) and not absent & set(done.stdout.split())
