"""What is wrong with a finished run although its numbers are finite: stages that say nothing, features worse than none.

A learning rate of 1e9 saturates every tanh and trains on without an error; so a run says itself what its figures are
worth (``warnings`` in summary.json, in the closing table and in reports).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dtp_lightning.data.images import ImageData
from dtp_lightning.models.network import Network
from dtp_lightning.runs.summary import RANDOM

DEAD_VARIANCE = 1e-8
"""Variance over the images below which a unit is dead, in squared units of the activation."""
ACTIVATION_RANGES = {nn.Tanh: (-1.0, 1.0), nn.Hardtanh: (-1.0, 1.0), nn.Sigmoid: (0.0, 1.0)}
"""Range of each activation function that is bounded on both sides."""
MOST = 0.9
"""Share of a stage's units, or values, from which all of it counts as dead, or saturated."""
IMAGES = 200
"""Validation images that are looked at."""


def dead_units(h: Tensor) -> float:
    """Fraction of the C * H * W units of h (N, C, H, W) that are constant over the batch, in [0, 1]."""
    return (h.flatten(1).var(0) < DEAD_VARIANCE).float().mean().item()


def saturated(h: Tensor, activation: nn.Module) -> float | None:
    """Fraction of the values of h beyond 95 % of the activation's half range (|h| > 0.95 for tanh), in [0, 1].

    Args:
        h: what the activation gave, any shape.
        activation: a stage's last layer.

    Returns:
        None where the activation is not bounded on both sides.
    """
    bounds = ACTIVATION_RANGES.get(type(activation))
    if bounds is None:
        return None
    middle, half = sum(bounds) / 2, (bounds[1] - bounds[0]) / 2
    return ((h - middle).abs() > 0.95 * half).float().mean().item()


def warnings_of(network: Network, data: ImageData, metrics: Mapping[str, float]) -> list[str]:
    """Sentences about what makes this run's figures worth little; none of a run that is well.

    Args:
        network: the trained one, on its device.
        data: its validation images are looked at, those of training where there are none.
        metrics: of :func:`dtp_lightning.evaluation.encoders.evaluate_encoders`.
    """
    validation = data.val.images
    images = validation if len(validation) > 1 else data.pretraining().images
    return [
        *stage_warnings(network, images[:IMAGES]),
        *accuracy_warnings(metrics, len(validation)),
        *(f"{name} is not finite" for name, value in metrics.items() if not math.isfinite(value)),
    ]


@torch.no_grad()
def stage_warnings(network: Network, images: Tensor) -> list[str]:
    """Which stages are saturated or dead on these images, uint8 (N, C, H, W), N > 1."""
    device = next(network.parameters()).device
    x = network.normalise(images.to(device).float() / 255)
    told, below = [], None
    for i, stage in enumerate(network.stages, 1):
        run, activation = stage.run(x), stage.layers()[-1]
        beyond = saturated(run.y, activation) or 0.0
        if (dead := dead_units(run.y)) >= MOST:
            told.append(f"stage {i} is dead: {100 * dead:.0f} % of its units are the same for all images")
        elif beyond >= MOST:
            told.append(f"stage {i} is saturated: {100 * beyond:.0f} % of its values are at the ends of their range")
        if stage.feedback_map is not None and below is not None:
            back = stage.feedback(run.y, x, run.pool_indices)
            if (beyond := saturated(back, below) or 0.0) >= MOST:
                told.append(f"the feedback map of stage {i} is saturated: {100 * beyond:.0f} % of what it gives")
        x, below = run.y, activation
    return told


def accuracy_warnings(metrics: Mapping[str, float], images: int) -> list[str]:
    """Which probes find the trained features worse than untrained ones on validation, by more than chance.

    Args:
        metrics: ``<evaluation>/val_acc`` of both encoders, in [0, 1].
        images: of the validation split; two standard errors of the difference count as chance.
    """
    told = []
    for name, trained in metrics.items():
        untrained = metrics.get(RANDOM + name)
        if not name.endswith("/val_acc") or untrained is None:
            continue
        chance = 2 * math.sqrt((trained * (1 - trained) + untrained * (1 - untrained)) / max(images, 1))
        if trained < untrained - chance:
            told.append(
                f"the features are worse than untrained ones: {name.removesuffix('/val_acc')} gets "
                f"{100 * trained:.1f} % on validation, and {100 * untrained:.1f} % untrained"
            )
    return told
