"""CLAPP++ with direct feedback: its equation, what a stage is told, and what is left of it without feedback."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, sgd
from test_local import step_bytes
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import ClappFeedback, LayerwiseLearning
from dtp_lightning.losses import ClappHinge, ContrastiveHinge
from dtp_lightning.losses.objective import Objective
from dtp_lightning.models import Network, conv_net, mlp

loss = ContrastiveHinge()


def clapp(network: Network, **options: object) -> ClappFeedback:
    torch.manual_seed(1)
    return ClappFeedback(copy.deepcopy(network), loss, sgd, **options).double()


def convolutional(**options: object) -> Network:
    torch.manual_seed(0)
    return conv_net(TINY, channels=[4, 6, 8], embedding_dim=3, **options).double()


def stage_gradients(learner: ClappFeedback, views: Tensor) -> list[Tensor]:
    learner.step(views, update=lambda: None)
    return [torch.cat([p.grad.flatten() for p in stage.forward_parameters()]) for stage in learner.model.stages]


@pytest.mark.parametrize("negatives", ["all", "next"])
@pytest.mark.parametrize("feedback", ["top", "none", "both"])
def test_the_update_is_its_equation(feedback: str, negatives: str, views: Tensor) -> None:
    """On an MLP of tanh layers: gates, predictions, Hebbian products, and W's gradient, pair by pair."""
    torch.manual_seed(0)
    learner = clapp(mlp(TINY, widths=[6, 5, 4], embedding_dim=3), feedback=feedback, negatives=negatives, margin=0.05)
    images = views.double()
    with torch.no_grad():
        normalised = learner.model.normalise(images.flatten(0, 1))
        h = [normalised.contiguous().flatten(1).numpy()]
        h += [a.flatten(1).numpy() for a in learner.model.activations(images.flatten(0, 1))]
    learner.step(images, update=lambda: None)
    n, gates = 4, set()
    for i, stage in enumerate(learner.model.stages):
        z, delta = h[i + 1], np.zeros_like(h[i + 1])
        for kind, maps in learner.predict.items():
            w = maps[i].weight.detach().numpy()
            c = h[-1] if kind == "top" else z
            of_w = np.zeros_like(w)
            for view, other in ((0, n), (n, 0)):
                for k in range(n):
                    for j in range(n):
                        if j != k and negatives == "next" and j != (k + 1) % n:
                            continue
                        context, u = c[other + k], z[view + j] @ w @ c[other + k]
                        if j == k:
                            gate = -float(u < 0.05) / n
                        else:
                            gate = float(u > -0.05) / (n * (n - 1) if negatives == "all" else n)
                        gates.add(gate)
                        delta[view + j] += gate / 2 * (w @ context)
                        of_w += gate / 2 * np.outer(z[view + j], context)
            np.testing.assert_allclose(maps[i].weight.grad.numpy(), of_w, rtol=1e-9, atol=1e-12)
        expected = (delta * (1 - z**2)).T @ h[i]
        ours = stage.forward_map[0].weight.grad.contiguous().flatten(1).numpy()
        assert np.abs(expected).max() > 1e-5
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    assert len(gates) == 3, "some hinges are open and some are not"


def test_a_stage_is_told_nothing_but_the_tops_activity(views: Tensor) -> None:
    """Other weights, W and the objective do not change its gradient, as long as the top's activity is kept."""
    images = views.double()
    learner = clapp(convolutional())
    traces = learner.trace(images.flatten(0, 1))
    learner.views = 2
    told = learner.top.clone()
    learner._teach(1, traces[1])
    before = [p.grad.clone() for p in learner.model.stages[1].forward_parameters()]
    for k in (0, 2):
        for p in (*learner.model.stages[k].parameters(), *learner.predictors(k), *learner.model.head.parameters()):
            p.data.normal_()
    x = traces[1].x
    for context, same in ((told, True), (told + 1, False), (torch.zeros_like(told), False)):
        learner.top = context
        learner._teach(1, learner.trace_stage(1, x))
        after = [p.grad for p in learner.model.stages[1].forward_parameters()]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)) == same
    assert not any(gradient.any() for gradient in after), "without activity at the top nothing is learned"


class Turned(Objective):
    """loss=clapp in both directions, without a gradient for the context."""

    def __init__(self, hinge: ClappHinge) -> None:
        super().__init__()
        self.hinge = hinge

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return (self.hinge(z0, z1.detach()) + self.hinge(z1, z0.detach())) / 2


def test_without_feedback_it_is_clapp_of_local_blocks(views: Tensor) -> None:
    network, images = convolutional(), views.double()
    ours = clapp(network, feedback="none", grid=2)
    blocks = LayerwiseLearning(copy.deepcopy(network), Turned(ClappHinge(3)), sgd, order="all").double()
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    for i, w in enumerate(ours.predict["same"]):
        hinge = ClappHinge(w.in_features).double()
        hinge.predict.weight.data.copy_(w.weight)
        if i < 2:
            blocks.heads[i], blocks.losses[i] = copy.deepcopy(pooled), Turned(hinge)
        else:
            blocks.model.head, blocks.loss = copy.deepcopy(pooled), Turned(hinge)
    expected = stage_gradients(blocks, images)
    for a, b in zip(stage_gradients(ours, images), expected, strict=True):
        assert b.norm() > 1e-6
        torch.testing.assert_close(a, b)
    assert not torch.allclose(stage_gradients(clapp(network, grid=2), images)[0], expected[0])


def test_the_top_stage_hears_itself_either_way(views: Tensor) -> None:
    """Its context with feedback is that without; with both its loss comes twice, each with a W."""
    network, images = convolutional(), views.double()
    learners = {kind: clapp(network, feedback=kind) for kind in ("top", "none", "both")}
    w = learners["top"].predict["top"][2].weight.data
    for learner in learners.values():
        for maps in learner.predict.values():
            maps[2].weight.data.copy_(w)
    top, none, both = (stage_gradients(learner, images)[2] for learner in learners.values())
    torch.testing.assert_close(top, none)
    torch.testing.assert_close(both, 2 * top)


@pytest.mark.parametrize("feedback,passes", [("top", 2), ("none", 1), ("both", 2)])
def test_number_of_passes(feedback: str, passes: int, views: Tensor) -> None:
    learner = clapp(convolutional(norm="batch"), feedback=feedback)
    counted: list[int] = []
    for k, stage in enumerate(learner.model.stages):
        stage.register_forward_hook(lambda *_, k=k: counted.append(k))
    learner.step(views.double())
    assert counted == [0, 1, 2] * passes
    norm = learner.model.stages[0].forward_map[1]
    assert norm.num_batches_tracked == 1, "one of them counts for the running statistics"


def test_memory_does_not_grow_with_depth() -> None:
    make = partial(ClappFeedback, loss=loss, forward_optimizer=sgd, grid=1)
    assert step_bytes(make, 16) < 1.05 * step_bytes(make, 4)


def test_grids() -> None:
    learner = clapp(convolutional(), grid=[8, 4, 1])
    assert [w.weight.shape for w in learner.predict["top"]] == [(256, 8), (96, 8), (8, 8)]
    with pytest.raises(ConfigError, match=r"learner.grid has 2 entries for 3 stages"):
        clapp(convolutional(), grid=[8, 4])
