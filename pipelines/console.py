"""What the user sees of a run: a quiet terminal with the live state of the steps, everything else in a log file."""

import contextlib
import ctypes
import faulthandler
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TextIO

import rich.console

# Imported before anything asks for the logger "absl": absl breaks when that logger exists and is not of its own class.
from absl import logging as absl_logging
from rich.console import ConsoleDimensions

#: Columns where the output is not a terminal: wide enough for whole paths, names and digests.
FILE_WIDTH = 220


class Console(rich.console.Console):
    """A console whose reader may go away, as `head` does: the command goes on, and its verdict counts."""

    def on_broken_pipe(self) -> None:
        """Shows no more; rich would end the process with exit code 1."""
        self.quiet = True
        _discard(self.file)


def open_streams() -> None:
    """Opens the standard streams that the caller has closed, on nothing, and lets the others write any text.

    Else the next file that is opened would get the number of one, and with it what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for as long as the process
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> OSError | None:
    """Empties the buffer of stdout; returns what kept it from that, if it is not a reader that has gone away.

    Python would try again at its end, and set an exit code of its own.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        return error
    return None


def _discard(file: IO[str]) -> None:
    """Sends what is written to a file, and what is in its buffer, to nothing."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, file.fileno())
        os.close(nothing)
        file.flush()


def for_tables() -> Console:
    """Returns a console on stdout, as wide as the terminal."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def say(shown: Console, text: str, style: str = "") -> None:
    """Prints a text as it is: its lines unbroken, nothing in it taken for markup."""
    shown.print(text, style=style, soft_wrap=True, markup=False, highlight=False)


class Terminal(NamedTuple):
    """Consoles on the user's own stdout and stderr."""

    out: Console
    err: Console


class _Lasting(io.TextIOWrapper):
    """The user's own output, or the log, for as long as a run lasts: a full disk or a closed pager ends no run."""

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be written."""
        with contextlib.suppress(OSError):
            super().flush()


class _SavedConsole(Console):
    """A console that asks its own file for the terminal's size; rich asks file descriptors 0 to 2."""

    @property  # type: ignore[misc]  # rich's can be set, which nobody does here
    def size(self) -> ConsoleDimensions:
        """Columns and rows."""
        try:
            return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        except OSError:
            return super().size


@contextlib.contextmanager
def capture_output(log_path: str | os.PathLike[str], verbose: bool = False) -> Iterator[Terminal]:
    """Sends everything this process and its children print to a log file, and yields the user's terminal.

    File descriptors 1 and 2 are redirected, so C++ code is caught too. Python's root and absl loggers write to the log
    from level INFO with timestamps. All is as before when the context ends; the consoles are closed then.

    Args:
        log_path: Appended to; its folder is made. Appended, because another run may be writing it.
        verbose: Also sends everything to the user's stderr as it comes.

    Yields:
        Consoles that still reach the user's stdout and stderr.

    Raises:
        OSError: If the log cannot be written.
    """
    path = Path(log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _flush()
    saved = (os.dup(1), os.dup(2))
    users = (os.dup(1), os.dup(_descriptor_of_stderr()))
    tee = None
    if verbose:
        source, target = os.pipe()
        # A child process may outlive the run and keep the pipe open, so nobody may wait for this thread forever.
        tee = threading.Thread(target=_copy, args=(source, (log, os.dup(users[1]))), daemon=True)
        tee.start()
    else:
        target = log
    os.dup2(target, 1)
    os.dup2(target, 2)
    handler = logging.StreamHandler(_Lasting(os.fdopen(target, "wb"), encoding="utf-8", errors="replace"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    levels = root.level, absl_logging.get_verbosity()
    shown = [other for other in root.handlers if isinstance(other, _ErrorsShown)]
    for other in shown:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.INFO)
    files = [_Lasting(os.fdopen(fd, "wb"), encoding="utf-8", errors="replace") for fd in users]
    try:
        # within `quiet`, Python's stderr is still the user's
        with contextlib.redirect_stderr(os.fdopen(2, "w", buffering=1, errors="replace", closefd=False)):
            yield Terminal(*(_SavedConsole(file=file, highlight=False) for file in files))
    finally:
        root.removeHandler(handler)
        for other in shown:
            root.addHandler(other)
        root.setLevel(levels[0])
        absl_logging.set_verbosity(levels[1])
        # A full disk or a closed pager must not keep the rest from being put back.
        with contextlib.suppress(OSError):
            _flush()
        for descriptor, original, file in zip((1, 2), saved, files, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
            with contextlib.suppress(OSError):
                file.close()
        with contextlib.suppress(OSError):
            handler.stream.close()
        if tee:
            tee.join(timeout=1.0)


class _ErrorsShown(logging.StreamHandler[TextIO]):
    """Shows the user what loggers have to say, within `quiet` and where no log takes it."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what libraries say of themselves from the user's stderr; what this process writes to `sys.stderr` is shown.

    TensorFlow's C++ code writes to file descriptor 2, from its import on and whatever its log level is. That goes to
    nothing, with the stderr of child processes; should the process crash in C++, Python still says where. Of loggers
    only errors are shown, of warnings none, unless Python was asked for them (`-W`, PYTHONWARNINGS).
    """
    _flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    users = os.fdopen(os.dup(_descriptor_of_stderr()), "w", buffering=1, encoding="utf-8", errors="replace")
    is_own = isinstance(sys.stderr, io.TextIOWrapper) and _descriptor_of_stderr() == 2
    os.dup2(nothing, 2)
    os.close(nothing)
    root, handler = logging.getLogger(), _ErrorsShown(users if is_own else sys.stderr)
    handler.setLevel(logging.ERROR)
    root.addHandler(handler)  # without one, Python and TensorFlow show warnings too
    crashes_are_shown = faulthandler.is_enabled()
    try:
        if not crashes_are_shown:
            faulthandler.enable(users)
        with warnings.catch_warnings(), contextlib.redirect_stderr(users) if is_own else contextlib.nullcontext():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            _flush()
        os.dup2(saved, 2)
        os.close(saved)
        if not crashes_are_shown:
            faulthandler.disable()
        with contextlib.suppress(OSError):
            users.close()


def _descriptor_of_stderr() -> int:
    """Returns the file descriptor that `sys.stderr` writes to; that of the process where it has none."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # it is None, in memory, or closed
        return 2


def _flush() -> None:
    """Empties the buffers of Python and of C, so that no text ends up on the wrong side of a redirection."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def _copy(source: int, targets: Sequence[int]) -> None:
    """Copies file descriptor `source` to the others until its end, and closes them all."""
    while chunk := os.read(source, 65536):
        for target in targets:
            # The user's end may be gone (a closed pager): the run and its log go on.
            with contextlib.suppress(OSError):
                os.write(target, chunk)
    for descriptor in (source, *targets):
        os.close(descriptor)


def format_seconds(seconds: float) -> str:
    """Returns a duration in seconds as "4.2 s", "2m 05s" or "1h 02m"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"
