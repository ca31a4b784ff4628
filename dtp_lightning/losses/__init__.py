"""Objectives: ``forward(z0, z1)``, both (B, D), to a scalar. To add one: a file here, a YAML file in conf/loss/."""

from dtp_lightning.losses.from_lightly import DCL, BarlowTwins, VICReg
from dtp_lightning.losses.hinge import ContrastiveHinge
from dtp_lightning.losses.l1 import L1Objective, sum_of_signs
from dtp_lightning.losses.l1_margin import L1Margin
from dtp_lightning.losses.positive_only import PositiveOnly

__all__ = [
    "DCL",
    "BarlowTwins",
    "ContrastiveHinge",
    "L1Margin",
    "L1Objective",
    "PositiveOnly",
    "VICReg",
    "sum_of_signs",
]
