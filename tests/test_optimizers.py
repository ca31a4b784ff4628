"""Optimisers of the forward weights: what decays, LARS against its formula and lightly's, and every rule by each."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import composed, learner_of, options
from lightly.utils.lars import LARS as LightlyLARS
from torch import Tensor, nn

from dtp_lightning.config.schema import checked
from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import LARS, SGD, AdamW, Schedule

OPTIMIZERS = options("optimizer")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 4)).double()


def teach(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[Tensor]:
    """Weights after some steps on fixed gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach() for p in module.parameters()]


def apart(module: nn.Module, **vectors: float) -> list[dict]:
    """Matrices, and biases and gains, as one would group them by hand."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, **vectors},
    ]


@pytest.mark.parametrize(
    "ours,theirs,words",
    [
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
        (AdamW, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
        (LARS, LightlyLARS, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
    ],
    ids=["sgd", "adamw", "lars"],
)
def test_biases_and_gains_keep_everything(ours: type, theirs: type, words: dict) -> None:
    one, other, plain = network(), network(), network()
    found = teach(one, ours(one.parameters(), **words))
    for a, b in zip(found, teach(other, theirs(apart(other), **words)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    everything = teach(plain, theirs(plain.parameters(), **words))
    assert any(not torch.allclose(a, b) for a, b in zip(found, everything, strict=True) if a.ndim < 2)


@pytest.mark.parametrize("clip", [False, True])
def test_lars_is_its_formula(clip: bool) -> None:
    """You et al. 2017, Eq. 6; with clip, solo-learn's clip_lr."""
    generator = np.random.default_rng(0)
    lr, momentum, decay, trust = 0.02, 0.9, 0.1, 0.05
    w, b = generator.normal(size=(3, 4)), generator.normal(size=4)
    parameters = [nn.Parameter(torch.tensor(x)) for x in (w, b)]
    lars = LARS(parameters, lr=lr, momentum=momentum, weight_decay=decay, trust=trust, clip=clip)
    velocity, clipped = [np.zeros_like(w), np.zeros_like(b)], []
    for k in range(6):
        gradients = [generator.normal(size=x.shape) * 10 ** (1 - k) for x in (w, b)]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = torch.tensor(g)
        lars.step()
        scale = trust * np.linalg.norm(w) / (np.linalg.norm(gradients[0]) + decay * np.linalg.norm(w))
        clipped.append(scale > lr)
        scale = min(scale / lr, 1) if clip else scale
        velocity = [momentum * velocity[0] + scale * (gradients[0] + decay * w), momentum * velocity[1] + gradients[1]]
        w, b = w - lr * velocity[0], b - lr * velocity[1]
    assert set(clipped) == {False, True}, "the example has both"
    np.testing.assert_allclose(parameters[0].detach().numpy(), w, rtol=1e-6)
    np.testing.assert_allclose(parameters[1].detach().numpy(), b, rtol=1e-9)


def test_lars_of_nothing_moves_nothing() -> None:
    zero, still, idle = (nn.Parameter(torch.full((2, 2), value)) for value in (0.0, 1.0, 1.0))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([zero, still, idle], lr=0.1, weight_decay=0.0).step()
    assert (zero == -0.1).all(), "a weight of norm 0 has no ratio: plain SGD"
    assert (still == 1).all() and (idle == 1).all()
    LARS([still], lr=0.0, clip=True).step()
    with pytest.raises(ConfigError, match="momentum=1"):
        LARS([still], lr=0.1, momentum=1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["bp", "dtp", "urf", "gll"])
def test_every_kind_of_rule_learns_by_it_and_goes_on(name: str, optimizer: str, views: Tensor) -> None:
    """Rules that add groups of their own among them; from a state, bit for bit."""
    words = (f"learner={name}", f"optimizer={optimizer}")
    learner, other = learner_of(*words), learner_of(*words, seed=9)
    learner.skip_first_phase()
    losses = [learner.step(views)["loss"].item() for _ in range(12)]
    assert losses[-1] < losses[0]
    other.load_state_dict(learner.state_dict())
    for mine, theirs in zip(learner.optimizers, other.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    for each in (learner, other):
        torch.manual_seed(5)
        each.step(views)
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), other.parameters(), strict=True))


def test_one_word_takes_the_place_of_the_rules_own_optimizer() -> None:
    node = checked(composed("learner=dtp", "optimizer=sgd", "learner.forward_optimizer.lr=0.3")[0]).learner
    assert node["forward_optimizer"]["_target_"] == "dtp_lightning.learners.SGD"
    assert (node["forward_optimizer"]["lr"], node["forward_optimizer"]["momentum"]) == (0.3, 0.9)
    for word in (
        "optimizer=sgd learner.forward_optimizer.momentum=-1.0",
        "optimizer=lars learner.forward_optimizer.trust=0.0",
    ):
        with pytest.raises(ConfigError, match=r"learner\.forward_optimizer"):
            checked(composed(*word.split())[0])


def test_a_stage_is_clipped_as_a_whole_where_its_biases_have_a_group_of_their_own(views: Tensor) -> None:
    one, two = learner_of("learner=bp"), learner_of("learner=bp", "optimizer=sgd")
    for learner in (one, two):
        learner.follow_schedule(Schedule(clip=1e-3))
        learner.step(views, update=list)
    assert len(two.forward_optimizer.param_groups) == 2 * len(one.forward_optimizer.param_groups)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
