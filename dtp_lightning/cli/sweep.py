"""A sweep's progress, and what is to be said at its end: a callback of Hydra, named by the files in sweeps/.

Hydra runs the jobs (here, or on a cluster by one of its launchers); a job's folder is named by what was overridden,
so that the same command finds finished jobs and resumes broken ones (``resume: true``).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dtp_lightning.runs.reader import read_runs
from dtp_lightning.runs.status import ended, failures

running: SweepProgress | None = None
"""The sweep that this process started."""


class SweepProgress(Callback):
    """Says k of n after every job, and at the end which jobs failed, and why; prints the table of all.

    Args:
        title: above the table; default is the sweep's folder.
    """

    def __init__(self, title: str | None = None) -> None:
        self.title = title
        self.folder = Path()
        self.total = 0
        self.done = 0
        self.before = 0
        self.began = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the jobs."""
        global running
        running = self
        self.total = jobs_of(config)
        self.folder = Path(config.hydra.sweep.dir)
        self.before = ended(self.folder)
        self.began = time.time()
        print(f"{self.total} jobs in {config.hydra.sweep.dir}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """One line a job."""
        # a parallel launcher calls a copy of this object in another process: there only the folders know the count
        # (too many, where another sweep works in this folder)
        self.done = max(self.done + 1, min(self.total, ended(self.folder) - self.before))
        took = max(0.0, time.time() - self.began)  # the clock may have been set back
        name = config.hydra.job.override_dirname or "defaults"
        word = "done" if job_return.status is JobStatus.COMPLETED else "FAILED"
        left = f", about {clock(took / self.done * (self.total - self.done))} left" if self.total > self.done else ""
        count = f"{self.done} of {self.total}" if self.total else "a job"
        print(f"[{count}] {word}: {name}; {clock(took)} so far{left}", flush=True)

    def finish(self) -> None:
        """Table, page, and what is missing from them. (Hydra's ``on_multirun_end`` is left out when a job failed.)"""
        from dtp_lightning.report.page import write_page  # scipy and matplotlib take seconds: not before the jobs
        from dtp_lightning.report.text import conclusions, table

        folder = self.folder
        runs, failed = read_runs([folder]), failures(folder)
        if runs:
            title = self.title or str(folder)
            print("\n".join(["", title, "", table(runs, "test"), "", *conclusions(runs, "test")]), flush=True)
            write_page(runs, folder / "report.html", title, failed=failed)
            print(f"page {folder / 'report.html'}", flush=True)
        for job, reason in failed.items():
            print(f"FAILED {job}: {reason}", flush=True)
        count = f"{len(runs)} of {self.total} jobs finished"
        if len(runs) > self.total:  # sweeps of other command lines share the folder
            count = f"{len(runs)} finished runs in this folder, also of other sweeps"
        advice = "; the same command runs the others again" if failed or len(runs) < self.total else ""
        print(f"\n{count}{advice}: dtp report {folder}", flush=True)


def jobs_of(config: DictConfig) -> int:
    """How many jobs the sweep file and the command line make together."""
    params = {key: f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()}
    parser = OverridesParser.create()
    overrides = parser.parse_overrides([*params.values(), *config.hydra.overrides.task])
    last = {override.key_or_group: override for override in overrides}  # the command line comes last, and wins
    counts = [sum(1 for _ in o.sweep_string_iterator()) for o in last.values() if o.is_sweep_override()]
    return math.prod(counts)


def clock(seconds: float) -> str:
    """1 h 02 min, 3 min 10 s, 42 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
