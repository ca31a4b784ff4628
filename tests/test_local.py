"""Rules whose stages need nothing from above: what they compute, and what they keep in memory meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import TINY, composed, learner_of, sgd
from torch import Tensor

from dtp_lightning.callbacks.memory import peak_bytes
from dtp_lightning.config.schema import checked
from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import Backprop, LayerwiseLearning, Learner
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import conv_net

blocks = partial(LayerwiseLearning, loss=ContrastiveHinge(), forward_optimizer=sgd, order="all")


def gradients(learner: Learner, views: Tensor) -> list[Tensor]:
    """Of stages and head after a batch, without a step."""
    learner.step(views, update=lambda: None)
    modules = [*(stage.forward_map for stage in learner.model.stages), learner.model.head]
    return [torch.cat([p.grad.flatten() for p in module.parameters()]) for module in modules]


def assert_same(ours: list[Tensor], exact: list[Tensor]) -> None:
    for a, b in zip(ours, exact, strict=True):
        assert b.norm() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def summed_losses(learner: LayerwiseLearning, views: Tensor, starts: list[int]) -> list[Tensor]:
    """Gradients of the sum of all blocks' losses, each on a forward pass of its own from a detached input."""
    model = learner.model
    total = torch.zeros((), dtype=views.dtype)
    for k, start in enumerate(starts):
        h = model.normalise(views.flatten(0, 1))
        with torch.no_grad():
            for stage in model.stages[:start]:
                h = stage(h)
        for stage in model.stages[start : learner.blocks[k].stop]:
            h = stage(h)
        head = model.head if k == len(starts) - 1 else learner.heads[k]
        total = total + ContrastiveHinge()(*head(h).unflatten(0, (2, -1)))
    modules = [*(stage.forward_map for stage in model.stages), model.head]
    parameters = [list(module.parameters()) for module in modules]
    flat = iter(torch.autograd.grad(total, [p for ps in parameters for p in ps]))
    return [torch.cat([next(flat).flatten() for _ in ps]) for ps in parameters]


def test_one_block_of_all_stages_is_backprop(views: Tensor) -> None:
    network = conv_net(TINY, channels=[4, 6, 8])
    exact = gradients(Backprop(copy.deepcopy(network), ContrastiveHinge(), sgd), views)
    assert_same(gradients(blocks(network, block_size=7), views), exact)


@pytest.mark.parametrize(
    "options,starts",
    [
        ({"block_size": 2, "overlap": 1}, [0, 1, 2]),
        ({"block_size": 2}, [0, 2]),
        ({"block_size": 3, "overlap": 2}, [0, 1]),
        ({"stop_gradient": False}, [0, 0, 0, 0]),
        ({"projector": [7], "projector_pool": 2}, [0, 1, 2, 3]),
    ],
    ids=["loco", "pairs", "triples", "deep supervision", "stages"],
)
def test_blocks_follow_the_sum_of_their_losses(options: dict, starts: list[int], views: Tensor) -> None:
    learner, views = blocks(conv_net(TINY, channels=[4, 6, 8, 8]), **options).double(), views.double()
    exact = summed_losses(learner, views, starts)
    assert_same(gradients(learner, views), exact)
    traces = learner.trace(views.flatten(0, 1))  # and so does a caller who holds all graphs at once
    learner.compute_gradients(traces, learner.compute_head_gradients(traces, 2)[1], measure=False)
    modules = [*(stage.forward_map for stage in learner.model.stages), learner.model.head]
    assert_same([torch.cat([p.grad.flatten() for p in module.parameters()]) for module in modules], exact)


def test_blocks_learn_in_turn(views: Tensor) -> None:
    learner = blocks(conv_net(TINY, channels=[4, 6, 8, 8]), order="greedy", epochs_per_stage=1, block_size=2)
    moved = []
    for epoch in range(3):
        learner.start_epoch(epoch)
        learner.step(views)
        grads = [any(p.grad is not None for p in s.forward_parameters()) for s in learner.model.stages]
        moved.append([i for i, has in enumerate(grads) if has])
    assert moved == [[0, 1], [2, 3], [2, 3]]
    assert len(learner.step_variants()) == 2


def test_an_overlap_must_be_smaller_than_its_block() -> None:
    with pytest.raises(ConfigError, match=r"learner.overlap=2 must be smaller than learner.block_size=2"):
        learner_of("learner=local_blocks", "learner.block_size=2", "learner.overlap=2")


@pytest.mark.parametrize("preset", ["blockwise_barlow_twins", "clapp_blocks"])
def test_presets_of_blocks_compose(preset: str) -> None:
    values = checked(composed(f"experiment={preset}")[0])
    assert values.learner["order"] == "all" and values.learner["_target_"].endswith("LayerwiseLearning")


def step_bytes(make: Callable[..., Learner], stages: int) -> int:
    """The peak of a step on so many equal stages, less the gradients of the weights."""
    torch.manual_seed(0)
    network = conv_net(TINY, channels=[4] * stages, pool=1, embedding_dim=2)
    learner = make(network)
    batch = torch.rand(2, 10, 3, 16, 16)
    learner.step(batch)
    gradients = sum(p.numel() * p.element_size() for p in learner.parameters() if p.grad is not None)
    return peak_bytes(partial(learner.step, batch, measure=False)) - gradients


def test_peak_bytes_counts_what_is_alive() -> None:
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(5)]) == 20000
    assert 4000 <= peak_bytes(lambda: [torch.zeros(1000).sum() for _ in range(5)]) < 4100
    assert peak_bytes(lambda: torch.zeros(10, 100).view(1000)[:3]) == 4000


def test_memory_of_backprop_grows_with_depth() -> None:
    make = partial(Backprop, loss=ContrastiveHinge(), forward_optimizer=sgd)
    assert step_bytes(make, 16) > 2 * step_bytes(make, 4)


@pytest.mark.parametrize("options", [{}, {"block_size": 2, "overlap": 1}], ids=["stages", "loco"])
def test_memory_of_local_blocks_does_not_grow_with_depth(options: dict) -> None:
    make = partial(blocks, **options)
    assert step_bytes(make, 16) < 1.02 * step_bytes(make, 4)
