"""Networks of the forward-forward rules: a stage normalises its input, and shows the activity that it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError
from dtp_lightning.models.feedback_maps import ConvFeedback
from dtp_lightning.models.heads import head_of
from dtp_lightning.models.network import Network, each_stage, shapes_of
from dtp_lightning.models.stage import Stage

PositiveIntPerStage = PositiveInt | Sequence[PositiveInt]


class Standardise(nn.Module):
    """Each image's activations, all channels and places together, to mean 0 and standard deviation 1.

    So the length of the activity below, which is what a forward-forward stage learns, tells the next stage nothing.

    Args:
        centre: False leaves the mean and divides by the root of the mean square (Hinton 2022: by the length).

    >>> x = torch.tensor([[[[3.0, 4.0]]]])
    >>> Standardise(centre=False)(x).square().mean().item()
    1.0
    """

    def __init__(self, centre: bool = True) -> None:
        super().__init__()
        self.centre = centre

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape; an image of one value becomes zeros, or ones without ``centre``."""
        dims = list(range(1, x.ndim))
        if not self.centre:
            return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + 1e-10)
        centred = x - x.mean(dims, keepdim=True)
        count = max(1, prod(x.shape[1:]) - 1)  # as the published code: the unbiased estimate
        return centred * torch.rsqrt(centred.square().sum(dims, keepdim=True) / count + 1e-10)


class Triangle(nn.Module):
    """relu(a_c - mean over channels of a), the activation that Coates et al. (2011) named so.

    >>> Triangle()(torch.tensor([[1.0, 5.0]]))
    tensor([[0., 2.]])
    """

    def forward(self, a: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        return F.relu(a - a.mean(1, keepdim=True))


class Preactivation(nn.Identity):
    """Marks a place among the layers of a stage: what comes here, a_i, is linear in the stage's normalised input.

    Rules that learn from a_i, not from the stage's output, look for it; all others do not notice it.
    """


ACTIVATIONS: dict[str, type[nn.Module]] = {"triangle": Triangle, "relu": nn.ReLU}
POOLINGS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def forward_only_net(
    images: ImageSpec,
    *,
    channels: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (96, 384, 1536),
    kernel_size: PositiveIntPerStage = (5, 3, 3),
    pool: PositiveIntPerStage = (4, 4, 2),
    pool_stride: PositiveIntPerStage = 2,
    pool_padding: NonNegativeInt | Sequence[NonNegativeInt] = (1, 1, 0),
    pooling: Literal["max", "average"] | Sequence[Literal["max", "average"]] = ("max", "max", "average"),
    activation: Literal["triangle", "relu"] | Sequence[Literal["triangle", "relu"]] = ("triangle", "triangle", "relu"),
    norm: Literal["standard", "length"] = "standard",
    padding: Literal["reflect", "zeros"] = "reflect",
    embedding_dim: PositiveInt = 64,
    head_activation: str = "Identity",
    classes: int | None = None,
) -> Network:
    """Stages of padding, normalisation, convolution, activation and pooling under a linear head.

    The defaults are the CIFAR-10 network of SCFF (Chen et al. 2025; config.json of its code). Values that are not one
    for all stages must have one entry a stage.

    Args:
        images: size, channels and normalisation of the images.
        channels: of each stage's output; one stage each.
        kernel_size: odd, in pixels.
        pool, pool_stride, pool_padding: of the pooling, in pixels; sizes are rounded up. ``pool`` 1 is none.
        pooling: ``max`` or ``average``.
        activation: ``triangle`` or ``relu``.
        norm: of each stage's input, an image at a time: ``standard``, or ``length`` (no mean is taken off).
        padding: before the normalisation.
        embedding_dim: D.
        head_activation: of the head.
        classes: K, for a supervised control.

    Raises:
        ConfigError: a kernel is even, the image is too small, or a list has not one entry a stage.
    """
    count = len(channels)
    kernels, pools = each_stage("kernel_size", kernel_size, count), each_stage("pool", pool, count)
    strides, edges = each_stage("pool_stride", pool_stride, count), each_stage("pool_padding", pool_padding, count)
    kinds, acts = each_stage("pooling", pooling, count), each_stage("activation", activation, count)
    stages = []
    for i, (below, here) in enumerate(pairwise([images.channels, *channels])):
        pooled = POOLINGS[kinds[i]](pools[i], strides[i], edges[i], ceil_mode=True) if pools[i] > 1 else None
        stages.append(_stage(below, here, kernels[i], ACTIVATIONS[acts[i]](), pooled, norm, padding, feedback=i > 0))
    try:
        shapes = shapes_of(stages, images)
    except RuntimeError as error:
        raise ConfigError(
            f"images of {images.height} x {images.width} pixels are too small for this network: shorten model.channels"
        ) from error
    head = head_of(prod(shapes[-1]), embedding_dim, activation=head_activation, classes=classes)
    network = Network(stages, head, mean=images.mean, std=images.std, shapes=shapes)
    return network.to(memory_format=torch.channels_last)


def _stage(
    below: int, here: int, kernel: int, activation: nn.Module, pooled: nn.MaxPool2d | nn.AvgPool2d | None,
    norm: Literal["standard", "length"], padding: Literal["reflect", "zeros"], *, feedback: bool,
) -> Stage:  # fmt: skip
    if kernel % 2 == 0:
        raise ConfigError(f"model.kernel_size={kernel} must be odd")
    pad = (nn.ReflectionPad2d if padding == "reflect" else nn.ZeroPad2d)(kernel // 2)
    conv = nn.Conv2d(below, here, kernel)
    nn.init.xavier_uniform_(conv.weight)
    layers = [pad, Standardise(centre=norm == "standard"), conv, Preactivation(), activation]
    step = 1 if pooled is None else int(pooled.stride)  # type: ignore[arg-type]
    reach = max(kernel, step + 1 - step % 2)  # odd, and no place is out of reach
    g = ConvFeedback(here, below, reach, step, activation="ReLU", bias=True) if feedback else None
    return Stage(nn.Sequential(*layers, *([] if pooled is None else [pooled])), g)
