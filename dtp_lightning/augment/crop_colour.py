"""Views by crop, mirror, colour, blur and solarisation, batched on the device; probabilities may differ by view."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from dtp_lightning.augment.colour import luminance, random_jitter, random_solarise
from dtp_lightning.augment.constants import constant
from dtp_lightning.augment.geometry import random_blur, random_flip, random_resized_crop
from dtp_lightning.augment.views import Probability
from dtp_lightning.data.images import ImageSpec

Area = Annotated[float, Field(gt=0, le=1)]
HueShift = Annotated[float, Field(ge=0, le=0.5)]


class CropColourViews(nn.Module):
    """Random crop, mirror, colour jitter, grey, blur, solarise, with independent parameters for each image and view.

    The defaults are solo-learn's for CIFAR-10 (scripts/pretrain/cifar/augmentations/asymmetric.yaml, first view).
    There is no mirroring where it changes the meaning, and no change of colour of grey images. Interpolation is
    bilinear (solo-learn: bicubic) and the jitter has a fixed order: see the functions in geometry.py and colour.py.

    Args:
        images: size and kind of the input.
        scale: range of the crop's area, as a fraction of the image.
        ratio: range of the crop's width over height.
        flip: probability of mirroring, where the data set allows it.
        brightness, contrast, saturation: half-ranges of the jitter's factors; 0.4 is U(0.6, 1.4).
        hue: half-range of its hue shift, in turns.
        jitter: probability of colour jitter.
        grey: probability of dropping colour.
        blur: probability of Gaussian blur.
        sigma: range of the blur's standard deviation, in pixels.
        solarise: probability of inverting the pixels of 128/255 and above; one for all views, or one each.
        views: V; 2 for contrastive losses, supervised losses accept 1.

    Raises:
        ValueError: a range is not [low, high], or ``solarise`` has not one entry a view.
    """

    def __init__(
        self,
        images: ImageSpec,
        scale: tuple[Area, Area] = (0.08, 1.0),
        ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
        brightness: NonNegativeFloat = 0.4,
        contrast: NonNegativeFloat = 0.4,
        saturation: NonNegativeFloat = 0.2,
        hue: HueShift = 0.1,
        jitter: Probability = 0.8,
        grey: Probability = 0.2,
        blur: Probability = 0.0,
        sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
        solarise: Probability | list[Probability] = 0.0,
        views: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        self.views = views
        for name, (low, high) in (("scale", scale), ("ratio", ratio), ("sigma", sigma)):
            if low > high:
                raise ValueError(f"{name} must be given as [low, high], not {[low, high]}")
        self.scale, self.ratio, self.sigma = (scale[0], scale[1]), (ratio[0], ratio[1]), (sigma[0], sigma[1])
        self.solarise = [solarise] * views if isinstance(solarise, int | float) else list(solarise)
        if len(self.solarise) != views:
            raise ValueError(
                f"solarise has {len(self.solarise)} entries for {views} views: give one for all, or one each"
            )
        self.flip = flip if images.mirror_safe else 0.0
        self.factors = (brightness, contrast, saturation, hue)
        self.jitter, self.grey, self.blur = jitter, grey, blur
        self.colour = images.channels == 3

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> views (V, B, C, H, W), float in [0, 1], by torch's global generator."""
        x = images.repeat(self.views, 1, 1, 1).float() / 255
        x = random_resized_crop(x, self.scale, self.ratio)
        if self.flip:
            x = random_flip(x, self.flip)
        if self.colour:
            x = torch.where(self._bernoulli(x, self.jitter), random_jitter(x, *self.factors), x)
            x = torch.where(self._bernoulli(x, self.grey), luminance(x), x)
        if self.blur:
            x = random_blur(x, self.blur, self.sigma)
        if self.colour and any(self.solarise):
            x = random_solarise(x, constant(self.solarise, x).repeat_interleave(len(images)))
        return x.unflatten(0, (self.views, -1))

    @staticmethod
    def _bernoulli(x: Tensor, probability: float) -> Tensor:
        """A Bernoulli draw for each image, bool (N, 1, 1, 1)."""
        return torch.rand(len(x), 1, 1, 1, device=x.device) < probability
