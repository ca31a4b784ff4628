"""When feedback learns, from which images and noise, and what is not computed twice."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TINY, learner_of, sgd
from networks import linear_network
from torch import Tensor

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import AutoencoderFeedback, TargetPropagation
from dtp_lightning.losses import ContrastiveHinge
from dtp_lightning.models import conv_net


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
