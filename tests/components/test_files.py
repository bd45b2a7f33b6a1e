from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from power_cut import Disk, restore

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

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
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


def test_content_is_synced_before_its_name_and_the_name_after(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    disk = Disk(tmp_path)
    with disk.watched():
        write_bytes(tmp_path / "a", b"1")
        with new_folder(tmp_path / "new" / "b" / "c") as folder:
            (folder / "d").mkdir()
            (folder / "d" / "e").write_bytes(b"2")
    content, name, folder_of_a, *rest = disk.calls
    partial = content.removeprefix("fsync ")
    assert partial.startswith(".a.")
    assert (name, folder_of_a) == (f"rename {partial} a", "fsync .")
    assert rest[0] == "fsync new"  # of the folder above, which was made
    made = rest[-1 - 1].split()[1]
    assert rest[1:] == [
        "fsync new/b", f"fsync {made}/d/e", f"fsync {made}/d", f"fsync {made}", f"rename {made} new/b/c", "fsync new/b"
    ]  # fmt: skip


def test_a_power_cut_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    root, cuts = tmp_path / "root", 0
    root.mkdir()
    (root / "a").write_bytes(b"old")
    disk = Disk(root)

    def cut() -> None:
        nonlocal cuts
        for image in disk.images():
            assert image["a"] in (b"old", b"new")
            assert image.get("b") in (None, {"c": b"whole"})
            cuts += 1

    with disk.watched(cut):
        write_bytes(root / "a", b"new")
        assert [image["a"] for image in disk.images()] == [b"new"]  # once it has returned, it stays
        with new_folder(root / "b") as folder:
            (folder / "c").write_bytes(b"whole")
        assert [image["b"] for image in disk.images()] == [{"c": b"whole"}]
    assert cuts > 20


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b"new"), lambda path: _renamed(path)])
def test_the_power_cut_finds_who_does_not_sync(write: Callable[[Path], None], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_bytes(root / "a", b"old")
    disk = Disk(root)
    with disk.watched():
        write(root / "a")
        assert b"new" not in [image.get("a") for image in disk.images()]
    restore(next(disk.images()), tmp_path / "after")
    assert (tmp_path / "after" / "a").exists()


def _renamed(path: Path) -> None:
    path.with_name("b").write_bytes(b"new")
    path.with_name("b").rename(path)


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    left = [f".report.json.{'0' * 32}", f".data.{'1' * 32}"]
    (tmp_path / left[0]).write_bytes(b"half")
    (tmp_path / left[1] / "train").mkdir(parents=True)
    kept = ["report.json", ".lock", ".data-checked", f"a.{'0' * 32}"]
    for name in kept:
        (tmp_path / name).touch()
    busy = tmp_path / f".busy.{'2' * 32}"
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.remove_abandoned(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, busy.name])
    files.remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    files.remove_abandoned(tmp_path / "missing")


def test_what_is_being_written_is_not_taken_for_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_folder(tmp_path / "b") as folder:
        files.remove_abandoned(tmp_path)
        (folder / "c").touch()
        fsync = os.fsync

        def meanwhile(descriptor: int) -> None:
            files.remove_abandoned(tmp_path)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", meanwhile)
        write_bytes(tmp_path / "a", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_that_is_begun_again_leaves_nothing_of_the_first_time(tmp_path: Path) -> None:
    left, of_another = tmp_path / f".a.{'0' * 32}", tmp_path / f".a.b.{'0' * 32}"
    for folder in (left, of_another):
        folder.mkdir()
        (folder / "half").touch()
    with new_folder(tmp_path / "a") as first:
        with contextlib.suppress(KeyError), new_folder(tmp_path / "a"):
            raise KeyError
        assert first.is_dir()  # who makes it meanwhile keeps what there is
    assert not left.exists()
    assert of_another.exists()


def test_a_strangers_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"a": [1]}')
    assert files.read_bounded(path, 10) == b'{"a": [1]}'
    assert files.read_json(path) == {"a": [1]}
    with pytest.raises(ValueError, match="it has 10 bytes, allowed are 9"):
        files.read_bounded(path, 9)
    path.write_text("[" * 10**5)
    with pytest.raises(ValueError, match="it is nested too deep"):
        files.read_json(path)
    with path.open("wb") as file:
        file.truncate(2**36)  # a hole
    with pytest.raises(ValueError, match="it has 68,719,476,736 bytes, allowed are 16,777,216"):
        files.read_json(path)
    path.unlink()
    os.mkfifo(path)
    for odd in (path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="it is no plain file"):
            files.read_bounded(odd, 10)
    with pytest.raises(OSError, match="Is a directory"):
        files.read_bounded(tmp_path, 10)
    with pytest.raises(FileNotFoundError):
        files.read_bounded(tmp_path / "none", 10)
