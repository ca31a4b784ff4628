"""Self-contrastive forward-forward: an image beside itself is real, an image beside another one is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import OptimizerFactory, StageTrace
from dtp_lightning.learners.forward_only import ForwardOnly, in_full, of_each_stage
from dtp_lightning.learners.goodness import goodness, goodness_loss
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class SelfContrastive(ForwardOnly):
    """Stages tell pairs (x, x) from pairs (x, x') of two images, by the goodness of W x + W x' + 2 b.

    Source: Chen et al. (2025, Nat. Commun. 16:5978), SCFF, and its code. W x + W x' is linear: at a stage with a
    :class:`~dtp_lightning.models.forward_only.Preactivation` a(x), the activity of a pair is a(x) + a(x'), so that
    negatives need no convolution of their own. Other stages are run once more on the mean of the two inputs.

    Args:
        model, loss, forward_optimizer, epochs: see :class:`ForwardOnly`.
        positive_threshold, negative_threshold: of the goodness, one for all stages or one each.
        penalty: lambda, of the length of the positive goodness, likewise.
        pairs: ``same``: an image and itself (the paper, without augmentation); ``views``: two views of an image.
        carried: stages, counted from 1, whose negatives are what the stage below makes of its own negatives, instead
            of new pairs. Their activity is that of one input.

    Raises:
        ConfigError: a list has not one entry a stage; stage 1 is carried; ``views`` on a stage that is not linear.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import forward_only_net
    >>> model = forward_only_net(ImageSpec(1, 16, 16, mirror_safe=False), channels=[4, 4, 6], embedding_dim=4)
    >>> scff = SelfContrastive(model, ContrastiveHinge(), partial(torch.optim.Adam, lr=0.01), carried=[2])
    >>> sorted(scff.step(torch.rand(2, 5, 1, 16, 16)))
    ['head_loss', 'local_loss/stage1', 'local_loss/stage2', 'local_loss/stage3', 'loss']
    """

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        positive_threshold: float | Sequence[float] = 1.0,
        negative_threshold: float | Sequence[float] = 2.0,
        penalty: NonNegativeFloat | Sequence[NonNegativeFloat] = 8e-4,
        pairs: Literal["same", "views"] = "same",
        carried: Sequence[PositiveInt] = (),
        epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer, epochs)
        above = of_each_stage("positive_threshold", positive_threshold, model)
        below = of_each_stage("negative_threshold", negative_threshold, model)
        self.thresholds = list(zip(above, below, strict=True))
        self.penalty = of_each_stage("penalty", penalty, model)
        self.pairs = pairs
        self.carried = {stage - 1 for stage in carried}
        if 0 in self.carried:
            raise ConfigError("learner.carried=[1]: no stage is below the first one, whose negatives are new pairs")
        if pairs == "views" and None in self.splits:
            raise ConfigError("learner.pairs=views adds up activities before they are bent: take model=scff")
        self.shifts: dict[int, int] = {}
        self.count = 0

    def trace_stage(self, i: int, x: Tensor) -> StageTrace:
        """Stage i on the images, and on negatives where they do not follow from the images' activity."""
        if i not in self.carried:
            x = x[: self.count]
            self.shifts[i] = self._draw(len(x) // self.views)
            if self.splits[i] is None:
                x = torch.cat([x, (x + self._partner(x, self.shifts[i])) / 2])
        return super().trace_stage(i, x)

    @torch.no_grad()
    def send(self, i: int, trace: StageTrace) -> Tensor:
        """h_i of the images, followed by that of the negatives where the stage above takes them over."""
        images, negatives = trace.h[: self.count], trace.h[self.count :]
        if i + 1 not in self.carried:
            return self.bend(i, images)
        if self._is_linear_pair(i):
            negatives = (images + self._partner(images, self.shifts[i])) / 2
        return self.bend(i, torch.cat([images, negatives]))

    def local_loss(self, i: int, activity: Tensor) -> Tensor:
        """Of the goodness of pairs; twice the mean of two activities is their sum."""
        if self._is_linear_pair(i):
            ours = self._gathered(in_full(activity))
            partner = ours.roll(1, 0) if self.pairs == "views" else ours
            parts = (ours + partner, ours + partner.roll(self.shifts[i], 1))
        else:
            halves = in_full(activity).split(self.count)
            parts = (self._gathered(halves[0]), self._gathered(halves[1]))
        positive, negative = (goodness(part.flatten(0, 1)) for part in parts)
        return goodness_loss(positive, negative, self.thresholds[i], self.penalty[i])

    def _is_linear_pair(self, i: int) -> bool:
        """Whether the activity of stage i's pairs is the sum of those of its images."""
        return i not in self.carried and self.splits[i] is not None

    def _images(self, h: Tensor) -> int:
        return self.count

    def enter(self, h0: Tensor) -> Tensor:
        """The images; pairs are made stage by stage."""
        self.count = len(h0)
        return h0

    def _gathered(self, rows: Tensor) -> Tensor:
        """(V * B, ...) of this process -> (V, B of all processes, ...)."""
        return collectives.all_gather(rows.unflatten(0, (self.views, -1)), dim=1)

    def _partner(self, rows: Tensor, shift: int) -> Tensor:
        """Of each row of this process, the row of the image ``shift`` places before in the batch; no gradient."""
        share = len(rows) // self.views
        everyone = self._gathered(rows.detach()).roll(shift, 1)
        return everyone[:, collectives.rank() * share :][:, :share].flatten(0, 1)

    def _draw(self, share: int) -> int:
        """A shift of the batch, from 1 to one less than its images, that all processes share."""
        images = share * collectives.world_size()
        if images < 2:
            raise ConfigError("learner=scff makes negatives of two images: batch_size must be at least 2")
        return int(collectives.broadcast(torch.randint(1, images, ())))
