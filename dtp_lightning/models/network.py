"""A backbone of stages under a projection head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from dtp_lightning.data.images import Images, ImageSpec
from dtp_lightning.errors import ConfigError
from dtp_lightning.models.block_feedback import BlockFeedback, block_feedback
from dtp_lightning.models.heads import Projector, head_of
from dtp_lightning.models.norms import Norm
from dtp_lightning.models.stage import Stage, conv_stage
from dtp_lightning.runtime.signals import guard


class Network(nn.Module):
    """Images -> stages 1..L -> head.

    Images are in [0, 1]. The network itself normalises them, so that training, probes and an exported encoder use the
    same normalisation.

    Args:
        stages: h_i = f_i(h_{i-1}), h_0 the normalised image.
        head: projection head, takes h_L and returns the embedding z (N, D), or a supervised control's logits.
        mean, std: every pixel x becomes (x - mean) / std; 0.5, 0.5 maps [0, 1] to [-1, 1].
        shapes: (C, H, W) of h_1, ..., h_L at the image size that the head was made for. Learners need it that own
            feedback to single stages, or heads of stages.
        feedback: kind of the feedback maps of stages that were built without one, see :meth:`complete_feedback`.

    >>> from dtp_lightning.data import ImageSpec
    >>> network = conv_net(ImageSpec(1, 28, 28, mirror_safe=False), channels=[8, 16], embedding_dim=10)
    >>> images = torch.rand(5, 1, 28, 28)
    >>> [tuple(h.shape) for h in network.activations(images)]
    [(5, 8, 14, 14), (5, 16, 7, 7)]
    >>> network(images).shape, network.features(images).shape
    (torch.Size([5, 10]), torch.Size([5, 784]))
    """

    stages: Sequence[Stage]

    def __init__(
        self,
        stages: Sequence[Stage],
        head: nn.Module,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        shapes: Sequence[tuple[int, ...]] = (),
        feedback: BlockFeedback | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.head = head
        self.mean = mean
        self.std = std
        self.shapes = list(shapes)
        self.feedback = feedback

    def complete_feedback(self) -> None:
        """Give stages their feedback maps, for a rule that uses them, where they were built without.

        Networks of blocks are: a rule without feedback maps can then train blocks whose transpose nobody knows.

        Raises:
            ConfigError: ``transposable``, and the transpose of a stage is not known.
        """
        if self.feedback is None:
            return
        for stage, below, above in zip(list(self.stages)[1:], self.shapes, self.shapes[1:], strict=False):
            if stage.feedback_map is None:
                stage.feedback_map = block_feedback(stage.forward_map, self.feedback, above, below)
                stage.feedback_map.to(memory_format=torch.channels_last)

    @property
    def embedding_dim(self) -> int:
        """D, the number of outputs of the head's last linear layer."""
        return [layer.out_features for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1]

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> h_0, same shape, channels last (the layout that convolutions are fastest in)."""
        return images.to(memory_format=torch.channels_last).sub(self.mean).div_(self.std)

    def activations(self, images: Tensor) -> list[Tensor]:
        """[h_1, ..., h_L] of images (N, C, H, W) in [0, 1]."""
        h = self.normalise(images)
        hs = []
        for stage in self.stages:
            h = stage(h)
            hs.append(h)
        return hs

    def features(self, images: Tensor) -> Tensor:
        """Features (N, F) for probes: h_L flattened, of images (N, C, H, W) in [0, 1]."""
        return self.activations(images)[-1].flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings z (N, D) of images (N, C, H, W) in [0, 1]."""
        return self.head(self.activations(images)[-1])


def conv_net(
    images: ImageSpec,
    *,
    channels: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (32, 64, 128, 256),
    kernel_size: PositiveInt = 3,
    stride: PositiveInt | Sequence[PositiveInt] = 1,
    pool: PositiveInt | Sequence[PositiveInt] = 2,
    pooling: Literal["max", "average"] = "max",
    feedback: Literal["strided", "unpool", "transposable"] = "strided",
    activation: str | Sequence[str] = "Tanh",
    embedding_dim: PositiveInt = 64,
    head_activation: str = "Tanh",
    bias: bool = True,
    norm: Norm = "none",
    projector: Projector = (),
    projector_norm: Literal["none", "batch"] = "batch",
    classes: int | None = None,
) -> Network:
    """Stages of convolution + max-pool + activation under a linear head; the defaults are the thesis network.

    Source: thesis code (454,016 forward and 387,296 feedback parameters at 32 x 32 x 3).

    Args:
        images: size, channels and normalisation of the images.
        channels: of each stage's output; one stage each.
        kernel_size: of every stage, in pixels.
        stride: of the convolutions, in pixels; one for all stages, or one each.
        pool: window and stride of the pooling, in pixels; one for all stages, or one each (1 for none).
        pooling: ``max`` or ``average``.
        feedback: ``strided``, ``unpool`` or ``transposable``, see :func:`conv_stage`.
        activation: a class of torch.nn, one for all stages or one each.
        embedding_dim: D, size of the embedding that the objective sees.
        head_activation: of the head.
        bias: whether stages and head have biases.
        norm: between convolution and pooling, see :func:`conv_stage`.
        projector, projector_norm: of the head, see :func:`~dtp_lightning.models.heads.head_of`.
        classes: K, for a supervised control: a linear head gives K logits instead of an embedding. The stages have the
            same initial weights either way.

    Raises:
        ConfigError: the image is smaller than the poolings need, or a list has not one entry a stage.
        ValueError: see :func:`conv_stage`.
    """
    count = len(channels)
    strides, pools = each_stage("stride", stride, count), each_stage("pool", pool, count)
    activations = each_stage("activation", activation, count)
    _check_size(images, strides, pools)
    stages = []
    for i, (below, here) in enumerate(pairwise([images.channels, *channels])):
        stages.append(
            conv_stage(
                below, here, kernel_size=kernel_size, stride=strides[i], pool=pools[i], pooling=pooling, bias=bias,
                activation=activations[i], activation_below=activations[i - 1], feedback=feedback if i else None,
                norm=norm,
            )
        )  # fmt: skip
    shapes = shapes_of(stages, images)
    head = head_of(
        prod(shapes[-1]), embedding_dim, activation=head_activation, bias=bias, projector=projector,
        norm=projector_norm, classes=classes,
    )  # fmt: skip
    network = Network(stages, head, mean=images.mean, std=images.std, shapes=shapes)
    return network.to(memory_format=torch.channels_last)


def _check_size(images: ImageSpec, strides: Sequence[int], pools: Sequence[int]) -> None:
    height, width = images.height, images.width
    for stride, pool in zip(strides, pools, strict=True):
        height, width = (-(-side // stride) // pool for side in (height, width))
    if min(height, width) < 1:
        raise ConfigError(
            f"images of {images.height} x {images.width} pixels are too small for poolings by {pools}: "
            f"at least {prod(pools)} x {prod(pools)} is needed; shorten model.channels"
        )


@torch.no_grad()
def shapes_of(stages: Sequence[Stage], images: ImageSpec) -> list[tuple[int, ...]]:
    """(C, H, W) of h_1, ..., h_L, from a forward pass of one image that no running statistics see."""
    h = torch.zeros(1, images.channels, images.height, images.width)
    shapes = []
    for stage in stages:
        h = stage.eval()(h)
        stage.train()
        shapes.append(tuple(h.shape[1:]))
    return shapes


def each_stage(name: str, value: Any, stages: int) -> list[Any]:
    """One value a stage."""
    if isinstance(value, int | float | str):
        return [value] * stages
    if len(value) != stages:
        raise ConfigError(f"model.{name} has {len(value)} entries for {stages} stages: give one for all, or one each")
    return list(value)


def freeze(network: Network) -> Network:
    """Evaluation mode, no gradients; returns the same object."""
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features_of(network: Network, images: Images, batch_size: int = 1000) -> Tensor:
    """Features (N, F) on the CPU, in float32, of uint8 images (N, C, H, W).

    In evaluation mode: batch norms use their running statistics, so that an image's features depend on no other.

    Args:
        network: left in the mode that it was in.
        images: uint8 in 0..255.
        batch_size: images a forward pass.
    """
    device, training = next(network.parameters()).device, network.training
    features: Tensor | None = None
    network.eval()
    try:
        for start in guard.checked(range(0, len(images), batch_size)):
            rows = network.features(images[start : start + batch_size].to(device).float() / 255)
            if features is None:  # filled row by row: wide features of many images fit the memory once, not twice
                features = torch.empty(len(images), rows.shape[1])
            features[start : start + batch_size] = rows
    finally:
        network.train(training)
    return torch.empty(0, 0) if features is None else features
