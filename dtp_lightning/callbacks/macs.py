"""Arithmetic of a learning step: multiply-accumulates, whatever the machine."""

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
    """Adds up the operations that torch knows a formula for.

    Not torch's FlopCounterMode: its bookkeeping of modules fails under ``autograd.grad`` stage by stage.
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
    """Multiply-accumulates of the convolutions and matrix products that this call does, backward passes included.

    Element-wise work, pooling and distances are not counted. A transposed convolution counts every product, also
    those that fall beyond the border.
    """
    with _Counter() as counter:
        function()
    return counter.flops // 2


def macs_per_image(learner: Learner, images: ImageSpec, views: int) -> float:
    """MACs of one whole learning step for one view of one image: forward, targets, feedback, gradients, head.

    Counted on a copy, at its first step past a first phase of feedback alone, with two images; a rule whose feedback
    learns on every few batches only is counted by that first one, a layer-wise one by the mean over its stages.
    Products between the images of a batch are counted at two images.

    Args:
        learner: on the CPU; unchanged.
        images: their size.
        views: V.
    """
    used = copy.deepcopy(learner)
    used.skip_first_phase()
    with torch.random.fork_rng([]):
        batch = torch.rand(views, 2, images.channels, images.height, images.width)
        labels = torch.zeros(2, dtype=torch.long)
        variants = used.step_variants()
        total = sum(count_macs(partial(variant.step, batch, labels, measure=False)) for variant in variants)
    return total / len(variants) / (views * 2)
