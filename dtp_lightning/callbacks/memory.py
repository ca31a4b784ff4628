"""Memory of a learning step, counted from the tensors that are alive: it does not depend on the machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Sums the bytes of the storages that operations make, as long as each is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.known:
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    forget = partial(self._forget, storage._cdata, storage.nbytes())
                    self.known[storage._cdata] = weakref.ref(storage, forget)
        return out

    def _forget(self, storage: int, size: int, _: Any) -> None:
        del self.known[storage]
        self.live -= size


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that tensors made during a call take at once: activations, graphs, gradients, optimiser state.

    What was there before counts only if it is made anew; workspaces inside of an operation are not seen.
    """
    with _Live() as memory:
        function()
    return memory.peak
