"""Colour jitter of a batch of RGB images in [0, 1]; every image gets its own draw."""

from __future__ import annotations

import torch
from torch import Tensor


def random_saturation_hue(images: Tensor, saturation: float, hue: float) -> Tensor:
    """Scale each image's HSV saturation by 2^U(-saturation, saturation), shift its hue by U(-hue, hue).

    Source: thesis code (saturation 2, hue 0.1). There it ran on pixels in [-1, 1],
    where HSV means nothing, and a hue that rounded to 1 came out black; here pixels are in [0, 1] and hue wraps.

    Hue and saturation of HSV are linear in RGB once the maximum is fixed: with value v = max and chroma
    c = v - min, each channel is v - c * k(h). Only h and c change, v stays.

    Args:
        images: (N, 3, H, W) in [0, 1].
        saturation: half-range of the exponent, in octaves.
        hue: half-range of the shift, in turns (1 is the full circle).
    """
    n = len(images)
    factor = torch.empty(n, 1, 1, device=images.device).uniform_(-saturation, saturation).exp2()
    shift = torch.empty(n, 1, 1, device=images.device).uniform_(-hue, hue)
    return scale_saturation_shift_hue(images, factor, shift)


def scale_saturation_shift_hue(images: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Multiply HSV saturation (capped at 1) and turn the hue, each image by its own amount.

    Args:
        images: (N, 3, H, W) in [0, 1].
        factor: of the saturation, (N, 1, 1).
        shift: of the hue, in turns, (N, 1, 1).
    """
    value = images.amax(1)
    chroma = value - images.amin(1)
    sextant = (_hue_in_sextants(images, value, chroma) + 6 * shift) % 6
    # saturation = chroma / value is capped at 1
    chroma = torch.minimum(chroma * factor, value)
    channels = []
    for offset in (5, 3, 1):
        k = (sextant + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _hue_in_sextants(images: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """HSV hue (N, H, W) in [-1, 5]; 0 for grey pixels."""
    red, green, blue = images.unbind(1)
    safe = chroma.clamp(min=1e-12)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return torch.where(chroma > 0, hue, 0.0)


def random_jitter(images: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Torchvision's ColorJitter for a batch: each image's own factors from U(1 - x, 1 + x), hue from U(-hue, hue).

    Always in the order brightness, contrast, saturation, hue (torchvision draws the order too).

    Args:
        images: (N, 3, H, W) in [0, 1].
        brightness, contrast, saturation: half-ranges of the factors.
        hue: half-range of the shift, in turns.
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
    weights = images.new_tensor([0.299, 0.587, 0.114])
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]
