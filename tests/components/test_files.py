from __future__ import annotations

import errno
import hashlib
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeline import files
from edgeline.files import digest_of_bytes, new_folder, read_bytes, write_bytes, write_text


def test_digest_of_bytes_keeps_parts_apart() -> None:
    assert digest_of_bytes(b"ab") == hashlib.sha256(b"2\0ab").hexdigest()
    assert len({digest_of_bytes(*parts) for parts in [(b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b""), ()]}) == 5
    # a part that looks like a length and a part
    assert digest_of_bytes(b"a1\0b") != digest_of_bytes(b"a", b"b")


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    write_bytes(str(path), b"\r\n\0")
    assert read_bytes(str(path)) == b"\r\n\0"
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208


def test_a_reader_has_the_old_file_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with path.open("rb") as file:
        write_bytes(path, b"new")
        assert file.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def cut(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(OSError, match="No space"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path, b"")
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "no" / "a", b"")


def test_mode_is_that_of_the_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "private", "")
        write_text(tmp_path / "shared", "", mode=0o644)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "shared": 0o644}


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link = tmp_path / "link"
    link.symlink_to("deep/a")
    for content in (b"1", b"2"):  # first where the link leads nowhere yet
        write_bytes(link, content)
        assert link.is_symlink()
        assert (tmp_path / "deep" / "a").read_bytes() == content
    reading, writing = os.pipe()
    write_bytes(f"/dev/fd/{writing}", b"through")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"through"


def test_a_uri_is_written_through_tensorflow() -> None:
    pytest.importorskip("tensorflow")
    uri = "ram://folder/a"
    assert files.is_uri(uri)
    with pytest.raises(FileNotFoundError) as caught:
        read_bytes(uri)
    assert caught.value.filename == uri
    write_text(uri, "old")
    write_text(uri, "new")
    assert read_bytes(uri) == b"new"


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert folder.parent == out.parent
        assert not out.exists()
    assert (out / "a").read_text() == "1"

    def interrupted(path: Path) -> None:
        with new_folder(path) as folder:
            (folder / "a").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "above" / "other")
    # what is there stays
    with pytest.raises(OSError, match="not empty"), new_folder(out) as folder:
        (folder / "a").write_text("3")
    assert list(out.parent.iterdir()) == [out]
    assert (out / "a").read_text() == "1"


def test_strangers_arrays_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    files.write_arrays(path, {"a": np.arange(4)})
    assert list(files.read_strangers_arrays(path)["a"]) == [0, 1, 2, 3]
    files.write_arrays(path, {"a": np.zeros(270 * 2**20, np.uint8)}, compress=True)
    with pytest.raises(ValueError, match=r"bytes would take 283,115,\d+ when unpacked, allowed are 268,435,456"):
        files.read_strangers_arrays(path)
    # an array that says it is far larger than what is stored of it
    header = np.lib.format.MAGIC_PREFIX + b"\1\0" + (118).to_bytes(2, "little")
    header += b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header)
    with pytest.raises((ValueError, MemoryError)):
        files.read_strangers_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", header)
    with pytest.raises(ValueError, match="twice"):
        files.read_strangers_arrays(path)
