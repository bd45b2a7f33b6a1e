"""Telling errors apart: the user's, the machine's, and a candidate's own."""

import errno

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "Permission denied", "Read-only file system")


class UserError(Exception):
    """A mistake in what the user gave: a module, a data folder, a recipe, a budget.

    The message says what happened where, what was expected and received, and how to fix it. The command line prints it
    as it is and exits with code 2.
    """


def is_disk_error(error: BaseException) -> bool:
    """Returns whether an error says that a disk is full or may not be written, in Python's or in TensorFlow's words."""
    if isinstance(error, OSError):
        return error.errno in _DISK
    return any(text in str(error) for text in _DISK_TEXTS)


def is_environment(error: BaseException) -> bool:
    """Returns whether an error is the machine's: it would hit any candidate, and may be gone in the next run."""
    return is_disk_error(error) or isinstance(error, MemoryError)
