"""The model in the field: `latest.json` in the folder that models are pushed to names the version pushed last.

A reader needs neither ML Metadata nor TFX, and a version counts as pushed from the moment the pointer names it:

    {
      "schema_version": 1,
      "version": "1790000000",                    # name of the version's folder; later versions have greater numbers
      "model": "1790000000/model.tflite",         # relative to the pointer
      "sha256": "...", "bytes": 24824,            # of that file
      "name": "prune80_int8",                     # of the candidate; null where it is not known
      "pushed_at": "2026-01-31T02:30:00+00:00",
      "contract": {"inputs": [{"name": "image", "shape": [-1, 8, 8, 1], "dtype": "float32"}],
                   "outputs": [{"name": "logits", "shape": [-1, 10], "dtype": "float32"}],
                   "labels": ["0", "1"]},         # in the order of the outputs; empty where they are not known
      "previous": "1789913600"                    # the version that it replaces, or null
    }

The folder may be a path, or a URI such as gs:// that TensorFlow, and with it TFX's fileio, can read and write. Only a
URI makes this module import TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeline.errors import UserError

POINTER_FILE = "latest.json"
SCHEMA_VERSION = 1

_MODEL_FILE = "model.tflite"
_METADATA_FILE = "metadata.json"
_LABELS_FILE = "labels.txt"


@dataclasses.dataclass(frozen=True)
class Deployed:
    """The model that was pushed last.

    Attributes:
      path: its `.tflite` file, a path or a URI.
      version: name of its folder.
      sha256: hexadecimal, of the file.
      name: of the candidate that it was; None where that is not known.
      metadata: what the TFLiteExporter said of it: bytes, zlib_bytes, sparsity, inputs, outputs, ...
      contract: what an app relies on: `inputs` and `outputs`, each name, shape (-1 where any size goes) and dtype, and
        `labels`, empty where they are not known.
      pushed_at: UTC, ISO 8601.
    """

    path: str
    version: str
    sha256: str
    name: str | None
    metadata: dict[str, Any]
    contract: dict[str, Any]
    pushed_at: str

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """Yields the path of the file on this machine; that of a URI is a copy, which is deleted afterwards."""
        if not is_uri(self.path):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, _MODEL_FILE)
            path.write_bytes(_read(self.path))
            yield path


def latest(push_to: str) -> Deployed | None:
    """Returns the model that was pushed last, after checking that it still is the file that was pushed.

    Args:
      push_to: the folder that models are pushed to, a path or a URI; empty where nothing pushed lasts.

    Returns:
      None where nothing was pushed yet, and for an empty `push_to`.

    Raises:
      UserError: the pointer cannot be read, or what it names is missing or another file; says how to mend it.
    """
    if not push_to:
        return None
    pointer = posixpath.join(push_to, POINTER_FILE)
    try:
        content = _parse(pointer, _read(pointer))
    except FileNotFoundError:
        return None
    try:
        path = posixpath.join(push_to, content["model"])
        named = {key: content[key] for key in ("version", "sha256", "name", "contract", "pushed_at")}
        contract = {key: named["contract"][key] for key in ("inputs", "outputs", "labels")}
    except (KeyError, TypeError) as error:
        raise _not_a_pointer(pointer, error) from error
    try:
        sha256 = hashlib.sha256(_read(path)).hexdigest()
        metadata = json.loads(_read(posixpath.join(posixpath.dirname(path), _METADATA_FILE)))
    except FileNotFoundError as error:
        raise _broken(pointer, f"names a version of which {error.filename} is missing") from error
    except ValueError as error:
        raise _broken(pointer, f"names a version whose {_METADATA_FILE} is no JSON: {error}") from error
    if sha256 != named["sha256"]:
        raise _broken(
            pointer, f"names {path}, which is not what was pushed: SHA-256 {sha256}, expected {named['sha256']}"
        )
    return Deployed(path, metadata=metadata, **{**named, "contract": contract})


def point(push_to: str, version: str, name: str | None = None) -> None:
    """Makes a version the one that is deployed: moves the pointer, for a path atomically.

    Args:
      push_to: the folder that models are pushed to, a path or a URI that TensorFlow can write.
      version: name of a complete folder in it with `model.tflite`, `metadata.json` and perhaps `labels.txt`, as the
        TFLiteExporter writes them.
      name: of the candidate, if it is known.

    Raises:
      FileNotFoundError: the version is not complete.
      ValueError: the model is not the one that its metadata describes.
    """
    pointer = posixpath.join(push_to, POINTER_FILE)
    folder = posixpath.join(push_to, version)
    content = _read(posixpath.join(folder, _MODEL_FILE))
    metadata = json.loads(_read(posixpath.join(folder, _METADATA_FILE)))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != metadata["sha256"]:
        raise ValueError(
            f"{folder}/{_MODEL_FILE} is not the file that its {_METADATA_FILE} describes: SHA-256 {sha256}, expected "
            f"{metadata['sha256']}"
        )
    try:
        labels = _read(posixpath.join(folder, _LABELS_FILE)).decode().removesuffix("\n").split("\n")
    except FileNotFoundError:
        labels = []
    previous = None
    # a broken pointer must not keep the next push from replacing it
    with contextlib.suppress(FileNotFoundError, UserError):
        previous = _parse(pointer, _read(pointer)).get("version")
    moved = {
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "model": f"{version}/{_MODEL_FILE}",
        "sha256": sha256,
        "bytes": len(content),
        "name": name,
        "pushed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "contract": {
            "inputs": [_port(port) for port in metadata["inputs"]],
            "outputs": [_port(port) for port in metadata["outputs"]],
            "labels": labels,
        },
        "previous": previous,
    }
    _write(pointer, (json.dumps(moved, indent=1) + "\n").encode())


def _port(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("name", "shape", "dtype")}


def is_uri(path: str) -> bool:
    """Returns whether a path is a URI, which only TensorFlow's file systems can open."""
    return "://" in path


def _parse(pointer: str, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        found = content["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise _not_a_pointer(pointer, error) from error
    if found != SCHEMA_VERSION:
        raise _broken(pointer, f"has schema_version {found!r}; this version of Edgeline reads {SCHEMA_VERSION}")
    return dict(content)


def _not_a_pointer(pointer: str, error: Exception) -> UserError:
    return _broken(pointer, f"is not the pointer of a push ({type(error).__name__}: {error})")


def _broken(pointer: str, what: str) -> UserError:
    return UserError(
        f"{pointer} {what}. So it cannot be said which model is deployed: restore what is missing or was changed, or "
        f"delete {pointer} to start anew (the next run then compares with no deployed model, and its push writes the "
        f"file again)."
    )


def _read(path: str) -> bytes:
    """Reads a file; raises FileNotFoundError with its `filename` for URIs too."""
    if not is_uri(path):
        return Path(path).read_bytes()
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, error.message, path) from error


def _write(path: str, content: bytes) -> None:
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
