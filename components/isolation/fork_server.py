"""Calls a function in a process of its own, whose crash, hang or hunger ends there.

A server, started when it is first needed, imports TensorFlow and does nothing else with it, so that it can be forked.
For each call it forks a child with limits of memory and time, which serves nothing else. What the function makes, it
leaves as files in a folder: whoever calls must read them as a stranger's, for the child may have been taken over.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeline import files
from edgeline.errors import UserError, first_line
from edgeline.isolation import interpreter, limits

#: What the server imports before it forks.
_PRELOADED = ("edgeline.untrusted.sandbox", "edgeline.conversion.checks", "edgeline.conversion.converter")
_STARTING_SECONDS = 600.0
_KILLING_SECONDS = 60.0
#: A server without work ends by itself: TensorFlow takes most of a gigabyte, and a training may go on for hours.
_IDLE_SECONDS = 120.0
_REFUSAL = "refusal.json"
_MAX_REFUSAL_BYTES = 2**20
#: How the server says that a child has begun; how it ended, a number says.
_BEGUN = b"begun"
#: What the server is told where its child takes too long; of no meaning where there is none.
_KILL = b"\n"


class EndedError(UserError):
    """The child was killed, crashed or left before it was done.

    Attributes:
      status: as of `subprocess`: the negative number of a signal, or what it exited with; None: its time was up.
    """

    def __init__(self, message: str, status: int | None):
        super().__init__(message)
        self.status = status


def call(function: str, arguments: Mapping[str, Any], folder: Path, *, what: str, timeout: float) -> None:
    """Calls a function in a process of its own.

    Args:
      function: `module:name`; called as `name(folder, **arguments)`.
      arguments: what JSON can hold.
      folder: an empty one, where the function leaves what it makes, and its temporary files too.
      what: what messages say of the stranger's file, such as `model a.keras`.
      timeout: seconds after which the child is killed.

    Raises:
      EndedError: the child crashed, or took more memory or time than it may.
      UserError: the function's own.
    """
    memory = limits.memory_bytes()
    request = {
        "function": function, "arguments": dict(arguments), "folder": str(folder), "what": what, "memory": memory,
        "seconds": int(timeout) + 60, "working_folder": str(Path.cwd()), "modules": sys.path,
    }  # fmt: skip
    status = _run(request, timeout)
    refusal = folder / _REFUSAL
    if refusal.exists():
        try:
            raise UserError(str(json.loads(files.read_bounded(refusal, _MAX_REFUSAL_BYTES))))
        except (ValueError, OSError, RecursionError):
            raise UserError(f"{what} is refused: the process that opened it left no answer") from None
    if status is None:
        raise EndedError(f"{what} is refused: it was not opened in {timeout:g} s", status)
    if status != 0:
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise EndedError(
            f"{what} is refused: the process that opened it ended {how}; it is damaged, or needs more than the "
            f"{memory / 2**30:.1f} GiB that it may take (--memory-limit)",
            status,
        )


def answer_folder() -> tempfile.TemporaryDirectory[str]:
    """Returns a new folder for what a call leaves; it goes with its context, whatever a child has made of it."""
    return tempfile.TemporaryDirectory(prefix="edgeline-", ignore_cleanup_errors=True)


def start() -> None:
    """Starts the server, where it does not run, so that it is ready when it is needed."""
    with _lock:
        if not _running or not _running[0].alive:
            _stop()
            _running[:] = [_Server()]


def _run(request: dict[str, Any], timeout: float) -> int | None:
    """Returns a child's status as `subprocess` does, None where it was killed for its time."""
    for attempt in range(2):
        start()
        with _lock:
            server = _running[0]
            try:
                server.begin(request)
            except BrokenPipeError:
                if attempt == 0:
                    continue  # it ended, having had no work, when this was asked
                raise UserError("the process that opens strangers' files does not start") from None
            return server.end(timeout)
    raise AssertionError("unreachable")


class _Server:
    """The process that forks children, and the pipes to it."""

    def __init__(self) -> None:
        self._process = interpreter.start(
            f"from {__name__} import main; main({_PRELOADED!r}, {_IDLE_SECONDS!r})", {"TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        self._received = b""
        self._owner = os.getpid()

    @property
    def alive(self) -> bool:
        if self._owner != os.getpid() or self._process.returncode is not None:
            return False
        # left as it is: `stop` needs its id, which goes to another process as soon as somebody has asked how it ended
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def begin(self, request: dict[str, Any]) -> None:
        """Has a child begin.

        Raises:
          BrokenPipeError: the server has ended.
        """
        try:
            if self._process.stdin is None:
                raise BrokenPipeError
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            # the first child waits for TensorFlow
            if self._line(_STARTING_SECONDS) != _BEGUN:
                raise BrokenPipeError
        except BaseException:
            self.stop()
            raise

    def end(self, timeout: float) -> int | None:
        """Waits for the child that has begun, as `_run` does."""
        try:
            line = self._line(timeout)
            if line is None and self._process.stdin is not None:
                self._process.stdin.write(_KILL)
                if self._line(_KILLING_SECONDS) is None:
                    self.stop()
        except BrokenPipeError:  # somebody killed the server, whose child it takes along
            line = str(-signal.SIGKILL).encode()
            self.stop()
        except BaseException:  # also Ctrl-C: nobody waits for that child any more
            self.stop()
            raise
        return None if line is None else int(line)

    def stop(self) -> None:
        """Ends the server, and a child that it still has."""
        if self._owner == os.getpid() and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self, timeout: float) -> bytes | None:
        end = time.monotonic() + timeout
        while b"\n" not in self._received:
            left = end - time.monotonic()
            output = self._process.stdout
            if left <= 0 or output is None or not select.select([output], [], [], left)[0]:
                return None
            more = os.read(output.fileno(), 4096)
            if not more:
                raise BrokenPipeError
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line


_running: list[_Server] = []
_lock = threading.RLock()


@atexit.register
def _stop() -> None:
    for server in _running:
        server.stop()


# the server -----------------------------------------------------------------------------------------------------------


def main(modules: Iterable[str], idle_seconds: float) -> None:
    """Forks a child for each request that stdin has: the process of `_Server`.

    Args:
      modules: to import before.
      idle_seconds: without a request, after which this ends.
    """
    for module in modules:
        importlib.import_module(module)
    while request := _next_request(idle_seconds):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _serve(json.loads(request))
                status = 0
            finally:
                os._exit(status)
        _say(_BEGUN)
        _say(str(_status_of(pid)).encode())


def _next_request(idle_seconds: float) -> bytes:
    """Returns a line of stdin; empty at its end, or where none comes for long."""
    request = b""
    while not request.endswith(b"\n"):
        if not select.select([0], [], [], idle_seconds)[0]:
            return b""
        more = os.read(0, 2**16)
        if not more:
            return b""
        request = (request + more).removeprefix(_KILL)
    return request


def _status_of(pid: int) -> int:
    """Waits for a child; kills it where nobody waits for its answer any more."""
    child = os.pidfd_open(pid)
    try:
        # nothing is asked while a child runs, so what there is to read is the end, or that it took too long
        if 0 in select.select([child, 0], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(child)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _say(line: bytes) -> None:
    os.write(1, line + b"\n")


def _serve(request: dict[str, Any]) -> None:
    """Calls the function: the child."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    limits.limit_this_process(request["memory"])
    signal.alarm(request["seconds"])  # should the server be killed, nobody else would end this one
    folder, what = Path(request["folder"]), request["what"]
    tempfile.tempdir = str(folder)  # what a killed child leaves goes with the folder
    os.chdir(request["working_folder"])
    sys.path[:] = request["modules"]
    module, _, name = request["function"].partition(":")
    try:
        getattr(importlib.import_module(module), name)(folder, **request["arguments"])
    except UserError as error:
        refusal = str(error)
    except MemoryError:
        refusal = f"{what} is refused: it takes more than {request['memory'] / 2**30:.1f} GiB (--memory-limit)"
    except Exception as error:  # of what a file holds, any
        refusal = f"{what} cannot be taken apart: {first_line(error)}"
    else:
        return
    (folder / _REFUSAL).write_text(json.dumps(refusal))
