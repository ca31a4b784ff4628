"""Shared by the tests: composing configurations as the command line does, and small networks."""

from __future__ import annotations

import copy
import functools
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults_table import FaultsTable
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from torch import Tensor

from dtp_lightning.config.instantiate import build
from dtp_lightning.config.run_config import RunConfig
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.learners import Learner
from dtp_lightning.losses import as_objective

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
OWN = os.environ.get("DTP_LIGHTNING_CONF")  # a folder like conf/ outside the repository: what it adds is tested too
CONFS = [CONF, *([Path(OWN).resolve()] if OWN else [])]
TINY = ImageSpec(channels=3, height=16, width=16, mirror_safe=True)


def pytest_configure(config: pytest.Config) -> None:
    if page := os.environ.get("FAULTS_TABLE"):  # make test-faults
        config.pluginmanager.register(FaultsTable(Path(page)))


def options(group: str) -> list[str]:
    """All options of a group: a new YAML file is tested without being named here."""
    return sorted(p.stem for conf in CONFS for p in (conf / group).glob("*.yaml"))


def choice(group: str, option: str) -> list[str]:
    """``group=option``, and a value of each key that the file leaves to the user (``???``)."""
    (path,) = (p for conf in CONFS if (p := conf / group / f"{option}.yaml").exists())
    left = [line.partition(":")[0] for line in path.read_text().splitlines() if line.endswith(": ???")]
    return [f"{group}={option}", *(f"{group}.{key}=mine" for key in left)]


def composed(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    """Configuration and group choices for these overrides; the caller's own, to be changed at will."""
    config, choices = _composed(overrides)
    return copy.deepcopy(config), dict(choices)


@functools.lru_cache(256)  # Hydra takes 0.1 s, a copy 4 ms
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        search = [f"hydra.searchpath=[{','.join(f'file://{conf}' for conf in CONFS[1:])}]"] if CONFS[1:] else []
        config = compose("train", [*overrides, *search], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    return config, choices


def option(group: str, name: str) -> dict[str, Any]:
    """The checked values of an option of a group; the caller's own, to be changed at will."""
    return copy.deepcopy(_option(group, name))


@functools.cache  # checks of a whole configuration take longer than a step of a small network
def _option(group: str, name: str) -> dict[str, Any]:
    return dict(getattr(checked(composed(f"{group}={name}")[0]), group))


def processor() -> float:
    """Seconds of processor time that this process's children took until they ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def learner_of(*overrides: str, images: ImageSpec = TINY, seed: int = 0) -> Learner:
    """The learner that a command line describes, on a network for ``images``."""
    words = ("model.channels=[4,6,8]", "model.embedding_dim=5", *overrides)
    # apart, so that every rule with every loss takes as many compositions as there are rules and losses, not pairs
    values = _checked(tuple(word for word in words if not word.startswith("loss")))
    of_loss = _checked(tuple(word for word in words if not word.startswith("learner")))
    torch.manual_seed(seed)
    loss = as_objective(build(of_loss.loss))
    model = build(values.model, images=images, classes=3 if loss.supervised else None)
    return build(values.learner, model=model, loss=loss)


@functools.lru_cache(256)
def _checked(overrides: tuple[str, ...]) -> RunConfig:
    return checked(_composed(overrides)[0])


@pytest.fixture
def views() -> Tensor:
    """Two views of four images, (2, 4, 3, 16, 16) in [0, 1]."""
    return torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without plots, which take longer than a short training."""
    from dtp_lightning import pipeline

    monkeypatch.setattr(pipeline.Experiment, "draw_views", lambda *args: None)
    monkeypatch.setattr(pipeline, "plot_diagnostics", lambda *args: None)
    monkeypatch.setattr(pipeline.plots, "plot_curves", lambda *args: None)


@pytest.fixture
def run_pipeline(tmp_path: Path) -> Callable[..., dict]:
    """``pipeline.run`` for some overrides, in a folder of its own."""
    from dtp_lightning import pipeline

    def run(*overrides: str, folder: Path = tmp_path) -> dict:
        folder.mkdir(parents=True, exist_ok=True)
        return pipeline.run(*composed(*overrides), folder)

    return run


sgd = partial(torch.optim.SGD, lr=0.1)
