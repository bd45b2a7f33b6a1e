"""Telling errors apart: the user's, the machine's, and a candidate's own."""

import difflib
import errno
from collections.abc import Callable, Iterable

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "Permission denied", "Read-only file system")


class UserError(Exception):
    """A mistake in what the user gave: a module, a data folder, a recipe, a budget.

    The message says what happened where, what was expected and received, and how to fix it. The command line prints it
    as it is and exits with code 2.
    """


class MachineError(Exception):
    """The machine cannot do what every candidate needs, such as starting a process."""


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error's message, or the one in which Keras says why, at most 500 characters.

    >>> first_line(ValueError("no such layer\nat all")), first_line(KeyError())
    ('no such layer', 'KeyError')
    """
    # before it Keras shows a whole config
    reason = str(error).rpartition("Exception encountered: ")[2].strip()
    return (reason.splitlines() or [type(error).__name__])[0][:500]


def in_one_line(message: str) -> str:
    r"""Returns a message without line breaks, and not all of it where it is a page.

    >>> in_one_line("no such layer\n  at all")
    'no such layer at all'
    """
    return " ".join(message.split())[:500]


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Returns the known names that a mistyped one may stand for, the nearest first; none where none is near.

    >>> nearest("prun80", ["float32", "prune80", "prune50"], most=2)
    ['prune80', 'prune50']
    """
    return difflib.get_close_matches(name, list(known), n=most)


def did_you_mean(name: str, known: Iterable[str], form: str = " (did you mean {!r}?)") -> str:
    """Returns a question after the nearest known name, to go into an error message; empty where none is near.

    >>> did_you_mean("camra", ["camera", "hour"])
    " (did you mean 'camera'?)"
    """
    return "".join(form.format(near) for near in nearest(name, known))


def suggest(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Returns a question after the nearest known name; where none is near, a list of all.

    >>> suggest("int", ["int8", "float16"]), suggest("x", ["int8", "float16"])
    ('did you mean int8?', 'known are int8, float16')
    """
    spelled = {each: spell(each) for each in known}
    if near := nearest(name, spelled):
        return f"did you mean {spelled[near[0]]}?"
    return f"known are {', '.join(spelled.values())}" if spelled else "there is none"


def is_disk_error(error: BaseException) -> bool:
    """Returns whether an error says that a disk is full or may not be written, in Python's or in TensorFlow's words."""
    if isinstance(error, OSError):
        return error.errno in _DISK
    return any(text in str(error) for text in _DISK_TEXTS)


def is_environment(error: BaseException) -> bool:
    """Returns whether an error is the machine's: it would hit any candidate, and may be gone in the next run."""
    return is_disk_error(error) or isinstance(error, MemoryError | MachineError)
