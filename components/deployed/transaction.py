"""Who moves the pointer: a push or a rollback, one at a time, each of them whole or not at all.

Beside the versions and `latest.json`, the folder that models are pushed to has, on a path,

    .lock            held by who moves the pointer
    .pushing-<uuid>  a version that is being copied; under the lock, one that a killed push has left
    .rollback.json   the rollback that was begun last, until it is known to be told: see `edgeline.deployed.versions`

A URI has no locks: two who move the pointer there at once, the last one wins.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from edgeline import files

LOCK_FILE = ".lock"
_STAGING = ".pushing-"


@contextlib.contextmanager
def held(push_to: str) -> Iterator[None]:
    """Holds a folder that models are pushed to, if it is there, and removes what killed processes have left in it.

    Raises:
      OSError: it cannot be written.
    """
    folder = Path(push_to)
    if files.is_uri(push_to) or not folder.is_dir():
        yield
        return
    with files.locked(folder / LOCK_FILE):
        files.remove_abandoned(folder)
        for abandoned in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        yield


def staging(push_to: str) -> Path:
    """Returns a folder to be made, from which a version can be renamed to its place."""
    return Path(push_to, f"{_STAGING}{uuid.uuid4()}")
