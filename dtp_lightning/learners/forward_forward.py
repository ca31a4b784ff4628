"""The forward-forward algorithm: two forward passes, one of real images and one of made-up ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.errors import ConfigError
from dtp_lightning.learners.base import OptimizerFactory
from dtp_lightning.learners.forward_only import ForwardOnly, in_full, of_each_stage
from dtp_lightning.learners.goodness import GoodnessOf, goodness, goodness_loss
from dtp_lightning.models.network import Network
from dtp_lightning.runtime import collectives


class ForwardForward(ForwardOnly):
    """Every stage makes its goodness high on images and low on hybrids of two images.

    Source: Hinton (2022), sections 2 and 3.1: p(real) = sigmoid(G - theta); a hybrid is one image where a mask of large
    regions is 1, and another where it is 0. Between stages the length of the activity must be taken away, which is the
    network's part (:func:`~dtp_lightning.models.forward_only_net`).

    Args:
        model, loss, forward_optimizer, epochs: see :class:`ForwardOnly`.
        threshold: theta, of the mean square of the activity; one for all stages or one each.
        of: whether the goodness is of the whole ``layer`` (Hinton) or of each ``place``.
        blurs: of the random bits that a mask is made from, by [1/4, 1/2, 1/4] in both directions.

    Raises:
        ConfigError: a list has not one entry a stage.

    >>> from functools import partial
    >>> from dtp_lightning.data import ImageSpec
    >>> from dtp_lightning.losses import ContrastiveHinge
    >>> from dtp_lightning.models import forward_only_net
    >>> model = forward_only_net(ImageSpec(1, 16, 16, mirror_safe=False), channels=[4, 4, 6], embedding_dim=4)
    >>> ff = ForwardForward(model, ContrastiveHinge(), partial(torch.optim.Adam, lr=0.01))
    >>> sorted(ff.step(torch.rand(2, 5, 1, 16, 16)))
    ['head_loss', 'local_loss/stage1', 'local_loss/stage2', 'local_loss/stage3', 'loss']
    """

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        forward_optimizer: OptimizerFactory,
        threshold: float | Sequence[float] = 2.0,
        of: GoodnessOf = "layer",
        blurs: NonNegativeInt = 6,
        epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, loss, forward_optimizer, epochs)
        self.threshold = of_each_stage("threshold", threshold, model)
        self.of: GoodnessOf = of
        self.blurs = blurs

    def enter(self, h0: Tensor) -> Tensor:
        """The images, and as many hybrids behind them."""
        everyone = collectives.all_gather(h0.unflatten(0, (self.views, -1)), dim=1)
        views, images = everyone.shape[:2]
        if images < 2:
            raise ConfigError("learner=forward_forward makes negatives of two images: batch_size must be at least 2")
        shift = int(collectives.broadcast(torch.randint(1, images, ())))
        bits = collectives.broadcast(torch.rand(views, images, 1, *h0.shape[2:])).to(h0.device)
        masks = masks_of(bits.flatten(0, 1), self.blurs).unflatten(0, (views, images))
        hybrids = torch.where(masks, everyone, everyone.roll(shift, 1))
        share = images // collectives.world_size()
        own = hybrids[:, collectives.rank() * share :][:, :share].flatten(0, 1)
        return torch.cat([h0, own]).to(memory_format=torch.channels_last)

    def local_loss(self, i: int, activity: Tensor) -> Tensor:
        """Of the goodness of images and hybrids."""
        halves = [half.unflatten(0, (self.views, -1)) for half in in_full(activity).chunk(2)]
        real, hybrid = (goodness(collectives.all_gather(half, dim=1).flatten(0, 1), self.of) for half in halves)
        return goodness_loss(real, hybrid, (self.threshold[i], self.threshold[i]))

    def _images(self, h: Tensor) -> int:
        return len(h) // 2


def masks_of(noise: Tensor, blurs: int) -> Tensor:
    """Masks (N, 1, H, W) of large regions, bool: random bits, blurred again and again, above one half.

    Args:
        noise: uniform in [0, 1], (N, 1, H, W).
        blurs: how often.

    >>> masks_of(torch.tensor([[[[0.9, 0.8, 0.7, 0.1]]]]), blurs=1).tolist()
    [[[[True, True, True, False]]]]
    """
    mask = (noise > 0.5).float()
    for _ in range(blurs):
        for dim, pad in ((-1, (1, 1, 0, 0)), (-2, (0, 0, 1, 1))):
            wide, size = F.pad(mask, pad, mode="replicate"), mask.shape[dim]
            mask = (wide.narrow(dim, 0, size) + 2 * mask + wide.narrow(dim, 2, size)) / 4
    return mask > 0.5
