"""Geometric deformations of a batch on its device; every image gets its own draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def random_affine(images: Tensor, strength: float, shift: float, padding: str = "border", flip: float = 0.0) -> Tensor:
    """Warp every image by its own full affine map theta = I + u, u ~ U(-strength, strength).

    The translation column is drawn from U(-shift, shift) in half-widths. Bilinear.
    Source: thesis code (strength 0.25, shift 0.5).

    Args:
        images: (N, C, H, W).
        strength: half-range of the four linear coefficients (no unit).
        shift: half-range of the two translations, in half image widths (0.5 is 8 pixels of 32).
        padding: ``border`` (thesis) or ``zeros`` (paper code) beyond the image.
        flip: probability of mirroring the warped image left-right, which costs nothing here.
    """
    noise = torch.empty(len(images), 2, 3, device=images.device, dtype=images.dtype).uniform_(-1, 1)
    scale = images.new_tensor([strength, strength, shift])
    theta = torch.eye(2, 3, device=images.device, dtype=images.dtype) + noise * scale
    if flip:
        theta[:, :, 0] *= torch.where(_mirrored(images, flip), -1.0, 1.0)[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def random_resized_crop(images: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Cut a rectangle of random area and shape out of each image and scale it to the image's own size.

    The law of torchvision's RandomResizedCrop (area share U(scale), aspect log-uniform in ratio), but sides
    longer than the image are cut to it instead of drawn again, and the bilinear interpolation has no antialias.

    Args:
        images: (N, C, H, W).
        scale: range of the area, as a share of the image's.
        ratio: range of width over height.
    """
    n, (height, width) = len(images), images.shape[-2:]
    draw = torch.rand(4, n, device=images.device, dtype=images.dtype)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draw[1]).exp()
    sx = ((area * aspect).sqrt() / width).clamp(max=1)
    sy = ((area / aspect).sqrt() / height).clamp(max=1)
    theta = images.new_zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sx, sy
    theta[:, 0, 2] = (1 - sx) * (2 * draw[2] - 1)
    theta[:, 1, 2] = (1 - sy) * (2 * draw[3] - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_flip(images: Tensor, probability: float) -> Tensor:
    """Mirror each image left-right with this probability; (N, C, H, W) -> the same."""
    return torch.where(_mirrored(images, probability)[:, None, None, None], images.flip(-1), images)


def _mirrored(images: Tensor, probability: float) -> Tensor:
    return torch.rand(len(images), device=images.device) < probability


def random_blur(images: Tensor, probability: float, sigma: tuple[float, float]) -> Tensor:
    """Gaussian blur of each image with this probability, its width drawn from U(sigma), border padded.

    The kernel reaches 5 % of the shorter side to each side, at least one pixel (Chen et al. 2020: 10 % of the
    image as kernel size).

    Args:
        images: (N, C, H, W).
        probability: of blurring an image.
        sigma: range of the standard deviation, in pixels.
    """
    n, channels = images.shape[:2]
    reach = max(1, round(0.05 * min(images.shape[-2:])))
    width = torch.empty(n, 1, device=images.device, dtype=images.dtype).uniform_(*sigma)
    offset = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-(offset**2) / (2 * width**2), 1)
    untouched = (offset == 0).to(images.dtype).expand_as(kernel)
    blurred = torch.rand(n, 1, device=images.device) < probability
    kernel = torch.where(blurred, kernel, untouched).repeat_interleave(channels, 0)
    x = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * channels)
    return x[0].unflatten(0, (n, channels))
