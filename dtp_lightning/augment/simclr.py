"""The views of SimCLR (Chen et al. 2020, appendix A): one strength sets the whole colour jitter."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from dtp_lightning.augment.crop_colour import Area, CropColourViews
from dtp_lightning.augment.views import Probability
from dtp_lightning.data.images import ImageSpec


class SimCLRViews(nn.Module):
    """Random crop, mirror, colour jitter, grey, blur, with independent parameters for each image and view.

    Args:
        strength: s; brightness, contrast, saturation vary by 0.8 s, hue by 0.2 s. The paper takes 0.5 for CIFAR-10;
            solo-learn's script takes 1.
        blur: probability of Gaussian blur (0.5 on ImageNet; 0 on CIFAR-10, as in the paper's appendix B.9).
        images, scale, ratio, flip, jitter, grey, sigma, views: see :class:`CropColourViews`.

    Raises:
        ValueError: a range is not [low, high].
    """

    def __init__(
        self,
        images: ImageSpec,
        scale: tuple[Area, Area] = (0.08, 1.0),
        ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
        strength: NonNegativeFloat = 0.5,
        jitter: Probability = 0.8,
        grey: Probability = 0.2,
        blur: Probability = 0.0,
        sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
        views: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        self.views = views
        s = strength
        self.crop_colour = CropColourViews(
            images, scale, ratio, flip, 0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, jitter, grey, blur, sigma, views=views
        )

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> views (V, B, C, H, W), float in [0, 1], by torch's global generator."""
        views: Tensor = self.crop_colour(images)
        return views
