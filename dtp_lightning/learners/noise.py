"""Noise of the shape of activations, which would take a third of a target-propagation step by ``randn_like``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

STREAMS = 4
LARGE = 2**21  # elements; below, threads cost more time than they save


def normal_like(x: Tensor) -> Tensor:
    """Standard normal noise of x's shape and memory layout, the same for any number of threads.

    Drawn into the flat memory: ``randn_like`` draws one number at a time for channels-last tensors. On the CPU torch
    draws on one core, so noise of more than ``LARGE`` elements is drawn in ``STREAMS`` parts, by generators that
    torch's global one seeds.

    >>> _ = torch.manual_seed(0)
    >>> noise = normal_like(torch.empty(4, 3, 8, 8).to(memory_format=torch.channels_last))
    >>> noise.shape, noise.is_contiguous(memory_format=torch.channels_last)
    (torch.Size([4, 3, 8, 8]), True)
    """
    noise = torch.empty_like(x)
    flat = noise.as_strided((noise.numel(),), (1,))
    if x.device.type != "cpu" or len(flat) < LARGE:
        flat.normal_()
        return noise
    seeds = torch.randint(2**62, (STREAMS,)).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    parts = flat.tensor_split(STREAMS)
    workers = min(STREAMS, torch.get_num_threads())
    if workers == 1:
        for part, generator in zip(parts, generators, strict=True):
            part.normal_(generator=generator)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda part, generator: part.normal_(generator=generator), parts, generators))
    return noise


def add_tiled(x: Tensor, rows: Tensor) -> Tensor:
    """Sum of x (N, ...) and rows (G, ...), row n modulo G for row n, in x's memory layout; one pass if G divides N.

    >>> add_tiled(torch.zeros(5, 1), torch.tensor([[1.0], [2.0]])).flatten()
    tensor([1., 2., 1., 2., 1.])
    """
    total = torch.empty_like(x)
    if len(x) % len(rows):
        return torch.add(x, tiled(rows, len(x)), out=total)
    groups = (-1, len(rows))
    torch.add(x.unflatten(0, groups), rows, out=total.unflatten(0, groups))
    return total


def tiled(rows: Tensor, count: int) -> Tensor:
    """(G, ...) -> (count, ...), row n is row n modulo G."""
    return rows if len(rows) == count else torch.cat([rows] * -(-count // len(rows)))[:count]
