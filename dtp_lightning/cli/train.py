"""``dtp train``: pre-train an encoder without labels and evaluate it."""

from __future__ import annotations

from collections.abc import Sequence
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

    hydra_config = HydraConfig.get()
    runtime = hydra_config.runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    presets = presets_of(hydra_config.job.config_name, runtime.choices.get("experiment"), folders)
    figures = pipeline.run(cfg, runtime.choices, Path(runtime.output_dir), presets)
    return next((value for key, value in figures.items() if key.endswith("/val_acc")), None)


def presets_of(config_name: str | None, experiment: str | None, folders: Sequence[Path]) -> dict[str, str]:
    """Name of the sweep and of the preset, where there are -> the comment that its file begins with.

    Args:
        config_name: of the configuration; other than "train" it is a sweep's.
        experiment: the chosen preset.
        folders: where Hydra looks for configurations.
    """
    chosen = [config_name if config_name != "train" else None, f"experiment/{experiment}" if experiment else None]
    presets = {}
    for name in filter(None, chosen):
        path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
        presets[name.removeprefix("experiment/")] = "\n".join(paths.comment_of(path)) if path else ""
    return presets


main = hydra.main(config_path=str(paths.conf()), config_name="train", version_base="1.3")(task)


def start(line: entry.CommandLine) -> None:
    """The command."""
    entry.run(main, "train", line)
