"""A child process that calls functions of ours for this one: their crash, hang or hunger ends there, not here.

The child is a new interpreter, never a fork: a process that has used TensorFlow has threads, which a fork loses. What
it is to call comes as a pickle, from us to us; what it answers is JSON and bytes, so that nothing of a child whose
memory a model has damaged is ever run here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edgeline.errors import MachineError
from edgeline.isolation import interpreter

#: What a child may take to import its modules, on a machine that is busy.
_START_SECONDS = 600.0


class DiedError(Exception):
    """The child ended, or was killed for its time, before it answered.

    Attributes:
      status: as of `subprocess`: the negative number of a signal, or what it exited with; None: its time was up.
      stage: what it said last that it is at; empty where it said nothing.
    """

    def __init__(self, status: int | None, stage: str):
        super().__init__(f"the child process ended with {signal_name(status)} {f'({stage})' if stage else ''}".strip())
        self.status, self.stage = status, stage


class RaisedError(Exception):
    """The function raised in the child; the traceback is in the child's stderr.

    Attributes:
      kind: name of the exception's class.
      message: its text.
      details: what the exception has as `details`, to be JSON.
    """

    def __init__(self, kind: str, message: str, details: dict[str, Any]):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.details = kind, message, details


def signal_name(status: int | None) -> str:
    """Returns in a word how a process ended.

    >>> signal_name(-11), signal_name(1), signal_name(None)
    ('SIGSEGV', 'status 1', 'a time-out')
    """
    if status is None:
        return "a time-out"
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):  # real-time signals have no name
        return signal.Signals(-status).name
    return f"signal {-status}"


class ChildProcess:
    """A child that has imported its modules, or is about to.

    It ends with this process, however this one ends, also in the middle of a call. It is in a session of its own:
    a Ctrl-C reaches this process alone, which then ends the child.

    Args:
      modules: imported before the first call, by name.
    """

    def __init__(self, modules: Sequence[str]):
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._started = False
        ours, theirs = socket.socketpair()
        watched, self._held = os.pipe()
        handed = (theirs.fileno(), watched)
        code = f"from {__name__} import serve; serve(*{handed!r}, {list(modules)!r})"
        try:
            self._process = interpreter.start(code, stdin=subprocess.DEVNULL, pass_fds=handed)
        except OSError as error:
            raise MachineError(f"no child process can be started: {error}") from error
        finally:
            theirs.close()
            os.close(watched)
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        self.calls = 0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it is there and this process' own; a fork of this one has none."""
        return self._owner == os.getpid() and self._process.poll() is None

    def stop(self) -> None:
        """Ends it; nothing is lost but a call that is under way."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        if self._held >= 0:
            self._socket.close()
            self._connection.close()
            os.close(self._held)
            self._held = -1

    def call(
        self, function: Callable[..., Sequence[Any]], *arguments: Any, timeout: float, descriptors: Sequence[int] = ()
    ) -> list[bytes]:
        """Calls a function in the child, whose stdout and stderr are this process' meanwhile.

        Args:
          function: of a module, which the child imports; returns bytes, or what has a buffer of them.
          arguments: of the function; pickled as it is.
          timeout: seconds after which the child is killed.
          descriptors: of files of this process, which the child has as `handed()` while it answers.

        Raises:
          DiedError: the child ended, or its time was up.
          RaisedError: the function raised.
          MachineError: the child cannot even import its modules.
        """
        with self._lock:
            stage: list[str] = []
            try:
                self._wait_for_start()
                self.calls += 1
                socket.send_fds(self._socket, [bytes([len(descriptors)])], [*descriptors, *_outputs()])
                self._connection.send((function, arguments))
                return self._answer(stage, time.monotonic() + timeout)
            except (EOFError, BrokenPipeError, ConnectionError):
                raise DiedError(self._status(), "".join(stage)) from None
            except RaisedError:
                raise
            except BaseException:
                # the time is up, or nobody waits for the answer any more
                self.stop()
                raise

    def _wait_for_start(self) -> None:
        if self._started:
            return
        try:
            self._receive(_START_SECONDS)
        except (EOFError, ConnectionError):
            raise MachineError(
                f"the child process does not start: it ended with {signal_name(self._status())}; what "
                f"it said is in the log"
            ) from None
        except TimeoutError:
            raise MachineError(f"the child process did not start in {_START_SECONDS:g} s") from None
        self._started = True

    def _answer(self, stage: list[str], deadline: float) -> list[bytes]:
        while True:
            try:
                answer = json.loads(self._receive(deadline - time.monotonic()))
            except TimeoutError:
                raise DiedError(None, "".join(stage)) from None
            if "stage" in answer:
                stage[:] = [answer["stage"]]
            elif "kind" in answer:
                raise RaisedError(answer["kind"], answer["message"], answer["details"])
            else:
                return [self._connection.recv_bytes() for _ in range(answer["parts"])]

    def _receive(self, seconds: float) -> bytes:
        if not self._connection.poll(max(seconds, 0.0)):
            raise TimeoutError
        return self._connection.recv_bytes()

    def _status(self) -> int:
        """Returns the status of a child that has hung up."""
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        self.stop()
        return status


def _outputs() -> list[int]:
    """Returns the file descriptors of stdout and stderr, or of one of them twice where the other is closed."""
    opened = []
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            opened.append(descriptor)
    return (opened * 2)[:2]


# the child ------------------------------------------------------------------------------------------------------------

#: Files that a call may hand over.
_MOST_FILES = 8
_handed: list[int] = []
_listeners: list[Callable[[str], object]] = []


def handed() -> list[int]:
    """Returns the descriptors of the files that came with the call that is answered."""
    return list(_handed)


def say(stage: str) -> None:
    """Tells the process that waits what this one is at, for its messages; in any other process nothing happens."""
    for listener in _listeners:
        listener(stage)


def listen(listener: Callable[[str], object]) -> None:
    """Has a function called with what this process says that it is at."""
    _listeners[:] = [listener]


def described(error: Exception) -> dict[str, Any]:
    """Returns as JSON can say it what `RaisedError` tells of an error."""
    return {"kind": type(error).__name__, "message": str(error), "details": getattr(error, "details", {})}


def serve(channel: int, watched: int, modules: Sequence[str]) -> None:
    """Answers calls until the process that makes them ends: the child of `ChildProcess`."""
    _end_with(watched)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # where memory runs out it must not be the run that is killed
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    faulthandler.enable()
    for module in modules:
        importlib.import_module(module)
    # what has been imported will never be garbage, and the converter collects garbage in every conversion
    gc.collect()
    gc.freeze()
    connection, receiver = Connection(os.dup(channel)), socket.socket(fileno=channel)
    listen(lambda stage: connection.send_bytes(json.dumps({"stage": stage}).encode()))
    nothing = os.open(os.devnull, os.O_WRONLY)
    _write_to([nothing, nothing])
    connection.send_bytes(b"started")
    while True:
        said, descriptors, _, _ = socket.recv_fds(receiver, 1, _MOST_FILES + 2)
        if not said:
            return
        _handed[:], outputs = descriptors[: said[0]], descriptors[said[0] :]
        _write_to([*outputs, nothing, nothing][:2])
        for descriptor in outputs:
            os.close(descriptor)
        answer: Sequence[Any] = []
        try:
            function, arguments = connection.recv()
            made = function(*arguments)
            header: dict[str, Any] = {"parts": len(made)}
            answer = made
        except Exception as error:
            traceback.print_exc()
            header = described(error)
        for descriptor in _handed:
            os.close(descriptor)
        sys.stdout.flush()
        sys.stderr.flush()
        # a log that nobody writes to any more must be able to end
        _write_to([nothing, nothing])
        for part in (json.dumps(header).encode(), *answer):
            connection.send_bytes(part)


def _write_to(outputs: Sequence[int]) -> None:
    for descriptor, output in zip((1, 2), outputs, strict=True):
        os.dup2(output, descriptor)


def _end_with(watched: int) -> None:
    """Lets this process be ended by the kernel when the other end of a pipe is closed, whatever it is busy with.

    PR_SET_PDEATHSIG would end it with the thread that started it, and a thread that watches the pipe waits for Python's
    lock, which C++ code may hold for minutes.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # ends the process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(watched, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    if select.select([watched], [], [], 0)[0]:  # it was closed before
        os._exit(1)
