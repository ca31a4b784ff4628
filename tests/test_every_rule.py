"""Every rule on every model, by every objective, and in bfloat16."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, learner_of, option, options
from torch import Tensor

from dtp_lightning.callbacks.measures import angle
from dtp_lightning.config.instantiate import build
from dtp_lightning.errors import ConfigError
from dtp_lightning.losses import as_objective
from dtp_lightning.models import Network
from dtp_lightning.module import PretrainModule

LEARNERS = options("learner")
TINY32 = dataclasses.replace(TINY, height=32, width=32)


def small(model: str) -> Network:
    """A model of conf/model with few channels."""
    values = option("model", model)
    few = {key: [max(2, c // 64) for c in values[key]] for key in ("channels", "widths") if key in values}
    if "blocks" in values:
        few["blocks"] = [1] * len(values["blocks"])
    return build({**values, **few}, images=TINY32)


OF_LIBRARIES = {"torchvision", "timm"}  # tests/test_networks.py
FORWARD_ONLY = {"scff", "scff_small", "ff", "softhebb", "softhebb_small"}
NEEDS_TRANSPOSE = {"dtp", "dtp_kp", "dtp_mirror"}
OF_BLOCKS = {"resnet18", "resnet20"}


def refusal(name: str, model: str) -> str | None:
    """What a rule says of a network that it does not serve."""
    if model in FORWARD_ONLY and name in NEEDS_TRANSPOSE:
        return "feedback weights of the forward convolutions' shapes"
    if model in FORWARD_ONLY | OF_BLOCKS and name == "dual_propagation":
        return "needs stages of a convolution or linear layer"
    return None


MODELS = [model for model in options("model") if model not in OF_LIBRARIES]
OBJECTIVES = [loss for loss in options("loss") if loss not in ("cross_entropy", "multiclass_hinge")]


def learns(name: str, model: str, objective: str) -> None:
    """A step of the rule on the model ends in numbers and moves weights, or the rule says that it does not fit."""
    values = option("learner", name)
    torch.manual_seed(0)
    loss = as_objective(build(option("loss", objective)))
    if said := refusal(name, model):
        with pytest.raises(ConfigError, match=said):
            build(values, model=small(model), loss=loss)
        return
    learner = build(values, model=small(model), loss=loss)
    weights = [p for stage in learner.model.stages for p in stage.forward_parameters()]
    before, views = [p.clone() for p in weights], torch.rand(2, 3, 3, 32, 32)
    for _ in range(2):  # the first may teach feedback alone
        assert all(torch.isfinite(value) for value in learner.step(views).values())
        learner.skip_first_phase()
    assert any(not torch.equal(a, b) for a, b in zip(before, weights, strict=True))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_rule_on_every_model(name: str, model: str) -> None:
    """By objectives in turns: each meets every rule and every model."""
    turn = (LEARNERS.index(name) + MODELS.index(model)) % len(OBJECTIVES)
    learns(name, model, OBJECTIVES[turn])


@pytest.mark.slow
@pytest.mark.contracts
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_rule_on_every_model_by_every_objective(name: str, model: str) -> None:
    for objective in OBJECTIVES:
        learns(name, model, objective)


OF_DIFFERENCES = {"ddtp_linear", "drl", "dual_propagation", "dtp_autoencoder", "dtp_thesis", "sdtp", "tp"}
"""Rules that bf16-mixed is refused to: they learn from differences of activations, which round to 0."""


@pytest.mark.parametrize("name", LEARNERS)
def test_bfloat16_keeps_the_direction_of_rules_without_differences(name: str, views: Tensor) -> None:
    overrides = [f"learner={name}", *(["learner.target=linearised"] if name in ("dtp", "ldrl", "fwdtp") else [])]
    learners = [learner_of(*overrides) for _ in range(2)]
    if name in OF_DIFFERENCES:
        told = SimpleNamespace(trainer=SimpleNamespace(precision="bf16-mixed"), learner=learners[0])
        with pytest.raises(ConfigError, match="this rule takes differences of activations"):
            PretrainModule.on_fit_start(told)
        return
    assert learners[0].survives_bf16
    for learner, enabled in zip(learners, (False, True), strict=True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            learner.step(views)
    pairs = [p for p in zip(*(x.model.parameters() for x in learners), strict=True) if p[0].grad is not None]
    assert pairs and all(angle(a.grad, b.grad) < 25 for a, b in pairs if a.ndim > 1)
