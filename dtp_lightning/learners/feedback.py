"""When feedback maps learn, and on how much. A part of its own: any target rule can be combined with any training.

From what they learn: reconstruction.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.noise import add_tiled, normal_like
from dtp_lightning.learners.optimizers import named_groups
from dtp_lightning.learners.trace import write_gradients
from dtp_lightning.models.blocks import Held
from dtp_lightning.models.stage import Stage, StageOutput
from dtp_lightning.runtime import collectives

Share = Annotated[float, Field(gt=0, le=1)]


class Feedback(ABC):
    """How the feedback maps of a target rule become what they are: all that the rule asks of it.

    Attributes:
        noise_patterns: how many noise samples a step draws for all images; None draws one for every image.
    """

    noise_patterns: int | None = None

    @property
    def first_phase(self) -> int:
        """Batches at the beginning from which feedback alone learns."""
        return 0

    @abstractmethod
    def optimizer_for(self, stages: Sequence[Stage]) -> Optimizer | None:
        """One optimiser for the feedback maps of these stages (the first has none); None if none is needed.

        Raises:
            ConfigError: the stages' maps cannot learn like this.
        """

    def due(self, batch: int, epoch: int) -> bool:
        """Whether feedback learns from this batch, by :meth:`train`."""
        return False

    def forward_due(self, batch: int, epoch: int) -> bool:
        """Whether the forward weights learn from this batch."""
        return True

    def prepare(self, traces: list[StageTrace]) -> None:
        """Called before targets are taken, if :meth:`train` follows: what both need can be kept in the traces."""
        return

    def train(self, traces: list[StageTrace], optimizer: Optimizer) -> Metrics:
        """Let the feedback maps learn from this batch, with the forward weights as they are; scalars to log."""
        return {}

    def before_update(self) -> None:
        """Called before the forward weights move."""
        return

    def after_update(self) -> None:
        """Called after the forward weights have perturbed."""
        return


@dataclass(eq=False)
class FeedbackTraining(Feedback):
    """When and how often feedback maps learn by an optimiser; a subclass adds the loss, and arguments of its own.

    Args:
        optimizer: called with one parameter group a feedback map.
        noise_std: sigma, absolute, whatever the spread of the activation; one number, or one for each feedback map,
            bottom first.
        steps: K, feedback steps a batch, each on fresh noise; one number, or one for each feedback map.
        every: train on each m-th batch only.
        warmup: on the first so many batches only feedback learns.
        alternate: epochs take turns: feedback alone in the even ones (counted from 0), forward weights alone in the
            odd ones (Lee et al. 2015; Bartunov et al. 2018).
        noise_patterns: how many different noise samples a step draws for all images (two views of each), which take
            turns; None draws one for every image. The expected gradient is the same; f of noisy activations then
            costs next to nothing (:meth:`Stage.run_perturbed`).
        fraction: of a batch that feedback learns from, in (0, 1]: rows in its middle, from both of two views.

    Raises:
        ConfigError: no noise, for a rule that learns from nothing else.
    """

    divides_by_noise: ClassVar[bool] = False

    optimizer: OptimizerFactory
    _: KW_ONLY
    noise_std: NonNegativeFloat | Sequence[NonNegativeFloat] = 1.0
    steps: PositiveInt | Sequence[PositiveInt] = 1
    every: PositiveInt = 1
    warmup: NonNegativeInt = 0
    alternate: bool = False
    noise_patterns: PositiveInt | None = None
    fraction: Share = 1

    def __post_init__(self) -> None:
        self.noise_like: Callable[[Tensor], Tensor] = normal_like
        amounts = self.noise_std if isinstance(self.noise_std, Sequence) else [self.noise_std]
        if self.divides_by_noise and min(amounts, default=0) <= 0:
            raise ConfigError(
                f"learner.feedback.noise_std={self.noise_std}: should be greater than 0, it is what is learned from"
            )

    def optimizer_for(self, stages: Sequence[Stage]) -> Optimizer | None:
        """A group for each feedback map."""
        for name in ("noise_std", "steps"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != len(stages) - 1:
                raise ConfigError(
                    f"learner.feedback.{name} has {len(value)} entries for {len(stages) - 1} feedback maps: "
                    "give one for all, or one each"
                )
        groups = named_groups((f"feedback{i}", self.parameters(stage)) for i, stage in enumerate(stages, 1))
        if not groups:
            raise ConfigError("feedback goes from stage to stage, and this network has one: add to model.channels")
        return self.optimizer(groups)

    @property
    def first_phase(self) -> int:
        """The warm-up."""
        return self.warmup

    def due(self, batch: int, epoch: int) -> bool:
        """Whether feedback learns from this batch."""
        return batch < self.warmup or (batch % self.every == 0 and not (self.alternate and epoch % 2))

    def forward_due(self, batch: int, epoch: int) -> bool:
        """Whether the forward weights learn from this batch."""
        return batch >= self.warmup and not (self.alternate and epoch % 2 == 0)

    def parameters(self, stage: Stage) -> list[nn.Parameter]:
        """Of a stage's feedback map: those that learn."""
        return stage.feedback_parameters()

    def train(self, traces: list[StageTrace], optimizer: Optimizer) -> Metrics:
        """K steps for each feedback map, with the forward weights as they are; returns the last losses."""
        if self.fraction < 1:
            size = len(traces[0].x)
            rows = math.ceil(self.fraction * size)
            start = (size - rows) // 2
            traces = [trace.slice(start, start + rows) for trace in traces]
        metrics: Metrics = {}
        most = self.steps if isinstance(self.steps, int) else max(self.steps)
        for k in range(most):
            optimizer.zero_grad(set_to_none=True)
            for i in range(len(traces), 1, -1):
                if k >= (self.steps if isinstance(self.steps, int) else self.steps[i - 2]):
                    continue
                loss = self.loss(traces, i)
                write_gradients(loss, self.parameters(traces[i - 1].stage))
                metrics[f"reconstruction_loss/stage{i}"] = loss.detach()
            collectives.mean_gradients(p for group in optimizer.param_groups for p in group["params"])
            optimizer.step()
        return metrics

    def sigma(self, i: int) -> float:
        """Noise at the input of stage i."""
        return self.noise_std[i - 2] if isinstance(self.noise_std, Sequence) else self.noise_std

    def noise(self, x: Tensor, i: int) -> Tensor:
        """Noise at the input x (N, ...) of stage i: (noise_patterns or N, ...), standard deviation sigma."""
        noise = self.noise_like(x[: self.noise_patterns])
        return noise if self.sigma(i) == 1 else noise.mul_(self.sigma(i))

    @torch.no_grad()
    def perturb(self, trace: StageTrace, i: int, *, noisy: bool = False) -> tuple[Tensor, StageOutput]:
        """Noise at the input x of the stage i, and f's run on x + noise, max-pooled where it was without the noise.

        g unpools by the indices of the clean pass, when it carries targets. Those of another pass would add jumps
        between pixels, which have nothing to do with either map's derivative.

        Args:
            trace: of stage i.
            i: stages are counted from 1.
            noisy: return x + noise, of x's shape, in the noise's place, which is (noise_patterns or N, ...).
        """
        x = trace.x.detach()
        e = self.noise(x, i)
        if trace.preactivation is not None and len(e) < len(x) and not isinstance(trace.pool_indices, Held):
            return (add_tiled(x, e) if noisy else e), trace.stage.run_perturbed(
                trace.preactivation, e, trace.pool_indices
            )
        perturbed = add_tiled(x, e) if len(e) < len(x) else torch.add(x, e, out=e if noisy else None)
        return (perturbed if noisy else e), trace.stage.rerun(perturbed, trace.pool_indices)

    @abstractmethod
    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """What the parameters of g_i descend, scalar; i counts stages from 1 and is at least 2."""


class FixedFeedback(Feedback):
    """Feedback stays as it was drawn (Shibuya et al. 2023, FW-DTP).

    Args:
        scale: factor of the initial weights.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import TargetPropagation
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, FixedFeedback(scale=0.5))
    >>> list(dtp.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'local_loss/stage2', 'local_loss/stage1']
    """

    def __init__(self, scale: PositiveFloat = 1.0) -> None:
        self.scale = scale

    def optimizer_for(self, stages: Sequence[Stage]) -> None:
        """None; scales the weights once."""
        with torch.no_grad():
            for stage in stages[1:]:
                for parameter in stage.feedback_parameters():
                    parameter.mul_(self.scale).requires_grad_(False)
