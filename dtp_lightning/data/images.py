"""Images with or without labels, and data sets of fixed train, validation and test splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.errors import DataError

UNKNOWN = -1  # the label of an image without a label


@dataclass(frozen=True)
class ImageSpec:
    """Size and kind of the images that a network or an augmentation takes.

    Attributes:
        channels: C, 1 (grey) or 3 (RGB).
        height, width: in pixels.
        mirror_safe: whether a mirrored image keeps its meaning (photographs yes, digits and letters no).
        mean, std: a network normalises pixels x in [0, 1] to (x - mean) / std.
    """

    channels: int
    height: int
    width: int
    mirror_safe: bool
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ImageSpec:
        """Build one from the dictionary that ``dataclasses.asdict`` gives, as a checkpoint stores it.

        Raises:
            DataError: a field is missing or unknown.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise DataError(f"{dict(fields)} does not describe images: {error}") from error


class Images(Protocol):
    """uint8 images (N, C, H, W) in 0..255: a tensor, or an object that reads them from disk when it is indexed."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Tensor:
        """The images at a slice or at int64 indices (M,), as a tensor (M, C, H, W)."""


@dataclass(frozen=True)
class Split:
    """One split: images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) in 0..K-1, or -1 for an unlabelled image."""

    images: Images
    labels: Tensor

    @classmethod
    def unlabelled(cls, images: Images) -> Split:
        """A split of images without labels."""
        return cls(images, torch.full((len(images),), UNKNOWN))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Size of the images in memory, in bytes."""
        return len(self) * int(torch.tensor(self.images.shape[1:]).prod())

    def select(self, index: Tensor) -> Split:
        """The images and labels at int64 indices (M,), in memory."""
        return Split(self.images[index], self.labels[index])

    def subset(self, size: int) -> Split:
        """At most ``size`` images and labels, evenly spaced over the split, in memory."""
        return self.select(torch.linspace(0, len(self) - 1, min(size, len(self))).long())

    def in_memory(self) -> Split:
        """The same split with its images as one tensor."""
        return self if isinstance(self.images, Tensor) else Split(self.images[:], self.labels)


@dataclass(frozen=True)
class Supervision:
    """The labels of a supervised objective in place of the labels of the splits (see :mod:`dtp_lightning.data.labels`).

    Attributes:
        index: int64 (M,), the images of the train split that make an epoch; an image may recur. None is all, once.
        labels: int64 (M,) in 0..K-1, of these images.
        val_labels: int64 (V,) in 0..K-1, of the validation images.
        classes: names of the K classes.
    """

    index: Tensor | None
    labels: Tensor
    val_labels: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ImageData:
    """A data set: three splits, class names and the normalisation.

    Attributes:
        train: the training set of probes; also of pre-training, without its labels, unless there is ``unlabelled``.
        val: the validation set, on which hyper-parameters are chosen.
        test: the test set, used once, at the end.
        classes: names of the K classes; empty for a data set without labels.
        mirror_safe, mean, std: see :class:`ImageSpec`.
        unlabelled: the pre-training set, if it is not ``train``.
        supervision: labels of a supervised objective, if they are not the labels of ``train`` and ``val``.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mirror_safe: bool
    mean: float = 0.0
    std: float = 1.0
    unlabelled: Split | None = None
    supervision: Supervision | None = None

    @property
    def spec(self) -> ImageSpec:
        """Size and kind of these images."""
        channels, height, width = self.train.images.shape[1:]
        return ImageSpec(channels, height, width, self.mirror_safe, self.mean, self.std)

    def pretraining(self, supervised: bool = False) -> Split:
        """The pre-training set.

        Args:
            supervised: whether the loss needs labels; then it is ``train`` with the labels of ``supervision``, if there
                is one. Else it is ``unlabelled``, or ``train`` where there is none.

        Raises:
            DataError: the loss needs labels and the data set has none.
        """
        if supervised and not self.classes:
            raise DataError("a supervised loss needs labels, and this data set has none: choose a contrastive loss")
        if not supervised:
            return self.train if self.unlabelled is None else self.unlabelled
        if self.supervision is None:
            return self.train
        index, images = self.supervision.index, self.train.images
        return Split(images if index is None else Indexed(images, index), self.supervision.labels)

    @property
    def validation(self) -> Split:
        """The validation images, with the labels of a supervised objective."""
        return self.val if self.supervision is None else replace(self.val, labels=self.supervision.val_labels)

    @property
    def supervised_classes(self) -> tuple[str, ...]:
        """Names of the classes of a supervised objective."""
        return self.classes if self.supervision is None else self.supervision.classes

    def in_memory(self) -> ImageData:
        """The same data set with the images of each split as one tensor."""
        train, val, test = (split.in_memory() for split in (self.train, self.val, self.test))
        unlabelled = None if self.unlabelled is None else self.unlabelled.in_memory()
        return replace(self, train=train, val=val, test=test, unlabelled=unlabelled)

    def like(self, spec: ImageSpec) -> ImageData:
        """The same data set with the image size, channels and normalisation of ``spec``, for transfer."""
        own = self.spec
        if (own.channels, own.height, own.width) == (spec.channels, spec.height, spec.width):
            return self
        train, val, test = (Split(Converted(s.images, spec), s.labels) for s in (self.train, self.val, self.test))
        return ImageData(train, val, test, self.classes, self.mirror_safe, spec.mean, spec.std)


class Indexed:
    """The images at int64 indices (M,), in that order; an image may recur. They are taken when this is indexed."""

    def __init__(self, images: Images, index: Tensor) -> None:
        self.images = images
        self.index = index
        self.shape = (len(index), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Tensor:
        return self.images[self.index[index]]


class Converted:
    """Images in the size (bilinear, antialiased) and number of channels of a spec.

    Grey is copied to all colour channels; colour channels are averaged to grey.
    """

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
    """Indices of disjoint random subsets; subset k holds ``per_class[k]`` images of each class.

    Args:
        labels: (N,) class numbers.
        per_class: size of each subset, in images of each class.
        seed: of the random permutation; a seed always gives the same subsets.

    Returns:
        One sorted int64 tensor of indices for each entry of ``per_class``.

    Raises:
        ValueError: a class has too few images.
    """
    generator = torch.Generator().manual_seed(seed)
    subsets: list[list[Tensor]] = [[] for _ in per_class]
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < sum(per_class):
            raise ValueError(f"class {int(label)} has {len(members)} images, {sum(per_class)} were asked for")
        shuffled = members[torch.randperm(len(members), generator=generator)]
        for subset, index in zip(subsets, shuffled.split([*per_class, len(members) - sum(per_class)]), strict=False):
            subset.append(index)
    return [torch.cat(subset).sort().values for subset in subsets]
