"""Commands as processes of their own, without what each would pay to import torch and Lightning.

One process a test session imports what ``dtp`` imports and then waits. Each command is a fork of it: a process with
its own number, signals, working folder, environment and exit code. What a fork cannot show (the time of a start, what
is imported and when) needs ``subprocess`` still.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

IMPORTED = (
    *("torch", "torchvision", "pytorch_lightning", "lightly", "hydra.main", "dtp_lightning.pipeline"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.linear_model", "wandb"),
)


class Process:
    """What ``subprocess.Popen`` offers, as far as tests use it; output is text."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        *,
        start_new_session: bool = False,
    ) -> None:
        python, *words = command
        assert python == sys.executable, f"{python}: not this interpreter; use subprocess"
        self.args, self.returncode = command, None
        self._output: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_server())
        task = {"words": words, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        message = json.dumps(task | {"session": start_new_session}).encode()
        handles = array.array("i", [file.fileno() for file in self._output])
        self._server.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)])
        self._server.sendall(message + b"\n")
        self._told = self._server.makefile("r")
        self.pid = int(self._told.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that ended it, as soon as it has ended."""
        if self.returncode is None:
            self._server.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(int(self._server.recv(64)))
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired, BlockingIOError):
            return self.wait(0.001)
        return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        said = []
        for file in self._output:
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` with ``capture_output=True, text=True``."""
    process = Process(command, cwd, env)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.wait(), out, err)


def dtp(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The ``dtp`` command with these words."""
    return run([sys.executable, "-m", "dtp_lightning", *words], cwd=cwd, env={**os.environ, **environment})


@functools.cache
def _server() -> str:
    """Where the process that forks listens; it ends when this one does."""
    folder = tempfile.mkdtemp(prefix="processes-")
    address = f"{folder}/socket"
    ours, theirs = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, __file__, address, str(theirs.fileno())],
        env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # a GPU looked at otherwise is lost to forks
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
    )  # fmt: skip
    theirs.close()
    assert ours.recv(1) == b"!", f"the process that commands are forked from ended with {server.wait()}"

    def end() -> None:
        ours.close()
        server.terminate()
        server.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        os.rmdir(folder)

    atexit.register(end)
    return address


def serve(address: str, parent: socket.socket) -> None:
    """Import, then fork for every connection: a process that waits, and below it the command."""
    for module in IMPORTED:
        importlib.import_module(module)
    assert threading.active_count() == 1, "a fork takes one thread along"
    gc.collect()
    gc.freeze()  # else a collection in a fork copies every page
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how those that wait have ended
    parent.sendall(b"!")
    while parent not in select.select([listening, parent], [], [])[0]:  # it says nothing more: it has ended
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        listening.close()
        parent.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, handles, _, _ = socket.recv_fds(connection, 1, 2)
        with connection.makefile("r") as told:
            task = json.loads(told.readline())
        pid = os.fork()
        if not pid:
            connection.close()
            _become(task, handles)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(str(status).encode())
        os._exit(0)


def _own_media_folder() -> None:
    """W&B makes one when it is imported, for tables and images; the first process to end would remove that of all."""
    from wandb.sdk.data_types._private import MEDIA_TMP

    MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")


def _become(task: Mapping[str, Any], handles: Sequence[int]) -> None:
    """Be the command: what ``python WORDS`` finds, and how it ends."""
    code: object = 1
    try:
        if task["session"]:
            os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, handle in zip((1, 2), handles, strict=True):
            os.dup2(handle, number)
            os.close(handle)
        _own_media_folder()
        os.chdir(task["cwd"])
        os.environ.clear()
        os.environ.update(task["env"])
        folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
        sys.path[1:1] = folders
        for own in (file for folder in folders if (file := Path(folder, "sitecustomize.py")).exists()):
            runpy.run_path(str(own))
        sys.orig_argv = [sys.executable, *task["words"]]
        _execute(task["words"])
        code = 0
    except SystemExit as left:
        code = left.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does before it ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))  # type: ignore[call-overload]


def _execute(words: list[str]) -> None:
    kind, *rest = words
    if kind == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(kind))
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
