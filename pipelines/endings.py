"""What an error means to whoever called a command: an exit code, and one line. None goes by without a verdict."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from typing import NamedTuple

from edgeline.errors import UserError
from edgeline.pipelines import stopping
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.stopping import Stopped

_STOPPED = "finished steps are kept, run the same command again to go on"
_RIGHTS = "give this user the rights to it, or run as the user that it belongs to"
_SPACE = "free some space, or choose a folder on another disk"
#: What the user can do about an error of the operating system; what is not here is nothing that a user can mend.
_REMEDIES = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "mount it writable, or choose another folder",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOENT: "put it back, or give another path",
    errno.ENOTDIR: "give another path",
    errno.EISDIR: "give another path",
    errno.EEXIST: "move it away, or give another path",
    errno.ELOOP: "mend the link, or give another path",
    errno.ENAMETOOLONG: "give a shorter path",
}


class Ending(NamedTuple):
    """How a command ends.

    Attributes:
      code: its exit code.
      text: what to tell the user.
    """

    code: ExitCode
    text: str


def of(error: BaseException) -> Ending:
    """Returns how a command ends that raises this error."""
    stopped = error if isinstance(error, KeyboardInterrupt) else stopping.received()
    if stopped is not None:
        code = stopped.exit_code if isinstance(stopped, Stopped) else ExitCode.INTERRUPTED
        word = {ExitCode.TERMINATED: "terminated", ExitCode.HUNG_UP: "hung up"}.get(code, "interrupted")
        return Ending(code, f"{word}; {_STOPPED}")
    if isinstance(error, UserError):
        return Ending(ExitCode.USERS_MISTAKE, str(error))
    if text := _mendable(error):
        return Ending(ExitCode.USERS_MISTAKE, text)
    if isinstance(error, SystemExit):
        return Ending(ExitCode.STEP_FAILED, f"something called sys.exit({error.code!r}), which ends no command")
    lines = str(error).strip().split("\n")
    return Ending(ExitCode.STEP_FAILED, f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__)


def _mendable(error: BaseException) -> str | None:
    """Returns what to say of an error of the machine that the user can mend; None for all others."""
    if isinstance(error, UnicodeEncodeError) and (name := not_utf8(error.object)):
        return name
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return None
    paths = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return ": ".join([*paths[:1], f"{os.strerror(error.errno)}; {_REMEDIES[error.errno]}"])


def not_utf8(text: str) -> str | None:
    """Returns what to say of a name that is not in UTF-8, as Python hands it on; None where it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="backslashreplace").decode()
        return (
            f"{shown} is not in UTF-8, and ML Metadata, TensorFlow and JSON hold no other names: rename the file or "
            "folder, or set the terminal to UTF-8"
        )
    return None


def keep_traceback(error: BaseException) -> str:
    """Writes the traceback of an error to a file of its own, and returns what to say of where it is."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        descriptor, path = tempfile.mkstemp(prefix="edgeline-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return f"full log: {path}"
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
    return "no log can be written here"
