"""Numbers that kernels read, put on a device once: a copy from the host in every batch would wait for the device."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: Iterable[float], like: Tensor) -> Tensor:
    """The values (K,) in the type and on the device of another tensor; shared, so not to be written to.

    >>> constant([1.0, 2.0], torch.zeros(5))
    tensor([1., 2.])
    """
    return _made(tuple(values), like.dtype, like.device)


@lru_cache(64)
def _made(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what validation makes, training reads as well
        return torch.tensor(values, dtype=dtype, device=device)
