"""Noise of the size of activations: a large part of a target-propagation step, if one is careless."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

STREAMS = 4
LARGE = 2**21  # numbers; below, one stream is done before others have begun


def normal_like(x: Tensor) -> Tensor:
    """Standard normal noise in x's shape and memory layout, the same for any number of threads.

    Drawn into the flat memory: ``randn_like`` falls back to one number at a time for channels-last tensors, which
    made noise a third of a DTP step. Torch draws on one core of a CPU however many there are, so large noise is drawn
    in ``STREAMS`` parts, by generators that torch's own one seeds.
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
    """Sum of x (N, ...) and rows (G, ...), row n modulo G, in x's memory layout; in one pass if G divides N."""
    moved = torch.empty_like(x)
    if len(x) % len(rows):
        return torch.add(x, tiled(rows, len(x)), out=moved)
    turns = (-1, len(rows))
    torch.add(x.unflatten(0, turns), rows, out=moved.unflatten(0, turns))
    return moved


def tiled(rows: Tensor, count: int) -> Tensor:
    """(G, ...) -> (count, ...), row n is row n modulo G."""
    return rows if len(rows) == count else torch.cat([rows] * -(-count // len(rows)))[:count]
