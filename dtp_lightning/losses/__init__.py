"""Objectives: ``forward(z0, z1)``, both (B, D), to a scalar. To add one: a file here, a YAML file in conf/loss/.

A new one derives from :class:`Objective`. The supervised controls have ``supervised = True`` and are called with
(logits, labels) instead; those with a ``target_momentum`` with the embeddings of a target network as well.
"""

from dtp_lightning.losses.clapp import ClappHinge
from dtp_lightning.losses.from_lightly import DCL, BarlowTwins, VICReg
from dtp_lightning.losses.hinge import ContrastiveHinge
from dtp_lightning.losses.l1 import L1Objective, sums_of_signs
from dtp_lightning.losses.l1_margin import L1Margin
from dtp_lightning.losses.lpl import LatentPredictive
from dtp_lightning.losses.objective import Objective, TargetMomentum, as_objective
from dtp_lightning.losses.positive_only import PositiveOnly
from dtp_lightning.losses.predictive import BYOL, SimSiam
from dtp_lightning.losses.relative_hinge import RelativeHinge
from dtp_lightning.losses.supervised import CrossEntropy, MulticlassHinge

__all__ = [
    "BYOL",
    "DCL",
    "BarlowTwins",
    "ClappHinge",
    "ContrastiveHinge",
    "CrossEntropy",
    "L1Margin",
    "L1Objective",
    "LatentPredictive",
    "MulticlassHinge",
    "Objective",
    "PositiveOnly",
    "RelativeHinge",
    "SimSiam",
    "TargetMomentum",
    "VICReg",
    "as_objective",
    "sums_of_signs",
]
