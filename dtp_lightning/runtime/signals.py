"""SIGTERM (how clusters end a job), SIGUSR1 (how they announce it) and Ctrl-C: training saves before it leaves.

Only light imports here: the command line handles signals before anything else is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked this process to end. No Exception: what carries on after an error must not swallow it.

    Args:
        signum: of the signal.

    Attributes:
        command: how to go on, if that is known.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.command: str | None = None

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells count: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.signum


received: int | None = None  # within raising(): number of the signal that came, whatever became of its exception


def _raise(signum: int, frame: object) -> None:
    global received
    received = signum
    raise Interrupted(signum)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within: a signal raises :class:`Interrupted` where the program happens to be.

    Somebody else's code may swallow it there (an import that is tried in ``except BaseException``, a C function that
    clears errors) or make another error of it: :func:`check` at the seams, and :func:`insisted`, bring it back.
    """
    global received
    received = None
    before = _install(_raise)
    try:
        yield
    finally:
        _restore(before)
        received = None


def check() -> None:
    """Leave now, if a signal came and its exception was lost.

    Raises:
        Interrupted: so it was.
    """
    if received is not None:
        raise Interrupted(received)


@contextlib.contextmanager
def insisted() -> Iterator[None]:
    """Within: an error that a signal was turned into is the :class:`Interrupted` that it was."""
    check()
    try:
        yield
    except Exception as error:
        if received is not None:
            raise Interrupted(received) from error
        raise


def ignore_signals(worker: int = 0) -> None:
    """For processes that serve this one: a signal to the whole group must not end them before their master saved."""
    _install(signal.SIG_IGN)


class Deferred:
    """Signals that wait until it is safe to leave; a second one does not wait.

    Attributes:
        received: number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        """Take signals from now on (in the main thread only: elsewhere Python has no handlers).

        Raises:
            Interrupted: one came before, and its exception was lost.
        """
        check()
        self._before = _install(self._note)

    def stop(self) -> None:
        """Give them back to whoever had them."""
        _restore(self._before)
        self._before = {}

    def _note(self, signum: int, frame: object) -> None:
        if self.received is not None:
            raise Interrupted(signum)
        self.received = signum
        name = signal.Signals(signum).name
        # not print: a handler may run in the middle of another one's write to the same buffer
        os.write(2, f"\n{name}: saving after this batch, then leaving (once more: leaving at once)\n".encode())


def _install(handler: Callable[..., Any] | signal.Handlers) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in SIGNALS}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: it was not Python that set it
            signal.signal(number, handler)
