"""Colour jitter of a batch of RGB images in [0, 1]; each image has its own random parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from dtp_lightning.augment.constants import constant


def random_saturation_hue(images: Tensor, saturation: float, hue: float) -> Tensor:
    """Scale each image's HSV saturation by 2^U(-saturation, saturation), shift its hue by U(-hue, hue).

    Source: thesis code (saturation 2, hue 0.1). The thesis code used pixels in [-1, 1],
    for which HSV is not defined, and turned a hue that rounded to 1 to black; here pixels are in [0, 1] and hue wraps.

    Hue and saturation of HSV are linear in RGB once the maximum is fixed: with value v = max and chroma
    c = v - min, each channel is v - c * k(h). Only h and c change, v stays.

    Args:
        images: (N, 3, H, W) in [0, 1].
        saturation: half-range of the exponent, in octaves.
        hue: half-range of the shift, in turns (1 is the full circle).

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    n = len(images)
    factor = torch.empty(n, 1, 1, device=images.device).uniform_(-saturation, saturation).exp2()
    shift = torch.empty(n, 1, 1, device=images.device).uniform_(-hue, hue)
    return scale_saturation_shift_hue(images, factor, shift)


def scale_saturation_shift_hue(images: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Multiply the HSV saturation (at most 1) of each image by its factor and shift its hue.

    Args:
        images: (N, 3, H, W) in [0, 1].
        factor: of the saturation, (N, 1, 1).
        shift: of the hue, in turns, (N, 1, 1).

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    value = images.amax(1)
    chroma = value - images.amin(1)
    sextant = _hue_in_sextants(images, value, chroma).add_(6 * shift).remainder_(6)
    # saturation = chroma / value is capped at 1
    chroma = torch.minimum(chroma * factor, value)
    output = torch.empty_like(images)
    for channel, (opposite, sign) in enumerate(((3, -1), (2, 1), (4, 1))):
        absent = (sextant - opposite).abs_().mul_(sign)  # fraction of the chroma that this channel lacks
        absent.add_(2 if sign < 0 else -1).clamp_(0, 1)
        torch.sub(value, absent.mul_(chroma), out=output[:, channel])
    return output


def _hue_in_sextants(images: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """HSV hue (N, H, W) in [-1, 5]; 0 for grey pixels.

    Sums of products with 0 and 1 are faster than ``torch.where``, which mispredicts branches where pixels alternate.
    """
    red, green, blue = images.unbind(1)
    most_red = (value == red).to(value.dtype)
    most_green = (value == green).to(value.dtype).mul_(1 - most_red)
    most_blue = 1 - most_red - most_green
    difference = (green - blue).mul_(most_red).addcmul_(blue - red, most_green).addcmul_(red - green, most_blue)
    return difference.div_(chroma.clamp(min=1e-12)).add_(most_green, alpha=2).add_(most_blue, alpha=4)


def random_jitter(images: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Torchvision's ColorJitter for a batch: factors of each image from U(1 - x, 1 + x), hue shift from U(-hue, hue).

    The order is always brightness, contrast, saturation, hue; torchvision's order is random.

    Args:
        images: (N, 3, H, W) in [0, 1].
        brightness, contrast, saturation: half-ranges of the factors.
        hue: half-range of the shift, in turns.

    Returns:
        (N, 3, H, W) in [0, 1].
    """

    def factor(half_range: float) -> Tensor:
        low = max(0.0, 1 - half_range)
        return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, 1 + half_range)

    x = (images * factor(brightness)).clamp_(0, 1)
    mean = luminance(x).mean((-2, -1), keepdim=True)
    x = torch.lerp(mean.expand_as(x), x, factor(contrast).expand_as(x)).clamp_(0, 1)
    x = torch.lerp(luminance(x).expand_as(x), x, factor(saturation).expand_as(x)).clamp_(0, 1)
    shift = torch.empty(len(images), 1, 1, device=images.device).uniform_(-hue, hue)
    return scale_saturation_shift_hue(x, torch.ones_like(shift), shift)


def luminance(images: Tensor) -> Tensor:
    """ITU-R 601 luma of RGB images, (N, 3, H, W) -> (N, 1, H, W)."""
    weights = constant([0.299, 0.587, 0.114], images)
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


SOLARISE_THRESHOLD = 128 / 255
"""Of a pixel in [0, 1]: Pillow's and solo-learn's threshold, 128 of 255."""


def random_solarise(images: Tensor, probability: Tensor) -> Tensor:
    """Invert every value of an image that is at or above the threshold, with this probability (Grill et al. 2020).

    Args:
        images: (N, C, H, W) in [0, 1].
        probability: of each image, (N,).

    Returns:
        (N, C, H, W) in [0, 1].
    """
    chosen = torch.rand(len(images), device=images.device) < probability
    return torch.where(chosen[:, None, None, None] & (images >= SOLARISE_THRESHOLD), 1 - images, images)
