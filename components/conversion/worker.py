"""The child process in which every conversion and every calibration runs: one for all, as it imports TensorFlow.

TensorFlow's converter, calibrator and quantizers are C++ code that some models crash. So the models that are made in
this process go there as SavedModels, samples as arrays, and a `.tflite` file comes back, or an error in one line.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from edgeline.conversion.failures import ConversionError, RefusedGraphError
from edgeline.errors import UserError, in_one_line
from edgeline.isolation.child_process import ChildProcess, DiedError, RaisedError, signal_name

#: What a conversion may take, in seconds, unless this environment variable says something else.
TIMEOUT_SECONDS, TIMEOUT_VARIABLE = 3600.0, "EDGELINE_CONVERSION_TIMEOUT"
#: After so many calls the child is renewed: TensorFlow keeps something of each model.
MOST_CALLS = 50
#: What the child imports before its first call.
_MODULES = ("edgeline.conversion.tensorflow_converter",)
#: How C++ code ends that has a fault.
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}


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
    if error.kind == ConversionError.__name__:
        return ConversionError(error.message)
    if error.kind == RefusedGraphError.__name__:
        return RefusedGraphError(error.message, tuple(error.details["missing"]))
    return ConversionError(f"the converter failed: {error.kind}: {in_one_line(error.message)}")


def _obituary(error: DiedError, seconds: float) -> str:
    """Returns in one line how the child ended, what has likely happened, and what helps."""
    at = f" while {error.stage}" if error.stage else ""
    how = signal_name(error.status)
    if error.status is None:
        return (
            f"the conversion did not end within {seconds:g} s{at}; give it fewer calibration samples, or more time in "
            f"{TIMEOUT_VARIABLE}"
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
