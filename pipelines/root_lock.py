"""The lock on a pipeline's artifacts: one process at a time makes or deletes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edgeline.errors import UserError


@contextlib.contextmanager
def hold(folder: Path, refusal: str) -> Iterator[None]:
    """Holds a folder of artifacts for this process; the kernel lets go of it when the process ends, however it ends.

    Args:
        folder: made if need be.
        refusal: what to tell the user where another process holds it.

    Raises:
        UserError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            raise UserError(f"Another run (process {holder}) is working in {folder}; {refusal}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
