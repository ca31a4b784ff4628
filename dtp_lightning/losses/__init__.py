"""Objectives: ``forward(z0, z1)``, both (B, D), to a scalar. To add one: a file here, a YAML file in conf/loss/."""

from dtp_lightning.losses.hinge import ContrastiveHinge

__all__ = ["ContrastiveHinge"]
