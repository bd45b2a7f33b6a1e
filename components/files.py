"""Files: named arrays in `.npz`, bytes behind a path or a URI, and digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import posixpath
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # who reads bytes alone does without
    import numpy as np


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray], *, compress: bool = False) -> None:
    """Writes arrays by name; the path is taken as it is, with no suffix added."""
    import numpy as np

    content: dict[str, Any] = arrays
    with Path(path).open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **content)


#: Names that `_beside` gives.
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")

#: How many times the size of its file a stranger's may take in memory, where it is more than that.
MAX_INFLATION, UNSUSPICIOUS_BYTES = 100, 256 * 2**20


#: Of a text or of JSON that comes with a model: a passport has a megabyte at most, JSON takes twenty times its size.
MAX_TEXT_BYTES = 16 * 2**20


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
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        # a pipe would have waited for somebody to write into it
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no plain file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has {Path(path).stat().st_size:,} bytes, allowed are {most:,}")
    return content


def read_json(path: str | Path) -> Any:
    """Returns what a JSON file of an unknown author says.

    Raises:
      ValueError: it is no JSON, or too long or nested too deep to be read.
      OSError: it cannot be opened.
    """
    try:
        return json.loads(read_bounded(path, MAX_TEXT_BYTES))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


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
    """Writes a file so that a reader sees the old content or the new, never a part, also after a power cut.

    When it returns, the new content is on the disk to stay.

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
    with _claimed(target) as (new, file):
        file.write(content)
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.flush()
        # before the rename: a name may reach the disk before the content, and would then name an empty file
        os.fsync(file.fileno())
        new.replace(target)
        sync(new.parent)


@contextlib.contextmanager
def _claimed(target: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Yields a new file beside another one, and its path; it is deleted at the end unless it was renamed by then."""
    while True:
        new = Path(_beside(target))
        file = new.open("xb")
        if _is_held(file.fileno(), new):
            break
        file.close()  # it was taken for one that a killed process had left
    try:
        with file:
            yield new, file
    finally:
        new.unlink(missing_ok=True)


def _is_held(descriptor: int, path: Path) -> bool:
    """Locks what was just made, by which `remove_abandoned` knows that somebody works at it; False: it is gone."""
    with contextlib.suppress(OSError):  # not every file system has locks; there, nothing is ever removed
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path.exists()


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Deletes what killed processes have left beside files and folders of a folder that they were about to replace.

    What a process still writes is left alone. Nothing is raised: what stays is in nobody's way.

    Args:
      folder: where they were working.
      name: of the one file or folder that they were about to replace; None: whichever it was.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not _UNFINISHED.fullmatch(path.name):
                continue
            if name is not None and path.name.rpartition(".")[0] != f".{name}":
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                finally:
                    os.close(descriptor)


def write_text(path: str | Path, text: str, *, mode: int | None = None) -> None:
    """Writes a text in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode(), mode=mode)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that appears complete or not at all, also after a power cut.

    What a killed process has left of one of the same name is deleted first.

    Args:
      path: where it is to be; nothing, or an empty folder. Folders above it that are missing are made.

    Yields:
      An empty folder beside it, to fill; renamed to `path` at the end, deleted after an error.

    Raises:
      OSError: it cannot be made, or there is something at `path`.
    """
    remove_abandoned(path.parent, path.name)
    while True:
        partial = Path(_beside(str(path)))
        make_folder(partial)
        descriptor = os.open(partial, os.O_RDONLY)
        if _is_held(descriptor, partial):
            break
        os.close(descriptor)  # it was taken for one that a killed process had left
    try:
        yield partial
        move_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, made if need be, for this process; waits until nobody else does.

    The kernel lets go of it when the process ends, however it ends.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder that stays after a power cut, and those above it that are missing; one that is there is left.

    Raises:
      OSError: it cannot be made, or there is something else at `path`.
    """
    if path.is_dir():
        return
    if not path.parent.exists():  # of a file there, the system says that it is no folder
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def move_folder(folder: Path, path: Path) -> None:
    """Renames a folder once all that is in it is on the disk; when this returns, the new name is there to stay.

    Raises:
      OSError: it cannot be renamed, or there is something at `path`.
    """
    sync_tree(folder)
    folder.replace(path)
    sync(path.parent)
    if folder.parent != path.parent:
        sync(folder.parent)


def sync_tree(folder: Path) -> None:
    """Waits until a folder with all that is in it is on the disk: first the files, then the names that they have."""
    for inner, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (path := Path(inner, name)).is_symlink():
                sync(path)
        sync(Path(inner))


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk to stay.

    Raises:
      OSError: the disk has not taken them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some file systems keep names at once, or have no call for it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


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
