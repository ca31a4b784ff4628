"""Learning rates over the batches, a factor for each stage, weight decay and clipping: the same for every rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]


class Course:
    """The factor of a learning rate, batch by batch: a linear rise, then the shape, then ``floor`` for ever.

    Args:
        shape: ``constant`` stays at 1; ``linear`` and ``cosine`` fall to ``floor`` at batch ``batches``; ``step``
            multiplies by ``drop`` after every ``every`` batches.
        warmup: batches of the rise, from 1 / warmup to 1; the shape begins after them.
        batches: at which ``linear`` and ``cosine`` end, counted from the beginning of training; None: the whole
            training (:meth:`set_length`).
        floor: what they end at, in [0, 1].
        every: batches between the drops of ``step``.
        drop: its factor, in [0, 1].

    Raises:
        ConfigError: ``step`` lacks its number of batches, or the warm-up is longer than the course.

    >>> course = Course("cosine", warmup=2, batches=6)
    >>> [round(course.factor(k), 2) for k in range(7)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """

    def __init__(
        self,
        shape: Literal["constant", "linear", "cosine", "step"] = "constant",
        warmup: NonNegativeInt = 0,
        batches: PositiveInt | None = None,
        floor: Share = 0.0,
        every: PositiveInt | None = None,
        drop: Share = 0.1,
    ) -> None:
        if shape == "step" and every is None:
            raise ConfigError("schedule: shape=step needs every, a number of batches: give every=...")
        self.shape, self.warmup, self.batches, self.floor = shape, warmup, batches, floor
        self.every, self.drop = every, drop
        self._check_length()

    def set_length(self, batches: int) -> None:
        """Give a course without ``batches`` the length of the training.

        Raises:
            ConfigError: the warm-up is as long.
        """
        if self.batches is None and self.shape in ("linear", "cosine"):
            self.batches = batches
            self._check_length()

    def _check_length(self) -> None:
        if self.batches is not None and self.batches <= self.warmup:
            raise ConfigError(f"schedule: batches={self.batches} must be more than warmup={self.warmup}")

    def factor(self, batch: int) -> float:
        """Of the learning rate at this batch, counted from 0; in [0, 1].

        Raises:
            ConfigError: the course's length is not known.
        """
        if batch < self.warmup:
            return (batch + 1) / self.warmup
        if self.shape == "step":
            assert self.every is not None
            return float(self.drop ** ((batch - self.warmup) // self.every))
        if self.shape == "constant":
            return 1.0
        if self.batches is None:
            raise ConfigError(f"schedule: shape={self.shape} needs a number of batches: give batches=...")
        done = min(1.0, (batch - self.warmup) / (self.batches - self.warmup))
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * left


class Schedule(nn.Module):
    """What happens to a learner's optimisers from batch to batch. A learner without one keeps its rates.

    Its count of batches is part of the learner's state, so that a resumed run goes on where it was.

    Args:
        forward: course of the forward optimiser's rates; None: constant.
        feedback: course of the feedback optimiser's rates, where feedback learns by one; None: constant.
        stage_factors: of the forward rates of stages 1..L, bottom first; None: 1 for all. The head keeps its rate.
        weight_decay: share that forward weights lose a batch, times their learning rate (decoupled, Loshchilov and
            Hutter 2019). Biases and gains (one dimension) keep everything, and so do parameters of the objective.
        clip: largest norm of each stage's gradient, after its local vector-Jacobian product; None: no limit.

    >>> weight = nn.Parameter(torch.ones(2, 2))
    >>> sgd = torch.optim.SGD([{"name": "stage1", "params": [weight]}], lr=0.1)
    >>> schedule = Schedule(Course("linear", batches=2), stage_factors=[0.5])
    >>> schedule.attach([sgd], stages=1)
    >>> for batch in range(3):
    ...     schedule.begin([sgd])
    ...     print(sgd.param_groups[0]["lr"])
    0.05
    0.025
    0.0
    """

    def __init__(
        self,
        forward: Course | None = None,
        feedback: Course | None = None,
        stage_factors: Sequence[NonNegativeFloat] | None = None,
        weight_decay: NonNegativeFloat = 0.0,
        clip: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        self.courses = (forward or Course(), feedback or Course())
        self.stage_factors = stage_factors
        self.weight_decay = weight_decay
        self.clip = clip
        self.batch = 0
        self._rates: list[list[float]] = []

    def get_extra_state(self) -> Tensor:
        """Batches seen."""
        return torch.tensor(self.batch)

    def set_extra_state(self, state: Tensor) -> None:
        """From a checkpoint."""
        self.batch = int(state)

    def attach(self, optimizers: Sequence[Optimizer], stages: int) -> None:
        """Take the rates of these optimisers (forward, then feedback) as those that factors are of.

        Raises:
            ConfigError: ``stage_factors`` has not one entry a stage.
        """
        if self.stage_factors is not None and len(self.stage_factors) != stages:
            raise ConfigError(
                f"schedule.stage_factors has {len(self.stage_factors)} entries for {stages} stages: give one each"
            )
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def set_length(self, batches: int) -> None:
        """Tell the courses how many batches the whole training has; those with a length of their own keep it."""
        for course in self.courses:
            course.set_length(batches)

    def begin(self, optimizers: Sequence[Optimizer]) -> None:
        """Set the rates of the batch that comes."""
        for i, (optimizer, rates) in enumerate(zip(optimizers, self._rates, strict=True)):
            factor = self.courses[min(i, 1)].factor(self.batch)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor * (self._stage_factor(group.get("name", "")) if i == 0 else 1)
        self.batch += 1

    @torch.no_grad()
    def before_update(self, forward: Optimizer) -> None:
        """Clip the gradients of each stage and let its weights decay."""
        stages: dict[str, list[nn.Parameter]] = {}  # an optimiser may keep a stage's biases in a group of their own
        for group in forward.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            stages.setdefault(group.get("name", ""), []).extend(learning)
            if self.weight_decay and group.get("name") != "loss":
                for parameter in learning:
                    if parameter.ndim > 1:
                        parameter.mul_(1 - group["lr"] * self.weight_decay)
        if self.clip is not None:
            for learning in stages.values():
                nn.utils.clip_grad_norm_(learning, self.clip)

    def _stage_factor(self, name: str) -> float:
        if self.stage_factors is None or not name.removeprefix("stage").isdigit():
            return 1.0
        return self.stage_factors[int(name.removeprefix("stage")) - 1]
