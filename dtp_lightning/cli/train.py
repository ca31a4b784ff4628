"""``dtp train``: pre-train an encoder without labels and evaluate it."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dtp_lightning.cli import entry, paths


def task(cfg: DictConfig) -> object:
    """One run; returns the validation accuracy of the first evaluation, for sweepers.

    A function of its own beside :data:`main`: launchers pickle it by its name.
    """
    return entry.job(lambda: run(cfg), resumable=True)


def run(cfg: DictConfig) -> float | None:
    """Load what is heavy only now, and hand over to the pipeline."""
    from hydra.core.hydra_config import HydraConfig

    entry.load()
    from dtp_lightning import pipeline

    runtime = HydraConfig.get().runtime
    figures = pipeline.run(cfg, runtime.choices, Path(runtime.output_dir))
    return next((value for key, value in figures.items() if key.endswith("/val_acc")), None)


main = hydra.main(config_path=str(paths.conf()), config_name="train", version_base="1.3")(task)


def start(line: entry.CommandLine) -> None:
    """The command."""
    entry.run(main, "train", line)
