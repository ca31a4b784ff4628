"""What the C library does with memory that tensors gave back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h
KEPT = -1  # of the top of the heap everything, whatever its size
STEP = 64 * 2**20  # bytes that the heap grows by


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, where the C library is glibc; returns whether it does.

    glibc hands every tensor above 32 MiB straight back to the kernel, which clears each page when it is asked for
    again: a tenth to a fifth of a training step on the CPU. ``DTP_LIGHTNING_KEEP_MEMORY=0`` leaves glibc as it is.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("DTP_LIGHTNING_KEEP_MEMORY") == "0":
        return False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, STEP))
        return all(library.mallopt(name, value) for name, value in settings)
    return False
