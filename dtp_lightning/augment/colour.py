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
