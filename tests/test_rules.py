"""Exact identities of single learning rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import TINY, learner_of, sgd
from networks import linear_network
from torch import Tensor, nn

from dtp_lightning.learners import (
    AutoencoderFeedback,
    Backprop,
    DifferenceReconstruction,
    DirectFeedback,
    FeedbackTraining,
    FixedFeedback,
    LayerwiseLearning,
    Learner,
    LocalDifferenceReconstruction,
    TargetPropagation,
)
from dtp_lightning.learners.reconstruction import LocalDifference
from dtp_lightning.learners.target_propagation import difference_error, linearised_error
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import Network, conv_net


def gradients(learner: Learner, views: Tensor) -> list[Tensor]:
    learner.step(views, update=lambda: None)
    parts = [*(stage.forward_parameters() for stage in learner.model.stages), list(learner.model.head.parameters())]
    return [torch.cat([p.grad.flatten() for p in part]) for part in parts]


def assert_same(ours: list[Tensor], exact: list[Tensor]) -> None:
    for a, b in zip(ours, exact, strict=True):
        assert b.norm() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model", ["cnn4", "cnn4_unpool", "cnn4_average", "cnn4_strided"])
def test_feedback_alignment_with_the_forward_weights_is_backprop(model: str, views: Tensor) -> None:
    fa, bp = (learner_of(f"learner={n}", f"model={model}") for n in ("fa", "bp"))
    exact = gradients(bp, views)
    assert not torch.allclose(gradients(fa, views)[0], exact[0])
    for layer, i in fa._index.items():
        fa.feedback_weights[i].data.copy_(layer.weight)
    assert_same(gradients(fa, views), exact)


def test_updated_feedback_keeps_its_distance(views: Tensor) -> None:
    urf = learner_of("learner=urf")
    distance = {i: layer.weight - urf.feedback_weights[i] for layer, i in urf._index.items()}
    before = [b.clone() for b in urf.feedback_weights]
    for _ in range(5):
        urf.step(views)
    assert not torch.equal(before[0], urf.feedback_weights[0])
    for layer, i in urf._index.items():
        torch.testing.assert_close(layer.weight - urf.feedback_weights[i], distance[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("magnitude", ["uniform", "fixed", "batch"])
def test_sign_symmetric_feedback_has_the_signs(magnitude: str, views: Tensor) -> None:
    learner = learner_of("learner=sign_symmetric", f"learner.magnitude={magnitude}")
    learner.step(views)
    drawn = [b.clone() for b in learner.feedback_weights]
    for layer in learner._index:
        b = learner.backward_weight(layer)
        assert torch.equal(b.sign(), layer.weight.sign())
        assert (b.abs().unique().numel() == 1) == (magnitude == "uniform")
    learner.step(views)
    assert torch.equal(drawn[0], learner.feedback_weights[0]) == (magnitude != "batch")


IMAGES = torch.rand(2, 5, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("top", ["stage", "embedding"])
@pytest.mark.parametrize("order", ["targets_first", "feedback_first"])
@pytest.mark.parametrize("target_gradient", ["per_sample", "batch_mean"])
@pytest.mark.parametrize("loss", [ContrastiveHinge(), ContrastiveHinge(0.5, 20.0)], ids=["near", "far"])
def test_transposed_feedback_makes_target_propagation_backprop(
    loss: nn.Module, target_gradient: str, order: str, top: str
) -> None:
    network = linear_network(12, 9, 7, 6)
    options = {"top": top, "order": order, "target_gradient": target_gradient, "head_activation": "Identity"}
    tp = TargetPropagation(network, loss, sgd, FixedFeedback(), **options)
    tp.double()
    for stage in network.stages[1:]:
        stage.feedback_map.weight.data = stage.forward_map.weight.data.T.clone()
    if top == "embedding":
        tp.head_feedback.linear.weight.data = network.head[1].weight.data.T.clone()
    assert_same(gradients(tp, IMAGES), gradients(Backprop(copy.deepcopy(network), loss, sgd), IMAGES))


def test_direct_feedback_through_the_product_of_transposes_is_backprop() -> None:
    network = linear_network(12, 9, 7, 6)
    dfa = DirectFeedback(network, ContrastiveHinge(), sgd).double()
    product = network.head[1].weight.data.T
    for q, stage in zip(reversed(dfa.direct), reversed(network.stages), strict=True):
        q.weight.data = product.clone()
        product = stage.forward_map.weight.data.T @ product
    assert_same(gradients(dfa, IMAGES), gradients(Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd), IMAGES))


def trained_feedback(training: FeedbackTraining, network: Network, steps: int, batch: int = 400) -> None:
    """Feedback alone learns on random images."""
    learner = TargetPropagation(network, ContrastiveHinge(), sgd, training)
    for _ in range(steps):
        traces = learner.trace(torch.rand(batch, 1, 3, 4, dtype=torch.float64))
        training.train(traces, learner.feedback_optimizer)


def test_local_difference_reconstruction_learns_the_transpose() -> None:
    network = linear_network(12, 9, 7)
    adam = partial(torch.optim.Adam, lr=0.02)
    trained_feedback(LocalDifferenceReconstruction(adam, noise_std=0.5), network, 200)
    trained_feedback(LocalDifferenceReconstruction(partial(torch.optim.Adam, lr=1e-3), noise_std=0.5), network, 200)
    stage = network.stages[1]
    difference = stage.feedback_map.weight - stage.forward_map.weight.T
    assert difference.norm() < 0.03 * stage.forward_map.weight.norm()


def test_local_difference_reconstruction_is_its_formula() -> None:
    """On a linear stage the expected loss is sigma^2 (||J_g||^2 - 2 tr(J_g J_f))."""
    network = linear_network(12, 9, 7)
    training = LocalDifferenceReconstruction(sgd, noise_std=0.5)
    learner = TargetPropagation(network, ContrastiveHinge(), sgd, training)
    traces = learner.trace(torch.rand(200_000, 1, 3, 4, dtype=torch.float64))
    g, f = network.stages[1].feedback_map.weight, network.stages[1].forward_map.weight
    expected = 0.25 * (g.square().sum() - 2 * torch.trace(g @ f))
    torch.testing.assert_close(training.loss(traces, 2), expected, rtol=0.02, atol=0.005)


def test_difference_reconstruction_vanishes_for_inverses() -> None:
    network = linear_network(12, 5, 5, 5)
    for stage in network.stages[1:]:
        stage.feedback_map.weight.data = torch.linalg.inv(stage.forward_map.weight.data)
    training = DifferenceReconstruction(sgd, noise_std=0.3)
    learner = TargetPropagation(network, ContrastiveHinge(), sgd, training)
    traces = learner.trace(IMAGES.flatten(0, 1))
    for i in (2, 3):
        assert training.loss(traces, i) < 1e-20
    network.stages[2].feedback_map.weight.data *= 1.1
    assert training.loss(traces, 2) > 1e-4, "what is wrong above is felt below"


@pytest.mark.parametrize("training", [DifferenceReconstruction, LocalDifferenceReconstruction, AutoencoderFeedback])
def test_feedback_training_moves_its_own_map_alone(training: Callable, views: Tensor) -> None:
    network = conv_net(TINY, channels=[4, 6, 8])
    learner = TargetPropagation(network, ContrastiveHinge(), sgd, training(sgd, noise_std=0.1))
    traces = learner.trace(views.flatten(0, 1))
    for i in (2, 3):
        reached = torch.autograd.grad(
            learner.feedback.loss(traces, i), list(network.parameters()), allow_unused=True, retain_graph=True
        )
        own = {id(p) for p in network.stages[i - 1].feedback_parameters()}
        assert all((g is not None) == (id(p) in own) for p, g in zip(network.parameters(), reached, strict=True))


def test_greedy_learning_of_one_stage_is_backprop(views: Tensor) -> None:
    network = conv_net(TINY, channels=[4])
    gll = LayerwiseLearning(copy.deepcopy(network), ContrastiveHinge(), sgd)
    assert_same(gradients(gll, views), gradients(Backprop(network, ContrastiveHinge(), sgd), views))


def test_greedy_learning_goes_up_and_random_learning_takes_turns(views: Tensor) -> None:
    learner = learner_of("learner=gll", "learner.epochs_per_stage=2")
    active = []
    for epoch in range(8):
        learner.start_epoch(epoch)
        learner.step(views)
        active.append(list(learner.active))
    assert active == [[0], [0], [1], [1], [2], [2], [2], [2]]
    learner = learner_of("learner=rll")
    drawn = set()
    for _ in range(40):
        learner.step(views)
        drawn |= set(learner.active)
        moved = [any(p.grad is not None for p in stage.forward_parameters()) for stage in learner.model.stages]
        assert [i for i, m in enumerate(moved) if m] == learner.active
    assert drawn == {0, 1, 2}


def test_vanilla_targets_have_no_difference(views: Tensor) -> None:
    tp, dtp = (learner_of(f"learner={name}") for name in ("tp", "dtp"))
    traces = tp.trace(views.flatten(0, 1))
    trace, nothing = traces[-1], torch.zeros_like(traces[-1].h)
    torch.testing.assert_close(tp.below(trace, nothing), (trace.x - trace.feedback(trace.h)).detach())
    assert not dtp.below(trace, nothing).any()


def test_linearised_targets_are_the_limit_of_differences(views: Tensor) -> None:
    errors = {}
    for step in (1e-2, 1e-4):
        learner = learner_of("learner=dtp_autoencoder").double()
        trace = learner.trace(views.double().flatten(0, 1))[2]
        error = torch.randn_like(trace.h) * step
        errors[step] = [rule(trace, error) for rule in (linearised_error, difference_error)]
        torch.manual_seed(0)
    distances = [((a - b).norm() / b.norm()).item() for a, b in errors.values()]
    assert distances[1] < 1e-4 and distances[1] < 0.03 * distances[0]


def test_local_difference_is_its_formula() -> None:
    torch.manual_seed(0)
    e = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    stacked = torch.randn(6, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    rest, up, down = stacked.chunk(3)
    expected = ((down - rest).square().sum() - 2 * (e * (up - rest)).sum()) / 2
    torch.testing.assert_close(LocalDifference.apply(stacked, e), expected)
    assert torch.autograd.gradcheck(lambda outputs: LocalDifference.apply(outputs, e), (stacked,))
