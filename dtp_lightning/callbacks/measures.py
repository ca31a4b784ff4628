"""The metrics of the diagnostics, as functions of a learner or of tensors. docs/diagnostics.md"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dtp_lightning.evaluation.health import saturated
from dtp_lightning.learners.base import Learner, StageTrace


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors of one shape, in degrees, [0, 180]; nan if either is zero.

    Kahan's formula, since the arc cosine of a rounded cosine does not resolve 0.02 degrees in float32.
    """
    a, b = (x.flatten().double().cpu() for x in (a, b))
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * torch.atan2((a - b).norm(), (a + b).norm()).item())


def update_alignment(learner: Learner, views: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """Compare the gradients of the rule with those of backprop, for the same weights and views.

    Takes a step of the learner without the forward optimiser. It changes feedback maps and gradients, so give a copy.
    In a first phase, in which only feedback learns, it is the step that the rule takes after that phase. A stage
    without gradients (one that does not learn in this step) has no metrics.

    Args:
        learner: a copy; it is changed.
        views: (V, B, C, H, W) in [0, 1].
        labels: int64 (B,), for a supervised loss.

    Returns:
        ``angle/stage<i>/weight``, in degrees, and ``norm_ratio/stage<i>/weight``, norm of the rule's gradient over
        that of backprop; likewise ``bias``, all parameters with one dimension.
    """
    groups = {}
    for i, stage in enumerate(learner.model.stages, 1):
        parameters = [p for p in stage.forward_parameters() if p.requires_grad]
        groups[f"stage{i}/weight"] = [p for p in parameters if p.ndim > 1]
        groups[f"stage{i}/bias"] = [p for p in parameters if p.ndim <= 1]
    backprop = _backprop(learner, views, labels, [p for group in groups.values() for p in group])
    learner.zero_grad()
    learner.skip_first_phase()
    learner.step(views, labels, update=lambda: None, measure=False)
    metrics = {}
    for name, group in groups.items():
        pairs = [(p.grad, backprop[p]) for p in group if p.grad is not None and p in backprop]
        if pairs:
            a, b = (torch.cat([g.flatten().double().cpu() for g in grads]) for grads in zip(*pairs, strict=True))
            metrics[f"angle/{name}"] = angle(a, b)
            metrics[f"norm_ratio/{name}"] = (a.norm() / b.norm()).item()
    return metrics


def _backprop(
    learner: Learner, views: Tensor, labels: Tensor | None, parameters: list[nn.Parameter]
) -> Mapping[nn.Parameter, Tensor]:
    """Gradients of the objective with respect to these parameters, by backprop; ``grad`` is unchanged."""
    loss, _ = learner.evaluate(views, labels)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}


def jacobian_alignment(trace: StageTrace, u: Tensor) -> tuple[float, float]:
    """Compare the feedback map's Jacobian with the forward map's transposed Jacobian on a vector u (Ernoult 2022).

    J_f^T u is a vector-Jacobian product; J_g u is the derivative of J_g^T v, which is linear in v.

    Args:
        trace: of a stage with a feedback map.
        u: random vectors, (N, C, H, W) as h_i.

    Returns:
        cos(J_g u, J_f^T u), mean over images, in [-1, 1]; ||J_g u|| / ||J_f^T u|| over the whole batch.
    """
    with torch.enable_grad():
        x = trace.x.detach().requires_grad_(True)
        (vjp_f,) = torch.autograd.grad(trace.stage.run(x)[0], x, u)
        h = trace.h.requires_grad_(True)
        reconstructed = trace.feedback(h)
        v = torch.zeros_like(reconstructed, requires_grad=True)
        (vjp_g,) = torch.autograd.grad(reconstructed, h, v, create_graph=True)
        (jvp_g,) = torch.autograd.grad(vjp_g, v, u)
    cosine = torch.cosine_similarity(jvp_g.flatten(1), vjp_f.flatten(1), dim=1).mean()
    return cosine.item(), (jvp_g.norm() / vjp_f.norm()).item()


@torch.no_grad()
def reconstruction(trace: StageTrace) -> float:
    """mean((g(f(h)) - h)^2) / var(h) for the stage's input h without noise; 0 is perfect, the best constant gives 1."""
    return ((trace.feedback(trace.h) - trace.x).square().mean() / trace.x.var(correction=0)).item()


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    """Effective rank (Roy and Vetterli 2007): exp of the entropy of the normalised singular values of centred x.

    Args:
        x: (N, F), one row for each image.

    Returns:
        In [1, min(N - 1, F)]; nan if all rows are equal.
    """
    x = x.double().cpu()
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the smaller of the two, as F may be many thousands
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def saturation(trace: StageTrace) -> dict[str, float]:
    """Measure ``mean_abs``, mean |h_i|, and ``saturated``, if the activation function of the stage is bounded.

    ``saturated`` is the fraction of the values of h_i, in [0, 1], beyond 95 % of the half range (|h| > 0.95 for tanh),
    where the derivative of the activation function is close to zero.

    Args:
        trace: of a stage.
    """
    beyond = saturated(trace.h, trace.stage.layers()[-1])
    return {"mean_abs": trace.h.abs().mean().item()} | ({} if beyond is None else {"saturated": beyond})


def snapshot(learner: Learner) -> list[list[Tensor]]:
    """Copies of the forward parameters of stages 1..L."""
    return [[p.detach().clone() for p in stage.forward_parameters()] for stage in learner.model.stages]


@torch.no_grad()
def effective_steps(learner: Learner, before: list[list[Tensor]]) -> dict[str, float]:
    """Measure ``effective_step/stage<i>``: root mean square of the parameters' updates, divided by the learning rate.

    It is 1 in the first step of Adam, which updates each parameter by the learning rate.

    Args:
        learner: after the step.
        before: its forward parameters before the step, by :func:`snapshot`.
    """
    rates = {p: group["lr"] for group in learner.forward_optimizer.param_groups for p in group["params"]}
    metrics = {}
    for i, (stage, previous) in enumerate(zip(learner.model.stages, before, strict=True), 1):
        updates = [
            ((p - old) / rates[p]).flatten().double().cpu()
            for p, old in zip(stage.forward_parameters(), previous, strict=True)
            if rates.get(p)
        ]
        if updates:
            metrics[f"effective_step/stage{i}"] = torch.cat(updates).square().mean().sqrt().item()
    return metrics
