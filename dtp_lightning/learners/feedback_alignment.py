"""Feedback alignment and its variants: backpropagation with other weights in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.kolen_pollack import Decay, Follower
from dtp_lightning.models.aligned import Weighted, aligned
from dtp_lightning.models.blocks import is_matrix, is_plain
from dtp_lightning.models.network import Network
from dtp_lightning.models.stage import Stage, StageOutput
from dtp_lightning.runtime import collectives


class FeedbackAlignment(Learner):
    """delta_{i-1} = J_{f_i}^T delta_i with weights B_i in place of W_i; pooling and activation keep their derivatives.

    ``random``: B is drawn like W and fixed (Lillicrap et al. 2016; RF in Tang et al. 2022). ``updated``: B receives
    the very update that W does, so that W - B stays what it was (Amit 2019; URF). ``kolen_pollack``: the same, and both
    decay, so that W - B vanishes (Kolen and Pollack 1994; Akrout et al. 2019). ``sign``: B has the signs of W
    (Liao et al. 2016; Moskovitz et al. 2018), which do travel from the forward weights.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`; with ``updated`` B learns by the same optimiser.
        weights: as above.
        magnitude: of sign-symmetric B: ``uniform`` is W's mean absolute value (uSF, rescaled), ``fixed`` that of a
            random matrix (frSF), ``batch`` one redrawn for each batch (brSF; names of biotorch).
        decay: of W and B under ``kolen_pollack``, a batch, in [0, 1).

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import conv_net
    >>> model = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> fa = FeedbackAlignment(model, ContrastiveHinge(), partial(torch.optim.SGD, lr=0.1))
    >>> [tuple(b.shape) for b in fa.feedback_weights]  # B of stage 2 and of the head; stage 1 sends nothing down
    [(3, 2, 3, 3), (4, 12)]
    """

    needs_input_gradients = True
    survives_bf16 = True
    feedback_weights: nn.ParameterList
    """B of every weighted layer above stage 1, each of its weight's shape, bottom first."""

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        weights: Literal["random", "updated", "kolen_pollack", "sign"] = "random",
        magnitude: Literal["uniform", "fixed", "batch"] = "uniform",
        decay: Decay = 1e-3,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        self.weights, self.magnitude = weights, magnitude
        self.transports_weights = weights == "sign"  # type: ignore[misc]
        self._head = (Stage(model.head),)
        # the first layer sends nothing down
        layers = [layer for stage in (*model.stages, *self._head) for layer in weighted_layers(stage.forward_map)][1:]
        self._index = {layer: i for i, layer in enumerate(layers)}
        learns = weights == "updated"
        self.feedback_weights = nn.ParameterList(
            nn.Parameter(initialised_like(layer.weight), requires_grad=learns) for layer in layers
        )
        pairs = zip((layer.weight for layer in layers), self.feedback_weights, strict=True)
        self._follower = Follower(pairs if weights == "kolen_pollack" else (), decay)
        if learns:
            self.forward_optimizer.add_param_group({"name": "feedback", "params": list(self.feedback_weights)})

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The error at the embedding: the head sends it down by B as well."""
        return self.trace_head(traces, self._head[0], views, labels)

    def run(self, stage: Stage, x: Tensor) -> StageOutput:
        """f(x), whose weighted layers compute the gradient of their input with B, wherever in a block they are."""
        inputs: dict[nn.Module, Tensor] = {}

        def detach(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            inputs[layer] = args[0]
            return (args[0].detach(),)

        def send(layer: Weighted, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            x = inputs.pop(layer)
            return aligned(x, y, layer, self.backward_weight) if x.requires_grad else y

        layers = [layer for layer in stage.forward_map.modules() if layer in self._index]
        hooks = [layer.register_forward_pre_hook(detach) for layer in layers]
        hooks += [layer.register_forward_hook(send) for layer in layers]
        try:
            return StageOutput(stage.run(x).y)
        finally:
            for hook in hooks:
                hook.remove()

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """As backprop, with B in place of W."""
        if self.weights == "sign" and self.magnitude == "batch":
            with torch.no_grad():
                for layer, i in self._index.items():
                    self.feedback_weights[i].copy_(collectives.broadcast(initialised_like(layer.weight)))
        delta: Tensor | None = top
        for trace in reversed(traces):
            assert delta is not None
            delta = trace.vjp(delta, to_input=trace is not traces[0])
        return {}

    def combine_gradients(self) -> None:
        """Then give B the gradient of W, where it learns: after W's is that of the whole batch."""
        for b in self.feedback_weights:
            b.grad = None
        super().combine_gradients()
        if self.weights == "updated":
            for layer, i in self._index.items():
                gradient = layer.weight.grad
                self.feedback_weights[i].grad = None if gradient is None else gradient.clone()

    def apply_update(self, update: Callable[[], object]) -> None:
        """Then B follows W, under ``kolen_pollack``."""
        self._follower.around(update)

    def backward_weight(self, layer: Weighted) -> Tensor:
        """B of a layer, of its weight's shape."""
        b = self.feedback_weights[self._index[layer]]
        if self.weights != "sign":
            return b
        return layer.weight.sign() * (layer.weight.abs().mean() if self.magnitude == "uniform" else b.abs())


def weighted_layers(forward_map: nn.Module) -> list[Weighted]:
    """The convolutions and linear layers of a stage, those within its blocks as well.

    Raises:
        ConfigError: another layer has weights, through which the error would travel.
    """
    layers: list[Weighted] = []
    for layer in forward_map.modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and is_plain(layer)):
            layers.append(layer)
        elif any(is_matrix(p) for p in layer.parameters(recurse=False)):
            raise ConfigError(
                f"feedback weights are known for Conv2d and Linear, and this network has {type(layer).__name__}: "
                "take learner=bp, dfa, gll or rll"
            )
    return layers


def initialised_like(weight: Tensor) -> Tensor:
    """Weights drawn as torch draws those of convolutions and linear layers."""
    drawn = torch.empty_like(weight)
    nn.init.kaiming_uniform_(drawn, a=5**0.5)
    return drawn
