"""One learner in several processes, each with its share of the batch: what they must tell each other.

Every process computes the objective of the *whole* batch, from the embeddings of all (a contrastive loss needs all
negatives), so its displacements are already those of the whole; weight gradients are the sums of what the shares
give. Losses that are means over a process' own images (feedback training) are averaged instead.

With one process, or where torch.distributed was not set up, every function returns at once what it was given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_single = False


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """What happens inside concerns this process only: nobody is asked, nobody is waited for."""
    global _single
    before, _single = _single, True
    try:
        yield
    finally:
        _single = before


def world_size() -> int:
    """How many processes share a batch."""
    together = not _single and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def all_gather(share: Tensor, dim: int = 0) -> Tensor:
    """The shares of all processes, one after another along ``dim``; gradients reach this process' own alone.

    Args:
        share: of the same shape in every process.
        dim: the batch's dimension.
    """
    count = world_size()
    if count == 1:
        return share
    sent = share.detach().contiguous()
    shares = [torch.empty_like(sent) for _ in range(count)]
    dist.all_gather(shares, sent)
    shares[dist.get_rank()] = share
    return torch.cat(shares, dim)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes; all must have gradients for the same parameters."""
    _reduce([p.grad for p in parameters if p.grad is not None], average=False)


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; all must have gradients for the same parameters."""
    _reduce([p.grad for p in parameters if p.grad is not None], average=True)


def mean_scalars(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each scalar's mean over the processes; all must have the same names in the same order."""
    if world_size() == 1 or not values:
        return values
    stacked = torch.stack([value.detach() for value in values.values()])
    _reduce([stacked], average=True)
    return dict(zip(values, stacked, strict=True))


def broadcast(tensor: Tensor) -> Tensor:
    """The first process' tensor, in every process: for draws that all must share."""
    if world_size() == 1:
        return tensor
    sent = tensor.detach().contiguous()
    if dist.get_backend() == dist.Backend.NCCL:  # speaks of GPU tensors only
        sent = sent.cuda()
    dist.broadcast(sent, src=0)
    return sent


@torch.no_grad()
def _reduce(tensors: Sequence[Tensor], *, average: bool) -> None:
    """In place, in one message."""
    count = world_size()
    if count == 1 or not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(message)
    if average:
        message /= count
    parts = message.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
