"""Memory that a run asks for in vain: how much this machine has, and one line in place of the allocator's traceback."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from dtp_lightning.errors import RunError

GIB = 2**30
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands, of both versions of control groups."""
ADVICE = "choose fewer model.channels, or a smaller batch_size"


def machine_memory() -> int | None:
    """Bytes of memory that processes here may have together; None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int(path.read_text()))
    return min(found, default=None)


@contextlib.contextmanager
def shortage_named() -> Iterator[None]:
    """Within: what cannot be allocated, on the CPU or on a GPU, is one line.

    Raises:
        RunError: in place of the allocator's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        asked = re.search(r"allocate (\d+) bytes", text)
        size = f" for {int(asked[1]) / GIB:.0f} GiB at once" if asked else ""
        raise RunError(f"not enough memory{size}: {ADVICE}") from error
