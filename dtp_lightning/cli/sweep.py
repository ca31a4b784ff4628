"""A sweep's progress, and what is to be said at its end: a callback of Hydra, named by the files in sweeps/.

Hydra runs the jobs (here, or on a cluster by one of its launchers); a job's folder is named by what was overridden,
so that the same command finds finished jobs and resumes broken ones (``resume: true``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dtp_lightning.cli import paths
from dtp_lightning.cli.multirun import last_words, swept
from dtp_lightning.runs.reader import read_runs
from dtp_lightning.runs.status import ended, failures
from dtp_lightning.runs.stored import read_json

MEASURED = {("mnist5k", "cnn4"): 6.0, ("cifar10", "cnn4"): 170.0, ("cifar10", "cnn4_transposable"): 120.0}
"""Data set and model -> seconds of an epoch: medians of the runs in results/, of many rules, on two CPU cores."""

NAMED_BY_OVERRIDES = "${hydra.job.override_dirname}"

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
        self.jobs: frozenset[str] | None = None
        self.total = 0
        self.done = 0
        self.before = 0
        self.began = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the jobs."""
        global running
        running = self
        jobs = jobs_of(config)
        self.total = len(jobs)
        self.folder = Path(config.hydra.sweep.dir)
        subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload,index]
        self.jobs = frozenset(jobs) if subdir == NAMED_BY_OVERRIDES else None
        self.before = ended(self.folder, self.jobs)
        self.began = time.time()
        left = max(self.total - self.before, 0)
        done = f", {self.before} of them ended" if self.before else ""
        print(
            f"{counted(self.total, 'job')} in {config.hydra.sweep.dir}{done}; {expectation(config, left)}", flush=True
        )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """One line a job; none for a job that is run alone (``hydra.mode=RUN``, by an agent of W&B)."""
        if not self.began and not self.total:
            return
        # a parallel launcher calls a copy of this object in another process: there only the folders know the count
        # (too many, where another sweep works in this folder and names its jobs by numbers)
        self.done = max(self.done + 1, min(self.total, ended(self.folder, self.jobs) - self.before))
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
        count = f"{len(runs)} of {counted(self.total, 'job')} finished"
        if len(runs) > self.total:  # sweeps of other command lines share the folder
            count = f"{counted(len(runs), 'finished run')} in this folder, also of other sweeps"
        advice = "; the same command runs the others again" if failed or len(runs) < self.total else ""
        print(f"\n{count}{advice}: dtp report {folder}", flush=True)


def jobs_of(config: DictConfig) -> list[str]:
    """``override_dirname`` of each job that the sweep file and the command line make together.

    It is the name of the job's folder where ``hydra.sweep.subdir`` says so, as in every file of sweeps/.
    """
    excluded = config.hydra.job.config.override_dirname.exclude_keys
    words = [
        [f"{override.get_key_element()}={value}" for value in values_of(override)]
        for key, override in last_words(config).items()
        if key not in excluded
    ]
    return [",".join(sorted(job)) for job in itertools.product(*words)]


def values_of(override: Override) -> list[str]:
    """What a key is given, as Hydra's sweeper writes it; several values where it is swept over."""
    return (
        [*override.sweep_string_iterator()] if override.is_sweep_override() else [override.get_value_element_as_str()]
    )


def seconds_per_epoch(config: DictConfig, below: Iterable[str] = paths.RUNS) -> float | None:
    """Median over the runs here of the same data set and model, with training and validation; None without any."""
    choices = config.hydra.runtime.choices
    found = []
    for path in (path for folder in below for path in Path(folder).rglob(paths.SUMMARY)):
        told = read_json(path)
        same = all(told.get(group) == choices[group] for group in ("dataset", "model"))
        if same and told.get("epochs") and told.get("fit/seconds"):
            found.append(told["fit/seconds"] / told["epochs"])
    return median(found) if found else None


def expectation(config: DictConfig, jobs: int) -> str:
    """How long so many jobs will take, as far as it can be known before the first."""
    epochs = config.trainer.max_epochs
    work = f"to run: {jobs} x {counted(epochs, 'epoch')}"
    each, why = seconds_per_epoch(config), "by the runs that lie here"
    if each is None and config.trainer.limit_train_batches == 1.0:
        choices = config.hydra.runtime.choices
        each, why = MEASURED.get((choices["dataset"], choices["model"])), "on two CPU cores"
    if each is None or {"dataset", "model", "trainer.max_epochs"} & {*swept(config)}:
        return f"{work}; how long they take is said after the first"
    return f"{work}, about {clock(jobs * epochs * each)} {why}, and the probes"


def counted(number: int, word: str) -> str:
    """1 job, 2 jobs."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def clock(seconds: float) -> str:
    """1 h 02 min, 3 min 10 s, 42 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
