"""Multiply-accumulates of a learning step, which do not depend on the machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.learners.base import Learner


class _Counter(TorchDispatchMode):
    """Sums the FLOPs of the operations for which torch has a formula.

    Replaces torch's FlopCounterMode, whose module tracking fails under ``autograd.grad`` of single stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_macs(function: Callable[[], object]) -> int:
    """Count the multiply-accumulates of the convolutions and matrix products of a call, backward passes included.

    Element-wise operations, pooling and distances are not counted. A transposed convolution counts all products, also
    those that the padding discards.
    """
    with _Counter() as counter:
        function()
    return counter.flops // 2


def macs_per_image(learner: Learner, images: ImageSpec, views: int) -> float:
    """Count the MACs of a whole learning step: forward, targets, feedback, gradients and head.

    The step is that of a copy, on a batch of two images, after any first phase in which only feedback learns. If
    feedback learns in some batches only, it is the first of those; layer-wise learning gives the mean over its
    stages. Products between the images of a batch are those of a batch of two.

    Args:
        learner: on the CPU; unchanged.
        images: size of the images.
        views: V, number of views.

    Returns:
        MACs for one view of one image.
    """
    replica = copy.deepcopy(learner)
    replica.skip_first_phase()
    with torch.random.fork_rng([]):
        batch = torch.rand(views, 2, images.channels, images.height, images.width)
        labels = torch.zeros(2, dtype=torch.long)
        variants = replica.step_variants()
        total = sum(count_macs(partial(variant.step, batch, labels, measure=False)) for variant in variants)
    return total / len(variants) / (views * 2)
