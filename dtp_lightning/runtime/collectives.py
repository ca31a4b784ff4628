"""Collective operations of data-parallel training: each process has an equal part of the batch.

Every process computes the objective of the *whole* batch from the gathered embeddings, since a contrastive loss needs
all negatives. Its displacements are therefore those of the whole batch, and weight gradients are summed over the
processes. Losses that are means over the images of one process (feedback training) are averaged instead.

With one process, or without an initialised torch.distributed, every function returns its argument unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_force_single_process = False


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Context in which this process computes alone: the functions of this module do not communicate."""
    global _force_single_process
    previous, _force_single_process = _force_single_process, True
    try:
        yield
    finally:
        _force_single_process = previous


def world_size() -> int:
    """Number of processes that share a batch; 1 inside :func:`single_process`."""
    distributed = not _force_single_process and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if distributed else 1


def rank() -> int:
    """Place of this process among those that share a batch, counted from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(tensor: Tensor, dim: int = 0) -> Tensor:
    """Concatenate the tensors of all processes along ``dim``; only this process' own tensor has a gradient.

    Args:
        tensor: of the same shape in every process.
        dim: the dimension of the batch.
    """
    size = world_size()
    if size == 1:
        return tensor
    local = tensor.detach().contiguous()
    gathered = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(gathered, local)
    gathered[dist.get_rank()] = tensor
    return torch.cat(gathered, dim)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes; all must have gradients for the same parameters."""
    _reduce([p.grad for p in parameters if p.grad is not None], average=False)


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; all must have gradients for the same parameters."""
    _reduce([p.grad for p in parameters if p.grad is not None], average=True)


def mean_scalars(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each scalar over the processes; all must have the same names in the same order."""
    if world_size() == 1 or not values:
        return values
    stacked = torch.stack([value.detach() for value in values.values()])
    _reduce([stacked], average=True)
    return dict(zip(values, stacked, strict=True))


def broadcast(tensor: Tensor) -> Tensor:
    """The tensor of rank 0, in every process; for random numbers that all processes must share."""
    if world_size() == 1:
        return tensor
    local = tensor.detach().contiguous()
    if dist.get_backend() == dist.Backend.NCCL:  # transfers GPU tensors only
        local = local.cuda()
    dist.broadcast(local, src=0)
    return local


@torch.no_grad()
def _reduce(tensors: Sequence[Tensor], *, average: bool) -> None:
    """Sum or average the tensors over the processes, in place, in one all-reduce."""
    size = world_size()
    if size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    if average:
        flat /= size
    chunks = flat.split([tensor.numel() for tensor in tensors])
    for tensor, chunk in zip(tensors, chunks, strict=True):
        tensor.copy_(chunk.view_as(tensor))
