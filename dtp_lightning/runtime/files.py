"""How files reach the disk: under a name there is always a whole file, the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(
    path: Path, content: str | bytes | memoryview, *, previous: Path | None = None, shared: bool = False
) -> None:
    """Write beside the name, and take the name once all is on disk.

    Args:
        path: of the file; its folder is made if need be.
        content: text is written as UTF-8.
        previous: what stood under ``path`` takes this name.
        shared: other processes may write this file at the same time, which no lock keeps them from.

    Raises:
        OSError: the disk is full, for example; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if previous is not None and path.exists():
        os.replace(path, previous)
    os.replace(partial, path)
