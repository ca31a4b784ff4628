"""SIGTERM (how clusters end a job), SIGUSR1 (how they announce it) and Ctrl-C: the program saves before it leaves.

Only light imports here: the command line handles signals before anything else is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, TypeVar

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
Item = TypeVar("Item")


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


class Leaving(Enum):
    """When a first signal ends the program; the value is the answer to the signal."""

    AT_ONCE = ""
    AT_CHECK = "leaving as soon as it is safe"
    AFTER_BATCH = "saving after this batch, then leaving"
    AFTER_EPOCH = "saving after this epoch, then leaving"


class SignalGuard:
    """What this process does about signals that ask it to end; there is one, :data:`guard`.

    Within :meth:`collect` a first signal is recorded and answered by one line; it raises nothing, because Python
    handles signals anywhere: in an import that catches BaseException, between two halves of a file. The program leaves
    where it calls :meth:`check`. In training :class:`~dtp_lightning.callbacks.LastCheckpoint` saves and leaves. Only
    within :meth:`interruptible` does a first signal raise, and a second one does everywhere.

    Attributes:
        received: number of the signal that came, or None.
        leaving: when the program leaves; None while signals are not handled here.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.leaving: Leaving | None = None

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Within: signals are collected. May be nested; the handlers of before are given back.

        Raises:
            Interrupted: in place of an error that came after a signal, such as that of a process it ended.
        """
        outer, before = self.leaving, self.take(Leaving.AT_CHECK)
        try:
            yield
        except Exception as error:
            if self.received is not None:
                raise Interrupted(self.received) from error
            raise
        finally:
            self.leaving = outer
            if outer is None:
                self.received = None
            for number, handler in before.items():
                if handler is not None:  # None: it was not Python that set it
                    signal.signal(number, handler)

    def take(self, leaving: Leaving) -> dict[int, Any]:
        """Handle signals from now on, whoever set handlers since :meth:`collect`; returns the handlers of before."""
        self.leaving = leaving
        if threading.current_thread() is not threading.main_thread():  # only there has Python handlers
            return {}
        return {number: signal.signal(number, self._handle) for number in SIGNALS}

    def check(self) -> None:
        """Leave, if a signal came. In training nothing happens: whoever saves leaves.

        Raises:
            Interrupted: a signal came.
        """
        if self.received is not None and self.leaving not in (Leaving.AFTER_BATCH, Leaving.AFTER_EPOCH):
            raise Interrupted(self.received)

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a :meth:`check` before each."""
        for item in items:
            self.check()
            yield item

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within: a first signal raises at once. For what takes long and writes no file; not in training."""
        outer = self.leaving
        if outer is Leaving.AT_CHECK:
            self.leaving = Leaving.AT_ONCE
        try:
            self.check()  # a signal that came just before would wait for all of it
            yield
        finally:
            self.leaving = outer
        self.check()  # somebody else's code swallowed it

    @staticmethod
    def ignore(worker: int = 0) -> None:
        """For processes that serve this one: a signal to the whole group must not end them before it saved."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, signum: int, frame: object) -> None:
        again, self.received = self.received is not None, signum
        if again or self.leaving in (Leaving.AT_ONCE, None):
            raise Interrupted(signum)
        answer = f"\n{signal.Signals(signum).name}: {self.leaving.value} (once more: leaving at once)\n"
        with contextlib.suppress(OSError):  # nobody may be listening
            os.write(2, answer.encode())  # not print: a handler may run within another write to the same buffer


guard = SignalGuard()
