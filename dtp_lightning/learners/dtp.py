"""Difference target propagation (Lee et al. 2015) as the thesis uses it on a contrastive objective."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.feedback import AutoencoderFeedback
from dtp_lightning.models.network import Network


@torch.no_grad()
def difference_target(trace: StageTrace, target: Tensor) -> Tensor:
    """t_{i-1} = h_{i-1} - g_i(h_i) + g_i(t_i).

    The difference cancels what g_i reconstructs badly: where the stage's own target asks for nothing
    (t_i = h_i), neither does the one below (Lee et al. 2015).

    Args:
        trace: stage i on this batch.
        target: t_i, of h_i's shape.

    Returns:
        t_{i-1}, of h_{i-1}'s shape.
    """
    return trace.x - trace.back(trace.h) + trace.back(target)


class DifferenceTargetPropagation(Learner):
    """Targets travel down through learned feedback; each stage moves its own output towards its target.

    t_L = h_L - step * dL/dh_L;  t_{i-1} = h_{i-1} - g_i(h_i) + g_i(t_i);  stage i descends ||h_i - t_i||^2.
    Source: thesis code; Tang et al. 2022, Algorithm 1.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`.
        feedback: how the feedback maps learn.
        target_step: length of the step that makes the top target, in units of ``target_gradient``.
        target_gradient: ``per_sample`` steps along each image's own gradient N * dL/dh_L, so that targets do not
            shrink with the batch; ``batch_mean`` is the thesis' dL/dh_L, whose entries are N times smaller.
        local_loss: ``displacement`` is ||h_i - t_i||^2 / (2 step), summed over features: the top stage's gradient
            equals backprop's and its learning rate carries over. ``thesis`` is mean((h_i - t_i)^2) over images and
            features, whose gradients Adam's epsilon swallows at the thesis' batch size.
        order: ``targets_first`` takes targets with the old feedback and then trains it (thesis);
            ``feedback_first`` the other way round (Algorithm 1 of Tang et al. 2022).
    """

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        feedback: AutoencoderFeedback,
        target_step: PositiveFloat = 0.5,
        target_gradient: Literal["per_sample", "batch_mean"] = "batch_mean",
        local_loss: Literal["displacement", "thesis"] = "displacement",
        order: Literal["targets_first", "feedback_first"] = "targets_first",
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        self.feedback = feedback
        self.feedback_optimizer = feedback.optimizer_for(model)
        self.target_step = target_step
        self.target_gradient = target_gradient
        self.local_loss = local_loss
        self.order = order

    @property
    def optimizers(self) -> list[Optimizer]:
        """Forward, then feedback."""
        return [self.forward_optimizer, self.feedback_optimizer]

    def teach(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """Targets and feedback training, in the chosen order; no forward weight moves before both are done."""
        if self.order == "feedback_first":
            metrics = self.feedback.train(traces, self.feedback_optimizer)
            return metrics | self._teach_stages(traces, top, measure)
        metrics = self._teach_stages(traces, top, measure)
        return metrics | self.feedback.train(traces, self.feedback_optimizer)

    def _teach_stages(self, traces: list[StageTrace], top: Tensor, measure: bool) -> Metrics:
        step = self.target_step * (len(top) if self.target_gradient == "per_sample" else 1)
        metrics = {}
        target = torch.add(traces[-1].h, top, alpha=-step)
        for i in range(len(traces), 0, -1):
            trace = traces[i - 1]
            error = trace.h - target
            # dL_local/dh = scale * error, whichever reduction the local loss has
            scale = 1 / step if self.local_loss == "displacement" else 2 / error.numel()
            trace.pull(error * scale)
            if measure:
                metrics[f"local_loss/stage{i}"] = error.square().sum() * (scale / 2)
            if i > 1:
                target = difference_target(trace, target)
        return metrics
