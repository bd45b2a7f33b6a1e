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
                   "labels": ["0", "1"],          # in the order of the outputs; empty where they are not known
                   "target": "cpu"},              # what it was judged for; null where that is not known
      "previous": "1789913600",                   # the version that it replaces, or null
      "withdrawn": [{"version": "1789999999", "sha256": "...", "name": "qat8", "at": "2026-01-31T09:00:00+00:00",
                     "by": "ann", "why": "..."}]  # rolled back: never pushed again by a run; absent where none was
    }

The folder may be a path, or a URI such as gs:// that TensorFlow, and with it TFX's fileio, can read and write. Only a
URI makes this module import TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeline import files, layout
from edgeline.deployed import contract
from edgeline.errors import UserError

POINTER_FILE = "latest.json"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Deployed:
    """The model that was pushed last.

    Attributes:
      path: its `.tflite` file, a path or a URI.
      version: name of its folder.
      sha256: hexadecimal, of the file.
      name: of the candidate that it was; None where that is not known.
      metadata: what the TFLiteExporter said of it: bytes, zlib_bytes, sparsity, inputs, outputs, ...
      contract: what an app relies on (see `edgeline.deployed.contract`).
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
        if not files.is_uri(self.path):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, layout.TFLITE_FILE)
            path.write_bytes(files.read_bytes(self.path))
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
        content = _parse(pointer, files.read_bytes(pointer))
    except FileNotFoundError:
        return None
    try:
        path = posixpath.join(push_to, content["model"])
        named = {key: content[key] for key in ("version", "sha256", "name", "contract", "pushed_at")}
        promised = {key: named["contract"][key] for key in ("inputs", "outputs", "labels")}
        promised["target"] = named["contract"].get("target")  # a pointer of an earlier version does not say
    except (KeyError, TypeError) as error:
        raise _not_a_pointer(pointer, error) from error
    try:
        sha256 = hashlib.sha256(files.read_bytes(path)).hexdigest()
        metadata = metadata_of(posixpath.dirname(path))
    except FileNotFoundError as error:
        raise _broken(pointer, f"names a version of which {error.filename} is missing") from error
    except ValueError as error:
        raise _broken(pointer, f"names a version whose {layout.METADATA_FILE} {error}") from error
    if sha256 != named["sha256"]:
        raise _broken(
            pointer, f"names {path}, which is not what was pushed: SHA-256 {sha256}, expected {named['sha256']}"
        )
    return Deployed(path, metadata=metadata, **{**named, "contract": promised})


def point(
    push_to: str, version: str, name: str | None = None, *, withdrawn: list[dict[str, Any]] | None = None
) -> None:
    """Makes a version the one that is deployed: moves the pointer, for a path atomically.

    Args:
      push_to: the folder that models are pushed to, a path or a URI that TensorFlow can write.
      version: name of a complete folder in it with `model.tflite`, `metadata.json` and perhaps `labels.txt`, as the
        TFLiteExporter writes them.
      name: of the candidate, if it is known.
      withdrawn: what was rolled back, as the pointer says it; None: what the pointer says now.

    Raises:
      FileNotFoundError: the version is not complete.
      ValueError: the model is not the one that its metadata describes, or that is damaged.
    """
    pointer = posixpath.join(push_to, POINTER_FILE)
    folder = posixpath.join(push_to, version)
    content = files.read_bytes(posixpath.join(folder, layout.TFLITE_FILE))
    try:
        metadata = metadata_of(folder)
    except ValueError as error:
        raise ValueError(f"{folder}/{layout.METADATA_FILE} {error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != metadata["sha256"]:
        raise ValueError(
            f"{folder}/{layout.TFLITE_FILE} is not the file that its {layout.METADATA_FILE} describes: SHA-256 "
            f"{sha256}, expected {metadata['sha256']}"
        )
    try:
        labels = contract.read_labels(files.read_bytes(posixpath.join(folder, layout.LABELS_FILE)))
    except FileNotFoundError:
        labels = []
    before = path_of(push_to)  # a broken one must not keep the next push from replacing it
    withdrawn = before.get("withdrawn", []) if withdrawn is None else withdrawn
    moved = {
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "model": f"{version}/{layout.TFLITE_FILE}",
        "sha256": sha256,
        "bytes": len(content),
        "name": name,
        "pushed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "contract": contract.of(metadata, labels, metadata.get("target")),
        "previous": before.get("version"),
        **({"withdrawn": withdrawn} if withdrawn else {}),
    }
    files.write_bytes(pointer, (json.dumps(moved, indent=1) + "\n").encode())


def path_of(push_to: str) -> dict[str, Any]:
    """Returns what the pointer says; empty where there is none, or none that can be read."""
    pointer = posixpath.join(push_to, POINTER_FILE)
    with contextlib.suppress(FileNotFoundError, UserError):
        return _parse(pointer, files.read_bytes(pointer))
    return {}


def exists(push_to: str) -> bool:
    """Returns whether something was pushed there, whether or not its pointer can be read."""
    with contextlib.suppress(FileNotFoundError):
        files.read_bytes(posixpath.join(push_to, POINTER_FILE))
        return True
    return False


def _parse(pointer: str, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        version = content["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _not_a_pointer(pointer, error) from error
    if version != SCHEMA_VERSION:
        raise _broken(pointer, f"has schema_version {version!r}; this version of Edgeline reads {SCHEMA_VERSION}")
    try:
        _check(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _not_a_pointer(pointer, error) from error
    return dict(content)


def _check(content: dict[str, Any]) -> None:
    """Raises where what is read of a pointer is missing or of another type: anybody may have edited the file."""
    contract = content["contract"]
    for side in ("inputs", "outputs"):
        if not _are_ports(contract[side]):
            raise TypeError(f"its {side} are no list of ports")
    texts = [content[key] for key in ("version", "model", "sha256", "pushed_at")]
    texts += [text for text in (content["name"], content.get("previous"), contract.get("target")) if text is not None]
    texts += contract["labels"]
    for entry in content.get("withdrawn", []):
        texts += [entry[key] for key in ("version", "sha256", "at", "by", "why")]
        texts += [text for text in (entry["name"],) if text is not None]
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"expected a text, received {odd[0]!r}")


def _not_a_pointer(pointer: str, error: Exception) -> UserError:
    return _broken(pointer, f"is not the pointer of a push ({type(error).__name__}: {error})")


def _broken(pointer: str, what: str) -> UserError:
    return UserError(
        f"{pointer} {what}. So it cannot be said which model is deployed: restore what is missing or was changed, or "
        f"delete {pointer} to start anew (the next run then compares with no deployed model, and its push writes the "
        f"file again)."
    )


def metadata_of(folder: str) -> dict[str, Any]:
    """Returns the metadata of a version, what is read of it checked.

    Raises:
      FileNotFoundError: it has none.
      ValueError: it is damaged; says how, to go behind the file's name.
    """
    try:
        metadata = json.loads(files.read_bytes(posixpath.join(folder, layout.METADATA_FILE)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"is not that of a model: it holds {type(metadata).__name__}, expected an object")
    rules = (
        ("sha256", isinstance(metadata.get("sha256"), str), "a SHA-256"),
        ("inputs", _are_ports(metadata.get("inputs")), "a list of ports"),
        ("outputs", _are_ports(metadata.get("outputs")), "a list of ports"),
        ("target", isinstance(metadata.get("target"), str | None), "a name"),
        *((size, type(metadata.get(size, 0)) is int, "a number of bytes") for size in ("bytes", "zlib_bytes")),
    )
    for name, holds, expected in rules:
        if not holds:
            raise ValueError(f"is not that of a model: its {name} is not {expected}")
    return metadata


def _are_ports(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(port, dict)
        and isinstance(port.get("name"), str)
        and isinstance(port.get("dtype"), str)
        and isinstance(port.get("shape"), list)
        and all(type(size) is int for size in port["shape"])
        for port in value
    )
