"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from dtp_lightning.data.images import ImageSpec
from dtp_lightning.models.feedback_maps import activation_named
from dtp_lightning.models.heads import Projector, head_of
from dtp_lightning.models.network import Network, shapes_of
from dtp_lightning.models.norms import Norm, norms
from dtp_lightning.models.stage import Stage, conv_stage


def mlp(
    images: ImageSpec,
    *,
    widths: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (512, 256, 128),
    norm: Norm = "none",
    activation: str = "Tanh",
    feedback: Literal["strided", "unpool", "transposable"] = "transposable",
    embedding_dim: PositiveInt = 64,
    head_activation: str = "Tanh",
    projector: Projector = (),
    projector_norm: Literal["none", "batch"] = "batch",
    classes: int | None = None,
) -> Network:
    """Fully connected layers, each a stage, whose activations are (N, width, 1, 1).

    Written as convolutions, the first with the kernel of a whole image and the others 1x1, which is the same arithmetic
    and the same distribution of initial weights: so every rule and every feedback map of :func:`conv_net` fits.

    Args:
        images: size, channels and normalisation of the images.
        widths: units of each layer; one stage each.
        norm: before the activation, see :func:`~dtp_lightning.models.norms.norms`.
        activation: of every stage, a class of torch.nn.
        feedback: see :func:`~dtp_lightning.models.stage.conv_stage`; with a kernel of one pixel ``strided`` and
            ``unpool`` are the same.
        embedding_dim, head_activation, classes: see :func:`~dtp_lightning.models.conv_net`.
        projector, projector_norm: of the head, see :func:`~dtp_lightning.models.heads.head_of`.

    >>> network = mlp(ImageSpec(1, 28, 28, mirror_safe=False), widths=[20, 10])
    >>> [tuple(h.shape) for h in network.activations(torch.rand(5, 1, 28, 28))]
    [(5, 20, 1, 1), (5, 10, 1, 1)]
    """
    whole = nn.Conv2d(images.channels, widths[0], (images.height, images.width), bias=norm == "none")
    stages = [Stage(nn.Sequential(whole, *norms(widths[0], norm), activation_named(activation)()))]
    for below, here in pairwise(widths):
        kind = {"activation": activation, "activation_below": activation, "feedback": feedback, "norm": norm}
        stages.append(conv_stage(below, here, kernel_size=1, pool=1, **kind))  # type: ignore[arg-type]
    head = head_of(
        widths[-1], embedding_dim, activation=head_activation, projector=projector, norm=projector_norm, classes=classes
    )
    network = Network(stages, head, mean=images.mean, std=images.std, shapes=shapes_of(stages, images))
    return network.to(memory_format=torch.channels_last)
