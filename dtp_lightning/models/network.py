"""A backbone of stages and the projection head on top."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dtp_lightning.data.images import Images, ImageSpec
from dtp_lightning.errors import ConfigError
from dtp_lightning.models.stage import Stage, conv_stage


class Network(nn.Module):
    """Images -> stages 1..L -> head.

    Images arrive in [0, 1]; the network itself normalises them, so that training, probes and an exported
    encoder can never disagree about it.

    Args:
        stages: h_i = f_i(h_{i-1}), h_0 the normalised image.
        head: projection head, takes h_L and returns the embedding z (N, D), or a supervised control's logits.
        mean, std: subtracted from and divided into every pixel; 0.5, 0.5 maps [0, 1] to [-1, 1].
    """

    stages: Sequence[Stage]

    def __init__(self, stages: Sequence[Stage], head: nn.Module, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.head = head
        self.mean = mean
        self.std = std

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> h_0, same shape, channels last (the layout that convolutions are fastest in)."""
        return images.to(memory_format=torch.channels_last).sub(self.mean).div_(self.std)

    def activations(self, images: Tensor, up_to: int | None = None) -> list[Tensor]:
        """[h_1, ..., h_L] of images (N, C, H, W) in [0, 1]; only the first ``up_to`` of them if it is given."""
        h = self.normalise(images)
        hs = []
        for stage in self.stages[:up_to]:
            h = stage(h)
            hs.append(h)
        return hs

    def features(self, images: Tensor) -> Tensor:
        """What the probes read: h_L flattened, (N, F), of images (N, C, H, W) in [0, 1]."""
        return self.activations(images)[-1].flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings z (N, D) of images (N, C, H, W) in [0, 1]."""
        return self.head(self.activations(images)[-1])


def conv_net(
    images: ImageSpec,
    *,
    channels: Sequence[int] = (32, 64, 128, 256),
    kernel_size: int = 3,
    pool: int = 2,
    embedding_dim: int = 64,
    classes: int | None = None,
) -> Network:
    """Stages of convolution + max-pool + tanh under a linear + tanh head; the defaults are the thesis network.

    Source: thesis code (454,016 forward and 387,296 feedback parameters at 32 x 32 x 3).

    Args:
        images: size, channels and normalisation of what comes in.
        channels: of each stage's output; one stage each.
        kernel_size, pool: of every stage, in pixels.
        embedding_dim: D, size of the embedding that the objective sees.
        classes: for a supervised control: a linear head gives so many logits instead of an embedding. The stages
            start from the same weights either way.

    Raises:
        ConfigError: the image is smaller than the poolings need.
    """
    height, width = images.height, images.width
    widths = [images.channels, *channels]
    stages = []
    for i, (below, here) in enumerate(pairwise(widths)):
        height, width = height // pool, width // pool
        stages.append(conv_stage(below, here, kernel_size=kernel_size, pool=pool, feedback=i > 0))
    if min(height, width) < 1:
        raise ConfigError(
            f"images of {images.height} x {images.width} pixels are too small for {len(channels)} poolings by {pool}: "
            f"at least {pool ** len(channels)} x {pool ** len(channels)} is needed; shorten model.channels"
        )
    features = channels[-1] * height * width
    head = (
        nn.Sequential(nn.Flatten(), nn.Linear(features, embedding_dim), nn.Tanh())
        if classes is None
        else nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    )
    return Network(stages, head, mean=images.mean, std=images.std).to(memory_format=torch.channels_last)


def freeze(network: Network) -> Network:
    """Evaluation mode, no gradients; returns the same object."""
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features_of(network: Network, images: Images, batch_size: int = 1000) -> Tensor:
    """Features (N, F) on the CPU, in float32, of uint8 images (N, C, H, W), computed batch by batch."""
    device = next(network.parameters()).device
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return torch.cat([network.features(b.to(device).float() / 255).float().cpu() for b in batches])
