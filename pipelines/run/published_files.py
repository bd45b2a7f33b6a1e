"""Whether the files of an artifact are still those that were published.

A power cut takes files that a step has written, and leaves ML Metadata that say it is done; a person or a tool may
change them. So what a step makes carries what its files were in ML Metadata: `files_sha256`, over the path, size and
SHA-256 of each of them, and `files_bytes`, the sum of their sizes.

Reading all of them in every run would cost as much as ingesting the data anew. `.published.json` beside the artifacts
remembers in which boot of the machine an artifact was read, and what the system said of its files then: size, inode and
times of the last change. While both are the same nothing is read; once the machine was started again, everything is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeline import files

SHA256, BYTES = "files_sha256", "files_bytes"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PublishedFiles:
    """Signs what steps make, and compares what the cache would serve with it.

    Args:
      artifacts: the folder of all artifacts; those outside of it, such as a user's own files, are not signed.
    """

    def __init__(self, artifacts: Path):
        self._artifacts = artifacts.absolute()
        self._file = self._artifacts / ".published.json"
        self._boot = _boot()
        self._seen: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            remembered = json.loads(self._file.read_text(encoding="utf-8"))
            if self._boot is not None and remembered["boot"] == self._boot:
                self._seen = dict(remembered["seen"])

    def sign(self, artifact: Any) -> None:
        """Writes into an artifact of ML Metadata, before it is published, what its files are."""
        folder = Path(artifact.uri)
        if self._artifacts not in folder.absolute().parents:
            return
        stated = _stated(folder)
        artifact.custom_properties[SHA256].string_value, artifact.custom_properties[BYTES].int_value = _digest(folder)
        self._remember(folder, stated)

    def are_intact(self, artifact: Any) -> bool:
        """Returns whether an artifact of ML Metadata has the files that it was published with; one not signed has."""
        if SHA256 not in artifact.custom_properties:
            return True
        folder, signed = Path(artifact.uri), artifact.custom_properties
        stated = _stated(folder)
        if self._seen.get(artifact.uri) == stated:
            return True
        if sum(path.stat().st_size for path in _files(folder)) != signed[BYTES].int_value:
            return False
        if _digest(folder) != (signed[SHA256].string_value, signed[BYTES].int_value):
            return False
        self._remember(folder, stated)
        return True

    @staticmethod
    def are_those(folder: Path, properties: Mapping[str, Any]) -> bool:
        """Returns whether a folder still has the files that it was published with; all of them are read.

        Args:
          folder: the artifact's.
          properties: of the artifact; one without a signature has them.
        """
        return SHA256 not in properties or _digest(folder) == (properties[SHA256], properties.get(BYTES))

    def _remember(self, folder: Path, stated: str) -> None:
        self._seen[str(folder)] = stated
        if self._boot is not None:
            seen = {uri: stated for uri, stated in self._seen.items() if Path(uri).exists()}
            with contextlib.suppress(OSError):  # it only saves time
                files.write_text(self._file, json.dumps({"boot": self._boot, "seen": seen}))


def _boot() -> str | None:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return None


def _files(folder: Path) -> Iterator[Path]:
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return (path for path in paths if path.is_file())


def _stated(folder: Path) -> str:
    """Returns a digest of what the system says of an artifact's files; it changes with every change of one of them."""
    lines = []
    for path in _files(folder):
        status = path.stat()
        numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        lines.append(f"{path.relative_to(folder)}\0{numbers}")
    return files.digest_of_bytes(*(line.encode(errors="surrogateescape") for line in lines))


def _digest(folder: Path) -> tuple[str, int]:
    """Returns a digest of an artifact's files, and the sum of their sizes in bytes."""

    def line(path: Path) -> tuple[bytes, int]:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        name = path.relative_to(folder)
        return f"{name}\0{size}\0{sha256}".encode(errors="surrogateescape"), size

    with ThreadPoolExecutor() as pool:  # hashing does not hold Python's lock
        lines = list(pool.map(line, _files(folder)))
    return files.digest_of_bytes(*(text for text, _ in lines)), sum(size for _, size in lines)
