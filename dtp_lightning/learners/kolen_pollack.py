"""Feedback that becomes the transpose of the forward weights without being told them.

A forward synapse W and a feedback synapse B connect the same two neurons. What W's change is made of, the activity of
the one times the error of the other, B can see as well. Kolen and Pollack (1994): B takes every change of W and both
decay, so W - B shrinks by (1 - decay) a step, whatever is learned. Akrout et al. (2019): noise that one neuron sends
and the other answers teaches B alone (weight mirror). Shared by the target rules and feedback alignment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Metrics, StageTrace
from dtp_lightning.learners.feedback import Feedback, FeedbackTraining
from dtp_lightning.models.aligned import Weighted
from dtp_lightning.models.block_feedback import BlockTranspose
from dtp_lightning.models.blocks import Held, leaves
from dtp_lightning.models.convolution import weight_gradient
from dtp_lightning.models.stage import Stage

log = logging.getLogger(__name__)

Decay = Annotated[float, Field(ge=0, lt=1)]


class Follower:
    """Pairs of weights of one shape, (W, B): B takes every change of W, and both decay.

    Args:
        pairs: forward and feedback weights that connect the same neurons.
        decay: share that both lose with every change, in [0, 1). A pair that did not move loses nothing.
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]], decay: float) -> None:
        self.pairs = list(pairs)
        self.decay = decay
        self._before: list[Tensor] = []

    def around(self, update: Callable[[], object]) -> None:
        """Make an update of the forward weights, and follow it; without pairs it is the update alone."""
        self.remember()
        update()
        self.follow()

    def remember(self) -> None:
        """Call before the forward weights move."""
        self._before = [w.detach().clone() for w, _ in self.pairs]

    @torch.no_grad()
    def follow(self) -> None:
        """Call once they have moved."""
        for (w, b), before in zip(self.pairs, self._before, strict=True):
            change = w - before
            remaining = 1 - self.decay * change.any()  # a tensor: nothing waits for the device
            b.add_(change).mul_(remaining)
            w.mul_(remaining)
        self._before = []


def synapse_pairs(stages: Sequence[Stage]) -> list[tuple[Weighted, nn.Parameter]]:
    """The convolutions of every stage but the first, with the feedback weights that run beside them.

    Raises:
        ConfigError: a stage's feedback map has none of its convolution's shape.
    """
    pairs = []
    for stage in stages[1:]:
        of_stage = synapse_pairs_of(stage)
        if not of_stage or any(b.shape != layer.weight.shape for layer, b in of_stage):
            raise ConfigError(
                "learner.feedback: this training needs feedback weights of the forward convolutions' shapes: "
                "use learner.top=stage and model.feedback=transposable"
            )
        pairs += of_stage
    if not pairs:
        raise ConfigError("feedback goes from stage to stage, and this network has one: add to model.channels")
    if not all(stage.differs_exactly for stage in stages[1:]):
        log.warning("this feedback cannot become the transpose of these stages: add model.feedback=transposable")
    return pairs


class WeightMirrorFeedback(FeedbackTraining):
    """Noise drives each stage's convolution, and B becomes the correlation of both (Akrout et al. 2019, weight mirror).

    e ~ N(0, sigma^2) at the stage's input, without image and bias, is answered by W e. C, the correlation of both over
    images and positions, divided by sigma^2, is W on average; B descends ||B||^2 / 2 - <B, C>, whose gradient is B - C:
    by SGD of rate eta it is a running mean of C. Every synapse sees the activity of its own two neurons only.

    Args:
        optimizer, noise_std, steps, every, warmup, alternate, noise_patterns, fraction: see :class:`FeedbackTraining`.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import TargetPropagation
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], feedback="transposable")
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, WeightMirrorFeedback(sgd))
    >>> list(dtp.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'local_loss/stage2', 'local_loss/stage1', 'reconstruction_loss/stage2']
    """

    divides_by_noise = True

    def optimizer_for(self, stages: Sequence[Stage]) -> Optimizer | None:
        """A group for each feedback weight.

        Raises:
            ConfigError: a convolution is grouped or dilated.
        """
        for layer, _ in synapse_pairs(stages):
            if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or max(layer.dilation) > 1):
                raise ConfigError(
                    "noise teaches no grouped or dilated convolution, which this network has: "
                    "use learner=dtp learner.feedback.batches=0 learner.feedback.first=null"
                )
        return super().optimizer_for(stages)

    def parameters(self, stage: Stage) -> list[nn.Parameter]:
        """The weight alone: noise tells nothing about a bias."""
        return [b for _, b in synapse_pairs_of(stage)]

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i = ||B||^2 / 2 - <B, C>; at B = C it is -||C||^2 / 2."""
        trace = traces[i - 1]
        loss = trace.h.new_zeros(())
        for (layer, b), x in zip(synapse_pairs_of(trace.stage), _inputs(trace), strict=True):
            correlation = self._correlation(layer, self.noise(x, i), i)
            loss = loss + (b * (b / 2 - correlation)).sum()
        return loss

    @torch.no_grad()
    def _correlation(self, conv: Weighted, e: Tensor, i: int) -> Tensor:
        """C of noise (N, C_below, H, W), of the weight's shape; at the border over fewer positions."""
        if isinstance(conv, nn.Linear):
            answered = F.linear(e, conv.weight).flatten(0, -2)
            return answered.T @ e.flatten(0, -2) / (len(answered) * self.sigma(i) ** 2)
        stride, padding = conv.stride, conv.padding
        assert not isinstance(padding, str), "such a layer has no feedback weights"
        response = conv._conv_forward(e, conv.weight, None)
        ones = conv.weight.new_ones(())
        positions = weight_gradient(
            ones.expand(1, 1, *e.shape[-2:]).contiguous(), ones.expand(1, 1, *response.shape[-2:]).contiguous(),
            conv.weight[:1, :1], stride, padding,
        )  # fmt: skip
        total = weight_gradient(e.to(response.dtype), response, conv.weight, stride, padding)
        return total / (positions * (len(e) * self.sigma(i) ** 2))


def _inputs(trace: StageTrace) -> list[Tensor]:
    """Of the layers of :func:`synapse_pairs_of`, on this batch."""
    held = trace.pool_indices
    if not isinstance(held, Held):
        return [trace.x.detach()]
    passed = zip(leaves(held.block), held.inputs, strict=True)
    return [x for layer, x in passed if isinstance(layer, Weighted)]


def synapse_pairs_of(stage: Stage) -> list[tuple[Weighted, nn.Parameter]]:
    """The stage's convolutions and feedback weights, in order; empty where it has no feedback map."""
    if isinstance(stage.feedback_map, BlockTranspose):
        return stage.feedback_map.pairs(stage.forward_map)
    conv, b = stage.layers()[0], getattr(stage.feedback_map, "weight", None)
    return [(conv, b)] if isinstance(conv, nn.Conv2d) and isinstance(b, nn.Parameter) else []


class KolenPollackFeedback(Feedback):
    """B takes every change of W and both decay, after a first phase in which another training teaches B alone.

    W - B shrinks by (1 - decay) a step (Kolen and Pollack 1994), at no cost: no feedback pass, no noise. From a random
    B, the default here, that takes 1 / decay batches. A first phase of noise brings most of it; then a hundredth of the
    decay is enough (``learner=dtp``). A large one costs accuracy: it acts however small the optimiser's step is.

    Args:
        decay: of forward weights (of the stages above the first) and feedback weights, a batch, in [0, 1).
        batches: length of the first phase, in which the forward weights rest.
        first: how feedback learns there; None: not at all.

    Raises:
        ConfigError: a first phase without a training, or a training without a first phase.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import TargetPropagation
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], feedback="transposable")
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, KolenPollackFeedback(decay=1e-3))
    >>> list(dtp.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'local_loss/stage2', 'local_loss/stage1']
    """

    def __init__(self, decay: Decay = 5e-4, batches: NonNegativeInt = 0, first: FeedbackTraining | None = None) -> None:
        if (batches == 0) != (first is None):
            raise ConfigError(
                f"learner.feedback.batches={batches}: the first phase needs batches and a training, or neither: "
                "give both, or learner.feedback.batches=0 learner.feedback.first=null"
            )
        self.decay, self.batches, self.first = decay, batches, first
        self.noise_patterns = first.noise_patterns if first else None
        self._follower: Follower | None = None

    @property
    def noise_like(self) -> Callable[[Tensor], Tensor] | None:
        """What the first phase's training draws its noise by."""
        return self.first.noise_like if self.first else None

    @noise_like.setter
    def noise_like(self, draw: Callable[[Tensor], Tensor]) -> None:
        if self.first:
            self.first.noise_like = draw

    def optimizer_for(self, stages: Sequence[Stage]) -> Optimizer | None:
        """That of the first phase's training."""
        self._follower = Follower([(conv.weight, b) for conv, b in synapse_pairs(stages)], self.decay)
        return self.first.optimizer_for(stages) if self.first else None

    @property
    def first_phase(self) -> int:
        """Its batches."""
        return self.batches

    def due(self, batch: int, epoch: int) -> bool:
        """In the first phase."""
        return batch < self.batches

    def forward_due(self, batch: int, epoch: int) -> bool:
        """After it."""
        return batch >= self.batches

    def prepare(self, traces: list[StageTrace]) -> None:
        """As the first phase's training does."""
        if self.first:
            self.first.prepare(traces)

    def train(self, traces: list[StageTrace], optimizer: Optimizer) -> Metrics:
        """As the first phase's training does."""
        return self.first.train(traces, optimizer) if self.first else {}

    def before_update(self) -> None:
        """Remember the forward weights."""
        assert self._follower is not None
        self._follower.remember()

    def after_update(self) -> None:
        """Feedback takes their change."""
        assert self._follower is not None
        self._follower.follow()
