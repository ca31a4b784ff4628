"""One process at a time works in a run folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dtp_lightning.errors import ConfigError

log = logging.getLogger(__name__)

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems answer that have none: NFS mounted with ``nolock``, Lustre without ``flock``."""


@functools.cache
def _warn_once() -> None:
    log.warning("this file system has no locks: do not start a run twice in one folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within: no other process enters this for the same folder. The system frees the lock however the process ends.

    A file system without locks is no reason not to run: that is said once, and nothing is locked. (A file in place of
    a lock would outlive a killed process, and keep the run from being resumed.)

    Raises:
        ConfigError: another process is within.
    """
    path = folder / NAME
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another process is at work in {folder}: wait for it, or choose another") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_once()
        with contextlib.suppress(OSError):
            path.unlink()
        yield
        return
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
