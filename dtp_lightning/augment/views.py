"""Independently deformed views of every image of a batch."""

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
    """The thesis' deformations: affine warp, mirror, saturation and hue; the same law for both views.

    Mirroring is left out where it changes the meaning (digits, letters) and colour jitter where there is none.

    Args:
        images: what will come in.
        affine: half-range of the linear coefficients of the warp.
        shift: half-range of its translation, in half image widths.
        flip: probability of mirroring, where the data set allows it.
        saturation: half-range of the saturation factor's exponent, in octaves.
        hue: half-range of the hue shift, in turns.
        padding: what lies beyond the image: its border, or zeros.
        deformed: share of each view's images that is warped; the others only flip and change colour.
        views: 2 for contrastive losses; supervised ones can do with 1.
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
        """uint8 images (B, C, H, W) -> views (V, B, C, H, W), float in [0, 1], drawn from torch's global generator."""
        x = images.repeat(self.views, 1, 1, 1).float().div_(255)
        x = self._deform(x, len(images))
        if self.saturation or self.hue:
            x = random_saturation_hue(x, self.saturation, self.hue)
        return x.unflatten(0, (self.views, -1))

    def _deform(self, x: Tensor, batch: int) -> Tensor:
        """Warp all images, or exactly the chosen share of each view, drawn anew for every view; mirror some."""
        if self.deformed == 1:
            return random_affine(x, self.affine, self.shift, self.padding, self.flip)
        count = round(self.deformed * batch)
        if count:
            drawn = [v * batch + torch.randperm(batch, device=x.device)[:count] for v in range(self.views)]
            chosen = torch.cat(drawn)
            x[chosen] = random_affine(x[chosen], self.affine, self.shift, self.padding)
        return random_flip(x, self.flip) if self.flip else x
