"""The versions below a pushed folder: listing them, and going back to an earlier one."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import posixpath
from pathlib import Path
from typing import Any

from edgeline import files, layout
from edgeline.deployed import pointer_file
from edgeline.deployed.pointer_file import POINTER_FILE
from edgeline.errors import UserError

#: The year 5138, in seconds; no name of a date and a time is before it.
_LAST_TIME = 10**11


@dataclasses.dataclass(frozen=True)
class Version:
    """A folder of the folder that models are pushed to.

    Attributes:
      version: its name.
      sha256: hexadecimal, of its `.tflite` file; None where that is missing.
      bytes: of that file; None likewise.
      problem: why it cannot be deployed; None where it is whole.
      current: whether it is deployed.
      withdrawn: the pointer's entry on it where it was rolled back, else None.
    """

    version: str
    sha256: str | None
    bytes: int | None
    problem: str | None
    current: bool
    withdrawn: dict[str, Any] | None

    @property
    def pushed_at(self) -> datetime.datetime:
        """When it was pushed, UTC: its name is the time in seconds."""
        return datetime.datetime.fromtimestamp(int(self.version), datetime.UTC)


def versions(push_to: str) -> list[Version]:
    """Returns the versions in a folder that models are pushed to, newest first; reads every model.

    Args:
      push_to: a path or a URI that TensorFlow can read.
    """
    pointer = pointer_file.path_of(push_to)
    withdrawn = {entry["sha256"]: entry for entry in pointer.get("withdrawn", [])}
    listed = []
    for version in sorted(filter(is_version, _names(push_to)), key=int, reverse=True):
        folder, sha256, size, problem = posixpath.join(push_to, version), None, None, None
        try:
            content = files.read_bytes(posixpath.join(folder, layout.TFLITE_FILE))
            sha256, size = hashlib.sha256(content).hexdigest(), len(content)
            if pointer_file.metadata_of(folder)["sha256"] != sha256:
                problem = f"its {layout.METADATA_FILE} describes another {layout.TFLITE_FILE}"
        except FileNotFoundError as error:
            problem = f"{posixpath.basename(str(error.filename))} is missing"
        except ValueError:
            problem = f"its {layout.METADATA_FILE} is not that of a model"
        current = version == pointer.get("version")
        if current and problem is None and sha256 != pointer.get("sha256"):
            problem = f"{POINTER_FILE} names another {layout.TFLITE_FILE}"
        listed.append(Version(version, sha256, size, problem, current, withdrawn.get(sha256 or "")))
    return listed


def previous(push_to: str) -> str:
    """Returns the latest version before the deployed one that is whole and was not rolled back.

    Raises:
      UserError: there is none, or it is not known which one is deployed.
    """
    current, there = str(pointer_file.path_of(push_to).get("version", "")), versions(push_to)
    if not current.isdecimal():
        raise UserError(
            f"{posixpath.join(push_to, POINTER_FILE)} does not say which version is deployed, so there is none before "
            f"it; name the version to deploy: {_listed(there)}"
        )
    earlier = [v for v in there if int(v.version) < int(current)]
    version = next((v.version for v in earlier if v.problem is None and v.withdrawn is None), None)
    if version is None:
        raise UserError(f"no version in {push_to} before {current} can be deployed: {_listed(earlier)}")
    return version


def roll_back(push_to: str, version: str, *, by: str, why: str, name: str | None = None) -> None:
    """Makes another version the one that is deployed.

    The version that is left for an earlier one is withdrawn: no run pushes its file again (`withdrawal`). A version
    that is returned to is withdrawn no longer.

    Args:
      push_to: the folder that models are pushed to, a path or a URI that TensorFlow can write.
      version: which.
      by: who does it.
      why: and for what reason; may be empty.
      name: of the candidate that the version was; None: the one that the pointer knows, if it does.

    Raises:
      UserError: there is no such version, it is not whole, or it is the one that is deployed.
    """
    before, there = pointer_file.path_of(push_to), versions(push_to)
    target = next((v for v in there if v.version == version), None)
    if target is None:
        raise UserError(f"{push_to} has no version {version}; there is {_listed(there)}")
    if target.problem is not None:
        raise UserError(f"version {version} in {push_to} is not whole: {target.problem}; there is {_listed(there)}")
    if target.current:
        raise UserError(f"version {version} is the one that is deployed in {push_to}")
    withdrawn = [entry for entry in before.get("withdrawn", []) if entry["sha256"] != target.sha256]
    current = str(before.get("version", ""))
    if current.isdecimal() and int(version) < int(current) and before["sha256"] != target.sha256:
        withdrawn.append({
            **{key: before[key] for key in ("version", "sha256", "name")},
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "by": by, "why": why,
        })  # fmt: skip
    known = target.withdrawn["name"] if target.withdrawn else None
    pointer_file.point(push_to, version, name or known, withdrawn=withdrawn)


def withdrawal(push_to: str, sha256: str) -> dict[str, Any] | None:
    """Returns the pointer's entry on a model that was rolled back; None for every other one."""
    return next(
        (entry for entry in pointer_file.path_of(push_to).get("withdrawn", []) if entry["sha256"] == sha256), None
    )


def is_version(name: str) -> bool:
    """Returns whether a folder's name can be the time of a push; one called 20260131093000 is somebody's own."""
    return name.isascii() and name.isdecimal() and int(name) < _LAST_TIME


def _listed(there: list[Version]) -> str:
    words = [f"{v.version} ({v.problem or 'rolled back'})" if v.problem or v.withdrawn else v.version for v in there]
    return ", ".join(words) or "none"


def _names(folder: str) -> list[str]:
    if not files.is_uri(folder):
        return [path.name for path in Path(folder).iterdir() if path.is_dir()] if Path(folder).is_dir() else []
    import tensorflow as tf

    return [name.rstrip("/") for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.isdir(folder) else []
