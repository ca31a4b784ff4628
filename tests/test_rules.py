"""Exact identities of single learning rules, and every rule on every model."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, learner_of, option, options, sgd
from torch import Tensor, nn

from dtp_lightning.callbacks.measures import angle
from dtp_lightning.config.instantiate import build
from dtp_lightning.errors import ConfigError
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
from dtp_lightning.losses import ContrastiveHinge, as_objective
from dtp_lightning.models import FeedbackMap, Network, Stage, conv_net
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
OF_DIFFERENCES = {"ddtp_linear", "drl", "dual_propagation", "dtp_autoencoder", "dtp_thesis", "sdtp", "tp"}
"""Rules that bf16-mixed is refused to: they learn from differences of activations, which round to 0."""


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


class FlatLinear(nn.Linear):
    """(N, 1, H, W) -> (N, 1, 1, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))[:, None, None, :]


class FlatFeedback(FeedbackMap, nn.Linear):
    """A linear g between such shapes."""

    def forward(self, u: Tensor, size: tuple[int, int], pool_indices: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return nn.Linear.forward(self, u.flatten(1)).unflatten(1, (1, *size))


def linear_network(*sizes: int, embedding: int = 4) -> Network:
    torch.manual_seed(0)
    stages = []
    for i, (below, here) in enumerate(itertools.pairwise(sizes)):
        stages.append(Stage(FlatLinear(below, here), FlatFeedback(here, below, bias=False) if i else None))
    head = nn.Sequential(nn.Flatten(), nn.Linear(sizes[-1], embedding))
    return Network(stages, head, shapes=[(1, 1, n) for n in sizes[1:]]).double()


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


class Counting(AutoencoderFeedback):
    """Counts what the schedule lets through."""

    def loss(self, traces: list, i: int) -> Tensor:
        self.seen = [*getattr(self, "seen", []), i]
        return super().loss(traces, i)


@pytest.mark.parametrize(
    "schedule,feedback,forward",
    [
        ({}, [1, 1, 1, 1], [1, 1, 1, 1]),
        ({"every": 3}, [1, 0, 0, 1], [1, 1, 1, 1]),
        ({"warmup": 2}, [1, 1, 1, 1], [0, 0, 1, 1]),
        ({"alternate": True}, [1, 1, 0, 0], [0, 0, 1, 1]),
        ({"steps": 3}, [3, 3, 3, 3], [1, 1, 1, 1]),
    ],
)
def test_schedule_of_feedback(schedule: dict, feedback: list[int], forward: list[int], views: Tensor) -> None:
    training = Counting(sgd, **schedule)
    learner = TargetPropagation(conv_net(TINY, channels=[4, 6]), ContrastiveHinge(), sgd, training)
    seen, moved = [], []
    for batch in range(4):
        learner.start_epoch(batch // 2)
        training.seen = []
        before = copy.deepcopy(learner.model.stages[0].state_dict())
        learner.step(views)
        seen.append(len(training.seen))
        moved.append(int(any(not torch.equal(before[k], v) for k, v in learner.model.stages[0].state_dict().items())))
    assert (seen, moved) == (feedback, forward)


def test_numbers_for_each_feedback_map() -> None:
    model = conv_net(TINY, channels=[4, 6, 8])
    training = Counting(sgd, noise_std=[0.1, 0.2], steps=[1, 3])
    learner = TargetPropagation(model, ContrastiveHinge(), sgd, training)
    learner.step(torch.rand(2, 4, 3, 16, 16))
    assert sorted(training.seen) == [2, 3, 3, 3] and (training.sigma(2), training.sigma(3)) == (0.1, 0.2)
    with pytest.raises(ConfigError, match="steps has 3 entries for 2 feedback maps"):
        TargetPropagation(model, ContrastiveHinge(), sgd, AutoencoderFeedback(sgd, steps=[1, 2, 3]))


def test_vanilla_targets_have_no_difference(views: Tensor) -> None:
    tp, dtp = (learner_of(f"learner={name}") for name in ("tp", "dtp"))
    traces = tp.trace(views.flatten(0, 1))
    trace, nothing = traces[-1], torch.zeros_like(traces[-1].h)
    torch.testing.assert_close(tp.below(trace, nothing), (trace.x - trace.feedback(trace.h)).detach())
    assert not dtp.below(trace, nothing).any()


@pytest.mark.parametrize("name", ["dtp_autoencoder", "drl", "ldrl"])
def test_noise_that_images_share(name: str, views: Tensor) -> None:
    """The cheap way of few noise patterns gives what the dear way with the same noise gives."""
    cheap, dear = (learner_of(f"learner={name}", "learner.feedback.noise_patterns=3").double() for _ in range(2))
    dear.keeps_preactivations = False
    for learner in (cheap, dear):
        torch.manual_seed(1)
        learner.step(views.double())
    assert cheap.trace(views.double().flatten(0, 1))[1].preactivation is not None
    for a, b in zip(cheap.parameters(), dear.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


class Counted(AutoencoderFeedback):
    """Remembers what it was given."""

    def loss(self, traces: list, i: int) -> Tensor:
        self.x = traces[i - 1].x
        return super().loss(traces, i)


@pytest.mark.parametrize("name", ["dtp_autoencoder", "drl", "ldrl"])
def test_a_fraction_of_the_batch(name: str, views: Tensor) -> None:
    """Feedback learns from it what it would learn from that batch alone; forward weights learn from all."""
    images = views.double()
    whole, part = (learner_of(f"learner={name}", f"learner.feedback.fraction={f}").double() for f in (1, 0.5))
    for learner in (whole, part):
        torch.manual_seed(1)
        learner.step(images, update=list)
    for a, b in zip(whole.model.stages, part.model.stages, strict=True):
        for p, q in zip(a.forward_parameters(), b.forward_parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg="targets are taken of every image")
    alone = learner_of(f"learner={name}").double()
    traces = alone.trace(images.flatten(0, 1)[2:6])
    if alone._head:
        alone.trace_head(traces, alone._head[0], 2, None)
    torch.manual_seed(1)
    alone.feedback.train(traces, alone.feedback_optimizer)
    for a, b in zip(part.model.stages[1:], alone.model.stages[1:], strict=True):
        for p, q in zip(a.feedback_parameters(), b.feedback_parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_a_fraction_takes_from_both_views() -> None:
    training = Counted(sgd, fraction=0.3)
    learner = TargetPropagation(linear_network(12, 9, 7), ContrastiveHinge(), sgd, training)
    learner.step(torch.stack([torch.zeros(5, 1, 3, 4), torch.ones(5, 1, 3, 4)]).double())
    rows = training.x.flatten(1)
    assert len(rows) == 3, "of ten, rounded up"
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2]), "two of one view, one of the other"
    with pytest.raises(ConfigError, match="fraction"):
        learner_of("learner=dtp_autoencoder", "learner.feedback.fraction=0")


@pytest.mark.parametrize("order", ["targets_first", "feedback_first"])
@pytest.mark.parametrize("steps", [1, 2])
def test_without_noise_what_is_known_is_not_computed_again(order: str, steps: int, views: Tensor) -> None:
    words = (
        "learner=dtp_autoencoder",
        "learner.feedback.noise_std=0",
        f"learner.order={order}",
        f"learner.feedback.steps={steps}",
    )
    learners = [learner_of(*words).double() for _ in range(2)]
    learners[1].feedback.loss = lambda traces, i: (  # the formula, on f and g as they are
        (traces[i - 1].feedback(traces[i - 1].stage(traces[i - 1].x.detach())) - traces[i - 1].x.detach())
        .square()
        .mean()
    )
    learners[1].feedback.prepare = list
    for learner in learners:
        for _ in range(2):
            learner.step(views.double())
    for a, b in zip(*(learner.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(a, b)
    calls = []
    stage = learners[0].model.stages[1]
    stage.feedback_map.register_forward_hook(lambda *_: calls.append(1))
    stage.forward_map.register_forward_hook(lambda *_: calls.append(1))
    learners[0].step(views.double())
    expected = {("targets_first", 1): 2, ("targets_first", 2): 3, ("feedback_first", 1): 3, ("feedback_first", 2): 4}
    assert len(calls) == expected[order, steps], "g(h - e), and g(h) as often as g was another"


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
