"""No augmentation: for supervised controls on images as they are."""

from __future__ import annotations

from torch import Tensor, nn


class CleanView(nn.Module):
    """One view, the image itself."""

    views = 1

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> (1, B, C, H, W), float in [0, 1]."""
        return images[None].float() / 255
