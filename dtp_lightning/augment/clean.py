"""No augmentation, for supervised controls."""

from __future__ import annotations

from torch import Tensor, nn


class CleanView(nn.Module):
    """The image itself as its only view."""

    views = 1

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) in 0..255 -> views (1, B, C, H, W), float in [0, 1]."""
        return images[None].float() / 255
