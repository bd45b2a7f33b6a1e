"""What the tests of the child process call in it; it imports little, for the child imports it anew each time."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import ClassVar

from edgeline.isolation import child_process


def echoed(*parts: bytes) -> list[bytes]:
    return list(parts)


def told_and_slept(stage: str) -> list[bytes]:
    child_process.say(stage)
    time.sleep(60)
    return []


def printed() -> list[bytes]:
    os.write(1, b"of the child\n")
    sys.stderr.write("its complaint\n")
    return []


def stuck() -> list[bytes]:
    # as C++ code may: it sleeps and does not let go of Python's lock
    ctypes.PyDLL(None).sleep(60)
    return []


class OddError(Exception):
    details: ClassVar = {"names": ["a"]}


def raised() -> list[bytes]:
    raise OddError("two\nlines")
