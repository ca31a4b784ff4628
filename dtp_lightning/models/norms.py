"""Normalisation of activations, an option of every network."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import nn

Norm = Literal["none", "batch", "group", "layer"]


def norms(channels: int, norm: Norm) -> list[nn.Module]:
    """The layers that normalise activations (N, channels, H, W): one, or none.

    ``batch``: over images and pixels, each channel apart (Ioffe and Szegedy 2015). ``group``: over the channels of a
    group and pixels, each image apart; 32 groups, or as many as give every group two channels and divide ``channels``
    (Wu and He 2018). ``layer``: the same with one group (Ba et al. 2016, gain and bias a channel).

    >>> norms(64, "group"), norms(6, "none")
    ([GroupNorm(32, 64, eps=1e-05, affine=True, bias=True)], [])
    >>> norms(6, "group")
    [GroupNorm(1, 6, eps=1e-05, affine=True, bias=True)]
    """
    if norm == "none":
        return []
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    return [nn.GroupNorm(gcd(32, channels // 2, channels) if norm == "group" else 1, channels)]
