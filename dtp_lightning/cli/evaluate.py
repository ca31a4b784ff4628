"""``dtp evaluate``: evaluate the encoder of a run, on the data it was trained on or on any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dtp_lightning.cli import entry, paths


def task(cfg: DictConfig) -> object:
    """One evaluation. A function of its own beside :data:`main`: launchers pickle it by its name."""
    return entry.job(lambda: run(cfg))


def run(cfg: DictConfig) -> None:
    """Load what is heavy only now, and hand over to the pipeline."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    entry.load()
    from dtp_lightning.cli import evaluate_checkpoint
    from dtp_lightning.errors import DataError
    from dtp_lightning.runs.checkpoint_io import newest

    runtime = HydraConfig.get().runtime
    cwd = Path(runtime.cwd)
    if not OmegaConf.is_missing(cfg, "checkpoint"):
        path = cwd / Path(str(cfg.checkpoint)).expanduser()
        if path.is_dir():
            found = newest(path)
            if found is None:
                raise DataError(f"checkpoint={path}: no run folder; a run leaves {paths.CHECKPOINT} in its own")
            cfg.checkpoint = str(found)
    evaluate_checkpoint.evaluate(cfg, runtime.choices, Path(runtime.output_dir), cwd)


main = hydra.main(config_path=str(paths.conf()), config_name="evaluate", version_base="1.3")(task)


def start(line: entry.CommandLine) -> None:
    """The command; a first word without ``=`` is the run: ``dtp evaluate last dataset=cifar10``."""
    first, *others = line.words or [""]
    if first and not first.startswith("-") and (first == paths.LAST or "=" not in first or Path(first).exists()):
        line = replace(line, words=[f"checkpoint={first}", *others])
    entry.run(main, "evaluate", line)
