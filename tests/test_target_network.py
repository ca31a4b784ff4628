"""A network that follows the learner's: its weights, its momentum, its place in every rule, and resume."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import learner_of, options
from runs import TINY, assert_same_run, during, fail, stored
from torch import Tensor

from dtp_lightning.callbacks.measures import update_alignment
from dtp_lightning.errors import ConfigError
from dtp_lightning.losses import TargetMomentum
from dtp_lightning.module import PretrainModule
from dtp_lightning.runtime.signals import Interrupted

OWN = ("gll", "rll", "local_blocks", "loco", "forward_forward", "scff", "lpl", "softhebb", "clapp_feedback")
"""Rules whose stages have objectives of their own."""
WORDS = ("loss=byol", "loss.hidden_dim=8")


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def online(learner) -> list[Tensor]:
    """The weights that the target network has, in its order."""
    heads = [*learner.heads, learner.model.head] if hasattr(learner, "heads") else [learner.model.head]
    modules = [*(stage.forward_map for stage in learner.model.stages), *heads]
    return [p.detach().clone() for module in modules for p in module.parameters()]


def test_momentum_goes_from_first_to_last_by_a_cosine() -> None:
    """Grill et al. 2020: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2."""
    momentum = TargetMomentum(0.9)
    expected = [1 - 0.1 * (math.cos(math.pi * k / 8) + 1) / 2 for k in range(9)]
    assert [momentum.at(k, 9) for k in range(9)] == pytest.approx(expected)
    assert momentum.at(20, 9) == 1 and momentum.at(20, None) == 0.9


@pytest.mark.parametrize("name", options("learner"))
def test_every_rule_has_one_that_follows_it(name: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}", *WORDS, "loss.momentum=0.75")
    learner.skip_first_phase()
    target = learner.target_network
    assert not any(p.requires_grad for p in target.parameters())
    before = weights(target)
    assert all(torch.equal(a, b) for a, b in zip(before, online(learner), strict=True)), "it begins as a copy"
    learner.step(views)
    for x, old, new in zip(target.parameters(), before, online(learner), strict=True):
        torch.testing.assert_close(x.detach(), 0.75 * old + 0.25 * new)
    assert any(not torch.equal(x, old) for x, old in zip(target.parameters(), before, strict=True))


@pytest.mark.parametrize("name", [name for name in options("learner") if name not in OWN])
def test_its_embeddings_are_what_the_objective_is_told(name: str, views: Tensor) -> None:
    """Of rules with one objective at the top; layer-wise rules below."""
    learner = learner_of(f"learner={name}", *WORDS)
    learner.step(views)
    h0 = learner.model.normalise(views.flatten(0, 1))
    z, targets = learner.model(views.flatten(0, 1)).chunk(2), learner.target_network(h0)[-1].chunk(2)
    expected = learner.loss(*z, *targets).item()
    assert learner.evaluate(views)[0].item() == pytest.approx(expected)
    assert learner.step(views)["loss"].item() == pytest.approx(expected)


def test_each_stage_of_a_layer_wise_rule_has_its_own(views: Tensor) -> None:
    learner = learner_of("learner=gll", "learner.order=all", *WORDS)
    learner.step(views)
    images = views.flatten(0, 1)
    hs, targets = learner.model.activations(images), learner.target_network(learner.model.normalise(images))
    heads, losses = [*learner.heads, learner.model.head], [*learner.losses, learner.loss]
    parts = zip(heads, losses, hs, targets, strict=True)
    expected = sum(loss(*head(h).chunk(2), *target.chunk(2)) for head, loss, h, target in parts)
    assert learner.step(views)["loss"].item() == pytest.approx(expected.item())


def test_no_gradient_reaches_it_and_copies_follow_their_own(views: Tensor) -> None:
    learner = learner_of("learner=bp", *WORDS)
    replica = copy.deepcopy(learner)
    before = weights(learner.target_network)
    replica.step(views)
    assert all(p.grad is None for p in replica.target_network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner.target_network), strict=True))
    found = update_alignment(copy.deepcopy(learner), views)
    assert max(value for key, value in found.items() if key.startswith("angle")) < 0.1, "bp is at 0 degrees to itself"


def test_only_the_objectives_that_need_one_have_one() -> None:
    assert learner_of("learner=bp", "loss=simsiam").target_network is None
    with pytest.raises(ConfigError, match=r"loss\.momentum=2"):
        learner_of("learner=bp", "loss=byol", "loss.momentum=2.0")


def terminate(module: PretrainModule) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("learner,act,error", [("dtp", fail, RuntimeError), ("rll", terminate, Interrupted)])
@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_equals_the_uninterrupted_one(
    learner: str, act: Callable, error: type, run_pipeline: Callable[..., dict], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """After an exception (the epoch is run again), and after SIGTERM in the middle of an epoch (no batch is)."""
    command = (*TINY, f"learner={learner}", *WORDS, "loss.momentum=0.5", "trainer.max_epochs=2", "resume=true")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_pipeline(*command, folder=whole)
    assert int(stored(whole)["state_dict"]["learner.target_network._extra_state"]) == 6, "batches"
    during(monkeypatch, 1, 1, act)
    with pytest.raises(error):
        run_pipeline(*command, folder=broken)
    during(monkeypatch, None, 0, fail)
    run_pipeline(*command, folder=broken)
    assert_same_run(broken, whole)
