"""The child processes in which every conversion and every calibration runs.

TensorFlow's converter, calibrator and quantizers are C++ code that some models crash. So the models that are made in
this process go to a child, one for all as it imports TensorFlow: a model as a SavedModel, samples as arrays, and a
`.tflite` file comes back, or an error in one line. What came from a stranger goes to a process forked for that call,
which serves nothing else.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeline import files
from edgeline.conversion.failures import ConversionError, ExportError, RefusedGraphError
from edgeline.errors import UserError, in_one_line
from edgeline.isolation import child_process, fork_server, limits
from edgeline.isolation.child_process import ChildProcess, DiedError, RaisedError, signal_name

#: What a conversion may take, in seconds, unless this environment variable says something else.
TIMEOUT_SECONDS, TIMEOUT_VARIABLE = 3600.0, "EDGELINE_CONVERSION_TIMEOUT"
#: After so many calls the child is renewed: TensorFlow keeps something of each model.
MOST_CALLS = 50
#: What the child imports before its first call.
_MODULES = ("edgeline.conversion.tensorflow_converter",)
#: How C++ code ends that has a fault.
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}
#: What lies in the folder of a call that has a process of its own: what is called, what it is at, what it answered.
_REQUEST, _STAGE, _ANSWER, _PART = "request.pickle", "stage", "answer.json", "part-{}"

_lock = threading.Lock()
_children: list[ChildProcess] = []


def prepare() -> None:
    """Starts the child, should there be none, and does not wait for it: it needs some seconds."""
    with _lock:
        _usable()


def call(function: Callable[..., list[bytes]], *arguments: Any) -> list[bytes]:
    """Calls a function in the child.

    Args:
      function: of a module of ours.
      arguments: of it, pickled.

    Raises:
      ConversionError: it raised, or the child crashed, was killed or took too long; one line.
      UserError: it raised one, or the time in TIMEOUT_VARIABLE is none.
      MemoryError: likewise.
      MachineError: no child can be started.
    """
    seconds = timeout()
    with _lock:
        child = _usable()
        try:
            return child.call(function, *arguments, timeout=seconds)
        except DiedError as error:
            raise ConversionError(_obituary(error, seconds)) from None
        except RaisedError as error:
            raise _translated(error) from None
        finally:
            if child.calls >= MOST_CALLS:
                stop()


def call_apart(function: Callable[..., list[bytes]], *arguments: Any) -> list[bytes]:
    """Calls a function on what came from a stranger, in a process of its own with a limit of memory.

    The arguments and errors are those of `call`; to have taken more memory than is allowed is a ConversionError.
    """
    seconds = timeout()
    with fork_server.answer_folder() as name:
        folder = Path(name)
        (folder / _REQUEST).write_bytes(pickle.dumps((function, arguments)))
        try:
            fork_server.call(
                f"{__name__}:{serve_apart.__name__}", {}, folder, what="the imported graph", timeout=seconds
            )
            answer = json.loads(_left(folder / _ANSWER))
            if "kind" not in answer:
                return [_left(folder / _PART.format(index)) for index in range(int(answer["parts"]))]
            error = RaisedError(str(answer["kind"]), str(answer["message"]), dict(answer["details"]))
            raise _translated(error) from None
        except fork_server.EndedError as ended:
            stage = in_one_line(_left(folder / _STAGE).decode(errors="replace")) if (folder / _STAGE).exists() else ""
            memory = limits.memory_bytes()
            raise ConversionError(_obituary(DiedError(ended.status, stage), seconds, memory)) from None
        except UserError as refusal:
            raise ConversionError(str(refusal)) from None
        except (OSError, ValueError, KeyError, TypeError) as damage:
            raise ConversionError(f"the process that converted the imported graph left no answer: {damage}") from None


def _left(path: Path) -> bytes:
    """Returns the content of a file that a child left, which may have been taken over."""
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link")
    return files.read_bounded(path, limits.memory_bytes())


def serve_apart(folder: Path) -> None:
    """Answers the one call that lies in a folder: in a process of its own."""
    function, arguments = pickle.loads((folder / _REQUEST).read_bytes())
    child_process.listen((folder / _STAGE).write_text)
    try:
        parts = function(*arguments)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        answer = child_process.described(error)
    else:
        answer = {"parts": len(parts)}
        for index, part in enumerate(parts):
            (folder / _PART.format(index)).write_bytes(part)
    (folder / _ANSWER).write_text(json.dumps(answer))


def timeout() -> float:
    """Returns what a conversion may take, in seconds.

    Raises:
      UserError: the environment variable is no such number.
    """
    given = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UserError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, received {given!r}")
    return seconds


@atexit.register
def stop() -> None:
    """Ends the child; the next call has a new one."""
    while _children:
        _children.pop().stop()


def _usable() -> ChildProcess:
    if not _children or not _children[0].usable:
        stop()
        _children.append(ChildProcess(_MODULES))
    return _children[0]


def _translated(error: RaisedError) -> Exception:
    if error.kind == UserError.__name__:
        return UserError(error.message)
    if error.kind == MemoryError.__name__:
        return MemoryError(error.message)
    if error.kind in (ConversionError.__name__, ExportError.__name__):
        return ConversionError(error.message)
    if error.kind == RefusedGraphError.__name__:
        return RefusedGraphError(error.message, tuple(error.details["missing"]))
    return ConversionError(f"the converter failed: {error.kind}: {in_one_line(error.message)}")


def _obituary(error: DiedError, seconds: float, memory: int | None = None) -> str:
    """Returns in one line how the child ended, what has likely happened, and what helps.

    Args:
      error: how it ended, and while it was at what.
      seconds: that it was given.
      memory: bytes that it was given; None: any.
    """
    at = f" while {error.stage}" if error.stage else ""
    how = signal_name(error.status)
    if error.status is None:
        return (
            f"the conversion did not end within {seconds:g} s{at}; give it fewer calibration samples, or more time in "
            f"{TIMEOUT_VARIABLE}"
        )
    if error.status in _CRASHES and memory is not None:
        return (
            f"TensorFlow's converter crashed with {how}{at}: a fault in its own code that this model reaches, or the "
            f"model needs more than the {memory / 2**30:.1f} GiB that a stranger's may take (--memory-limit)"
        )
    if error.status in _CRASHES:
        return (
            f"TensorFlow's converter crashed with {how}{at}: a fault in its own code that this model reaches; choose "
            f"another scheme. The log says where"
        )
    if error.status == -signal.SIGKILL:
        return (
            f"the conversion was killed with {how}{at}: most likely memory ran out; give the machine or the pod more, "
            f"or the calibration fewer samples, and run again with --no-cache"
        )
    return f"the process that converts ended with {how}{at}"
