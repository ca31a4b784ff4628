"""Optimisers of forward weights whose weight decay and layer-wise rates leave out biases and gains.

torch's decay everything that they are given. Recipes of self-supervised learning do not: a bias or the gain of a
normalisation (one dimension) keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp_lightning.errors import ConfigError


def named_groups(groups: Iterable[tuple[str, Iterable[nn.Parameter]]]) -> list[dict]:
    """Parameter groups of an optimiser, each with a name. Empty groups are left out.

    >>> [group["name"] for group in named_groups([("stage1", nn.Linear(2, 2).parameters()), ("head", [])])]
    ['stage1']
    """
    listed = [{"name": name, "params": list(parameters)} for name, parameters in groups]
    return [group for group in listed if group["params"]]


class DecayOfMatrices(Optimizer):
    """Stands before an optimiser of torch in the bases of a class: parameters of one dimension get no weight decay.

    A group with both kinds becomes two of one name: what a schedule says of a stage holds for both.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the group's parameters of two and more dimensions, and then the others."""
        params = param_group["params"]
        parameters = [params] if isinstance(params, Tensor) else list(params)
        matrices, vectors = ([p for p in parameters if (p.ndim > 1) == many] for many in (True, False))
        if matrices:
            super().add_param_group({**param_group, "params": matrices})
        if vectors:
            super().add_param_group({**param_group, "params": vectors, "weight_decay": 0.0})


class SGD(DecayOfMatrices, torch.optim.SGD):
    """torch's, with decay of matrices alone.

    >>> layer = nn.Linear(3, 2)
    >>> sgd = SGD([{"name": "head", "params": layer.parameters()}], lr=0.1, momentum=0.9, weight_decay=1e-4)
    >>> [(group["name"], group["weight_decay"]) for group in sgd.param_groups]
    [('head', 0.0001), ('head', 0.0)]
    """


class AdamW(DecayOfMatrices, torch.optim.AdamW):
    """torch's, with decay of matrices alone.

    >>> layer = nn.Linear(3, 2)
    >>> [group["weight_decay"] for group in AdamW(layer.parameters(), lr=1e-3, weight_decay=0.05).param_groups]
    [0.05, 0.0]
    """


class LARS(Optimizer):
    """SGD with momentum whose every weight tensor has a rate of its own (You et al. 2017, Eq. 6).

        v <- momentum v + s (g + weight_decay w),  w <- w - lr v,  s = trust ||w|| / (||g|| + weight_decay ||w||)

    Biases and gains (one dimension) have s = 1 and no decay, and so has a tensor that is zero or has no gradient. With
    ``clip``, s is at most 1 after division by lr, so that a weight's rate is min(trust ratio, lr) (LARC; solo-learn's
    ``clip_lr``, which lightly's LARS lacks).

    Args:
        params: parameters, or groups of them.
        lr: learning rate, >= 0.
        momentum: in [0, 1).
        weight_decay: >= 0.
        trust: coefficient of the ratio of norms.
        clip: as above.
        eps: added to the norm of the gradient.

    Raises:
        ConfigError: a momentum of 1 and above, or a negative rate.

    >>> w = nn.Parameter(torch.full((2, 2), 3.0))
    >>> w.grad = torch.full((2, 2), 0.5)
    >>> LARS([w], lr=1.0, momentum=0, trust=0.1).step()  # s = 0.1 * 6 / 1
    >>> round(w[0, 0].item(), 4)
    2.7
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: NonNegativeFloat = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        trust: PositiveFloat = 1e-3,
        clip: bool = False,
        eps: NonNegativeFloat = 1e-8,
    ) -> None:
        if lr < 0 or momentum >= 1:
            raise ConfigError(f"LARS: lr={lr} must be 0 or more and momentum={momentum} less than 1")
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "clip": clip, "eps": eps},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters that have gradients."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            velocities = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, [_scaled_gradient(p, group) for p in parameters])
            torch._foreach_add_(parameters, velocities, alpha=-group["lr"])
        return value


def _scaled_gradient(parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
    """The step s (g + weight_decay w), of the parameter's shape; no value leaves the device."""
    gradient = parameter.grad
    assert gradient is not None
    if parameter.ndim < 2:
        return gradient
    of_weight, of_gradient, decay = parameter.norm(), gradient.norm(), group["weight_decay"]
    ratio = group["trust"] * of_weight / (of_gradient + decay * of_weight + group["eps"])
    if group["clip"]:
        ratio = (ratio / group["lr"]).clamp(max=1) if group["lr"] > 0 else torch.ones_like(ratio)
    scale = torch.where((of_weight > 0) & (of_gradient > 0), ratio, 1.0)
    return gradient.add(parameter, alpha=decay).mul_(scale)
