"""The files of sweeps/wandb/, from the sweeps and the searches in sweeps/: ``make wandb-sweeps``.

A W&B agent runs each job as ``dtp sweep NAME`` with one value for each key that varies, so that all else is said once,
in the sweep's own file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dtp_lightning.cli import paths

FOLDER = paths.sweeps() / "wandb"
LEFT_OUT = ("smoke",)
"""Sweeps that only show that sweeps work."""
WHAT_IT_IS = """\
# {comment}
# Written by make wandb-sweeps from sweeps/{source}.
# wandb sweep sweeps/wandb/{name}.yaml, then on each machine: wandb agent ENTITY/PROJECT/ID
"""


def sources() -> dict[str, Path]:
    """Name of each file to write -> what it is made from."""
    grids = {path.stem: path for path in paths.sweeps().glob("*.yaml") if path.stem not in LEFT_OUT}
    return grids | {f"search_{path.stem}": path for path in (paths.sweeps() / "search").glob("*.yaml")}


def sweep_of(name: str) -> dict[str, Any]:
    """What a file says to W&B."""
    source = sources()[name]
    told = search(source) if name.startswith("search_") else grid(name)
    return {"program": "dtp", "project": "dtp-lightning", "name": name, **told}


@functools.cache
def composed(name: str, *words: str) -> DictConfig:
    """The configuration of a sweep, with Hydra's."""
    with initialize_config_dir(str(paths.sweeps()), version_base="1.3"):
        return compose(name, [f"hydra.searchpath=[file://{paths.conf()}]", *words], return_hydra_config=True)


def grid(name: str) -> dict[str, Any]:
    """All combinations, as the sweep itself."""
    config = composed(name)
    parameters = {}
    given = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    for override in OverridesParser.create().parse_overrides(given):
        values = [*override.sweep_iterator()] if override.is_sweep_override() else [override.value()]
        parameters[override.key_or_group] = {"values": values}
    folder = f"hydra.run.dir={config.hydra.sweep.dir}/${{hydra.job.override_dirname}}"
    command = ["${env}", "${program}", "sweep", name, "${args_no_hyphens}", "hydra.mode=RUN", "logger=wandb", folder]
    metric = metric_of(config.get("evaluation") or {})
    shown = {"metric": {"name": metric, "goal": "maximize"}} if metric else {}
    return {"method": "grid", **shown, "parameters": parameters, "command": command}


def metric_of(evaluation: Mapping[str, Any]) -> str | None:
    """The validation accuracy of the first probe of a sweep; None where it has no probe."""
    for probe in ("linear", "linear_thesis", "few_labels", "knn"):
        if probe in evaluation:
            labels = f"/{evaluation[probe]['per_class'][-1]}" if probe == "few_labels" else ""
            return f"{probe}{labels}/val_acc"
    return None


def search(path: Path) -> dict[str, Any]:
    """Bayesian optimisation in the space of ``dtp search``."""
    space: Any = OmegaConf.to_container(OmegaConf.load(path))
    parameters: dict[str, Any] = {}
    for key, found in space["parameters"].items():
        if "choices" in found:
            parameters[key] = {"values": found["choices"]}
        else:
            kind = "log_uniform_values" if found.get("log") else "uniform"
            parameters[key] = {"distribution": kind, "min": float(found["low"]), "max": float(found["high"])}
    words = [word for word in space["fixed"] if word != "logger=none"]
    command = ["${env}", "${program}", "train", *words, "logger=wandb", "${args_no_hyphens}"]
    metric = {"name": space["metric"], "goal": "maximize"}
    return {"method": "bayes", "metric": metric, "parameters": parameters, "command": command}


def text(name: str) -> str:
    """A file, as it is written."""
    source = sources()[name]
    comment = paths.comment_of(source)[0]
    head = WHAT_IT_IS.format(comment=comment, source=source.relative_to(paths.sweeps()), name=name)
    return head + yaml.safe_dump(sweep_of(name), sort_keys=False, width=1000, default_flow_style=None)


def main() -> None:
    """Write them all; a file whose sweep is gone goes too."""
    texts = {FOLDER / f"{name}.yaml": text(name) for name in sources()}
    for path in {*FOLDER.glob("*.yaml")} - texts.keys():
        path.unlink()
    for path, written in texts.items():
        path.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
