"""What rules share whose stages learn from the activity that passes through them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import Learner, Metrics, OptimizerFactory, StageTrace
from dtp_lightning.learners.trace import Observe, write_gradients
from dtp_lightning.models.forward_only import Preactivation
from dtp_lightning.models.network import Network


class ForwardOnly(Learner):
    """delta_i is a function of stage i's own activity: nothing comes down, and the objective reaches the head alone.

    A stage learns while the batch passes it, before the next stage has run; its graph is gone by then, so the memory
    of a step does not grow with depth. ``loss`` is the sum of all that is descended: the stages' own losses, and the
    objective at the head, which the features do not follow.

    Args:
        model, loss, forward_optimizer: see :class:`Learner`.
        epochs: that each stage learns for, one number a stage; None: all, always.

    Raises:
        ConfigError: ``epochs`` has not one entry a stage.
    """

    survives_bf16 = True
    reads_preactivation: ClassVar[bool] = True
    """Whether stages that show a preactivation learn from that, and not from their output."""

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        epochs: Sequence[NonNegativeInt] | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer)
        self.epochs = None if epochs is None else of_each_stage("epochs", epochs, model)
        found = [split_at_preactivation(stage.forward_map) for stage in model.stages]
        self.splits = found if self.reads_preactivation else [None] * len(found)
        self.views = 1

    @abstractmethod
    def local_loss(self, i: int, activity: Tensor) -> Tensor:
        """What stage i descends, scalar: of the whole batch, where processes share one.

        Args:
            i: of the stage, counted from 0.
            activity: the y of its trace, a leaf that requires gradients.
        """

    def enter(self, h0: Tensor) -> Tensor:
        """What stage 1 is shown of the normalised images h_0 (N, C, H, W): the same, with negatives behind them."""
        return h0

    def trace_stage(self, i: int, x: Tensor) -> StageTrace:
        """Stage i, counted from 0, on what the stage below sends up; y is the activity that it learns from."""
        stage, split = self.model.stages[i], self.splits[i]
        return StageTrace(stage, x, (split[0] if split else stage)(x))

    @torch.no_grad()
    def send(self, i: int, trace: StageTrace) -> Tensor:
        """What stage i sends up, h_i of the images first; without a graph."""
        return self.bend(i, trace.h)

    def bend(self, i: int, activity: Tensor) -> Tensor:
        """h_i of stage i's activity: what comes after its preactivation, if it learns from that."""
        split = self.splits[i]
        h: Tensor = split[1](activity) if split else activity
        return h

    def learn(
        self, views: Tensor, labels: Tensor | None, *, measure: bool, observe: Observe | None = None
    ) -> tuple[Tensor, Metrics]:
        """Stage after stage: forward pass, displacement, gradients; then the head."""
        self._begin(len(views))
        h0 = self.model.normalise(views.flatten(0, 1))
        x = self.enter(h0)
        metrics = {}
        seen: list[StageTrace] = []
        for i in range(len(self.model.stages)):
            with torch.set_grad_enabled(self.learns(i)):
                trace = self.trace_stage(i, x)
            below, x = x, self.send(i, trace)
            if observe:
                n = self._images(x)
                seen.append(StageTrace(trace.stage, below[:n].detach(), x[:n]))
            if self.learns(i):
                metrics[f"local_loss/stage{i + 1}"] = self._teach(i, trace)
            del trace
        if observe:
            observe(seen)
        metrics["head_loss"] = self._teach_head(x, h0, len(views), labels)
        return torch.stack(list(metrics.values())).sum(), metrics

    def learns(self, i: int) -> bool:
        """Whether stage i, counted from 0, learns in this epoch."""
        return self.epochs is None or self.epoch < self.epochs[i]

    def trace(self, images: Tensor) -> list[StageTrace]:
        """All stages, as :meth:`learn` runs them, with all their graphs."""
        self._begin(self.views)
        x = self.enter(self.model.normalise(images))
        traces = []
        for i in range(len(self.model.stages)):
            traces.append(self.trace_stage(i, x))
            x = self.send(i, traces[-1])
        return traces

    def compute_head_gradients(
        self, traces: list[StageTrace], views: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The head follows the objective; the stages hear nothing of it."""
        h = self.send(len(traces) - 1, traces[-1])
        h0 = traces[0].x[: self._images(h)]
        return self._teach_head(h, h0, views, labels), torch.zeros_like(traces[-1].h)

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> Metrics:
        """delta_i of every stage, from its own activity."""
        return {f"local_loss/stage{i + 1}": self._teach(i, trace) for i, trace in enumerate(traces) if self.learns(i)}

    def _begin(self, views: int) -> None:
        self.views = views
        self.forward_optimizer.zero_grad(set_to_none=True)

    def _teach(self, i: int, trace: StageTrace) -> Tensor:
        with torch.enable_grad():
            activity = trace.h.requires_grad_(True)
            value = self.local_loss(i, activity)
            (delta,) = torch.autograd.grad(value, [activity])
        trace.vjp(delta)
        return value.detach()

    def _teach_head(self, h: Tensor, h0: Tensor, views: int, labels: Tensor | None) -> Tensor:
        rows = h.detach()[: self._images(h)]
        value = self.objective(self.model.head(rows), views, labels, targets=self.target_outputs(h0))
        write_gradients(value, [*self.model.head.parameters(), *self.loss.parameters()])
        return value.detach()

    def _images(self, h: Tensor) -> int:
        """How many rows of what a stage sends up are images; negatives stand behind them."""
        return len(h)


def of_each_stage(name: str, value: Any, model: Network) -> list[Any]:
    """One value a stage, from one for all or a list.

    Raises:
        ConfigError: the list has not one entry a stage.
    """
    stages = len(model.stages)
    values = list(value) if isinstance(value, Sequence) else [value] * stages
    if len(values) != stages:
        raise ConfigError(
            f"learner.{name} has {len(values)} entries for {stages} stages: give one for all, or one each"
        )
    return values


def split_at_preactivation(forward_map: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The layers up to a stage's preactivation, and those after it; None where it shows none."""
    layers = list(forward_map) if isinstance(forward_map, nn.Sequential) else []
    places = [k for k, layer in enumerate(layers) if isinstance(layer, Preactivation)]
    return (nn.Sequential(*layers[: places[0] + 1]), nn.Sequential(*layers[places[0] + 1 :])) if places else None


def in_full(activity: Tensor) -> Tensor:
    """In 32 bits at least: squares and means of bfloat16 lose too much."""
    return activity if activity.dtype == torch.float64 else activity.float()
