"""How far the jobs below a folder came: finished, failed, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dtp_lightning.runs.lock import NAME, is_locked
from dtp_lightning.runs.stored import read_summary


def failed(summary: Mapping[str, Any]) -> bool:
    """Whether a summary says that its run did not reach its end (it then holds no figures)."""
    return summary.get("status") == "failed"


def finished(job: Path) -> bool:
    """Whether a job's folder holds figures: a summary.json that is not that of a failed run."""
    summary = read_summary(job / "summary.json")
    return summary is not None and not failed(summary)


def failures(folder: Path) -> dict[str, str]:
    """Jobs below a folder that began and did not finish.

    Returns:
        folder of the job, relative to ``folder`` -> reason: its error.txt, ``at work`` for one that is locked, or
        ``stopped from outside``.
    """
    reasons = {}
    for path in sorted(folder.rglob("config.yaml")):
        job = path.parent
        if job.name == ".hydra" or "wandb" in job.relative_to(folder).parts or finished(job):
            continue  # an online W&B run keeps a config.yaml of its own
        if (job / NAME).exists() and is_locked(job):
            reasons[str(job.relative_to(folder))] = "at work, in another process"
        else:
            reasons[str(job.relative_to(folder))] = _reason(job / "error.txt")
    return reasons


def _reason(error: Path) -> str:
    """What a failed run left, on one line."""
    text = error.read_text(encoding="utf-8", errors="replace").split() if error.is_file() else []
    return " ".join(text) or "stopped from outside"


def ended(folder: Path, jobs: Collection[str] | None = None) -> int:
    """How many jobs below a folder finished or failed: all, or those of the given names."""
    found = {path.parent for name in ("summary.json", "error.txt") for path in folder.rglob(name)}
    return len(found) if jobs is None else sum(path.relative_to(folder).as_posix() in jobs for path in found)
