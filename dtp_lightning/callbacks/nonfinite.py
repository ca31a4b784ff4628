"""Stops a training that is no longer finite, and reports which quantity is not."""

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
    """Stops, or warns once, when the loss, a gradient (and so a target) or a weight is not finite.

    On a CPU every step is checked, its gradients before the optimiser step, so the reported step and stage are exact.
    On other devices a check has to synchronise. Steps with a loss that is not finite are counted on the device, and
    the count is read when metrics are logged and before a checkpoint is saved. The reported step is exact unless the
    loss became finite again; the reported stage is that of the time of the check, which may differ from the first.

    Args:
        action: ``stop`` raises :class:`DivergedError`; ``warn`` goes on.
    """

    def __init__(self, action: Literal["stop", "warn"] = "stop") -> None:
        self.action = action
        self._batch: Any = None
        self._nonfinite_steps: Tensor | None = None
        self._warned = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the error message."""
        self._batch = batch

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the gradients on a CPU, before the step uses them."""
        if self._checks_each_step(pl_module) and not finite(_gradients(optimizer)):
            self._report(trainer, pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss and all weights, those of the feedback maps included."""
        if self._warned:
            return
        module = cast(PretrainModule, pl_module)
        assert module.last_loss is not None
        if self._checks_each_step(module):
            if not math.isfinite(module.last_loss.item()) or not finite(module.learner.parameters()):
                self._report(trainer, module, trainer.global_step - 1)
            return
        nonfinite = module.last_loss.isfinite().logical_not().long()
        self._nonfinite_steps = nonfinite if self._nonfinite_steps is None else self._nonfinite_steps + nonfinite
        if module.is_logging_step():
            self._check(trainer, module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check the weights before they are saved."""
        if not self._warned and not self._checks_each_step(pl_module) and self._nonfinite_steps is not None:
            self._check(trainer, cast(PretrainModule, pl_module))

    def _checks_each_step(self, module: pl.LightningModule) -> bool:
        """Whether to check in every step: on a CPU, until a warning was given."""
        return not self._warned and module.device.type == "cpu"

    def _check(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        """Read the count of steps from the device, and check the weights."""
        assert self._nonfinite_steps is not None
        if (steps := int(self._nonfinite_steps)) or not finite(module.learner.parameters()):
            self._report(trainer, module, trainer.global_step - max(1, steps))

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Raise or warn, with the step and the quantity that is not finite."""
        module = cast(PretrainModule, pl_module)
        with torch.no_grad():
            location = locate_nonfinite(module, self._batch.images, self._batch.labels)
        message = f"not finite at step {step} (epoch {trainer.current_epoch}): {location}"
        if self.action == "stop":
            raise DivergedError(
                f"{message}; stopped, the last checkpoint is from before: choose a smaller learning rate or "
                "target_step, or trainer.on_nonfinite=warn to go on regardless"
            )
        logging.getLogger(__name__).warning("%s; training goes on, and this is not repeated", message)
        self._warned = True


def locate_nonfinite(module: PretrainModule, images: Tensor, labels: Tensor) -> str:
    """Name the quantity that is not finite: weights, then activations, embeddings and loss, then targets.

    A target t_i is not stored. The gradient of the weights of stage i is J^T (h_i - t_i) up to a factor, and targets
    are computed from the top down, so the top stage whose gradient is not finite is the first such target.

    Args:
        module: the module after the failed check.
        images: of the batch, uint8 (B, C, H, W).
        labels: int64 (B,).

    Returns:
        A phrase such as "the activations of stage 2".
    """
    learner = module.learner
    groups = _named_parameters(learner)
    if nonfinite := [name for name, parameters in groups if not finite(parameters)]:
        return f"the {_first(nonfinite)}"
    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        views = module.augment(images)
        traces = Learner.trace(learner, views.flatten(0, 1))
    for i, trace in enumerate(traces, 1):
        if not finite([trace.h]):
            return f"the activations of stage {i}"
    embeddings = learner.model.head(traces[-1].h)
    if not finite([embeddings]):
        return "the embeddings"
    # with several processes the loss gathers the embeddings of all, and the others may not get here
    single_process = module.trainer.world_size == 1
    targets = learner.target_outputs(traces[0].x)
    if single_process and not finite([learner.objective(embeddings, len(views), labels, targets=targets)]):
        return "the loss"
    grads = [(name, [p.grad for p in parameters if p.grad is not None]) for name, parameters in groups]
    if nonfinite := [name for name, gradients in grads if not finite(gradients)]:
        return f"the target of the {_first(nonfinite)} (seen in their gradient)"
    return "the loss"


def _named_parameters(learner: Learner) -> list[tuple[str, list[Tensor]]]:
    """Names and parameters, from the head down to stage 1; further parameters of the rule are last."""
    stages = list(enumerate(learner.model.stages, 1))[::-1]
    groups = [
        ("weights of the head", list(learner.model.head.parameters())),
        *((f"weights of stage {i}", stage.forward_parameters()) for i, stage in stages),
        *((f"feedback weights of stage {i}", stage.feedback_parameters()) for i, stage in stages),
    ]
    listed = {id(p) for _, parameters in groups for p in parameters}
    others = [(name, [p]) for name, p in learner.named_parameters() if id(p) not in listed]
    return [(name, list(parameters)) for name, parameters in [*groups, *others]]


def _first(names: list[str]) -> str:
    """The first name, and the number of the others."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _gradients(optimizer: Optimizer) -> Iterable[Tensor]:
    """The gradients of all parameters of an optimiser."""
    return (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all entries of all tensors are finite."""
    detached = [t.detach() for t in tensors]
    # the 2-norm is ten times faster than the maximum norm, but its squares may overflow
    return any(math.isfinite(get_total_norm(detached, norm_type=p).item()) for p in (2.0, math.inf))
