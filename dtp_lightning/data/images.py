"""Labelled images in memory, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) in 0..K-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def at(self, index: Tensor) -> Split:
        """The images and labels at these positions (M,)."""
        return Split(self.images[index], self.labels[index])

    def thinned(self, size: int) -> Split:
        """At most ``size`` of them, evenly spaced."""
        return self.at(torch.linspace(0, len(self) - 1, min(size, len(self))).long())


@dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        train: pre-trains (its labels unseen) and fits probes.
        val: makes every choice.
        test: read once, at the end.
        classes: their names.
        mirror_safe, mean, std: see :class:`ImageSpec`.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mirror_safe: bool
    mean: float = 0.0
    std: float = 1.0

    @property
    def spec(self) -> ImageSpec:
        """Size and kind of these images."""
        channels, height, width = self.train.images.shape[1:]
        return ImageSpec(channels, height, width, self.mirror_safe, self.mean, self.std)


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
