"""Where things lie: conf/ and sweeps/, in a checkout or in an installed package, and the newest run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from dtp_lightning.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
RUNS = ("outputs", "multirun")
"""Folders that Hydra makes runs in, below the one where ``dtp`` is called."""
LAST = "last"
"""What a command line says for the newest run."""
CHECKPOINT, SUMMARY = "checkpoints/last.ckpt", "summary.json"


def conf() -> Path:
    """The configuration that comes with the program: a wheel carries it inside the package, a checkout beside it."""
    return _shipped("conf")


def sweeps() -> Path:
    """The comparisons that come with the program."""
    return _shipped("sweeps")


def _shipped(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def last_run(having: str, below: Iterable[str] = RUNS) -> Path:
    """The run that wrote most recently, of those below the current folder.

    Args:
        having: what the run must have left: :data:`CHECKPOINT` or :data:`SUMMARY`.
        below: folders to look in.

    Raises:
        ConfigError: there is none.
    """
    ages = [(path.stat().st_mtime, path) for folder in below for path in Path(folder).rglob(having)]
    if not ages:
        folders = " or ".join(f"{folder}/" for folder in below)
        raise ConfigError(
            f"there is no last run: nothing below {folders} in {Path.cwd()} has {having}; dtp train makes one"
        )
    newest = max(ages)[1]
    return newest.parents[having.count("/")]


def newest_folder() -> Path:
    """The folder that a report is probably wanted of: the newest run's sweep, or outputs/ if it was of no sweep.

    Raises:
        ConfigError: there is no finished run.
    """
    run = last_run(SUMMARY)
    return next((folder for folder in run.parents if (folder / "multirun.yaml").exists()), Path(run.parts[0]))


def resolve_last(words: Iterable[str], having: str, options: Iterable[str] = ()) -> list[str]:
    """Command line words with the newest run's folder for each ``last`` that is not the value of an option.

    Args:
        words: of a command.
        having: see :func:`last_run`.
        options: those that take a value, such as ``--title``.
    """
    resolved: list[str] = []
    taken = False  # by the option before it
    for word in words:
        resolved.append(str(last_run(having)) if word == LAST and not taken else word)
        taken = word in options
    return resolved


def comment_of(path: Path) -> list[str]:
    """Lines of the comment that a configuration file begins with, without Hydra's ``@package``."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("#").strip() for line in lines if not line.startswith("# @package")]
