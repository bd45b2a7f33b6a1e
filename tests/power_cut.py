"""What a power cut may leave of a folder, by the rules that SQLite and ALICE (Pillai et al., OSDI 2014) go by.

- What a file holds is there after a cut as far as it was at its last fsync; a file that never had one is empty.
- A name that was made, replaced or removed since the last fsync of its folder may be there or not, each one by itself:
  no order is kept between two of them, nor between a name and what its file holds.

The recorder stands around real files: it needs to know of every fsync, and reads from the disk what that has made safe.
Files of others that sync for themselves, such as SQLite's, count as safe.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

#: A folder's entries: of a file what it holds, of a folder its entries.
Image = dict[str, "bytes | Image"]

Inode = int


class Disk:
    """Follows a folder, of which all that is there at first counts as safe.

    Args:
      root: the folder.
      safe: names of files that always are.

    Attributes:
      calls: the fsyncs and renames so far, as `fsync a/b` and `rename a/b c`, by paths relative to the root.
    """

    def __init__(self, root: Path, safe: tuple[str, ...] = ()):
        self.root, self.calls = root, list[str]()
        self._safe = safe
        self._contents: dict[Inode, bytes] = {}
        self._names: dict[Inode, dict[str, Inode]] = {}
        self._folders: set[Inode] = set()
        self._open: list[int] = []  # an inode that is held is never given to another file
        for folder, _, names in os.walk(root):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                self._keep(os.open(path, os.O_RDONLY))

    @contextlib.contextmanager
    def watched(self, at_each_moment: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Follows what is done within the block; calls a function before and after each fsync and rename."""
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def watched_fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
            at_each_moment()
            fsync(descriptor)
            if Path(path).is_relative_to(self.root):
                self._keep(os.open(path, os.O_RDONLY))
                self.calls.append(f"fsync {self._relative(path)}")
            at_each_moment()

        def moved(move: Callable[..., None]) -> Callable[..., None]:
            def watched_move(source: str, target: str) -> None:
                at_each_moment()
                move(source, target)
                self.calls.append(f"rename {self._relative(source)} {self._relative(target)}")
                at_each_moment()

            return watched_move

        with (
            mock.patch.object(os, "fsync", watched_fsync),
            mock.patch.object(os, "rename", moved(rename)),
            mock.patch.object(os, "replace", moved(replace)),
        ):
            try:
                yield
            finally:
                for descriptor in self._open:
                    os.close(descriptor)

    def _relative(self, path: str | Path) -> str:
        return os.path.relpath(path, self.root)

    def _keep(self, descriptor: int) -> None:
        """Takes note that a file or folder is safe as it is."""
        self._open.append(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._folders.add(status.st_ino)
            self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(descriptor)}
        else:
            self._contents[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    def images(self) -> Iterator[Image]:
        """Yields what a cut now may leave: all changed names or none, and each of them alone there or alone lost."""
        current: dict[Inode, dict[str, Inode]] = {}
        for folder, _, names in os.walk(self.root):
            inode = Path(folder).stat().st_ino
            current[inode] = {entry.name: entry.inode() for entry in os.scandir(folder)}
            self._folders.add(inode)
            for name in filter(self._safe.__contains__, names):
                path = Path(folder, name)
                self._contents[path.stat().st_ino] = path.read_bytes()
        changes = [
            (folder, name)
            for folder in current | self._names
            for name in sorted(self._entries(current, folder).keys() | self._entries(self._names, folder).keys())
            if self._entries(current, folder).get(name) != self._entries(self._names, folder).get(name)
        ]
        for kept in {frozenset[tuple[Inode, str]](), frozenset(changes)}:
            yield self._image(current, kept)
        if len(changes) > 1:
            for change in changes:
                yield self._image(current, frozenset([change]))
                yield self._image(current, frozenset(changes) - {change})

    @staticmethod
    def _entries(names: dict[Inode, dict[str, Inode]], folder: Inode) -> dict[str, Inode]:
        return names.get(folder, {})

    def _image(self, current: dict[Inode, dict[str, Inode]], kept: frozenset[tuple[Inode, str]]) -> Image:
        def folder(inode: Inode) -> Image:
            before, now = self._entries(self._names, inode), self._entries(current, inode)
            image: Image = {}
            for name in before.keys() | now.keys():
                entry = (now if (inode, name) in kept else before).get(name)
                if entry is not None:
                    image[name] = folder(entry) if entry in self._folders else self._contents.get(entry, b"")
            return image

        return folder(self.root.stat().st_ino)


def restore(image: Image, folder: Path) -> None:
    """Writes an image to a new folder."""
    folder.mkdir()
    for name, content in image.items():
        if isinstance(content, dict):
            restore(content, folder / name)
        else:
            (folder / name).write_bytes(content)
