"""Forward-forward, SCFF and LPL against their equations, written out in NumPy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, learner_of, sgd
from numpy.typing import NDArray
from test_local import step_bytes
from torch import Tensor

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import ForwardForward, LatentPredictiveLearning, Learner, SelfContrastive
from dtp_lightning.losses import ContrastiveHinge, LatentPredictive
from dtp_lightning.models import Network, forward_only_net

Array = NDArray[np.float64]
RULES = {"scff": SelfContrastive, "forward_forward": ForwardForward, "lpl": LatentPredictiveLearning}


def one_stage(**options: object) -> Network:
    torch.manual_seed(0)
    values = {"channels": [4], "kernel_size": 3, "pool": 2, "pool_padding": 0, "pooling": "max", "activation": "relu"}
    return forward_only_net(TINY, embedding_dim=3, **(values | options)).double()


def patches_of(images: Tensor, network: Network, centre: bool) -> Array:
    """Normalised inputs of every place, (N, places, C * 3 * 3), of images in [0, 1], padded by reflection."""
    x = (images.numpy() - network.mean) / network.std
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    flat = x.reshape(len(x), -1)
    if centre:
        flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, ddof=1, keepdims=True)
    else:
        flat = flat / np.sqrt((flat**2).mean(1, keepdims=True))
    x, side = flat.reshape(x.shape), images.shape[-1]
    windows = [x[:, :, i : i + 3, j : j + 3].reshape(len(x), -1) for i in range(side) for j in range(side)]
    return np.stack(windows, 1)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def assert_gradients(network: Network, weight: Array, bias: Array) -> None:
    conv = network.stages[0].forward_map[2]
    assert np.abs(weight).max() > 1e-4
    np.testing.assert_allclose(conv.weight.grad.numpy().reshape(len(weight), -1), weight, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(conv.bias.grad.numpy(), bias, rtol=1e-6, atol=1e-10)


def test_scff_follows_its_equation(views: Tensor) -> None:
    """dL/dW = sum of (dL/dG) 2 relu(a) / C times the sum of the two inputs, over pairs and places."""
    theta, lam = (1.0, 2.0), 0.3
    network = one_stage()
    learner = SelfContrastive(network, ContrastiveHinge(), sgd, *theta, penalty=lam)
    torch.manual_seed(7)
    learner.step(views.double(), update=lambda: None)
    shift, images = learner.shifts[0], views.double().flatten(0, 1)
    assert 0 < shift < 4
    patches = patches_of(images, network, centre=True)
    others = patches.reshape(2, 4, *patches.shape[1:])
    others = np.roll(others, shift, 1).reshape(patches.shape)
    conv = network.stages[0].forward_map[2]
    w, b = conv.weight.detach().numpy().reshape(4, -1), conv.bias.detach().numpy()
    weight, bias = np.zeros_like(w), np.zeros_like(b)
    n, places, _ = patches.shape
    for inputs, real in ((2 * patches, True), (patches + others, False)):  # W x + W x' = W (x + x')
        a = inputs @ w.T + 2 * b
        g = (np.maximum(a, 0) ** 2).mean(2)
        of_g = sigmoid(g - theta[1]) / (n * places)
        if real:
            of_g = -sigmoid(theta[0] - g) / (n * places) + lam * g / (n * np.linalg.norm(g, axis=1, keepdims=True))
        delta = of_g[..., None] * 2 * np.maximum(a, 0) / 4
        weight += np.einsum("npc,npk->ck", delta, inputs)
        bias += 2 * delta.sum((0, 1))
    assert_gradients(network, weight, bias)


def test_forward_forward_follows_its_equation(views: Tensor) -> None:
    """dL/dW = sum of -+ sigmoid(-+ (G - theta)) 2 relu(a) / M times the input, G over the whole layer."""
    network = one_stage(norm="length")
    learner = ForwardForward(network, ContrastiveHinge(), sgd, threshold=1.5)
    learner.views = 2
    torch.manual_seed(7)
    rows = learner.enter(network.normalise(views.double().flatten(0, 1))) * network.std + network.mean
    torch.manual_seed(7)
    learner.step(views.double(), update=lambda: None)
    patches = patches_of(rows, network, centre=False)
    conv = network.stages[0].forward_map[2]
    w, b = conv.weight.detach().numpy().reshape(4, -1), conv.bias.detach().numpy()
    a = patches @ w.T + b
    g = (np.maximum(a, 0) ** 2).mean((1, 2))
    of_g = np.concatenate([-sigmoid(1.5 - g[:8]), sigmoid(g[8:] - 1.5)]) / 8
    delta = of_g[:, None, None] * 2 * np.maximum(a, 0) / a[0].size
    assert_gradients(network, np.einsum("npc,npk->ck", delta, patches), delta.sum((0, 1)))


def test_hybrids_are_made_of_two_images(views: Tensor) -> None:
    learner = ForwardForward(one_stage(), ContrastiveHinge(), sgd)
    learner.views = 2
    images = views.flatten(0, 1)
    real, hybrid = learner.enter(images).chunk(2)
    assert torch.equal(real, images)
    for n, rows in enumerate(hybrid):
        own = (rows == images[n]).all(0)
        view = n // 4 * 4
        others = [m for m in range(view, view + 4) if m != n and (rows == images[m]).all(0)[~own].all()]
        assert 0.1 < own.float().mean() < 0.9 and len(others) == 1, "the rest is one other image of the view"


def test_carried_negatives_are_what_the_stage_below_makes_of_its_own(views: Tensor) -> None:
    torch.manual_seed(0)
    network = forward_only_net(TINY, channels=[4, 5, 6], embedding_dim=3).double()
    learner = SelfContrastive(network, ContrastiveHinge(), sgd, carried=[2])
    reference = copy.deepcopy(network)
    learner.step(views.double(), update=lambda: None)
    first, second = (list(stage.forward_map) for stage in reference.stages[:2])
    with torch.no_grad():
        a = network.normalise(views.double().flatten(0, 1))
        for layer in first[:3]:
            a = layer(a)
        mixed = a + a.unflatten(0, (2, 4)).roll(learner.shifts[0], 1).flatten(0, 1)
        sent = [2 * a, mixed]
        for layer in first[3:]:
            sent = [layer(h) for h in sent]
    goodnesses = []
    for h in sent:
        for layer in second[:3]:
            h = layer(h)
        goodnesses.append(h.relu().square().mean(1))
    softplus = torch.nn.functional.softplus
    loss = softplus(1 - goodnesses[0]).mean() + softplus(goodnesses[1] - 2).mean()
    loss = loss + 8e-4 * goodnesses[0].flatten(1).norm(dim=1).mean()
    loss.backward()
    torch.testing.assert_close(network.stages[1].forward_map[2].weight.grad, second[2].weight.grad)
    assert sorted(learner.shifts) == [0, 2]


def test_two_views_are_a_pair(views: Tensor) -> None:
    network = one_stage()
    gradients = []
    for same in (True, False):
        learner = SelfContrastive(copy.deepcopy(network), ContrastiveHinge(), sgd, pairs="same" if same else "views")
        torch.manual_seed(1)
        learner.step(views[:1].expand(2, -1, -1, -1, -1).double(), update=lambda: None)
        gradients.append(learner.model.stages[0].forward_map[2].weight.grad)
    torch.testing.assert_close(*gradients, msg="of one image twice, pairs=views is pairs=same")
    with pytest.raises(ConfigError, match=r"pairs=views.*model=scff"):
        learner_of("learner=scff", "learner.pairs=views")


def numpy_terms(zs: list[Array], epsilon: float) -> tuple[dict[str, float], dict[str, list[Array]]]:
    """The three terms of LPL and their gradients for each view, unit by unit."""
    (n, m), views = zs[0].shape, len(zs)
    values = {"predictive": ((zs[0] - zs[1]) ** 2).mean(), "variance": 0.0, "decorrelation": 0.0}
    slopes: dict[str, list[Array]] = {name: [np.zeros((n, m)) for _ in zs] for name in values}
    slopes["predictive"] = [2 * (zs[0] - zs[1]) / (n * m), 2 * (zs[1] - zs[0]) / (n * m)]
    for v, z in enumerate(zs):
        c = z - z.mean(0)
        for j in range(m):
            var = (c[:, j] ** 2).sum() / (n - 1)
            values["variance"] -= np.log(var + epsilon) / (m * views)
            slopes["variance"][v][:, j] = -2 * c[:, j] / ((n - 1) * (var + epsilon) * m * views)
            for k in range(m):
                if k != j:
                    cov = (c[:, j] * c[:, k]).sum() / (n - 1)
                    values["decorrelation"] += cov**2 / ((m**2 - m) * views)
                    slopes["decorrelation"][v][:, j] += 4 * cov * c[:, k] / ((n - 1) * (m**2 - m) * views)
    return values, slopes


@pytest.mark.parametrize("term", ["predictive", "variance", "decorrelation"])
def test_terms_of_lpl_are_their_equations(term: str) -> None:
    generator = np.random.default_rng(0)
    zs = [generator.normal(size=(7, 4)) for _ in range(2)]
    values, slopes = numpy_terms(zs, 1e-3)
    weights = {name: float(name == term) for name in values}
    tensors = [torch.tensor(z, requires_grad=True) for z in zs]
    loss = LatentPredictive(**weights, epsilon=1e-3)(*tensors)
    np.testing.assert_allclose(loss.item(), values[term])
    for ours, exact in zip(torch.autograd.grad(loss, tensors), slopes[term], strict=True):
        np.testing.assert_allclose(ours.numpy(), exact, atol=1e-12)


def test_a_stage_of_lpl_follows_the_terms_of_its_mean_activity(views: Tensor) -> None:
    """Delta is the same at every place, and the weights follow it inside the stage."""
    learner = learner_of("learner=lpl", "loss=lpl").double()
    learner.views = 2
    x = learner.model.normalise(views.double().flatten(0, 1))
    h = learner.model.stages[0](x)
    z = h.mean((2, 3)).detach().numpy()
    _, slopes = numpy_terms([z[:4], z[4:]], 1e-4)
    of_z = sum(
        w * np.concatenate(slopes[name]) for name, w in {"predictive": 1, "variance": 1, "decorrelation": 10}.items()
    )
    places = h[0, 0].numel()
    h.backward(torch.tensor(of_z)[:, :, None, None].expand_as(h) / places)
    exact = [p.grad.clone() for p in learner.model.stages[0].parameters() if p.grad is not None]
    learner.step(views.double(), update=lambda: None)
    for ours, expected in zip(learner.model.stages[0].forward_parameters(), exact, strict=True):
        torch.testing.assert_close(ours.grad, expected)


@pytest.mark.parametrize("name", RULES)
def test_stages_do_not_hear_the_objective(name: str, views: Tensor) -> None:
    gradients = []
    for loss in ("hinge", "simclr"):
        learner = learner_of(f"learner={name}", f"loss={loss}")
        torch.manual_seed(1)
        learner.step(views, update=lambda: None)
        gradients.append([p.grad for stage in learner.model.stages for p in stage.forward_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_memory_does_not_grow_with_depth(name: str) -> None:
    make: Callable[..., Learner] = partial(RULES[name], loss=ContrastiveHinge(), forward_optimizer=sgd)
    assert step_bytes(make, 16) < 1.02 * step_bytes(make, 4)


def test_stages_stop_after_their_epochs(views: Tensor) -> None:
    learner = learner_of("learner=scff", "learner.epochs=[1,2,0]")
    moved = []
    for epoch in range(3):
        learner.start_epoch(epoch)
        learner.step(views)
        grads = [any(p.grad is not None for p in s.forward_parameters()) for s in learner.model.stages]
        moved.append([i for i, has in enumerate(grads) if has])
    assert moved == [[0, 1], [1], []]


@pytest.mark.parametrize(
    "words,answer",
    [
        (("learner=scff", "learner.carried=[1]"), r"learner.carried=\[1\]: no stage is below"),
        (("learner=scff", "learner.positive_threshold=[1,2]"), r"positive_threshold has 2 entries for 3 stages"),
        (("learner=lpl", "learner.epochs=[1]"), r"learner.epochs has 1 entries for 3 stages"),
    ],
)
def test_wrong_values_are_answered(words: tuple[str, ...], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        learner_of(*words)


@pytest.mark.parametrize("name", ["scff", "forward_forward"])
def test_one_image_makes_no_negatives(name: str, views: Tensor) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 2"):
        learner_of(f"learner={name}", "loss=positive_only").step(views[:, :1])
