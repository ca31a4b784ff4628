"""What feedback maps learn from: the losses of their training. When they learn: feedback.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import StageTrace
from dtp_lightning.learners.feedback import FeedbackTraining
from dtp_lightning.learners.noise import add_tiled, tiled
from dtp_lightning.models.stage import Stage
from dtp_lightning.models.transposable import TransposableFeedback


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


def squares(a: Tensor, b: Tensor) -> Tensor:
    """mean((a - b)^2), b a goal."""
    loss: Tensor = MeanSquare.apply(a, b)
    return loss


class LocalDifference(torch.autograd.Function):
    """(||D_y||^2 - 2 <e, D_x>) / N with D_x = g(f(x + e)) - g(y), D_y = g(y + n) - g(y); its gradient.

    Of (g(y), g(f(x + e)), g(y + n)) stacked in one tensor: a third of autograd's passes over memory, which are most of
    what L-DRL's feedback steps cost. There may be fewer rows of e, which then take turns.
    """

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, e: Tensor) -> Tensor:
        g_y, g_x_noisy, g_y_noisy = stacked.chunk(3)
        d_y = g_y_noisy - g_y
        ctx.save_for_backward(d_y, e)
        return (torch.linalg.vector_norm(d_y) ** 2 - 2 * (_product(e, g_x_noisy) - _product(e, g_y))) / len(d_y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        d_y, e = ctx.saved_tensors
        scale = 2 * gradient / len(d_y)
        shape = (3 * len(d_y), *d_y.shape[1:])
        gradients = torch.empty(shape, dtype=d_y.dtype, device=e.device, memory_format=torch.channels_last)
        g_y, g_x_noisy, g_y_noisy = (g.unflatten(0, (-1, len(e))) for g in gradients.chunk(3))
        torch.mul(d_y.unflatten(0, (-1, len(e))), scale, out=g_y_noisy)
        torch.mul(e.expand_as(g_x_noisy), -scale, out=g_x_noisy)
        torch.add(g_y_noisy, g_x_noisy, out=g_y).neg_()
        return gradients, None


class LinearLocalDifference(torch.autograd.Function):
    """The same of a map that is linear in its weights, g(u) = B a(u): D_x = B a_x, D_y = B a_y; its gradient for B.

    <e, B a_x> needs no feedback pass: its gradient is the correlation C of e and a_x, its value <B, C>. Images that
    share a row of e share one correlation, with the sum of their a_x. Of seven passes of a stage four are left, of
    which two are done for the rows of e only.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, g: TransposableFeedback, e: Tensor, a_x: Tensor, a_y: Tensor) -> Tensor:
        d_y = g.transpose(a_y, (e.shape[-2], e.shape[-1]))
        correlation = g.weight_gradient(e, a_x)
        ctx.save_for_backward((g.weight_gradient(d_y, a_y) - correlation).mul_(2 / len(a_y)))
        return (torch.linalg.vector_norm(d_y, dtype=weight.dtype) ** 2 - 2 * (weight * correlation).sum()) / len(a_y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (at_weight,) = ctx.saved_tensors
        return at_weight * gradient, None, None, None, None


def _product(e: Tensor, x: Tensor) -> Tensor:
    """<e, x> with the rows of e (G, ...) in turns for x (N, ...); N a multiple of G. BLAS reads each once."""
    e, x = (t.permute(0, 2, 3, 1).reshape(-1) for t in (e, x))  # as they lie in memory
    return torch.stack([torch.dot(e, part) for part in x.split(len(e))]).sum()


@dataclass(eq=False)
class AutoencoderFeedback(FeedbackTraining):
    """g_i learns to undo f_i around noisy activations: R_i = mean((g_i(f_i(h~)) - goal)^2), h~ = h_{i-1} + sigma * eps.

    Args:
        goal: ``noisy`` reconstructs h~ (Lee et al. 2015, DTP; thesis), ``clean`` h_{i-1} (Bartunov et al. 2018, SDTP).

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import TargetPropagation
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, AutoencoderFeedback(sgd, goal="clean"))
    >>> list(dtp.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'local_loss/stage2', 'local_loss/stage1', 'reconstruction_loss/stage2']
    """

    goal: Literal["noisy", "clean"] = field(default="noisy", kw_only=True)

    def prepare(self, traces: list[StageTrace]) -> None:
        """Without noise g(f(x)) is what targets need as well."""
        for i, trace in enumerate(traces[1:], 2):
            if self.sigma(i) == 0 and self.fraction == 1:
                trace.reconstruction = trace.feedback(trace.h)

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i."""
        trace = traces[i - 1]
        clean = trace.x.detach()
        if self.sigma(i) == 0:
            reconstruction, trace.reconstruction = trace.reconstruction, None  # g changes before a second step
            return squares(trace.feedback(trace.h) if reconstruction is None else reconstruction, clean)
        noisy, above = self.perturb(trace, i, noisy=True)
        goal = noisy if self.goal == "noisy" else clean
        return squares(trace.feedback(above.y), goal)


class DifferenceReconstruction(FeedbackTraining):
    """g_i learns to bring noise at its input back from the very top, in difference form (Meulemans et al. 2020, DRL).

    h~_{i-1} = h_{i-1} + sigma * eps runs up to the output and returns through g_L, ..., g_i as targets do;
    R_i = mean((reconstructed - h~_{i-1})^2) / sigma^2, whose gradient goes to g_i alone.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import TargetPropagation
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, DifferenceReconstruction(sgd), top="embedding")
    >>> [name for name in dtp.step(torch.rand(2, 5, 1, 8, 8)) if "reconstruction" in name]  # stage 3 is the head
    ['reconstruction_loss/stage3', 'reconstruction_loss/stage2']
    """

    divides_by_noise = True

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i; the way up is i..L, so the whole costs a pass for each stage."""
        below = traces[i - 1].x.detach()
        noisy, above = self.perturb(traces[i - 1], i, noisy=True)
        with torch.no_grad():
            target = above.y
            for trace in traces[i:]:
                target = trace.stage.rerun(target, trace.pool_indices).y
            for trace in reversed(traces[i:]):
                target = trace.x - trace.feedback(trace.h) + trace.feedback(target)
        trace = traces[i - 1]
        reconstructed = below - trace.feedback(trace.h) + trace.feedback(target)
        return squares(reconstructed, noisy) / self.sigma(i) ** 2


@dataclass(eq=False)
class LocalDifferenceReconstruction(FeedbackTraining):
    """g_i learns the transpose of f_i's Jacobian from noise at both its ends (Ernoult et al. 2022, L-DRL).

    With r = g(y), D_x = g(f(x + e)) - r, D_y = g(y + n) - r, e and n ~ N(0, sigma^2):

        R_i = mean over images of ( ||D_y||^2 - 2 <e, D_x> ),   for small sigma  sigma^2 ( ||J_g||^2 - 2 tr(J_g J_f) ),

    whose minimum is J_g = J_f^T, at which target propagation is backpropagation. A map that can be J_f^T reaches it
    (:class:`~dtp_lightning.models.transposable.TransposableFeedback`); max-pooling stays where the clean x put it.

    Args:
        output_noise: ``sampled`` draws n; ``expected`` takes the mean of ||D_y||^2 over n in closed form, to the lowest
            order in sigma: sigma^2 times the sum over units of phi'(y)^2 ||B's column of that unit||^2. No pass of g is
            left, and every synapse decays by its own neuron's slope. For transposable maps without average pooling.
            ``auto``: ``expected`` where it is known, else ``sampled``.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.learners import TargetPropagation
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> sgd = partial(torch.optim.SGD, lr=0.1)
    >>> dtp = TargetPropagation(model, ContrastiveHinge(), sgd, LocalDifferenceReconstruction(sgd, steps=5))
    >>> list(dtp.step(torch.rand(2, 5, 1, 8, 8)))
    ['loss', 'local_loss/stage2', 'local_loss/stage1', 'reconstruction_loss/stage2']
    """

    divides_by_noise = True

    output_noise: Literal["auto", "sampled", "expected"] = field(default="auto", kw_only=True)

    def optimizer_for(self, stages: Sequence[Stage]) -> Optimizer | None:
        """A group for each feedback map."""
        if self.output_noise == "expected" and not all(_has_columns(stage) for stage in stages[1:]):
            raise ConfigError(
                "learner.feedback.output_noise=expected is known of transposable maps without average pooling: "
                "use learner.top=stage model.feedback=transposable model.pooling=max, or output_noise=sampled"
            )
        return super().optimizer_for(stages)

    def loss(self, traces: list[StageTrace], i: int) -> Tensor:
        """R_i."""
        trace = traces[i - 1]
        e, above = self.perturb(trace, i)
        if len(trace.x) % len(e):
            e = tiled(e, len(trace.x))
        g = trace.stage.feedback_map
        if isinstance(g, TransposableFeedback):
            return self._linear(g, trace, e, above.y, i)
        stacked = torch.cat([trace.h, above.y, add_tiled(trace.h, self.noise(trace.h, i))])
        kept = trace.pool_indices
        kept = torch.cat([kept] * 3) if isinstance(kept, Tensor) else kept
        loss: Tensor = LocalDifference.apply(trace.stage.feedback(stacked, trace.x, kept), e)
        return loss

    def _linear(self, g: TransposableFeedback, trace: StageTrace, e: Tensor, y_x: Tensor, i: int) -> Tensor:
        """R_i of a map that is linear in its weights; y_x = f(x + e)."""
        y, size, s = trace.h, (e.shape[-2], e.shape[-1]), trace.pool_indices
        with torch.no_grad():
            at_rest = g.phi.value(y)
            a_x = g.presynaptic(g.phi.value(y_x) - at_rest, size, s).unflatten(0, (-1, len(e))).sum(0)
            if sampled := self.output_noise == "sampled" or not _has_columns(trace.stage):
                a_y = g.presynaptic(g.phi.value(add_tiled(y, self.noise(y, i))) - at_rest, size, s)
            else:
                squares_of_slopes = g.phi.along(y, torch.ones_like(y)).square()
                reach = g.squared_reach(g.presynaptic(squares_of_slopes, size, s), size)
                correlation = g.weight_gradient(e, a_x)
        if sampled:
            loss: Tensor = LinearLocalDifference.apply(g.weight, g, e, a_x, a_y)
        else:
            loss = (g.weight * (g.weight * reach * self.sigma(i) ** 2 - 2 * correlation)).sum() / len(y)
        return loss


def _has_columns(stage: Stage) -> bool:
    """Whether every unit of the stage has one place in what B acts on, so that its column of J_g is one of B's."""
    return isinstance(stage.feedback_map, TransposableFeedback) and not any(
        isinstance(layer, nn.AvgPool2d) for layer in stage.layers()
    )
