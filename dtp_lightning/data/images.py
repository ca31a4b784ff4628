"""Labelled and unlabelled images, split once and for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.errors import DataError

UNKNOWN = -1  # the label of an image that has none


@dataclass(frozen=True)
class ImageSpec:
    """What a network or an augmentation must know of the images it will meet.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        height, width: in pixels.
        mirror_safe: whether a mirrored image keeps its meaning (photographs yes, digits and letters no).
        mean, std: what a network subtracts from and divides pixels in [0, 1] by.
    """

    channels: int
    height: int
    width: int
    mirror_safe: bool
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> ImageSpec:
        """From what ``dataclasses.asdict`` made of one, as a checkpoint holds it.

        Raises:
            DataError: something is missing, or more than enough.
        """
        try:
            return cls(**numbers)
        except TypeError as error:
            raise DataError(f"{dict(numbers)} does not describe images: {error}") from error


class Images(Protocol):
    """uint8 images (N, C, H, W) in 0..255: a tensor, or something that reads them from disk when they are asked for."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Tensor:
        """The images at a slice or at positions (M,), as a tensor."""


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) in 0..K-1, or -1 where there is none."""

    images: Images
    labels: Tensor

    @classmethod
    def unlabelled(cls, images: Images) -> Split:
        """Images alone."""
        return cls(images, torch.full((len(images),), UNKNOWN))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Size of the images in memory."""
        return len(self) * int(torch.tensor(self.images.shape[1:]).prod())

    def at(self, index: Tensor) -> Split:
        """The images and labels at these positions (M,), in memory."""
        return Split(self.images[index], self.labels[index])

    def subset(self, size: int) -> Split:
        """At most ``size`` of them, evenly spaced, in memory."""
        return self.at(torch.linspace(0, len(self) - 1, min(size, len(self))).long())

    def in_memory(self) -> Split:
        """All of them, read once."""
        return self if isinstance(self.images, Tensor) else Split(self.images[:], self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        train: fits probes, and pre-trains (its labels unseen) unless there is ``unlabelled``.
        val: makes every choice.
        test: read once, at the end.
        classes: their names; empty for a data set without any labels.
        mirror_safe, mean, std: see :class:`ImageSpec`.
        unlabelled: images that pre-train instead of ``train``.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mirror_safe: bool
    mean: float = 0.0
    std: float = 1.0
    unlabelled: Split | None = None

    @property
    def spec(self) -> ImageSpec:
        """Size and kind of these images."""
        channels, height, width = self.train.images.shape[1:]
        return ImageSpec(channels, height, width, self.mirror_safe, self.mean, self.std)

    def pretraining(self, supervised: bool = False) -> Split:
        """What a learner sees: the unlabelled images where there are any, and ``train`` if it needs labels.

        Raises:
            DataError: labels are needed and there are none.
        """
        if supervised and not self.classes:
            raise DataError("a supervised loss needs labels, and this data set has none: choose a contrastive loss")
        return self.train if supervised or self.unlabelled is None else self.unlabelled

    def in_memory(self) -> ImageData:
        """The same with all images read."""
        train, val, test = (split.in_memory() for split in (self.train, self.val, self.test))
        unlabelled = None if self.unlabelled is None else self.unlabelled.in_memory()
        return replace(self, train=train, val=val, test=test, unlabelled=unlabelled)

    def like(self, spec: ImageSpec) -> ImageData:
        """The same images in the size and the channels that an encoder was made for: what transfer needs."""
        ours = self.spec
        if (ours.channels, ours.height, ours.width) == (spec.channels, spec.height, spec.width):
            return self
        train, val, test = (Split(Converted(s.images, spec), s.labels) for s in (self.train, self.val, self.test))
        return ImageData(train, val, test, self.classes, self.mirror_safe, spec.mean, spec.std)


class Converted:
    """Images resized (bilinear, antialiased) and with grey spread over, or averaged from, the colours."""

    def __init__(self, images: Images, spec: ImageSpec) -> None:
        self.images = images
        self.spec = spec
        self.shape = (len(images), spec.channels, spec.height, spec.width)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Tensor:
        x = self.images[index].float()
        if x.shape[1] != self.spec.channels:
            x = x.mean(1, keepdim=True).expand(-1, self.spec.channels, -1, -1)
        size = (self.spec.height, self.spec.width)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x.round().clamp(0, 255).to(torch.uint8)


def stratified(labels: Tensor, per_class: list[int], seed: int) -> list[Tensor]:
    """Positions of disjoint random subsets that hold ``per_class[k]`` images of every class each.

    Args:
        labels: (N,) class numbers.
        per_class: size of each subset, in images a class.
        seed: of the draw; the same seed always gives the same split.

    Returns:
        One sorted tensor of positions for each entry of per_class.

    Raises:
        ValueError: a class has too few images.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in per_class]
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < sum(per_class):
            raise ValueError(f"class {int(label)} has {len(members)} images, {sum(per_class)} were asked for")
        shuffled = members[torch.randperm(len(members), generator=generator)]
        for part, chosen in zip(parts, shuffled.split([*per_class, len(members) - sum(per_class)]), strict=False):
            part.append(chosen)
    return [torch.cat(part).sort().values for part in parts]
