"""Residual networks whose stages are the stem and the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.errors import ConfigError
from dtp_lightning.models.block_feedback import BlockFeedback
from dtp_lightning.models.blocks import ResidualBlock
from dtp_lightning.models.feedback_maps import activation_named
from dtp_lightning.models.heads import Projector, head_of
from dtp_lightning.models.network import Network, shapes_of
from dtp_lightning.models.norms import Norm, norms
from dtp_lightning.models.stage import Stage


def resnet(
    images: ImageSpec,
    *,
    channels: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (64, 128, 256, 512),
    blocks: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (2, 2, 2, 2),
    stem: Literal["cifar", "imagenet"] = "cifar",
    norm: Norm = "batch",
    activation: str = "ReLU",
    feedback: BlockFeedback = "transposable",
    embedding_dim: PositiveInt = 64,
    head_activation: str = "Identity",
    projector: Projector = (),
    projector_norm: Literal["none", "batch"] = "batch",
    classes: int | None = None,
) -> Network:
    """Residual network of basic blocks (He et al. 2016): the stem is stage 1, every block is a stage.

    The defaults are ResNet-18, whose weights are torchvision's in number (11.2 million with another stem) and
    distribution. The last stage includes the mean over the pixels, so features are its channels.

    Args:
        images: size, channels and normalisation of the images.
        channels: of the blocks of each group; the first block of all groups but the first has stride 2.
        blocks: of each group.
        stem: ``cifar`` is a 3x3 convolution of stride 1; ``imagenet`` 7x7 of stride 2 and a max-pool of stride 2.
        norm: after every convolution, see :func:`~dtp_lightning.models.norms.norms`; ``none`` gives them biases.
        activation: a class of torch.nn.
        feedback: of target rules: ``transposable``, the transpose of a block with weights of its own
            (:class:`~dtp_lightning.models.block_feedback.BlockTranspose`), or ``decoder``.
        embedding_dim, head_activation, classes: see :func:`~dtp_lightning.models.conv_net`.
        projector, projector_norm: of the head, see :func:`~dtp_lightning.models.heads.head_of`.

    Raises:
        ConfigError: channels and blocks differ in length.
    """
    if len(channels) != len(blocks):
        raise ConfigError(
            f"model.blocks has {len(blocks)} entries for {len(channels)} of model.channels: give one each"
        )
    act = activation_named(activation)
    kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
    layers = [*_conv(images.channels, channels[0], norm, kernel, stride), act()]
    maps: list[nn.Module] = [nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if stem == "imagenet" else []))]
    below = channels[0]
    for group, (width, count) in enumerate(zip(channels, blocks, strict=True)):
        for block in range(count):
            stride = 2 if group and not block else 1
            main = nn.Sequential(*_conv(below, width, norm, 3, stride), act(), *_conv(width, width, norm, 3))
            same = stride == 1 and below == width
            shortcut = nn.Sequential(*([] if same else _conv(below, width, norm, 1, stride)))
            maps.append(ResidualBlock(main, shortcut, act()))
            below = width
    maps[-1] = nn.Sequential(maps[-1], nn.AdaptiveAvgPool2d(1))
    if norm != "none":
        for layer in nn.ModuleList(maps).modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
    head = {"activation": head_activation, "projector": projector, "norm": projector_norm, "classes": classes}
    return network_of(maps, images, feedback, embedding_dim, head)


def network_of(
    maps: Sequence[nn.Module], images: ImageSpec, feedback: BlockFeedback, embedding_dim: int, head: Mapping[str, Any]
) -> Network:
    """A network whose stages are these maps, under a head; rules that use feedback maps add them.

    Args:
        maps: f_1, ..., f_L.
        images: size, channels and normalisation of the images.
        feedback: see :class:`~dtp_lightning.models.Network`.
        embedding_dim: D.
        head: further arguments of :func:`~dtp_lightning.models.heads.head_of`.
    """
    stages = [Stage(forward_map) for forward_map in maps]
    shapes = shapes_of(stages, images)
    top = head_of(prod(shapes[-1]), embedding_dim, **head)
    network = Network(stages, top, mean=images.mean, std=images.std, shapes=shapes, feedback=feedback)
    return network.to(memory_format=torch.channels_last)


def _conv(below: int, here: int, norm: Norm, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(below, here, kernel, stride, kernel // 2, bias=norm == "none")
    return [conv, *norms(here, norm)]
