"""Training stops where its numbers stop being numbers, and says which ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from dtp_lightning.errors import DivergedError
from dtp_lightning.learners import Learner
from dtp_lightning.module import PretrainModule


class Nonfinite(pl.Callback):
    """Stops, or warns once, when the loss, a gradient (which is what a target leaves behind) or a weight is not finite.

    On a CPU every step is looked at, its gradients before the forward weights move: the step is exact, and so is the
    stage, since :func:`culprit` finds the forward weights as they were. Elsewhere a look would wait for the device.
    There steps are counted whose loss was not finite, on the device, and looked at when metrics are logged and before
    a checkpoint is written: the step is exact as long as the loss did not recover, the stage is the one where the
    trouble was seen, by then perhaps not where it began.

    Args:
        action: ``stop`` raises :class:`DivergedError`; ``warn`` goes on.
    """

    def __init__(self, action: Literal["stop", "warn"] = "stop") -> None:
        self.action = action
        self._batch: Any = None
        self._bad_steps: Tensor | None = None
        self._silent = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what to examine."""
        self._batch = batch

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients, before they are used."""
        if self._each_step(pl_module) and not finite(_gradients(optimizer)):
            self._report(trainer, pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The loss, and what the step made of the weights, those of the feedback included."""
        if self._silent:
            return
        module = cast(PretrainModule, pl_module)
        assert module.last_loss is not None
        if self._each_step(module):
            if not math.isfinite(module.last_loss.item()) or not finite(module.learner.parameters()):
                self._report(trainer, module, trainer.global_step - 1)
            return
        bad = module.last_loss.isfinite().logical_not().long()
        self._bad_steps = bad if self._bad_steps is None else self._bad_steps + bad
        if module.is_logging_step():
            self._look(trainer, module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What is not finite does not replace a good checkpoint."""
        if not self._silent and not self._each_step(pl_module) and self._bad_steps is not None:
            self._look(trainer, cast(PretrainModule, pl_module))

    def _each_step(self, module: pl.LightningModule) -> bool:
        return not self._silent and module.device.type == "cpu"

    def _look(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        assert self._bad_steps is not None
        if (steps := int(self._bad_steps)) or not finite(module.learner.parameters()):
            self._report(trainer, module, trainer.global_step - max(1, steps))

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        module = cast(PretrainModule, pl_module)
        with torch.no_grad():
            what = culprit(module, self._batch.images, self._batch.labels)
        message = f"not finite at step {step} (epoch {trainer.current_epoch}): {what}"
        if self.action == "stop":
            raise DivergedError(
                f"{message}; stopped, the last checkpoint is from before: choose a smaller learning rate or "
                "target_step, or trainer.on_nonfinite=warn to go on regardless"
            )
        logging.getLogger(__name__).warning("%s; training goes on, and this is not repeated", message)
        self._silent = True


def culprit(module: PretrainModule, images: Tensor, labels: Tensor) -> str:
    """What is not finite, in words; the weights first, then what they make of these images, then their gradients.

    A target t_i is not kept: it is seen in the gradient of stage i's weights, which is J^T (h_i - t_i) up to a factor,
    and as targets are made from the top down, the uppermost such stage is named.

    Args:
        module: as it is when the trouble was seen.
        images: of the batch, uint8 (B, C, H, W).
        labels: (B,).
    """
    learner = module.learner
    parts = _parts(learner)
    if bad := [name for name, parameters in parts if not finite(parameters)]:
        return f"the {_first(bad)}"
    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        views = module.augment(images)
        traces = Learner.trace(learner, views.flatten(0, 1))
    for i, trace in enumerate(traces, 1):
        if not finite([trace.h]):
            return f"the activations of stage {i}"
    embeddings = learner.model.head(traces[-1].h)
    if not finite([embeddings]):
        return "the embeddings"
    # of several processes the loss needs the embeddings of all, who may not be here
    single_process = module.trainer.world_size == 1
    if single_process and not finite([learner.objective(embeddings, len(views), labels)]):
        return "the loss"
    grads = [(name, [p.grad for p in parameters if p.grad is not None]) for name, parameters in parts]
    if bad := [name for name, gradients in grads if not finite(gradients)]:
        return f"the target of the {_first(bad)} (seen in their gradient)"
    return "the loss"


def _parts(learner: Learner) -> list[tuple[str, list[Tensor]]]:
    """Names and parameters, from the top down; what a rule adds of its own comes last."""
    stages = list(enumerate(learner.model.stages, 1))[::-1]
    parts = [
        ("weights of the head", list(learner.model.head.parameters())),
        *((f"weights of stage {i}", stage.forward_parameters()) for i, stage in stages),
        *((f"feedback weights of stage {i}", stage.feedback_parameters()) for i, stage in stages),
    ]
    known = {id(p) for _, parameters in parts for p in parameters}
    own = [(name, [p]) for name, p in learner.named_parameters() if id(p) not in known]
    return [(name, list(parameters)) for name, parameters in [*parts, *own]]


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _gradients(optimizer: Optimizer) -> Iterable[Tensor]:
    return (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all entries are."""
    listed = [t.detach() for t in tensors]
    # the sum of squares is an order of magnitude faster than the largest entry, but large numbers overflow it
    return any(math.isfinite(get_total_norm(listed, norm_type=p).item()) for p in (2.0, math.inf))
