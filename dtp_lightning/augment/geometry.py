"""Geometric deformations of a batch on its device; every image gets its own draw."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_affine(images: Tensor, strength: float, shift: float) -> Tensor:
    """Warp every image by its own full affine map theta = I + u, u ~ U(-strength, strength).

    The translation column is drawn from U(-shift, shift) in half-widths. Bilinear, border padding.
    Source: thesis code (strength 0.25, shift 0.5).

    Args:
        images: (N, C, H, W).
        strength: half-range of the four linear coefficients (no unit).
        shift: half-range of the two translations, in half image widths (0.5 is 8 pixels of 32).
    """
    noise = torch.empty(len(images), 2, 3, device=images.device, dtype=images.dtype).uniform_(-1, 1)
    scale = images.new_tensor([strength, strength, shift])
    theta = torch.eye(2, 3, device=images.device, dtype=images.dtype) + noise * scale
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def random_flip(images: Tensor, probability: float) -> Tensor:
    """Mirror each image left-right with this probability; (N, C, H, W) -> the same."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < probability
    return torch.where(flipped, images.flip(-1), images)
