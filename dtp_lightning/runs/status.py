"""How far the jobs below a folder came: finished, failed, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtp_lightning.runs.lock import NAME, is_locked


def failed(summary: Mapping[str, Any]) -> bool:
    """Whether a summary says that its run did not reach its end (it then holds no figures)."""
    return summary.get("status") == "failed"


def finished(job: Path) -> bool:
    """Whether a job's folder holds figures: a summary.json that is not that of a failed run."""
    path = job / "summary.json"
    return path.exists() and not failed(json.loads(path.read_text()))


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
        error = job / "error.txt"
        if (job / NAME).exists() and is_locked(job):
            reasons[str(job.relative_to(folder))] = "at work, in another process"
            continue
        reasons[str(job.relative_to(folder))] = error.read_text().strip() if error.exists() else "stopped from outside"
    return reasons


def ended(folder: Path) -> int:
    """How many jobs below a folder finished or failed."""
    return len({path.parent for name in ("summary.json", "error.txt") for path in folder.rglob(name)})
