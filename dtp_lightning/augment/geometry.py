"""Geometric deformations of a batch on its device; each image has its own random parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.augment.constants import constant


def random_affine(images: Tensor, strength: float, shift: float, padding: str = "border", flip: float = 0.0) -> Tensor:
    """Warp every image by its own full affine map theta = I + u, u ~ U(-strength, strength).

    The translation column is drawn from U(-shift, shift) in half-widths. Bilinear.
    Source: thesis code (strength 0.25, shift 0.5).

    Args:
        images: (N, C, H, W).
        strength: half-range of the four linear coefficients (no unit).
        shift: half-range of the two translations, in half image widths (0.5 is 8 pixels of 32).
        padding: ``border`` (thesis) or ``zeros`` (paper code) beyond the image.
        flip: probability of mirroring the warped image left-right, at no extra cost, as part of theta.

    Returns:
        (N, C, H, W).
    """
    noise = torch.empty(len(images), 2, 3, device=images.device, dtype=images.dtype).uniform_(-1, 1)
    scale = constant([strength, strength, shift], images)
    theta = torch.eye(2, 3, device=images.device, dtype=images.dtype) + noise * scale
    if flip:
        theta[:, :, 0] *= torch.where(_bernoulli(images, flip), -1.0, 1.0)[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def random_resized_crop(images: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Crop a rectangle of random area and aspect ratio from each image and resize it to the image's size.

    The distribution is that of torchvision's RandomResizedCrop (area fraction from U(scale), aspect ratio log-uniform
    in ratio), except that a side longer than the image is clipped instead of drawn again. Bilinear, no antialiasing.

    Args:
        images: (N, C, H, W).
        scale: range of the area, as a fraction of the image's.
        ratio: range of width over height.

    Returns:
        (N, C, H, W).
    """
    n, (height, width) = len(images), images.shape[-2:]
    u = torch.rand(4, n, device=images.device, dtype=images.dtype)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * u[1]).exp()
    sx = ((area * aspect).sqrt() / width).clamp(max=1)
    sy = ((area / aspect).sqrt() / height).clamp(max=1)
    theta = images.new_zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sx, sy
    theta[:, 0, 2] = (1 - sx) * (2 * u[2] - 1)
    theta[:, 1, 2] = (1 - sy) * (2 * u[3] - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_flip(images: Tensor, probability: float) -> Tensor:
    """Mirror each image left-right with this probability; (N, C, H, W) -> (N, C, H, W)."""
    return torch.where(_bernoulli(images, probability)[:, None, None, None], images.flip(-1), images)


def _bernoulli(images: Tensor, probability: float) -> Tensor:
    """A Bernoulli draw for each image, bool (N,)."""
    return torch.rand(len(images), device=images.device) < probability


def random_blur(images: Tensor, probability: float, sigma: tuple[float, float]) -> Tensor:
    """Blur each image with this probability by a Gaussian of standard deviation U(sigma), with replicate padding.

    The kernel's radius is 5 % of the shorter side, at least one pixel (Chen et al. 2020: the kernel is 10 % of the
    image).

    Args:
        images: (N, C, H, W).
        probability: of blurring an image.
        sigma: range of the standard deviation, in pixels.

    Returns:
        (N, C, H, W).
    """
    n, channels = images.shape[:2]
    radius = max(1, round(0.05 * min(images.shape[-2:])))
    std = torch.empty(n, 1, device=images.device, dtype=images.dtype).uniform_(*sigma)
    offset = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-(offset**2) / (2 * std**2), 1)
    identity = (offset == 0).to(images.dtype).expand_as(kernel)
    blurred = torch.rand(n, 1, device=images.device) < probability
    kernel = torch.where(blurred, kernel, identity).repeat_interleave(channels, 0)
    x = F.pad(images, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * channels)
    return x[0].unflatten(0, (n, channels))
