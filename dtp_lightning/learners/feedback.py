"""How feedback maps learn. A part of its own: any target rule can be combined with any of these."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from dtp_lightning.learners.base import Metrics, OptimizerFactory, StageTrace, named_groups
from dtp_lightning.models.network import Network


def normal_like(x: Tensor) -> Tensor:
    """Standard normal noise in x's shape and memory layout.

    Drawn into the flat memory: ``randn_like`` falls back to one number at a time for channels-last tensors,
    which made noise a third of a DTP step.
    """
    noise = torch.empty_like(x)
    noise.as_strided((noise.numel(),), (1,)).normal_()
    return noise


class AutoencoderFeedback:
    """g_i learns to undo f_i around noisy activations: R_i = mean((g_i(f_i(h~)) - h~)^2), h~ = h_{i-1} + sigma * eps.

    The reconstruction keeps the noise: its goal is the corrupted activity (Lee et al. 2015, DTP), not the clean
    one (SDTP). Only g_i receives a gradient.

    Args:
        optimizer: called with one parameter group a feedback map.
        noise_std: sigma, in units of the activation.
    """

    def __init__(self, optimizer: OptimizerFactory, noise_std: NonNegativeFloat = 1.0) -> None:
        self.make_optimizer = optimizer
        self.noise_std = noise_std
        self.noise_like: Callable[[Tensor], Tensor] = normal_like

    def optimizer_for(self, model: Network) -> Optimizer:
        """One optimiser for all feedback maps of this model, a group each."""
        return self.make_optimizer(
            named_groups((f"feedback{i}", stage.feedback_parameters()) for i, stage in enumerate(model.stages, 1))
        )

    def train(self, traces: list[StageTrace], optimizer: Optimizer) -> Metrics:
        """One step for each feedback map, top first, with the forward weights as they are; returns R_i."""
        metrics = {}
        for i in range(len(traces), 1, -1):
            trace = traces[i - 1]
            noisy = trace.x.detach().add(self.noise_like(trace.x), alpha=self.noise_std)
            with torch.no_grad():
                above, switches = trace.stage.run(noisy)
            reconstruction = F.mse_loss(trace.stage.feedback(above, noisy, switches), noisy)
            parameters = trace.stage.feedback_parameters()
            for parameter, gradient in zip(parameters, torch.autograd.grad(reconstruction, parameters), strict=True):
                parameter.grad = gradient
            metrics[f"reconstruction_loss/stage{i}"] = reconstruction.detach()
        optimizer.step()
        return metrics
