"""Feedback that can be, and becomes, the transpose of the forward path."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from conftest import TINY, learner_of, sgd
from torch import Tensor, nn

from dtp_lightning.callbacks.measures import angle
from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import (
    Backprop,
    FixedFeedback,
    KolenPollackFeedback,
    Learner,
    LocalDifferenceReconstruction,
    TargetPropagation,
    WeightMirrorFeedback,
)
from dtp_lightning.learners.kolen_pollack import Follower
from dtp_lightning.learners.noise import tiled
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import Network, conv_net, conv_stage
from dtp_lightning.models.stage import pool_at
from dtp_lightning.models.transposable import PHI

GEOMETRIES = {
    "max": {},
    "average": {"pooling": "average"},
    "strided": {"stride": 2, "pool": 1},
    "flat": {"pool": [2, 1, 2]},
    "wide": {"kernel_size": 5, "stride": [1, 4, 1], "pool": [1, 1, 2]},
}


def transposable(seed: int = 0, **options) -> Network:
    """Three stages in float64 whose feedback maps are transposable."""
    torch.manual_seed(seed)
    return conv_net(TINY, channels=[4, 6, 8], feedback="transposable", **options).double()


def with_transposes(network: Network) -> Network:
    """B = W."""
    for stage in network.stages[1:]:
        stage.feedback_map.weight.data.copy_(stage.layers()[0].weight.data)
    return network


def gradients(learner: Learner, views: Tensor) -> list[Tensor]:
    learner.step(views, update=lambda: None)
    return [torch.cat([p.grad.flatten() for p in stage.forward_parameters()]) for stage in learner.model.stages]


@pytest.mark.parametrize("activation", PHI)
def test_phi_is_the_integral_of_the_activations_derivative(activation: str) -> None:
    phi, act = PHI[activation], getattr(nn, activation)()
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64).requires_grad_()
    y = act(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    h, v = y.detach(), torch.randn(1001, dtype=torch.float64)
    torch.testing.assert_close(phi.along(h, v), slope * v)
    u = h.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(phi.value(u).sum(), u)
    inside = h.abs() < 1 if activation == "Hardtanh" else h != 0
    torch.testing.assert_close(derivative[inside], slope[inside])


@pytest.mark.parametrize("activation", PHI)
def test_difference_of_phi(activation: str) -> None:
    """Equal to the plain difference for steps of any size, with all digits left for small ones."""
    phi = PHI[activation]
    torch.manual_seed(0)
    h = getattr(nn, activation)()(torch.randn(1000, dtype=torch.float64))
    lives = phi.along(h, torch.ones_like(h)) != 0  # a dead unit passes nothing, whatever its target
    for size in (1.0, 0.1):
        e = size * torch.randn(1000, dtype=torch.float64)
        plain = torch.where(lives, phi.value(h) - phi.value(h - e), 0)
        torch.testing.assert_close(phi.difference(h, e), plain)
    e = torch.randn(1000, dtype=torch.float64) * 1e-9
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        exact = phi.along(h.to(dtype).double(), e.to(dtype).double())
        ours = phi.difference(h.to(dtype), e.to(dtype)).double()
        assert (ours - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("activation", PHI)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("target", ["difference", "linearised"])
def test_with_the_transposes_target_propagation_is_backprop(
    activation: str, geometry: str, target: str, views: Tensor
) -> None:
    network = with_transposes(transposable(activation=activation, **GEOMETRIES[geometry]))
    options = {"target": target, "target_step": 1e-10}
    tp = TargetPropagation(network, ContrastiveHinge(), sgd, FixedFeedback(), **options)
    bp = Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd)
    ours, exact = (gradients(learner, views.double()) for learner in (tp, bp))
    for a, b in zip(ours, exact, strict=True):
        assert b.norm() > 1e-9
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.norm().item())


@pytest.mark.parametrize("feedback", ["strided", "unpool"])
def test_the_other_feedback_maps_cannot_be_it(feedback: str, views: Tensor) -> None:
    torch.manual_seed(0)
    network = conv_net(TINY, channels=[4, 6, 8], feedback=feedback).double()
    tp = TargetPropagation(with_transposes(network), ContrastiveHinge(), sgd, FixedFeedback(), target="linearised")
    bp = Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd)
    ours, exact = (gradients(learner, views.double()) for learner in (tp, bp))
    assert angle(ours[0], exact[0]) > 3


def test_a_transposable_map_knows_its_activations() -> None:
    with pytest.raises(ValueError, match=r"knows the activations Tanh, .*, Identity, and not Softplus: choose one"):
        conv_stage(2, 3, activation="Softplus", feedback="transposable")


def test_derivative_and_difference_of_the_map_agree() -> None:
    stage = conv_stage(2, 3, feedback="transposable").double()
    x = torch.rand(4, 2, 7, 8, dtype=torch.float64)
    y, indices, _ = stage.run(x)
    y, v = y.detach(), torch.randn_like(y.detach())
    with torch.no_grad():
        expected = torch.func.jvp(lambda u: stage.feedback(u, x, indices), (y,), (v,))[1]
        torch.testing.assert_close(stage.feedback_jvp(y, v, x, indices), expected)
        plain = stage.feedback(y, x, indices) - stage.feedback(y - v, x, indices)
        torch.testing.assert_close(stage.feedback_difference(y, v, x, indices), plain)


def test_held_indices_are_those_of_the_other_pass() -> None:
    x = torch.randn(3, 4, 8, 6).to(memory_format=torch.channels_last)
    pooled, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(pool_at(x, indices), pooled)
    stage = conv_stage(2, 3, feedback="transposable")
    clean, moved = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8)
    held = stage.run(clean).pool_indices
    assert torch.equal(stage.run(clean, held).y, stage.run(clean).y)
    out = stage.run(moved, held)
    assert torch.equal(out.pool_indices, held) and (out.y <= stage.run(moved).y).all()
    assert not torch.equal(out.y, stage.run(moved).y)


def trained(training, network: Network, batches: int) -> None:
    """Feedback alone learns on random images."""
    learner = TargetPropagation(network, ContrastiveHinge(), sgd, training)
    for _ in range(batches):
        training.train(learner.trace(torch.rand(100, 3, 16, 16, dtype=torch.float64)), learner.feedback_optimizer)


def angles_to_the_transpose(network: Network) -> list[float]:
    return [angle(s.feedback_map.weight.detach(), s.layers()[0].weight.detach()) for s in network.stages[1:]]


@pytest.mark.parametrize("output_noise", ["sampled", "expected"])
@pytest.mark.parametrize("noise_patterns", [None, 20])
def test_local_difference_reconstruction_finds_the_transpose_of_a_pooled_tanh_stage(
    noise_patterns: int | None, output_noise: str
) -> None:
    network = transposable()
    before = angles_to_the_transpose(network)
    for lr in (0.01, 1e-3):
        adam = partial(torch.optim.Adam, lr=lr)
        options = {"noise_patterns": noise_patterns, "output_noise": output_noise}
        trained(LocalDifferenceReconstruction(adam, noise_std=0.05, **options), network, 150)
    assert min(before) > 60 and max(angles_to_the_transpose(network)) < 6


@pytest.mark.parametrize("noise_patterns", [None, 4, 3])
@pytest.mark.parametrize("geometry", ["max", "average", "strided"])
def test_local_difference_reconstruction_is_its_definition(geometry: str, noise_patterns: int | None) -> None:
    """Value and gradient of what takes four passes are those of the equation, which takes seven."""
    network = transposable(**GEOMETRIES[geometry])
    training = LocalDifferenceReconstruction(sgd, noise_std=0.3, noise_patterns=noise_patterns, output_noise="sampled")
    traces = TargetPropagation(network, ContrastiveHinge(), sgd, training).trace(torch.rand(8, 3, 16, 16).double())
    for i, trace in enumerate(traces[1:], 2):
        torch.manual_seed(i)
        loss = training.loss(traces, i)
        torch.manual_seed(i)
        e, above = training.perturb(trace, i)
        noisy = trace.h + tiled(training.noise(trace.h, i), len(trace.h))
        with torch.enable_grad():
            rest, g_x, g_y = (trace.feedback(u) for u in (trace.h, above.y, noisy))
            expected = ((g_y - rest) ** 2).sum() - 2 * (tiled(e, len(rest)) * (g_x - rest)).sum()
        weight = trace.stage.feedback_map.weight
        torch.testing.assert_close(loss, expected / len(rest))
        torch.testing.assert_close(*(torch.autograd.grad(value, weight)[0] for value in (loss, expected / len(rest))))


@pytest.mark.parametrize("geometry", ["max", "strided", "flat", "wide"])
def test_expected_output_noise_is_the_mean_of_sampled_noise(geometry: str) -> None:
    network = transposable(**GEOMETRIES[geometry])
    ways = [LocalDifferenceReconstruction(sgd, noise_std=0.01, output_noise=way) for way in ("sampled", "expected")]
    traces = TargetPropagation(network, ContrastiveHinge(), sgd, ways[0]).trace(torch.rand(200, 3, 16, 16).double())
    for i, trace in enumerate(traces[1:], 2):
        found = []
        for training in ways:
            losses = []
            for k in range(10):
                torch.manual_seed(k)  # the same noise at the input for both
                losses.append(training.loss(traces, i))
            found.append(sum(losses) / (10 * 0.01**2))
        sampled, expected = (torch.autograd.grad(loss, trace.stage.feedback_map.weight)[0] for loss in found)
        assert (sampled - expected).norm() < 0.1 * expected.norm()
        torch.testing.assert_close(*found, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("options", [{"pooling": "average"}, {"feedback": "unpool"}])
def test_expected_output_noise_is_refused_where_it_is_not_known(options: dict) -> None:
    network = conv_net(TINY, channels=[4, 6, 8], **{"feedback": "transposable", **options})
    with pytest.raises(ConfigError, match=r"output_noise=expected.*model\.feedback=transposable model\.pooling=max"):
        TargetPropagation(network, ContrastiveHinge(), sgd, LocalDifferenceReconstruction(sgd, output_noise="expected"))


@pytest.mark.parametrize("geometry", ["max", "average", "strided"])
def test_the_mirror_finds_the_transpose(geometry: str) -> None:
    network = transposable(**GEOMETRIES[geometry])
    trained(WeightMirrorFeedback(partial(torch.optim.SGD, lr=0.1), noise_std=0.3), network, 60)
    assert max(angles_to_the_transpose(network)) < 8
    for stage in network.stages[1:]:
        ratio = stage.feedback_map.weight.norm() / stage.layers()[0].weight.norm()
        assert 0.9 < ratio < 1.15, "also its length"


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("rule", ["dtp", "alignment"])
def test_feedback_approaches_at_the_rate_of_the_decay(decay: float, rule: str, views: Tensor) -> None:
    if rule == "dtp":
        network = transposable()
        training = KolenPollackFeedback(decay)
        learner: Learner = TargetPropagation(network, ContrastiveHinge(), partial(torch.optim.Adam, lr=1e-2), training)
        pairs = training._follower.pairs
    else:
        learner = learner_of("learner=kolen_pollack", f"learner.decay={decay}").double()
        pairs = learner._follower.pairs
        assert len(pairs) == 3, "two stages and the head"
    before = [(w - b).detach().clone() for w, b in pairs]
    moved = [w.detach().clone() for w, _ in pairs]
    for _ in range(10):
        learner.step(views.double())
    for (w, b), distance, then in zip(pairs, before, moved, strict=True):
        assert (w - then).norm() > 0.01
        torch.testing.assert_close(w - b, distance * (1 - decay) ** 10)


def test_feedback_is_told_changes_and_never_weights(views: Tensor) -> None:
    """Other forward weights, the same changes: the feedback weights become the same."""
    found = []
    for scrambled in (False, True):
        network = transposable()
        learner = TargetPropagation(network, ContrastiveHinge(), sgd, KolenPollackFeedback(0.1))
        traces = learner.trace(views.double().flatten(0, 1))
        _, top = learner.compute_head_gradients(traces, 2)
        learner.compute_gradients(traces, top, measure=False)
        if scrambled:
            for stage in network.stages:
                stage.layers()[0].weight.data.normal_(generator=torch.Generator().manual_seed(7))
        learner.apply_update(learner.forward_optimizer.step)
        found.append([s.feedback_map.weight.detach().clone() for s in network.stages[1:]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_a_change_nothing_decays() -> None:
    w, b = (nn.Parameter(torch.rand(3, 2)) for _ in range(2))
    follower = Follower([(w, b)], 0.5)
    before = w.clone(), b.clone()
    follower.remember()
    follower.follow()
    assert torch.equal(w, before[0]) and torch.equal(b, before[1])


def test_the_first_phase_teaches_feedback_alone(views: Tensor) -> None:
    learner = learner_of("learner=dtp", "learner.feedback.batches=3")
    moved = []
    for _ in range(5):
        then = copy.deepcopy(learner.model.state_dict())
        metrics = learner.step(views)
        now = learner.model.state_dict()
        moved.append(tuple(not torch.equal(then[k], now[k]) for k in ("stages.0.forward_map.0.weight", FEEDBACK)))
        assert ("reconstruction_loss/stage2" in metrics) == (len(moved) <= 3)
    assert moved == [(False, True)] * 3 + [(True, True)] * 2
    with pytest.raises(ConfigError, match=r"batches=0: the first phase needs batches and a training"):
        learner_of("learner=dtp", "learner.feedback.batches=0")


FEEDBACK = "stages.1.feedback_map.weight"


def test_kolen_pollack_and_mirror_follow_backprop_closely() -> None:
    """In training, at backprop's best rate; feedback that reconstructs stays at some dozens of degrees."""
    torch.manual_seed(0)
    data = torch.rand(6, 2, 30, 3, 16, 16)
    found = {}
    for name in ("dtp", "dtp_mirror", "dtp_autoencoder"):
        words = [f"learner={name}", "learner.forward_optimizer.lr=2e-3"]
        learner = learner_of(*words)
        for views in itertools.islice(itertools.cycle(data), 40):
            learner.step(views)
        bp = Backprop(copy.deepcopy(learner.model), ContrastiveHinge(), sgd)
        ours, exact = (gradients(rule, data[0]) for rule in (learner, bp))
        found[name] = max(angle(a, b) for a, b in zip(ours, exact, strict=True))
    assert found["dtp"] < 12 and found["dtp_mirror"] < 20 and found["dtp_autoencoder"] > 25


@pytest.mark.parametrize("name", ["dtp_kp", "dtp_mirror"])
def test_other_maps_are_allowed_with_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    learner_of(f"learner={name}", "model.feedback=strided")
    assert "add model.feedback=transposable" in caplog.text
    caplog.clear()
    learner_of(f"learner={name}")
    assert not caplog.text
    with pytest.raises(ConfigError, match=r"learner\.top=stage"):
        learner_of(f"learner={name}", "learner.top=embedding")
