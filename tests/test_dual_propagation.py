"""Dual propagation: its equations, its limit, what it costs, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, sgd
from torch import Tensor

from dtp_lightning.callbacks.macs import count_macs
from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import Backprop, DualPropagation
from dtp_lightning.learners.dyad import rerun
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import Network, conv_net, mlp

loss = ContrastiveHinge()


def dual(network: Network, **options: object) -> DualPropagation:
    return DualPropagation(copy.deepcopy(network), loss, sgd, **options)


def gradients(learner: Callable, views: Tensor) -> list[Tensor]:
    """Of each weight and bias of the stages, bottom first."""
    learner.step(views, update=lambda: None)
    return [p.grad for stage in learner.model.stages for p in stage.forward_parameters()]


def layered(**options: object) -> Network:
    torch.manual_seed(0)
    return mlp(TINY, widths=[6, 5, 4], embedding_dim=3, **options).double()


@pytest.fixture
def precise(views: Tensor) -> Tensor:
    return views.double()


def written_out(
    x: np.ndarray, layers: list, error: np.ndarray, alpha: float, beta: float, order: list[int], original: bool
) -> list[np.ndarray]:
    """Weight gradients and biases' of three tanh layers, s+ and s- of each inferred in this order; rows are images."""
    plus, h = [], x
    for w, b in layers:
        h = np.tanh(h @ w.T + b)
        plus.append(h)
    minus = [h.copy() for h in plus]
    up, down = (alpha, 1 - alpha) if original else (1 - alpha, alpha)
    n = len(x)

    def mean(k: int) -> np.ndarray:
        return x if k < 0 else alpha * plus[k] + (1 - alpha) * minus[k]

    for k in order:
        w, b = layers[k]
        a = mean(k - 1) @ w.T + b
        e = -beta * n * error if k == 2 else (plus[k + 1] - minus[k + 1]) @ layers[k + 1][0]
        plus[k], minus[k] = np.tanh(a + up * e), np.tanh(a - down * e)
    written = []
    for k in range(3):
        difference = -(plus[k] - minus[k]) / (beta * n)
        written += [difference.T @ mean(k - 1), difference.sum(0)]
    return written


@pytest.mark.parametrize("nudging", ["adjoint", "original"])
@pytest.mark.parametrize(
    "passes,order,inferred",
    [(1, "down", [2, 1, 0]), (2, "down", [2, 1, 0, 1, 2, 1, 0]), (4, "up", [0, 1, 2] * 4)],
)
def test_the_update_is_the_papers_equation(
    passes: int, order: str, inferred: list[int], nudging: str, precise: Tensor
) -> None:
    learner = dual(layered(), alpha=0.3, beta=2.0, passes=passes, order=order, nudging=nudging)
    traces = learner.trace(precise.flatten(0, 1))
    _, top = learner.compute_head_gradients(traces, len(precise))
    learner.compute_gradients(traces, top, measure=False)
    layers = [[p.detach().flatten(1).numpy() if p.ndim > 1 else p.detach().numpy() for p in stage.forward_parameters()]
              for stage in learner.model.stages]  # fmt: skip
    x = traces[0].x.contiguous().flatten(1).numpy()
    expected = written_out(x, layers, top.flatten(1).numpy(), 0.3, 2.0, inferred, nudging == "original")
    ours = [
        p.grad.contiguous().flatten(1 if p.ndim > 1 else 0)
        for s in learner.model.stages
        for p in s.forward_parameters()
    ]
    for a, b in zip(ours, expected, strict=True):
        assert np.abs(b).max() > 1e-5
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha,power", [(0.5, 2), (0.0, 1), (1.0, 1)])
def test_it_becomes_backprop_as_the_nudge_vanishes(alpha: float, power: int, precise: Tensor) -> None:
    """With error beta^2 if the nudge is symmetric, else beta; with max-pooling, on every stage."""
    torch.manual_seed(0)
    network = conv_net(TINY, channels=[4, 6, 8], feedback="transposable").double()
    exact = gradients(Backprop(copy.deepcopy(network), loss, sgd), precise)
    for passes in (1, 3):
        apart = []
        for beta in (1e-2, 1e-3) if power == 2 else (1e-4, 1e-5):
            ours = gradients(dual(network, alpha=alpha, beta=beta, passes=passes), precise)
            apart.append([((a - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)])
        for large, small in zip(*apart, strict=True):
            assert small < 1e-2 and 0.8 < np.log10(large / small) / power < 1.2


def test_linear_neurons_make_it_backprop_at_any_nudge(precise: Tensor) -> None:
    network = layered(activation="Identity")
    exact = gradients(Backprop(copy.deepcopy(network), loss, sgd), precise)
    for alpha in (0.0, 0.5, 0.8):
        for a, b in zip(gradients(dual(network, alpha=alpha, beta=5.0, passes=2), precise), exact, strict=True):
            torch.testing.assert_close(a, b)
    original = gradients(dual(network, alpha=0.8, beta=5.0, nudging="original"), precise)
    assert not torch.allclose(original[2], exact[2]), "the form of 2023 is not, for uneven nudges"


def test_norms_are_differentiated_as_in_backprop(precise: Tensor) -> None:
    torch.manual_seed(0)
    network = conv_net(TINY, channels=[4, 6], norm="batch").double()
    exact = gradients(Backprop(copy.deepcopy(network), loss, sgd), precise)
    for a, b in zip(gradients(dual(network, beta=1e-3), precise), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("passes,order,forward", [(1, "down", [1, 1, 1]), (2, "down", [1, 3, 2]), (3, "up", [1, 2, 3])])
def test_number_of_passes(passes: int, order: str, forward: list[int], views: Tensor) -> None:
    """One clean pass, and a layer again only where the mean state below it has changed."""
    torch.manual_seed(0)
    learner = dual(conv_net(TINY, channels=[4, 6, 8]), passes=passes, order=order)
    counted = [0, 0, 0]

    def count(k: int, *_: object) -> None:
        counted[k] += 1

    for k, stage in enumerate(learner.model.stages):
        stage.forward_map[0].register_forward_hook(partial(count, k))
    learner.step(views)
    assert counted == forward


def test_one_pass_costs_what_backprop_does(views: Tensor) -> None:
    network = conv_net(TINY, channels=[4, 6, 8])
    ours, exact = dual(network), Backprop(network, loss, sgd)
    assert count_macs(partial(ours.step, views)) == count_macs(partial(exact.step, views))


def test_later_passes_take_the_clean_pass_switches(precise: Tensor) -> None:
    """So what an activation is given is linear in the state below, however far that moves."""
    learner = dual(conv_net(TINY, channels=[4, 6]).double())
    dyad = learner.trace(precise.flatten(0, 1))[1]
    far = 10 * torch.randn_like(dyad.x)
    torch.testing.assert_close(rerun(dyad, dyad.x + far) + rerun(dyad, dyad.x - far), 2 * dyad.a.detach())


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="do not bring the error down 3 stages: give at least 3"):
        dual(layered(), order="up", passes=2)
    network = layered()
    network.stages[1].forward_map.append(torch.nn.Linear(5, 5))
    with pytest.raises(ConfigError, match="stage 2 is made of Conv2d, Identity, Tanh, Linear: take model=cnn4"):
        dual(network)


def kolen_pollack(network: Network, decay: float = 0.1) -> DualPropagation:
    torch.manual_seed(1)
    return dual(network, weights="kolen_pollack", decay=decay).double()


def forward_weights(learner: DualPropagation) -> list[Tensor]:
    """Of the stages that send something down."""
    return [stage.forward_map[0].weight for stage in learner.model.stages[1:]]


def test_weights_that_follow_are_the_rule_itself_once_they_are_equal(precise: Tensor) -> None:
    learner, exact = kolen_pollack(layered()), dual(layered())
    assert not learner.transports_weights and exact.transports_weights
    ours, theirs = gradients(learner, precise), gradients(exact, precise)
    assert torch.equal(ours[-1], theirs[-1]) and not torch.allclose(ours[0], theirs[0])
    for b, w in zip(learner.feedback_weights, forward_weights(learner), strict=True):
        b.data.copy_(w)
    for a, b in zip(gradients(learner, precise), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_weights_that_follow_come_closer_by_the_decay_and_no_other_weight_goes_down(precise: Tensor) -> None:
    learner = kolen_pollack(conv_net(TINY, channels=[4, 6, 5]), decay=0.1)
    before = [w - b for w, b in zip(forward_weights(learner), learner.feedback_weights, strict=True)]
    learner.step(precise)
    for w, b, apart in zip(forward_weights(learner), learner.feedback_weights, before, strict=True):
        torch.testing.assert_close(w - b, 0.9 * apart)
    found = []
    for overwritten in (False, True):
        traces = learner.trace(precise.flatten(0, 1))
        _, top = learner.compute_head_gradients(traces, len(precise))
        kept = copy.deepcopy(learner.model.state_dict())
        for weight in forward_weights(learner) if overwritten else ():
            weight.data.normal_()
        learner.compute_gradients(traces, top, measure=False)
        found.append([p.grad.clone() for stage in learner.model.stages for p in stage.forward_parameters()])
        learner.model.load_state_dict(kept)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
