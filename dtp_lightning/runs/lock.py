"""One process at a time works in a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dtp_lightning.errors import ConfigError

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within: no other process enters this for the same folder. The system frees the lock however the process ends.

    Raises:
        ConfigError: another process is within.
    """
    path = folder / NAME
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another process is at work in {folder}: wait for it, or choose another") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is at work in a folder."""
    try:
        with locked(folder):
            return False
    except ConfigError:
        return True
