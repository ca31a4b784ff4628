"""Runs without an account: ``dtp board FOLDER... [--page report.html]``.

Opens the page, and W&B's own viewer for the terminal on all W&B runs below the folders.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path


def collect(folders: Sequence[Path]) -> Path | None:
    """One folder with every W&B run below these: the viewer shows a folder, and each of our runs has its own.

    Args:
        folders: run folders, or folders that hold some.

    Returns:
        ``wandb/`` in the first, with links to the others' runs; None where there are no runs.
    """
    gathered = folders[0] / "wandb"
    runs = {log.resolve().parent for folder in folders for log in folder.rglob("wandb/*run-*/run-*.wandb")}
    if not runs:
        return None
    gathered.mkdir(exist_ok=True)
    for link in gathered.glob("*run-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()  # to a run that was deleted
    for run in runs:
        link = gathered / run.name
        if not link.exists():
            link.symlink_to(os.path.relpath(run, gathered.resolve()), target_is_directory=True)
    return gathered


def main() -> None:
    """Show them on a terminal; elsewhere say how."""
    parser = argparse.ArgumentParser(prog="dtp board", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--page", type=Path, help="HTML to open, written by dtp report --html")
    arguments = parser.parse_args()
    wanted = [*arguments.folders, *([arguments.page] if arguments.page else [])]
    if missing := [path for path in wanted if not path.exists()]:
        sys.exit(f"error: {missing[0]} does not exist")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if arguments.page:
        address = arguments.page.resolve().as_uri()
        print(f"page     {address}", flush=True)
        if terminal and has_screen():
            webbrowser.open(address)
    gathered = collect(arguments.folders)
    if gathered is None:
        print(f"no W&B run below {', '.join(map(str, arguments.folders))}: logger=wandb makes them")
        return
    command = [sys.executable, "-m", "wandb", "leet", str(gathered)]
    print(f"terminal {shlex.join(command)}", flush=True)
    if terminal:
        sys.exit(subprocess.call(command))


def has_screen() -> bool:
    """Whether a browser would open a window; over ssh it would take the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))


if __name__ == "__main__":
    main()
