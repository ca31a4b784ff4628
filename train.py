"""Pre-train an encoder without labels and evaluate it: ``python train.py loss=hinge learner=dtp``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dtp_lightning.cli import entry as cli

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> object:
    """One run; returns the validation accuracy of the first evaluation, for sweepers."""
    return cli.job(lambda: run(cfg), resumable=True)


def run(cfg: DictConfig) -> float | None:
    """Load what is heavy only now, and hand over to the pipeline."""
    from hydra.core.hydra_config import HydraConfig

    from dtp_lightning import pipeline
    from dtp_lightning.runtime.signals import guard

    guard.check()
    runtime = HydraConfig.get().runtime
    found = pipeline.run(cfg, runtime.choices, Path(runtime.output_dir))
    return next((value for key, value in found.items() if key.endswith("/val_acc")), None)


if __name__ == "__main__":
    cli.run(main, CONF, "train")
