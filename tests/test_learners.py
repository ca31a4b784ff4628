"""Contracts that every learning rule in conf/learner keeps, and exact identities of single rules."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import composed, options
from conftest import learner_of as fresh_learner
from torch import Tensor, nn

from dtp_lightning.config.schema import checked
from dtp_lightning.learners import Learner

LEARNERS = options("learner")


def learner_of(*overrides: str, seed: int = 0) -> Learner:
    """Of which also the forward weights learn: the contracts are about them."""
    learner = fresh_learner(*overrides, seed=seed)
    learner.skip_first_phase()
    return learner


def stage_parameters(learner: Learner) -> list[list[nn.Parameter]]:
    return [stage.forward_parameters() for stage in learner.model.stages]


def forward_gradients(learner: Learner) -> list[Tensor]:
    """Of each stage, flat; zeros where it was not its turn."""
    grads = [[torch.zeros_like(p) if p.grad is None else p.grad for p in ps] for ps in stage_parameters(learner)]
    return [torch.cat([g.flatten() for g in gs]) for gs in grads]


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("loss", options("loss"))
@pytest.mark.parametrize("name", LEARNERS)
def test_two_steps_with_every_loss(name: str, loss: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}", f"loss={loss}")
    before = copy.deepcopy(learner.model.state_dict())
    labels = torch.tensor([0, 1, 2, 1])
    for size in (4, 3):
        metrics = learner.step(views[:, :size], labels[:size])
        assert metrics["loss"].ndim == 0
        assert all(torch.isfinite(value) and not value.requires_grad for value in metrics.values())
    after = learner.model.state_dict()
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    forward = {key for key in after if "feedback_map" not in key}
    if learner.trains_all_stages:
        assert forward <= moved, "every forward weight learns"
    else:
        assert moved and moved <= forward


@pytest.mark.parametrize("loss", ["byol", "hinge"])
@pytest.mark.parametrize("name", LEARNERS)
def test_more_than_two_views(name: str, loss: str) -> None:
    """Two large crops and two small ones: every rule learns from all, and the objective is that of the pairs."""
    learner = learner_of(f"learner={name}", f"loss={loss}")
    before = [p.detach().clone() for p in learner.model.stages[0].forward_parameters()]
    metrics = learner.step(torch.rand(4, 4, 3, 16, 16))
    assert all(torch.isfinite(value) for value in metrics.values())
    now = learner.model.stages[0].forward_parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, now, strict=True)) or name == "rll"


@pytest.mark.parametrize("name", LEARNERS)
def test_same_seed_same_weights(name: str, views: Tensor) -> None:
    weights = []
    for _ in range(2):
        learner = learner_of(f"learner={name}", seed=3)
        for _ in range(3):
            learner.step(views, measure=len(weights) == 0)  # measuring must not change learning either
        weights.append(torch.cat([p.flatten() for p in learner.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", LEARNERS)
def test_loss_decreases(name: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}", "learner.forward_optimizer.lr=3e-3")
    losses = [learner.step(views)["loss"].item() for _ in range(60)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("name", LEARNERS)
def test_local_graph_of_a_stage_reaches_no_other_stage(name: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}")
    traces = learner.trace(views.flatten(0, 1))
    for i, trace in enumerate(traces):
        for j, parameters in enumerate(stage_parameters(learner)):
            gradients = torch.autograd.grad(trace.y.square().sum(), parameters, allow_unused=True, retain_graph=True)
            assert all((g is not None) == (i == j) for g in gradients)


@pytest.mark.parametrize("name", LEARNERS)
def test_pulling_one_stage_moves_no_other(name: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}")
    traces = learner.trace(views.flatten(0, 1))
    top = len(traces) - 1
    traces[top].vjp(torch.ones_like(traces[top].y))
    learner.forward_optimizer.step()
    fresh = learner_of(f"learner={name}")
    for i, (now, then) in enumerate(zip(stage_parameters(learner), stage_parameters(fresh), strict=True)):
        unmoved = all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
        assert unmoved == (i != top)


@pytest.mark.parametrize("name", LEARNERS)
def test_weight_transport_is_as_declared(name: str, views: Tensor) -> None:
    """After the forward pass, forward weights are overwritten: a rule that never carries them back does not notice."""
    gradients = []
    for scrambled in (False, True):
        learner = learner_of(f"learner={name}")
        traces = learner.trace(views.flatten(0, 1))
        _, top = learner.compute_head_gradients(traces, len(views))
        if scrambled:
            for parameters in stage_parameters(learner):
                for parameter in parameters:
                    parameter.data.normal_(generator=torch.Generator().manual_seed(7))
        learner.compute_gradients(traces, top, measure=False)
        gradients.append(torch.cat(forward_gradients(learner)[:-1]))
    assert torch.equal(*gradients) != learner.transports_weights


@pytest.mark.parametrize("name", LEARNERS)
def test_state_round_trips(name: str, views: Tensor) -> None:
    learner, other = learner_of(f"learner={name}"), learner_of(f"learner={name}", seed=9)
    learner.step(views)
    other.load_state_dict(learner.state_dict())
    for mine, theirs in zip(learner.optimizers, other.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    for each in (learner, other):
        torch.manual_seed(5)
        each.step(views)
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", LEARNERS)
def test_update_is_called_once_and_replaces_the_own_step(name: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}")
    calls: list[int] = []
    before = copy.deepcopy(stage_parameters(learner))
    learner.step(views, update=lambda: calls.append(1))
    assert calls == [1]
    for now, then in zip(stage_parameters(learner), before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))


@pytest.mark.parametrize("name", ["dtp", "dtp_thesis", "tp", "ldrl", "fwdtp"])
def test_top_stage_is_parallel_to_backprop(name: str, views: Tensor) -> None:
    """Where the first target is one layer of gradient below the objective."""
    rule, bp = learner_of(f"learner={name}"), learner_of("learner=bp")
    for learner in (rule, bp):
        learner.step(views, update=lambda: None)
    assert cosine(forward_gradients(rule)[-1], forward_gradients(bp)[-1]) > 0.99999
    if name != "dtp_thesis":  # its displacement is divided by the step: not only the direction, also the length
        torch.testing.assert_close(forward_gradients(rule)[-1], forward_gradients(bp)[-1], rtol=1e-3, atol=1e-6)


def test_thesis_top_update_is_backprop_scaled(views: Tensor) -> None:
    """With mean reduction over N_L elements the factor is 2 step / N_L."""
    rule, bp = learner_of("learner=dtp_thesis"), learner_of("learner=bp")
    for learner in (rule, bp):
        learner.step(views, update=lambda: None)
    elements = rule.trace(views.flatten(0, 1))[-1].y.numel()
    expected = forward_gradients(bp)[-1] * 2 * rule.target_step / elements
    torch.testing.assert_close(forward_gradients(rule)[-1], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "multiclass_hinge"])
def test_supervised_controls_learn_from_one_view(name: str, loss: str, views: Tensor) -> None:
    learner = learner_of(f"learner={name}", f"loss={loss}", "learner.forward_optimizer.lr=3e-3")
    labels = torch.tensor([0, 1, 2, 1])
    losses = [learner.step(views[:1], labels)["loss"].item() for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]


def test_both_views_get_their_image_s_label(views: Tensor) -> None:
    learner = learner_of("learner=bp", "loss=cross_entropy")
    logits = learner.model(views.flatten(0, 1))
    labels = torch.tensor([0, 1, 2, 1])
    per_view = [torch.nn.functional.cross_entropy(half, labels) for half in logits.chunk(2)]
    torch.testing.assert_close(learner.objective(logits, 2, labels), sum(per_view) / 2)


def test_bp_is_autograd(views: Tensor) -> None:
    learner = learner_of("learner=bp")
    reference = copy.deepcopy(learner)
    learner.step(views, update=lambda: None)
    embeddings = reference.model(views.flatten(0, 1)).unflatten(0, (2, -1))
    reference.loss(*embeddings).backward()
    for ours, exact in zip(learner.model.parameters(), reference.model.parameters(), strict=True):
        if exact.grad is not None:
            torch.testing.assert_close(ours.grad, exact.grad)


def test_dtp_autoencoder_and_dtp_thesis_differ_in_configuration_only() -> None:
    corrected, thesis = (checked(composed(f"learner={n}")[0]).learner for n in ("dtp_autoencoder", "dtp_thesis"))
    assert corrected["_target_"] == thesis["_target_"]


def test_feedback_first_uses_the_new_feedback(views: Tensor) -> None:
    gradients = {}
    for order in ("targets_first", "feedback_first"):
        learner = learner_of("learner=dtp_autoencoder", f"learner.order={order}", "learner.feedback.optimizer.lr=0.1")
        torch.manual_seed(2)
        learner.step(views, update=lambda: None)
        gradients[order] = forward_gradients(learner)
    first, second = gradients["targets_first"], gradients["feedback_first"]
    torch.testing.assert_close(first[-1], second[-1])  # the top target needs no feedback
    assert not torch.allclose(first[0], second[0])


def test_one_optimizer_group_per_stage() -> None:
    learner = learner_of("learner=dtp_autoencoder")
    forward, feedback = learner.optimizers
    assert [g["name"] for g in forward.param_groups] == ["stage1", "stage2", "stage3", "head"]
    assert [g["name"] for g in feedback.param_groups] == ["feedback2", "feedback3"]


def test_feedback_training_lowers_reconstruction_of_clean_activations(views: Tensor) -> None:
    learner = learner_of(
        "learner=dtp_autoencoder", "learner.feedback.noise_std=0.0", "learner.feedback.optimizer.lr=0.01"
    )
    losses = [learner.step(views, update=lambda: None)["reconstruction_loss/stage3"].item() for _ in range(80)]
    assert losses[-1] < 0.5 * losses[0]


def test_every_kind_of_step_is_taken_once(views: Tensor) -> None:
    """Layer-wise rules train one stage a batch: so many kinds of steps, on the same weights, none of them lasting."""
    for name in ("gll", "rll"):
        learner = learner_of(f"learner={name}")
        variants = learner.step_variants()
        trained = []
        for variant in variants:
            variant.step(views)
            assert variant.model is learner.model
            trained.append([i for i, g in enumerate(forward_gradients(learner)) if g.any()])
        assert trained == [[0], [1], [2]] and learner.epoch == 0
    for name in ("bp", "dtp"):
        learner = learner_of(f"learner={name}")
        assert learner.step_variants() == [learner]
