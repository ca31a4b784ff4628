"""Evaluate a checkpoint, on the data it was trained on or on any other: ``python evaluate.py checkpoint=...``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dtp_lightning.cli import entry as cli

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> object:
    """One evaluation."""
    return cli.job(lambda: run(cfg))


def run(cfg: DictConfig) -> None:
    """Load what is heavy only now, and hand over to the pipeline."""
    from hydra.core.hydra_config import HydraConfig

    from dtp_lightning import pipeline
    from dtp_lightning.runtime.signals import guard

    guard.check()
    runtime = HydraConfig.get().runtime
    pipeline.evaluate(cfg, runtime.choices, Path(runtime.output_dir), Path(runtime.cwd))


if __name__ == "__main__":
    cli.run(main, CONF, "evaluate")
