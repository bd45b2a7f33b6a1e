"""Files: named arrays in `.npz`, bytes behind a path or a URI, and digests."""

from __future__ import annotations

import errno
import hashlib
import posixpath
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who reads bytes alone does without
    import numpy as np


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray], *, compress: bool = False) -> None:
    """Writes arrays by name; the path is taken as it is, with no suffix added."""
    import numpy as np

    content: dict[str, Any] = arrays
    with Path(path).open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **content)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name."""
    import numpy as np

    # NumPy leaves a file that it opened itself open where it is damaged
    with Path(path).open("rb") as file:
        return dict(np.load(file))


def sha256_of(path: str) -> str:
    """Returns the hexadecimal SHA-256 of a file, a path or a URI."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def is_uri(path: str) -> bool:
    """Returns whether a path is a URI, which only TensorFlow's file systems can open."""
    return "://" in path


def read_bytes(path: str) -> bytes:
    """Reads a file; raises FileNotFoundError with its `filename` for URIs too."""
    if not is_uri(path):
        return Path(path).read_bytes()
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, error.message, path) from error


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    partial = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.{uuid.uuid4()}")
    if is_uri(path):
        import tensorflow as tf

        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(content)
        tf.io.gfile.rename(partial, path, overwrite=True)
        return
    try:
        Path(partial).write_bytes(content)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def digest_of_bytes(*parts: bytes) -> str:
    """Returns the hexadecimal SHA-256 of the parts, each preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(str(len(part)).encode() + b"\0")
        total.update(part)
    return total.hexdigest()
