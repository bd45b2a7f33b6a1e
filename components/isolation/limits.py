"""How much memory a process that opens a stranger's file may take.

The limit is passed on to every process below by an environment variable, so that it holds wherever the file is opened.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from edgeline.errors import UserError

#: In this environment variable a number of GiB may stand; else the limit is half of the machine's memory.
MEMORY_LIMIT = "EDGELINE_MEMORY_LIMIT"
#: TensorFlow alone takes two; the int8 MobileNetV2 fits in four.
LEAST_GIB = 4.0
_MOST_GIB = 2.0**20


def checked_gib(gib: float) -> float:
    """Returns a memory limit in GiB as it was given.

    Raises:
      UserError: it is less than TensorFlow needs, or no number.
    """
    if not LEAST_GIB <= gib < _MOST_GIB:  # NaN neither
        raise UserError(f"the memory limit must be at least {LEAST_GIB:g} GiB, received {gib:g}")
    return gib


def memory_bytes() -> int:
    """Returns how many bytes of address space such a process may take.

    Raises:
      UserError: the environment variable is no number, or less than TensorFlow needs.
    """
    given = os.environ.get(MEMORY_LIMIT)
    if given is None:
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
        return int(max(half, LEAST_GIB * 2**30))
    try:
        return int(checked_gib(float(given)) * 2**30)
    except (ValueError, UserError):
        raise UserError(f"{MEMORY_LIMIT} must be a number of GiB, at least {LEAST_GIB:g}, received {given!r}") from None


@contextlib.contextmanager
def memory(gib: float | None) -> Iterator[None]:
    """Has a memory limit hold for this process' children until the end.

    Args:
      gib: the limit in GiB; None: that of the environment, else half of the machine's memory.

    Raises:
      UserError: as `checked_gib`.
    """
    before = os.environ.get(MEMORY_LIMIT)
    if gib is not None:
        os.environ[MEMORY_LIMIT] = f"{checked_gib(gib):g}"
    try:
        yield
    finally:
        if before is not None:
            os.environ[MEMORY_LIMIT] = before
        else:
            os.environ.pop(MEMORY_LIMIT, None)


def limit_this_process(memory: int) -> None:
    """Limits this process for good: its address space and the files that it writes, in bytes; it leaves no core."""
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
