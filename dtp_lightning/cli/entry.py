"""The command line around Hydra: one clear line for a user's mistake, a traceback for ours.

Only light imports here, so that ``--help`` and tab completion answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import logging
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from dtp_lightning.cli import advice
from dtp_lightning.cli.words import check, options_first, plain_or_quoted, word_of_hydra
from dtp_lightning.errors import SecretError, UserError
from dtp_lightning.runtime import allocator
from dtp_lightning.runtime.signals import Interrupted, guard

FULL_ERROR = "HYDRA_FULL_ERROR"  # a user sets it to 1 to see tracebacks
_traceback_wanted = os.environ.get(FULL_ERROR) == "1"
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


@dataclass(frozen=True)
class CommandLine:
    """What was typed, and what Hydra is given for it.

    Attributes:
        program: the words that name the command, as they would be typed again: ``("dtp", "train")``.
        words: the rest.
        verb: what comes between ``sys.argv[0]`` and the words when another process is to do the same.
        hydra: words for Hydra alone, before the others.
    """

    program: Sequence[str]
    words: Sequence[str]
    verb: Sequence[str] = ()
    hydra: Sequence[str] = ()


_typed: CommandLine | None = None  # of this process; a launcher's workers have none


def run(task: Callable[[], object], config_name: str, line: CommandLine) -> None:
    """Run a ``hydra.main`` function; print a mistake of the user's as one line and exit with 2.

    Args:
        task: decorated by ``hydra.main``; its body goes through :func:`job`.
        config_name: of the configuration, to look up the right spelling of a wrong key.
        line: what was typed.
    """
    global _typed
    logging.raiseExceptions = _traceback_wanted  # a log file on a full disk is not worth a traceback
    os.environ[FULL_ERROR] = "1"  # Hydra then raises instead of printing advice of its own
    try:
        words = [word_of_hydra(word) for word in line.words]
        check(words)
        _typed = replace(line, words=words)
        sys.argv[1:] = [*line.hydra, *options_first(words)]
        if {"--help", "-h"} & {*words}:
            _help(task, config_name)
        with guard.collect():
            task()
            _close_sweep()
            guard.check()
    except Interrupted as stopped:
        _leave(stopped)
    except Exception as error:
        _close_sweep()
        message = _explain(error, config_name)
        if message is None or _traceback_wanted:
            raise
        stop(message)


def _help(task: Callable[[], object], config_name: str) -> NoReturn:
    """What Hydra says to ``--help``, and behind each key what its YAML file says of it."""
    from hydra.core.hydra_config import HydraConfig

    from dtp_lightning.cli.help import annotated

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        task()
    print(annotated(told.getvalue(), config_name, HydraConfig.get().runtime.choices), end="", flush=True)
    sys.exit(0)


def _close_sweep() -> None:
    """Let a sweep say how it ended, whether all its jobs went well or not."""
    sweep = sys.modules.get("dtp_lightning.cli.sweep")  # loaded by Hydra if there is one
    if sweep is not None and sweep.running is not None:
        with guard.collect():
            sweep.running.finish()


def job(body: Callable[[], object], *, resumable: bool = False) -> object:
    """Run one job's body; in a plain run a mistake of the user's ends the program here, with one line.

    In a multirun the error goes on to Hydra, which names the job, runs the others and fails at the end. A signal ends
    both; where the program is ``resumable``, with the command that goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if _typed is not None:  # Lightning starts a run's other processes by this command line
        sys.argv[1:] = [*_typed.verb, *_typed.words]
    allocator.keep_freed_memory()
    try:
        with guard.collect():
            guard.check()
            returned = body()
            guard.check()
            return returned
    except Interrupted as stopped:
        if resumable:
            hydra = HydraConfig.get()
            alone = hydra.mode is RunMode.RUN
            key, folder = ("hydra.run.dir", hydra.runtime.output_dir) if alone else ("hydra.sweep.dir", hydra.sweep.dir)
            stopped.command = _command(key, str(Path(hydra.runtime.cwd, folder)))
        raise
    except (UserError, OSError) as error:
        if isinstance(error, SecretError):  # Hydra has written the configuration down before anyone could look at it
            shutil.rmtree(Path(HydraConfig.get().runtime.output_dir) / ".hydra", ignore_errors=True)
        message = _one_line(error) if isinstance(error, UserError) else _forbidden(error)
        if message is None or HydraConfig.get().mode is not RunMode.RUN or _traceback_wanted:
            raise
        stop(message)
    finally:
        # a trainer and its module hold each other, and the images: a multirun would keep those of several jobs
        gc.collect()


def load() -> None:
    """Import what is heavy; a signal waits for one of these at most."""
    for module in guard.checked(("torch", "torchvision", "pytorch_lightning", "dtp_lightning.pipeline")):
        importlib.import_module(module)
    guard.check()


def _command(key: str, folder: str) -> str | None:
    """This program's own command line, made to go on in a folder."""
    if _typed is None:
        return None
    words = [word for word in _typed.words if word.partition("=")[0] not in ("resume", key)]
    return shlex.join([*_typed.program, *words, "resume=true", f"{key}={plain_or_quoted(folder)}"])


def _leave(stopped: Interrupted) -> NoReturn:
    """What was stopped by a signal says how to go on."""
    _close_sweep()
    advice = f"; to go on: {stopped.command}" if stopped.command else ""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several devices' processes, one speaks
        print(f"{stopped}{advice}", file=sys.stderr, flush=True)
    sys.exit(stopped.exit_code)


def tool(task: Callable[[], object]) -> None:
    """Run a command that Hydra has no part in; a mistake of the user's is one line and exit code 2."""
    try:
        task()
    except Interrupted as stopped:
        _leave(stopped)
    except (UserError, OSError) as error:
        message = _one_line(error) if isinstance(error, UserError) else _forbidden(error)
        if message is None or _traceback_wanted:
            raise
        stop(message)


def _forbidden(error: OSError) -> str | None:
    """One line for a folder that may not be written or read, or made; None for any other error of the system's."""
    frames = traceback.extract_tb(error.__traceback__)
    making = frames[-1].name in ("mkdir", "makedirs") if frames else False  # in /proc "no such file" says so
    if error.filename is None or error.errno is None or not (making or error.errno in FORBIDDEN):
        return None
    return f"{error.filename}: {os.strerror(error.errno).lower()}; hydra.run.dir=... chooses where a run is written"


def _from_the_system(error: BaseException) -> str | None:
    """One line for a folder as :func:`_forbidden`, or for a killed process of a sweep; None for any other error."""
    from concurrent.futures import BrokenExecutor  # joblib's error is one

    if isinstance(error, BrokenExecutor):
        return "a process that ran jobs was killed (the system does so where memory is short): the same command goes on"
    return _forbidden(error) if isinstance(error, OSError) else None


def _one_line(error: Exception) -> str:
    """Its message, without the traceback that torch puts before an error of a data worker."""
    return re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1])


def stop(message: str) -> NoReturn:
    """End the program because of a mistake of the user's."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _explain(error: BaseException, config_name: str) -> str | None:
    """One line for an error that the command line caused; None for any other."""
    from hydra.errors import CompactHydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return _one_line(error)
    text = str(error)
    if isinstance(error, ValueError) and text.startswith("Config group override must be"):
        return "a group takes the name of one of its options, or a list of them; --help lists the options"
    if not isinstance(error, CompactHydraException | OmegaConfBaseException):
        return _from_the_system(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        nearest = advice.nearest_key(match[1], config_name)
        other = "" if "did you mean" in nearest else advice.in_other_options(match[1])
        return f"unknown key '{match[1]}'{other or nearest}"
    if match := re.search(r"Could not (?:find|load) '([^/']+)/([^']*)'", text):
        return advice.nearest_choice(match[1], match[2])
    if match := re.search(r"Cannot find primary config '([^']+)'", text):
        return advice.no_config(match[1])
    if match := re.search(r"Multiple values for (\w+)\.", text):
        return f"{match[1]} has one value already: write {match[1]}=... without the +"
    if "override_grammar" in text:
        match = re.search(r"(?:override|at input) '(.+)'", text)
        word = f"{match[1]}: " if match else ""
        return f"{word}not understood; write key=value, a list as key=[a,b], and quote what has special characters"
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.+)'", text):
        return f"{match[1]}={match[2]}: -m makes a run of each of several values, {match[1]}=[{match[2]}] is a list"
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("full_key"))
