"""Files: named arrays in `.npz`, bytes behind a path or a URI, and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterator
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


#: How many times the size of its file a stranger's may take in memory, where it is more than that.
MAX_INFLATION, UNSUSPICIOUS_BYTES = 100, 256 * 2**20


def most_bytes(packed: int) -> int:
    """Returns how many bytes what a stranger packed into this many may take when it is unpacked."""
    return max(UNSUSPICIOUS_BYTES, MAX_INFLATION * packed)


def read_strangers_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of an unknown author by name.

    Raises:
      ValueError: it would take far more memory than its size lets expect, has an array twice, or is damaged.
    """
    packed = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > most_bytes(packed):
        raise ValueError(f"{packed:,} bytes would take {total:,} when unpacked, allowed are {most_bytes(packed):,}")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("an array is there twice")
    return read_arrays(path)


def read_bounded(path: str | Path, most: int) -> bytes:
    """Returns the content of a file of an unknown author.

    Args:
      path: of the file; a link is followed.
      most: how many bytes it may have.

    Raises:
      ValueError: it has more bytes, or is a folder, a pipe or a device.
      OSError: it cannot be opened.
    """
    # a pipe would wait for somebody to write into it
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no plain file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has {Path(path).stat().st_size:,} bytes, allowed are {most:,}")
    return content


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


def write_bytes(path: str | Path, content: bytes, *, mode: int | None = None) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part.

    Args:
      path: a path in a folder that exists, or a URI. A link stays one: the file behind it is replaced. What is no
        file, such as `/dev/stdout`, is written to as it is.
      content: all of it.
      mode: permissions of the file; those that the umask leaves where none are given. A URI has none.

    Raises:
      OSError: the file cannot be written; the old content is still there, and nothing new beside it.
    """
    if is_uri(str(path)):
        import tensorflow as tf

        partial = _beside(str(path))
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(content)
        tf.io.gfile.rename(partial, str(path), overwrite=True)
        return
    if Path(path).exists() and not Path(path).is_file():
        Path(path).write_bytes(content)
        return
    target = os.path.realpath(path)
    new = Path(_beside(target))
    try:
        new.write_bytes(content)
        if mode is not None:
            new.chmod(mode)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, mode: int | None = None) -> None:
    """Writes a text in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode(), mode=mode)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that appears complete or not at all.

    Args:
      path: where it is to be; nothing, or an empty folder. Folders above it that are missing are made.

    Yields:
      An empty folder beside it, to fill; renamed to `path` at the end, deleted after an error.

    Raises:
      OSError: it cannot be made, or there is something at `path`.
    """
    partial = Path(_beside(str(path)))
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: str) -> str:
    """Returns a hidden name in the same folder that nobody else takes, so that a rename is enough in the end."""
    return posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.{uuid.uuid4().hex}")


def digest_of_bytes(*parts: bytes) -> str:
    """Returns the hexadecimal SHA-256 of the parts, each preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(str(len(part)).encode() + b"\0")
        total.update(part)
    return total.hexdigest()
