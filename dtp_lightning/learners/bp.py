"""Backpropagation: the control that every other rule is measured against."""

from __future__ import annotations

from torch import Tensor

from dtp_lightning.learners.base import Learner, Metrics, StageTrace


class Backprop(Learner):
    """delta_{i-1} = J_{f_i}^T delta_i: exact gradients, through the transposed forward weights.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`.

    >>> from functools import partial
    >>> import torch
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> learner = Backprop(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.1))
    >>> views = torch.rand(2, 5, 1, 8, 8)
    >>> before, after = learner.step(views)["loss"], learner.step(views)["loss"]
    >>> bool(after < before)
    True
    """

    transports_weights = True
    needs_input_gradients = True
    survives_bf16 = True

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """One autograd call a stage gives its weight gradient and the displacement below."""
        delta: Tensor | None = top
        for trace in reversed(traces):
            assert delta is not None
            delta = trace.vjp(delta, to_input=trace is not traces[0])
        return {}
