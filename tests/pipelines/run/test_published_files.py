"""What the cache serves is what was published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from ml_metadata.proto import metadata_store_pb2

from edgeline.pipelines.run import published_files
from edgeline.pipelines.run.published_files import PublishedFiles


@pytest.fixture
def artifact(tmp_path: Path) -> metadata_store_pb2.Artifact:
    folder = tmp_path / "artifacts" / "Trainer" / "model" / "1"
    (folder / "Format-Keras").mkdir(parents=True)
    (folder / "Format-Keras" / "model.keras").write_bytes(b"weights")
    (folder / "passport.json").write_bytes(b"{}")
    artifact = metadata_store_pb2.Artifact(uri=str(folder))
    PublishedFiles(tmp_path / "artifacts").sign(artifact)
    return artifact


def in_boot(boot: str | None, tmp_path: Path) -> PublishedFiles:
    with mock.patch.object(published_files, "_boot", return_value=boot):
        return PublishedFiles(tmp_path / "artifacts")


def test_size_and_digest_are_in_the_metadata(artifact: metadata_store_pb2.Artifact, tmp_path: Path) -> None:
    assert artifact.custom_properties["files_bytes"].int_value == len(b"weights{}")
    other = metadata_store_pb2.Artifact(uri=str(tmp_path / "artifacts" / "b"))
    (tmp_path / "artifacts" / "b" / "Format-Keras").mkdir(parents=True)
    (tmp_path / "artifacts" / "b" / "passport.json").write_bytes(b"{}")
    published = PublishedFiles(tmp_path / "artifacts")
    digests = []
    for content in (b"weights", b"weighty"):
        (tmp_path / "artifacts" / "b" / "Format-Keras" / "model.keras").write_bytes(content)
        published.sign(other)
        digests.append(other.custom_properties["files_sha256"].string_value)
    assert artifact.custom_properties["files_sha256"].string_value == digests[0] != digests[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "passport.json").write_bytes(b""),  # as a power cut leaves it
        lambda folder: (folder / "passport.json").write_bytes(b"[]"),
        lambda folder: (folder / "passport.json").unlink(),
        lambda folder: (folder / "passport.json").rename(folder / "other.json"),
        lambda folder: (folder / "more.txt").touch(),
    ],
)
@pytest.mark.parametrize("boot", [None, "another"])
def test_a_change_is_found(
    change: Callable[[Path], None], boot: str | None, artifact: metadata_store_pb2.Artifact, tmp_path: Path
) -> None:
    published = PublishedFiles(tmp_path / "artifacts") if boot is None else in_boot(boot, tmp_path)
    assert published.are_intact(artifact)
    signed = {name: value.string_value or value.int_value for name, value in artifact.custom_properties.items()}
    assert PublishedFiles.are_those(Path(artifact.uri), signed)
    change(Path(artifact.uri))
    assert not PublishedFiles.are_those(Path(artifact.uri), signed)
    assert PublishedFiles.are_those(Path(artifact.uri), {})  # of a version that signed nothing
    assert not PublishedFiles(tmp_path / "artifacts").are_intact(artifact)
    assert not in_boot(boot, tmp_path).are_intact(artifact)


def test_other_bytes_of_the_same_size_and_time_are_found_after_a_boot(
    artifact: metadata_store_pb2.Artifact, tmp_path: Path
) -> None:
    path = Path(artifact.uri, "passport.json")
    status = path.stat()
    path.write_bytes(b"\0\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not in_boot("another", tmp_path).are_intact(artifact)


def test_within_a_boot_nothing_is_read_twice(artifact: metadata_store_pb2.Artifact, tmp_path: Path) -> None:
    with mock.patch.object(published_files, "_digest", side_effect=AssertionError("reads")):
        assert PublishedFiles(tmp_path / "artifacts").are_intact(artifact)
        with pytest.raises(AssertionError, match="reads"):
            in_boot("another", tmp_path).are_intact(artifact)
    assert in_boot("another", tmp_path).are_intact(artifact)
    with mock.patch.object(published_files, "_digest", side_effect=AssertionError("reads")):
        assert in_boot("another", tmp_path).are_intact(artifact)
        with pytest.raises(AssertionError, match="reads"):  # where the system does not say which boot it is
            in_boot(None, tmp_path).are_intact(artifact)


def test_what_was_not_signed_is_trusted_as_before(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    artifact = metadata_store_pb2.Artifact(uri=str(tmp_path / "mine"))
    published = PublishedFiles(tmp_path / "artifacts")
    published.sign(artifact)  # not made by a step
    assert dict(artifact.custom_properties) == {}
    assert published.are_intact(artifact)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / ".published.json").write_text("[1]")
    assert PublishedFiles(tmp_path / "artifacts").are_intact(artifact)
