"""Multi-crop (Caron et al. 2020, SwAV): two large crops of an image and several small ones."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from dtp_lightning.augment.crop_colour import Area
from dtp_lightning.augment.simclr import SimCLRViews
from dtp_lightning.augment.views import Probability
from dtp_lightning.data.images import ImageSpec


class MultiCropViews(nn.Module):
    """Views 0 and 1 are large crops, the others small ones, all with the colours of SimCLR.

    Views travel as one tensor, so a small crop is enlarged to the image's size (SwAV's have fewer pixels): a step
    costs (2 + small) / 2 of one with two views. Objectives of two views are averaged over the pairs with a large crop
    in them, see :func:`~dtp_lightning.losses.objective.over_pairs`.

    Args:
        images: size and kind of the input.
        scale: range of the area of a large crop, as a fraction of the image.
        small_scale: the same of a small crop.
        small: number of small crops.
        ratio, flip, strength, jitter, grey, blur, sigma: see :class:`SimCLRViews`.

    Raises:
        ValueError: a range is not [low, high].
    """

    def __init__(
        self,
        images: ImageSpec,
        scale: tuple[Area, Area] = (0.14, 1.0),
        small_scale: tuple[Area, Area] = (0.05, 0.14),
        small: PositiveInt = 4,
        ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
        strength: NonNegativeFloat = 1.0,
        jitter: Probability = 0.8,
        grey: Probability = 0.2,
        blur: Probability = 0.5,
        sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
    ) -> None:
        super().__init__()
        self.views = 2 + small
        self.large_crops = SimCLRViews(images, scale, ratio, flip, strength, jitter, grey, blur, sigma)
        self.small_crop = SimCLRViews(images, small_scale, ratio, flip, strength, jitter, grey, blur, sigma, views=1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> views (V, B, C, H, W), float in [0, 1], by torch's global generator."""
        return torch.cat([self.large_crops(images), *(self.small_crop(images) for _ in range(self.views - 2))])
