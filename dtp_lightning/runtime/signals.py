"""SIGTERM (how clusters end a job), SIGUSR1 (how they announce it) and Ctrl-C: training saves before it leaves.

Only light imports here: the command line handles signals before anything else is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
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


class SignalGuard:
    """What this process does about signals that ask it to end; there is one, :data:`guard`.

    Within ``with guard:`` a signal raises :class:`Interrupted` where the program happens to be. Somebody else's code
    may swallow it there (an import that is tried in ``except BaseException``, a C function that clears errors), or
    make another error of it: :meth:`check` and :meth:`seam` bring it back. Between :meth:`defer` and :meth:`release`
    nothing is raised: the signal is collected, and whoever deferred leaves when it is safe. A second signal does not
    wait.

    Attributes:
        received: number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] | None = None  # handlers to give back after `with`
        self._before_deferring: dict[int, Any] | None = None

    def __enter__(self) -> SignalGuard:
        """Take the signals (in the main thread only: elsewhere Python has no handlers)."""
        self.received = None
        self._before = _install(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give them back; an error that a signal was turned into is the :class:`Interrupted` that it was."""
        received, self.received = self.received, None
        _restore(self._before or {})
        self._before = None
        if received is not None and isinstance(error, Exception):
            raise Interrupted(received) from error

    def check(self) -> None:
        """Leave now, if a signal came and its exception was lost.

        Raises:
            Interrupted: so it was.
        """
        if self.received is not None:
            raise Interrupted(self.received)

    @contextlib.contextmanager
    def seam(self) -> Iterator[None]:
        """Within: an error that a signal was turned into is the :class:`Interrupted` that it was."""
        self.check()
        try:
            yield
        except Exception as error:
            if self.received is not None:
                raise Interrupted(self.received) from error
            raise

    def defer(self) -> None:
        """Collect signals from now on.

        Raises:
            Interrupted: one came before, and its exception was lost.
        """
        self.check()
        self._before_deferring = _install(self._handle)

    def release(self) -> None:
        """Give them back to whoever had them before :meth:`defer`; what came in between is told by :attr:`received`
        to the end of the guard, if one is entered, and forgotten otherwise.
        """
        if self._before_deferring is not None:
            _restore(self._before_deferring)
            self._before_deferring = None
        if self._before is None:
            self.received = None

    @staticmethod
    def ignore(worker: int = 0) -> None:
        """For processes that serve this one: a signal to the whole group must not end them before it saved."""
        _install(signal.SIG_IGN)

    def _handle(self, signum: int, frame: object) -> None:
        if self._before_deferring is None or self.received is not None:
            self.received = signum
            raise Interrupted(signum)
        self.received = signum
        name = signal.Signals(signum).name
        # not print: a handler may run in the middle of another one's write to the same buffer
        os.write(2, f"\n{name}: saving after this batch, then leaving (once more: leaving at once)\n".encode())


guard = SignalGuard()


def _install(handler: Callable[..., Any] | signal.Handlers) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in SIGNALS}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: it was not Python that set it
            signal.signal(number, handler)
