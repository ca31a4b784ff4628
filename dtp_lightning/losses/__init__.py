"""Objectives: ``forward(z0, z1)``, both (B, D), to a scalar. To add one: a file here, a YAML file in conf/loss/.

A new one derives from :class:`Objective`. The supervised controls have ``supervised = True`` and are called with
(logits, labels) instead.
"""

from dtp_lightning.losses.clapp import ClappHinge
from dtp_lightning.losses.from_lightly import DCL, BarlowTwins, VICReg
from dtp_lightning.losses.hinge import ContrastiveHinge
from dtp_lightning.losses.l1 import L1Objective, sums_of_signs
from dtp_lightning.losses.l1_margin import L1Margin
from dtp_lightning.losses.objective import Objective, as_objective
from dtp_lightning.losses.positive_only import PositiveOnly
from dtp_lightning.losses.relative_hinge import RelativeHinge
from dtp_lightning.losses.supervised import CrossEntropy, MulticlassHinge

__all__ = [
    "DCL",
    "BarlowTwins",
    "ClappHinge",
    "ContrastiveHinge",
    "CrossEntropy",
    "L1Margin",
    "L1Objective",
    "MulticlassHinge",
    "Objective",
    "PositiveOnly",
    "RelativeHinge",
    "VICReg",
    "as_objective",
    "sums_of_signs",
]
