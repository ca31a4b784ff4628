"""What the diagnostics measure, as plain functions of a learner or of tensors. docs/diagnostics.md"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dtp_lightning.learners.base import Learner, StageTrace

DEAD = 1e-8
"""A unit whose variance over the batch is below this is dead; in squared units of the activation."""


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors of one shape, in degrees, [0, 180]; nan if either is zero.

    Kahan's formula: the arc cosine of a rounded cosine cannot tell 0 from 0.02 degrees in float32.
    """
    a, b = (x.flatten().double().cpu() for x in (a, b))
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * torch.atan2((a - b).norm(), (a + b).norm()).item())


def update_alignment(learner: Learner, views: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """The gradients that the rule writes, beside those of backprop on the same weights and views.

    Takes a step of the learner without the forward optimiser; feedback maps and gradients do change: hand over a
    copy. In a first phase, in which feedback alone learns, it is the step that the rule would take after it. What the
    rule leaves without a gradient (a stage that is not its turn) is left out.

    Args:
        learner: to be used up.
        views: (V, B, C, H, W) in [0, 1].
        labels: (B,), for a supervised loss.

    Returns:
        ``angle/stage<i>/weight``, in degrees, and ``norm_ratio/stage<i>/weight``, rule over backprop; ``bias``
        likewise (every parameter with one dimension).
    """
    groups = {}
    for i, stage in enumerate(learner.model.stages, 1):
        parameters = [p for p in stage.forward_parameters() if p.requires_grad]
        groups[f"stage{i}/weight"] = [p for p in parameters if p.ndim > 1]
        groups[f"stage{i}/bias"] = [p for p in parameters if p.ndim <= 1]
    exact = _backprop(learner, views, labels, [p for group in groups.values() for p in group])
    learner.zero_grad()
    learner.skip_first_phase()
    learner.step(views, labels, update=lambda: None, measure=False)
    metrics = {}
    for name, group in groups.items():
        pairs = [(p.grad, exact[p]) for p in group if p.grad is not None and p in exact]
        if pairs:
            rule, backprop = (
                torch.cat([x.flatten().double().cpu() for x in side]) for side in zip(*pairs, strict=True)
            )
            metrics[f"angle/{name}"] = angle(rule, backprop)
            metrics[f"norm_ratio/{name}"] = (rule.norm() / backprop.norm()).item()
    return metrics


def _backprop(
    learner: Learner, views: Tensor, labels: Tensor | None, parameters: list[nn.Parameter]
) -> Mapping[nn.Parameter, Tensor]:
    """Exact gradients of the objective for these forward parameters; nothing is written."""
    loss = learner.objective(learner.model(views.flatten(0, 1)), len(views), labels)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}


def jacobian_alignment(trace: StageTrace, u: Tensor) -> tuple[float, float]:
    """How g_i carries a small displacement u of h_i down, beside how backprop would.

    Both without a matrix: J_g u by two backward passes (J_g^T v is linear in v), J_f^T u by one.

    Args:
        trace: of a stage with a feedback map.
        u: probe, of h_i's shape.

    Returns:
        cos(J_g u, J_f^T u), mean over images, in [-1, 1]; ||J_g u|| / ||J_f^T u|| over the whole batch.
    """
    with torch.enable_grad():
        x = trace.x.detach().requires_grad_(True)
        (exact,) = torch.autograd.grad(trace.stage.run(x)[0], x, u)
        h = trace.h.requires_grad_(True)
        back = trace.feedback(h)
        v = torch.zeros_like(back, requires_grad=True)
        (pulled,) = torch.autograd.grad(back, h, v, create_graph=True)
        (carried,) = torch.autograd.grad(pulled, v, u)
    cosine = torch.cosine_similarity(carried.flatten(1), exact.flatten(1), dim=1).mean()
    return cosine.item(), (carried.norm() / exact.norm()).item()


@torch.no_grad()
def reconstruction(trace: StageTrace) -> float:
    """mean((g(f(h)) - h)^2) / var(h) for h the stage's input, clean; 0 is perfect, 1 what a constant would reach."""
    return ((trace.feedback(trace.h) - trace.x).square().mean() / trace.x.var(correction=0)).item()


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007), of x centred.

    Args:
        x: (N, F), an image a row.

    Returns:
        In [1, min(N - 1, F)]; nan where all rows are equal.
    """
    x = x.double().cpu()
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the smaller one: features may be many thousands
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def dead_units(h: Tensor) -> float:
    """Share of the units (channel x position) of h (N, C, H, W) that do not vary over the batch, in [0, 1]."""
    return (h.flatten(1).var(0) < DEAD).float().mean().item()


RANGES = {nn.Tanh: (-1.0, 1.0), nn.Hardtanh: (-1.0, 1.0), nn.Sigmoid: (0.0, 1.0)}
"""Smallest and largest value of the activations that have both."""


def saturation(trace: StageTrace) -> dict[str, float]:
    """How far a stage is driven: ``mean_abs``, mean |h_i|, and ``saturated``, if its activation has a range.

    ``saturated`` is the share of h_i's values, in [0, 1], of which less than a twentieth of the half range is left to
    the nearest bound (|h| > 0.95 for tanh): there the activation's derivative is almost nothing, and so is learning.

    Args:
        trace: of a stage, on some batch.
    """
    h = trace.h
    metrics = {"mean_abs": h.abs().mean().item()}
    if bounds := RANGES.get(type(trace.stage.layers()[-1])):
        middle, half = sum(bounds) / 2, (bounds[1] - bounds[0]) / 2
        metrics["saturated"] = ((h - middle).abs() > 0.95 * half).float().mean().item()
    return metrics


def snapshot(learner: Learner) -> list[list[Tensor]]:
    """The forward weights of stages 1..L, copied."""
    return [[p.detach().clone() for p in stage.forward_parameters()] for stage in learner.model.stages]


@torch.no_grad()
def effective_steps(learner: Learner, before: list[list[Tensor]]) -> dict[str, float]:
    """``effective_step/stage<i>``: root mean square change of the stage's parameters since, over their learning rate.

    1 where every parameter moved by the learning rate, as at Adam's first step.
    """
    rates = {p: group["lr"] for group in learner.forward_optimizer.param_groups for p in group["params"]}
    metrics = {}
    for i, (stage, then) in enumerate(zip(learner.model.stages, before, strict=True), 1):
        moves = [
            ((p - old) / rates[p]).flatten().double().cpu()
            for p, old in zip(stage.forward_parameters(), then, strict=True)
            if rates.get(p)
        ]
        if moves:
            metrics[f"effective_step/stage{i}"] = torch.cat(moves).square().mean().sqrt().item()
    return metrics
