"""How feedback maps learn. A part of its own: any target rule can be combined with any of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners import parallel
from dtp_lightning.learners.base import Metrics, OptimizerFactory, StageTrace, named_groups
from dtp_lightning.learners.noise import normal_like, tiled
from dtp_lightning.models.stage import Run, Stage


class MeanSquare(torch.autograd.Function):
    """mean((a - b)^2), its gradient for a alone; b is a goal.

    Two passes over memory less than ``F.mse_loss``, and none of them in float32 where activations are bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        difference = a - b
        ctx.save_for_backward(difference)
        return torch.linalg.vector_norm(difference, dtype=torch.promote_types(a.dtype, torch.float32)) ** 2 / a.numel()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference.mul_(2 / difference.numel() * gradient), None  # once only; autograd would notice


class LocalDifference(torch.autograd.Function):
    """(||down - rest||^2 - 2 <e, up - rest>) / N for (rest, up, down) stacked in one tensor; its gradient for that.

    A third of autograd's passes over memory, which are most of what L-DRL's feedback steps cost.
    """

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, e: Tensor) -> Tensor:
        rest, up, down = stacked.chunk(3)
        ahead = down - rest
        ctx.save_for_backward(ahead, e)
        return (torch.linalg.vector_norm(ahead) ** 2 - 2 * (up - rest).mul_(e).sum()) / len(e)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ahead, e = ctx.saved_tensors
        twice = 2 * gradient / len(e)
        shape = (3 * len(e), *e.shape[1:])
        at_stacked = torch.empty(shape, dtype=ahead.dtype, device=e.device, memory_format=torch.channels_last)
        rest, up, down = at_stacked.chunk(3)
        torch.sub(e, ahead, out=rest).mul_(twice)
        torch.mul(e, -twice, out=up)
        torch.mul(ahead, twice, out=down)
        return at_stacked, None


class FeedbackTraining(ABC):
    """When and how often feedback maps learn; subclasses say from what.

    Args:
        optimizer: called with one parameter group a feedback map.
        noise_std: sigma, in units of the activation; one number, or one for each feedback map, bottom first.
        steps: K, feedback steps a batch, each on fresh noise; one number, or one for each feedback map.
        every: train on each m-th batch only.
        warmup: on the first so many batches only feedback learns.
        alternate: epochs take turns: feedback alone in the even ones (counted from 0), forward weights alone in the
            odd ones (Lee et al. 2015; Bartunov et al. 2018).
        noise_patterns: how many different noise samples a step draws for all images (two views of each), which take
            turns; None draws one for every image. The expected gradient is the same; f of noisy activations then
            costs next to nothing (:meth:`Stage.run_beside`).

    Raises:
        ConfigError: no noise, for a rule that learns from nothing else.
    """

    divides_by_noise: ClassVar[bool] = False

    def __init__(
        self,
        optimizer: OptimizerFactory,
        noise_std: NonNegativeFloat | Sequence[NonNegativeFloat] = 1.0,
        steps: PositiveInt | Sequence[PositiveInt] = 1,
        every: PositiveInt = 1,
        warmup: NonNegativeInt = 0,
        alternate: bool = False,
        noise_patterns: PositiveInt | None = None,
    ) -> None:
        amounts = noise_std if isinstance(noise_std, Sequence) else [noise_std]
        if self.divides_by_noise and min(amounts, default=0) <= 0:
            raise ConfigError(
                f"learner.feedback.noise_std={noise_std}: should be greater than 0, it is what is learned from"
            )
        self.make_optimizer = optimizer
        self.noise_std = noise_std
        self.steps = steps
        self.every, self.warmup, self.alternate = every, warmup, alternate
        self.noise_patterns = noise_patterns
        self.noise_like: Callable[[Tensor], Tensor] = normal_like

    def optimizer_for(self, stages: Sequence[Stage]) -> Optimizer | None:
        """One optimiser for the feedback maps of these stages (the first has none), a group each."""
        for name in ("noise_std", "steps"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != len(stages) - 1:
                raise ConfigError(
                    f"learner.feedback.{name} has {len(value)} entries for {len(stages) - 1} feedback maps: "
                    "give one for all, or one each"
                )
        groups = named_groups((f"feedback{i}", stage.feedback_parameters()) for i, stage in enumerate(stages, 1))
        if not groups:
            raise ConfigError("feedback goes from stage to stage, and this network has one: add to model.channels")
        return self.make_optimizer(groups)

    def due(self, batch: int, epoch: int) -> bool:
        """Whether feedback learns from this batch."""
        return batch < self.warmup or (batch % self.every == 0 and not (self.alternate and epoch % 2))

    def forward_due(self, batch: int, epoch: int) -> bool:
        """Whether the forward weights learn from this batch."""
        return batch >= self.warmup and not (self.alternate and epoch % 2 == 0)

    def train(self, traces: list[StageTrace], optimizer: Optimizer) -> Metrics:
        """K steps for each feedback map, with the forward weights as they are; returns the last losses."""
        metrics: Metrics = {}
        most = self.steps if isinstance(self.steps, int) else max(self.steps)
        for k in range(most):
            optimizer.zero_grad(set_to_none=True)
            for i in range(len(traces), 1, -1):
                if k >= (self.steps if isinstance(self.steps, int) else self.steps[i - 2]):
                    continue
                loss = self.loss(traces, i)
                parameters = traces[i - 1].stage.feedback_parameters()
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                metrics[f"reconstruction_loss/stage{i}"] = loss.detach()
            parallel.mean_gradients(p for group in optimizer.param_groups for p in group["params"])
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
    def disturb(self, trace: StageTrace, i: int, *, noisy: bool = False) -> tuple[Tensor, Run]:
        """Noise e at the input x of the stage i, of x's shape (``noisy``: x + e in its place), and f's run on x + e."""
        x = trace.x.detach()
        drawn = self.noise(x, i)
        e = tiled(drawn, len(x))
        if trace.linear is not None and len(drawn) < len(x):
            run = trace.stage.run_beside(trace.linear, drawn)
            return (e.add_(x) if noisy else e), run
        moved = e.add_(x) if noisy else x + e
        return e, trace.stage.run(moved)

    @abstractmethod
    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """What the parameters of g_i descend, scalar; i counts stages from 1 and is at least 2."""


class FixedFeedback(FeedbackTraining):
    """Feedback stays as it was drawn (Shibuya et al. 2023, FW-DTP).

    Args:
        scale: factor of the initial weights.
    """

    def __init__(self, scale: PositiveFloat = 1.0) -> None:
        super().__init__(optimizer=lambda groups: None)  # type: ignore[arg-type, return-value]
        self.scale = scale

    def optimizer_for(self, stages: Sequence[Stage]) -> None:
        """None; scales the weights once."""
        with torch.no_grad():
            for stage in stages[1:]:
                for parameter in stage.feedback_parameters():
                    parameter.mul_(self.scale).requires_grad_(False)

    def due(self, batch: int, epoch: int) -> bool:
        """Never."""
        return False

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """There is none."""
        raise NotImplementedError


class AutoencoderFeedback(FeedbackTraining):
    """g_i learns to undo f_i around noisy activations: R_i = mean((g_i(f_i(h~)) - goal)^2), h~ = h_{i-1} + sigma * eps.

    Args:
        goal: ``noisy`` reconstructs h~ (Lee et al. 2015, DTP; thesis), ``clean`` h_{i-1} (Bartunov et al. 2018, SDTP).
    """

    def __init__(
        self,
        optimizer: OptimizerFactory,
        noise_std: NonNegativeFloat | Sequence[NonNegativeFloat] = 1.0,
        goal: Literal["noisy", "clean"] = "noisy",
        steps: PositiveInt | Sequence[PositiveInt] = 1,
        every: PositiveInt = 1,
        warmup: NonNegativeInt = 0,
        alternate: bool = False,
        noise_patterns: PositiveInt | None = None,
    ) -> None:
        super().__init__(optimizer, noise_std, steps, every, warmup, alternate, noise_patterns)
        self.goal = goal

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i."""
        trace = traces[i - 1]
        clean = trace.x.detach()
        noisy, above = self.disturb(trace, i, noisy=True)
        goal = noisy if self.goal == "noisy" else clean
        loss: Tensor = MeanSquare.apply(trace.stage.feedback(above.y, clean, above.switches), goal)
        return loss


class DifferenceReconstruction(FeedbackTraining):
    """g_i learns to bring noise at its input back from the very top, in difference form (Meulemans et al. 2020, DRL).

    h~_{i-1} = h_{i-1} + sigma * eps runs up to the output and returns through g_L, ..., g_i as targets do;
    R_i = mean((returned - h~_{i-1})^2) / sigma^2, whose gradient goes to g_i alone.
    """

    divides_by_noise = True

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i; the way up is i..L, so the whole costs a pass for each stage."""
        below = traces[i - 1].x.detach()
        noisy, above = self.disturb(traces[i - 1], i, noisy=True)
        with torch.no_grad():
            target = above.y
            for trace in traces[i:]:
                target = trace.stage(target)
            for trace in reversed(traces[i:]):
                target = trace.x - trace.back(trace.h) + trace.back(target)
        trace = traces[i - 1]
        returned = below - trace.back(trace.h) + trace.back(target)
        loss: Tensor = MeanSquare.apply(returned, noisy)
        return loss / self.sigma(i) ** 2


class LocalDifferenceReconstruction(FeedbackTraining):
    """g_i learns the transpose of f_i's Jacobian from noise at both its ends (Ernoult et al. 2022, L-DRL).

    With r = g(y), D_x = g(f(x + e)) - r, D_y = g(y + n) - r, e and n ~ N(0, sigma^2):

        R_i = mean over images of ( ||D_y||^2 - 2 <e, D_x> ),   for small sigma  sigma^2 ( ||J_g||^2 - 2 tr(J_g J_f) ),

    whose minimum is J_g = J_f^T, at which target propagation is backpropagation.
    """

    divides_by_noise = True

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i, all three feedback passes in one call."""
        trace = traces[i - 1]
        x, y = trace.x.detach(), trace.h
        below, moved = self.disturb(trace, i)
        stacked = torch.cat([y, moved.y, tiled(self.noise(y, i), len(y)).add_(y)])
        switches = None
        if trace.switches is not None and moved.switches is not None:
            switches = torch.cat([trace.switches, moved.switches, trace.switches])
        loss: Tensor = LocalDifference.apply(trace.stage.feedback(stacked, x, switches), below)
        return loss
