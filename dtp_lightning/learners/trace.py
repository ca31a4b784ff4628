"""What a learning rule sees of one stage on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dtp_lightning.models.feedback_maps import Kept
from dtp_lightning.models.stage import Stage


@dataclass
class StageTrace:
    """Stage i on one batch: its input, its output, and the autograd graph between them, which contains no other stage.

    Attributes:
        stage: f_i and g_i.
        x: h_{i-1}, detached, (N, C_below, H, W).
        y: h_i, on the local graph until :meth:`vjp` is called, (N, C, H', W').
        pool_indices: int64 of h_i's shape, of the stage's max-pool in this forward pass, if its feedback map needs
            them; of a block, what its transpose needs.
        preactivation: output of the stage's first layer, if the rule needs it (:meth:`Stage.run_perturbed`).
        reconstruction: g_i(h_i) with the graph of g_i's parameters, if the training of g_i needs it.
    """

    stage: Stage
    x: Tensor
    y: Tensor
    pool_indices: Kept = None
    preactivation: Tensor | None = None
    reconstruction: Tensor | None = None

    def slice(self, start: int, stop: int) -> StageTrace:
        """The trace of rows start to stop of the batch, without graphs."""
        rows = slice(start, stop)
        x, h = self.x.detach()[rows], self.h[rows]
        pool_indices = None if self.pool_indices is None else self.pool_indices[rows]
        preactivation = None if self.preactivation is None else self.preactivation[rows]
        return StageTrace(self.stage, x, h, pool_indices, preactivation)

    @property
    def h(self) -> Tensor:
        """h_i, detached."""
        return self.y.detach()

    def feedback(self, u: Tensor) -> Tensor:
        """g_i(u) for u of h_i's shape, (N, C_below, H, W)."""
        return self.stage.feedback(u, like=self.x, pool_indices=self.pool_indices)

    def reconstruct(self) -> Tensor:
        """g_i(h_i), (N, C_below, H, W), without a graph. Do not modify it in place."""
        with torch.no_grad():
            return self.feedback(self.h) if self.reconstruction is None else self.reconstruction.detach()

    def input_vjp(self, delta: Tensor) -> Tensor:
        """J_x^T delta, of h_{i-1}'s shape, for delta of h_i's shape; the graph stays. ``x`` must require gradients."""
        (below,) = torch.autograd.grad(self.y, [self.x], delta, retain_graph=True)
        return below

    def vjp(self, delta: Tensor, *, to_input: bool = False, scale: float = 1) -> Tensor | None:
        """Write the forward weights' gradient scale * J_W^T delta, and free the graph.

        Args:
            delta: displacement at the output, of h_i's shape.
            to_input: also return J_x^T delta, of h_{i-1}'s shape (what backprop sends down).
            scale: factor of the weights' gradient, not of J_x^T delta.

        Returns:
            J_x^T delta, or None without ``to_input``.
        """
        parameters = self.stage.forward_parameters()
        inputs = [*parameters, self.x] if to_input else parameters
        gradients = torch.autograd.grad(self.y, inputs, delta)
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient if scale == 1 else gradient.mul_(scale)
        return gradients[-1] if to_input else None


Observe = Callable[[list[StageTrace]], object]
"""Called with the traces of a batch before any weight moves; it may read their activations h."""


def write_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], *inputs: Tensor) -> list[Tensor]:
    """Write the gradient of a loss to parameters; return its gradients for the inputs, of their shapes."""
    gradients = torch.autograd.grad(loss, [*parameters, *inputs])
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient
    return list(gradients[len(parameters) :])
