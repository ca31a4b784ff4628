"""The network that a network learns from, and that follows it (BYOL; momentum encoder of MoCo)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from dtp_lightning.losses.objective import TargetMomentum
from dtp_lightning.models.stage import Stage


class TargetNetwork(nn.Module):
    """Copies of stages and heads that follow them: xi <- tau xi + (1 - tau) theta, after each batch.

    It serves every learning rule, since it has no gradient: it only says what the embedding of the other view is to be
    like. A batch norm in it has statistics of its own. Its weights and its count of batches are part of the learner's
    state, so that a resumed run goes on where it was.

    Args:
        stages: 1..L of the network, in order. Feedback maps are not copied.
        heads: in order: the network's own, or one for each stage or block of stages.
        on: the stage under each head, counted from 0.
        momentum: course of tau.

    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.models import conv_net
    >>> network = conv_net(ImageSpec(1, 8, 8, mirror_safe=False), channels=[2, 3], embedding_dim=4)
    >>> target = TargetNetwork(network.stages, [network.head], [1], TargetMomentum(0.75))
    >>> before = network.head[1].weight.detach().clone()
    >>> with torch.no_grad():
    ...     _ = network.head[1].weight.add_(1)
    >>> target.follow()
    >>> bool(torch.allclose(target.heads[0][1].weight, before + 0.25))
    True
    """

    def __init__(
        self, stages: Sequence[Stage], heads: Sequence[nn.Module], on: Sequence[int], momentum: TargetMomentum
    ) -> None:
        super().__init__()
        own = [_without_feedback(stage) for stage in stages]
        self.stages = nn.ModuleList(own)
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
        self.requires_grad_(False)
        # what is followed belongs to the learner: in tuples, modules are not registered
        self._followed = (nn.ModuleList([*(stage.forward_map for stage in stages), *heads]),)
        self._following = (nn.ModuleList([*(stage.forward_map for stage in own), *self.heads]),)
        self.on = list(on)
        self.momentum = momentum
        self.batch = 0
        self.batches: int | None = None

    def get_extra_state(self) -> Tensor:
        """Batches seen."""
        return torch.tensor(self.batch)

    def set_extra_state(self, state: Tensor) -> None:
        """From a checkpoint."""
        self.batch = int(state)

    @torch.no_grad()
    def forward(self, h0: Tensor, last: int | None = None) -> list[Tensor]:
        """Embeddings (N, D), one a head, bottom first, of normalised images h_0 (N, C, H, W).

        Args:
            h0: see :meth:`dtp_lightning.models.Network.normalise`.
            last: the highest stage to run, counted from 0; None runs all.
        """
        h = h0.detach()
        embeddings = []
        for i, stage in enumerate(self.stages):
            h = stage(h)
            if i in self.on:
                embeddings.append(self.heads[self.on.index(i)](h))
            if i == last:
                break
        return embeddings

    def follow(self) -> None:
        """Move towards the weights that are followed."""
        update_momentum(self._followed[0], self._following[0], self.momentum.at(self.batch, self.batches))
        self.batch += 1


def _without_feedback(stage: Stage) -> Stage:
    twin = copy.deepcopy(stage)
    twin.feedback_map = None
    return twin
