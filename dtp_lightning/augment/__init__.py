"""Augmentations: uint8 images (B, C, H, W) to views (V, B, C, H, W) in [0, 1], random for each image."""

from dtp_lightning.augment.clean import CleanView
from dtp_lightning.augment.crop_colour import CropColourViews
from dtp_lightning.augment.multi_crop import MultiCropViews
from dtp_lightning.augment.simclr import SimCLRViews
from dtp_lightning.augment.views import AffineColourViews

__all__ = ["AffineColourViews", "CleanView", "CropColourViews", "MultiCropViews", "SimCLRViews"]
