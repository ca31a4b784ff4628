"""The deformations of the thesis, batched on the device."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from dtp_lightning.augment.colour import random_saturation_hue
from dtp_lightning.augment.geometry import random_affine, random_flip
from dtp_lightning.data.images import ImageSpec

Probability = Annotated[float, Field(ge=0, le=1)]


class AffineColourViews(nn.Module):
    """The thesis' deformations: affine warp, mirror, saturation and hue, with the same distribution for all views.

    There is no mirroring where it changes the meaning (digits, letters), and no colour jitter of grey images.

    Args:
        images: size and kind of the input.
        affine: half-range of the linear coefficients of the warp (no unit).
        shift: half-range of its translation, in half image widths.
        flip: probability of mirroring, where the data set allows it.
        saturation: half-range of the saturation factor's exponent, in octaves.
        hue: half-range of the hue shift, in turns.
        padding: values beyond the image: its border, or zeros.
        deformed: fraction of the images of each view that is warped; the others are only mirrored and recoloured.
        views: V; 2 for contrastive losses, supervised losses accept 1.
    """

    def __init__(
        self,
        images: ImageSpec,
        affine: NonNegativeFloat = 0.25,
        shift: NonNegativeFloat = 0.5,
        flip: Probability = 0.5,
        saturation: NonNegativeFloat = 2.0,
        hue: NonNegativeFloat = 0.1,
        padding: Literal["border", "zeros"] = "border",
        deformed: Probability = 1.0,
        views: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        self.views = views
        self.padding = padding
        self.deformed = deformed
        self.affine = affine
        self.shift = shift
        self.flip = flip if images.mirror_safe else 0.0
        self.saturation, self.hue = (saturation, hue) if images.channels == 3 else (0.0, 0.0)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> views (V, B, C, H, W), float in [0, 1], by torch's global generator."""
        x = images.repeat(self.views, 1, 1, 1).float().div_(255)
        x = self._deform(x, len(images))
        if self.saturation or self.hue:
            x = random_saturation_hue(x, self.saturation, self.hue)
        return x.unflatten(0, (self.views, -1))

    def _deform(self, x: Tensor, batch: int) -> Tensor:
        """Warp all images, or a random subset of each view of exactly the given fraction; then mirror at random."""
        if self.deformed == 1:
            return random_affine(x, self.affine, self.shift, self.padding, self.flip)
        count = round(self.deformed * batch)
        if count:
            subsets = [v * batch + torch.randperm(batch, device=x.device)[:count] for v in range(self.views)]
            index = torch.cat(subsets)
            x[index] = random_affine(x[index], self.affine, self.shift, self.padding)
        return random_flip(x, self.flip) if self.flip else x
