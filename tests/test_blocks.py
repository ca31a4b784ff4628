"""Rules on blocks: with B = W the update is backprop's, through norms and shortcuts; locality, resume, precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import TINY, composed, option, sgd
from torch import Tensor, nn

from dtp_lightning.callbacks.alignment import diagnose
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.learners import (
    Backprop,
    FeedbackAlignment,
    FixedFeedback,
    Learner,
    LocalDifferenceReconstruction,
    TargetPropagation,
)
from dtp_lightning.learners.kolen_pollack import synapse_pairs
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import BlockTranspose, Network, blocks, conv_net, library_net, mlp, resnet

NORMS = ["none", "batch", "group", "layer"]
SMALL = {
    "resnet": partial(resnet, channels=[4, 6], blocks=[1, 2], embedding_dim=5),
    "imagenet_stem": partial(resnet, channels=[4, 6], blocks=[1, 1], stem="imagenet", activation="Tanh"),
    "conv_net": partial(conv_net, channels=[4, 6, 8], feedback="transposable", embedding_dim=5),
    "average": partial(conv_net, channels=[4, 6], pooling="average", activation="ELU", feedback="transposable"),
    "mlp": partial(mlp, widths=[9, 7, 6], embedding_dim=5),
}


def network_of(name: str, **options: object) -> Network:
    torch.manual_seed(0)
    network = SMALL[name](TINY, **options).double()
    for parameter in network.parameters():  # gains and biases that do something
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return network


def gradients(learner: Learner, views: Tensor) -> dict[str, Tensor]:
    learner.step(views, update=lambda: None)
    return {name: p.grad for name, p in learner.model.named_parameters() if "feedback_map" not in name}


def assert_same(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert ours.keys() == exact.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def copy_weights(learner: TargetPropagation) -> None:
    """B = W."""
    for layer, b in synapse_pairs(learner.model.stages):
        b.data.copy_(layer.weight)


@pytest.mark.parametrize("target", ["difference", "linearised"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SMALL)
def test_target_propagation_with_the_forward_weights_is_backprop(
    name: str, norm: str, target: str, views: Tensor
) -> None:
    """Through batch norm's statistics as well: nothing is approximated but a step that is finite."""
    network = network_of(name, norm=norm)
    exact = gradients(Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd), views.double())
    dtp = TargetPropagation(network, ContrastiveHinge(), sgd, FixedFeedback(), target=target, target_step=1e-7).double()
    assert not torch.allclose(first_weight(gradients(dtp, views.double())), first_weight(exact))
    copy_weights(dtp)
    ours = gradients(dtp, views.double())
    if target == "difference" and norm == "none" and name in ("conv_net", "average", "mlp"):  # g is not linear there
        for key, gradient in exact.items():
            torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-9)
    else:
        assert_same(ours, exact)


def first_weight(grads: dict[str, Tensor]) -> Tensor:
    return next(gradient for gradient in grads.values() if gradient.ndim > 1)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["resnet", "imagenet_stem", "mlp"])
def test_feedback_alignment_with_the_forward_weights_is_backprop(name: str, norm: str, views: Tensor) -> None:
    network = network_of(name, norm=norm, projector=[7])
    exact = gradients(Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd), views.double())
    fa = FeedbackAlignment(network, ContrastiveHinge(), sgd).double()
    assert not torch.allclose(first_weight(gradients(fa, views.double())), first_weight(exact))
    for layer, i in fa._index.items():
        fa.feedback_weights[i].data.copy_(layer.weight)
    assert_same(gradients(fa, views.double()), exact)


def test_batch_norm_transposes_as_its_formula() -> None:
    """It is u -> (gain / std) (u - mean(u) - xhat mean(u xhat)), means over images and pixels."""
    norm = nn.BatchNorm2d(3).double()
    norm.weight.data.uniform_(0.5, 2)
    x, u = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    held = blocks.run(norm, x)[1]
    over = (0, 2, 3)
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    std = (variance + norm.eps).sqrt()
    xhat = (x - mean) / std
    expected = u - u.mean(over, keepdim=True) - xhat * (u * xhat).mean(over, keepdim=True)
    torch.testing.assert_close(blocks.transpose(held, u, []), norm.weight[:, None, None] / std * expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_transpose_is_autograds_for_every_image_it_is_asked_of(rows: int) -> None:
    """Of f's own weights; u may hold the images several times, as the training of g does."""
    block = network_of("resnet").stages[2].forward_map
    x = torch.randn(4, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    g = BlockTranspose(block).double()
    for layer, b in g.pairs(block):
        b.data.copy_(layer.weight)
    y, held = g.run(block, x)
    assert torch.equal(y, block(x))
    u = torch.randn(rows, *y.shape, dtype=torch.float64)
    expected = torch.cat([torch.autograd.grad(y, x, part, retain_graph=True)[0] for part in u])
    torch.testing.assert_close(g(u.flatten(0, 1), (6, 6), held), expected)


def test_feedback_of_a_block_that_learns_from_noise_becomes_the_transpose() -> None:
    """L-DRL finds J_g = J_f^T by the difference of noisy passes, through two layers, norms, ReLU and shortcut."""
    torch.manual_seed(0)
    network = resnet(TINY, channels=[3, 4], blocks=[1, 1], embedding_dim=5)
    training = LocalDifferenceReconstruction(partial(torch.optim.Adam, lr=0.02), noise_std=0.02)
    learner = TargetPropagation(network, ContrastiveHinge(), sgd, training)
    views = torch.rand(16, 3, 12, 12)

    def angle() -> float:
        trace = learner.trace(views)[1]
        x = trace.x.requires_grad_(True)
        u = torch.randn(trace.h.shape)
        (exact,) = torch.autograd.grad(trace.stage.run(x).y, x, u)
        return torch.cosine_similarity(trace.feedback(u).flatten(), exact.flatten(), dim=0).arccos().rad2deg().item()

    before = angle()
    for _ in range(60):
        training.train(learner.trace(views), learner.feedback_optimizer)
    assert angle() < 12 and before > 60


def test_kolen_pollack_pairs_every_weight_and_brings_them_together(views: Tensor) -> None:
    values = checked(composed("model=resnet18", "learner=dtp", "learner.feedback.decay=0.1")[0])
    torch.manual_seed(0)
    model = resnet(TINY, channels=[4, 6], blocks=[1, 2])
    learner = build(values.learner, model=model, loss=ContrastiveHinge())
    pairs = synapse_pairs(model.stages)
    above = [m for stage in model.stages[1:] for m in stage.forward_map.modules() if isinstance(m, nn.Conv2d)]
    assert [layer for layer, _ in pairs] == above and len(above) == 7

    def distance() -> Tensor:
        return torch.stack([(layer.weight - b).norm() for layer, b in pairs]).detach()

    random = distance()
    learner.step(views)  # the first phase: noise
    mirrored = distance()
    for _ in range(10):
        learner.step(views)
    assert (mirrored < 0.2 * random).all()
    torch.testing.assert_close(distance(), 0.9**10 * mirrored, rtol=1e-3, atol=1e-6)


def test_weights_of_one_stage_are_all_that_its_displacement_moves(views: Tensor) -> None:
    learner = TargetPropagation(network_of("resnet"), ContrastiveHinge(), sgd, FixedFeedback()).double()
    traces = learner.trace(views.double().flatten(0, 1))
    for i, trace in enumerate(traces):
        for j, stage in enumerate(learner.model.stages):
            reached = torch.autograd.grad(
                trace.y.square().sum(), stage.forward_parameters(), allow_unused=True, retain_graph=True
            )
            assert all((g is not None) == (i == j) for g in reached)


@pytest.mark.parametrize("learner", ["fa", "dfa", "gll", "dtp_autoencoder", "fwdtp", "drl", "ldrl", "ddtp_linear"])
def test_running_statistics_see_one_clean_pass_a_step(learner: str, views: Tensor) -> None:
    """And are those of backprop's step, whatever noisy passes the rule makes besides."""
    states = []
    for name in ("bp", learner):
        torch.manual_seed(0)
        network = resnet(TINY, channels=[4, 6], blocks=[1, 1], projector=[4])
        network.feedback = "decoder" if learner == "drl" else "transposable"
        rule = build(option("learner", name), model=network, loss=ContrastiveHinge())
        rule.start_epoch(1000)  # of gll: the last stage learns, all run
        rule.step(views)
        states.append({k: v for k, v in network.state_dict().items() if "running" in k or "tracked" in k})
    assert len(states[0]) == 3 * 7
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value)
        assert "tracked" not in key or value == 1


def test_feedback_alignment_through_torchvisions_resnet_is_backprop() -> None:
    """B = W in every layer of ResNet-18, and the transposes of its blocks likewise."""
    torch.manual_seed(0)
    network = library_net(ImageSpec(3, 16, 16, True), library="torchvision", name="resnet18").double()
    views = torch.rand(2, 2, 3, 16, 16, dtype=torch.float64)
    exact = gradients(Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd), views)
    dtp = TargetPropagation(copy.deepcopy(network), ContrastiveHinge(), sgd, FixedFeedback()).double()
    copy_weights(dtp)
    fa = FeedbackAlignment(network, ContrastiveHinge(), sgd).double()
    for layer, i in fa._index.items():
        fa.feedback_weights[i].data.copy_(layer.weight)
    for rule in (dtp, fa):
        ours = gradients(rule, views)
        for name, gradient in exact.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-9 * gradient.abs().max().item())


def kept_vjp(vjp: Callable, received: list[Tensor], delta: Tensor, **options: object) -> Tensor | None:
    received.append(delta.clone())
    return vjp(delta, **options)


@pytest.mark.parametrize("name", ["dtp", "kolen_pollack", "fwdtp"])
def test_no_weight_inside_a_block_travels_back(name: str, views: Tensor) -> None:
    """After the forward pass, matrices are overwritten: no error and no gradient changes. Gains are a neuron's."""
    sent = []
    for overwrite in (False, True):
        torch.manual_seed(0)
        network = resnet(TINY, channels=[4, 6], blocks=[1, 1], embedding_dim=5)
        rule = build(option("learner", name), model=network, loss=ContrastiveHinge())
        rule.skip_first_phase()
        traces = rule.trace(views.flatten(0, 1))
        _, top = rule.compute_head_gradients(traces, 2)
        received: list[Tensor] = []
        for trace in traces:
            trace.vjp = partial(kept_vjp, trace.vjp, received)
        if overwrite:
            for stage in network.stages:
                for parameter in stage.forward_parameters():
                    if parameter.ndim > 1:
                        parameter.data = torch.randn_like(parameter)
        rule.compute_gradients(traces, top, measure=False)
        sent.append([*received, *(p.grad for stage in network.stages for p in stage.forward_parameters())])
    assert len(sent[0]) >= 3 + 15
    for before, after in zip(*sent, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["bp", "dtp", "kolen_pollack"])
def test_a_training_goes_on_from_its_state_to_the_last_bit(name: str, views: Tensor) -> None:
    """Running statistics and feedback weights of blocks are part of it."""

    def fresh(seed: int) -> Learner:
        torch.manual_seed(seed)
        network = resnet(TINY, channels=[4, 6], blocks=[1, 1], projector=[4])
        return build(option("learner", name), model=network, loss=ContrastiveHinge())

    straight, stopped = fresh(0), fresh(0)
    for _ in range(4):
        torch.manual_seed(1)
        straight.step(views)
    for _ in range(2):
        torch.manual_seed(1)
        stopped.step(views)
    resumed = fresh(2)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for ours, theirs in zip(resumed.optimizers, stopped.optimizers, strict=True):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for _ in range(2):
        torch.manual_seed(1)
        resumed.step(views)
    ended = straight.state_dict()
    assert any("running_mean" in key for key in ended)
    assert all(torch.equal(value, ended[key]) for key, value in resumed.state_dict().items())


def test_blocks_learn_in_bfloat16(views: Tensor) -> None:
    """A transpose of blocks is linear, so that no digits are lost: within a few degrees of float32."""
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = resnet(TINY, channels=[4, 6], blocks=[1, 1])
        learner = build(checked(composed("learner=dtp")[0]).learner, model=network, loss=ContrastiveHinge())
        assert learner.survives_bf16
        learner.skip_first_phase()
        copy_weights(learner)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            learner.step(views, update=lambda: None)
        grads.append(torch.cat([p.grad.flatten().float() for p in network.stages[0].forward_parameters()]))
    assert torch.cosine_similarity(*grads, dim=0) > 0.98


def test_diagnostics_measure_blocks(views: Tensor) -> None:
    torch.manual_seed(0)
    network = resnet(TINY, channels=[4, 6], blocks=[1, 1])
    learner = build(checked(composed("learner=dtp")[0]).learner, model=network, loss=ContrastiveHinge())
    copy_weights(learner)
    metrics = diagnose(copy.deepcopy(learner), views)
    for i in (2, 3):
        assert abs(metrics[f"jacobian_cosine/stage{i}"] - 1) < 1e-4
        assert abs(metrics[f"jacobian_norm_ratio/stage{i}"] - 1) < 1e-4
        assert metrics[f"angle/stage{i - 1}/weight"] < 1
