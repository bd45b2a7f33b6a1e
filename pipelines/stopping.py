"""Stopping a command from outside: Ctrl-C, SIGTERM and SIGHUP raise in the main thread, whatever it is doing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from edgeline.pipelines.exit_codes import ExitCode

_CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HUNG_UP,
}
#: The signal that came, while `signals_raise` holds.
_received: list[signal.Signals] = []


class Stopped(KeyboardInterrupt):  # no error, as KeyboardInterrupt is none
    """A signal asked for the end: whatever cleans up after Ctrl-C does so after each of them.

    Attributes:
      exit_code: that the command ends with.
    """

    def __init__(self, received: signal.Signals):
        super().__init__(f"stopped by {received.name}")
        self.exit_code = _CODES[received]


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Makes the signals raise `Stopped`; does nothing outside of the main thread, where no signal arrives.

    A signal that is ignored stays so: `nohup`, or a shell's background job.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {each: handler for each in _CODES if (handler := signal.getsignal(each)) in usual}
    _received.clear()
    try:
        for each in before:
            signal.signal(each, _raise)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _received.clear()


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    raise Stopped(_received[0])


def received() -> Stopped | None:
    """Returns what a signal raised, also where that was lost on its way.

    Beam makes an error of its own of it, TensorFlow too where it calls Python, and from a destructor nothing is raised.
    """
    return Stopped(_received[0]) if _received else None


def check() -> None:
    """Raises `Stopped` if a signal came."""
    if stopped := received():
        raise stopped
