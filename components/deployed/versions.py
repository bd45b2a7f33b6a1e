"""The versions below a pushed folder: listing them, and going back to an earlier one.

A rollback is written down before it moves the pointer, and forgotten when whoever asked for it knows that it is done:
`.rollback.json` in the folder says {"from": "1790086400", "to": "1790000000", "name": "int8", "by": "ann", "why": "",
"at": "2026-01-31T09:00:00.123+00:00"}. So one that was killed is finished by the next push or rollback, and asking for
it again asks for the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeline import files, layout
from edgeline.deployed import pointer_file, transaction
from edgeline.deployed.pointer_file import POINTER_FILE
from edgeline.errors import UserError

#: The year 5138, in seconds; no name of a date and a time is before it.
_LAST_TIME = 10**11

ROLLBACK_FILE = ".rollback.json"


@dataclasses.dataclass(frozen=True)
class Rollback:
    """Going back, or forward, to a version.

    Attributes:
      left: the version that was deployed before; None where it was not known.
      to: the version that is deployed by it.
      name: of the candidate that this is; None where it is not known.
      by: who asked for it.
      why: the reason that was given; may be empty.
      at: when, UTC, ISO 8601; tells two of them apart.
      resumed: whether it had been begun by an earlier call, which was killed.
    """

    left: str | None
    to: str
    name: str | None
    by: str
    why: str
    at: str
    resumed: bool = False


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
    """Returns the latest version before the deployed one that is another model, whole, and was not rolled back.

    Raises:
      UserError: there is none, or it is not known which one is deployed.
    """
    pointer, there = pointer_file.path_of(push_to), versions(push_to)
    current = str(pointer.get("version", ""))
    if not current.isdecimal():
        raise UserError(
            f"{posixpath.join(push_to, POINTER_FILE)} does not say which version is deployed, so there is none before "
            f"it; name the version to deploy: {_listed(there)}"
        )
    earlier = [v for v in there if int(v.version) < int(current)]
    other = [v for v in earlier if v.sha256 != pointer.get("sha256")]
    version = next((v.version for v in other if v.problem is None and v.withdrawn is None), None)
    if version is None:
        same = " and is another model" if len(other) < len(earlier) else ""
        raise UserError(f"no version in {push_to} before {current} can be deployed{same}: {_listed(earlier)}")
    return version


def roll_back(push_to: str, version: str, *, by: str, why: str, name: str | None = None) -> None:
    """Makes another version the one that is deployed, see `rolled_back`."""
    with rolled_back(push_to, version, by=by, why=why, names={version: name}):
        pass


@contextlib.contextmanager
def rolled_back(
    push_to: str,
    version: str | None,
    *,
    by: str,
    why: str,
    names: Mapping[str, str | None],
    log: Callable[[Rollback], None] = lambda rollback: None,
) -> Iterator[Rollback]:
    """Makes another version the one that is deployed; nobody else can push or roll back meanwhile.

    The version that is left for an earlier one is withdrawn: no run pushes its file again (`withdrawal`). A version
    that is returned to is withdrawn no longer. Where an earlier call was killed, that one is finished; if it is the one
    that is asked for now, nothing else is done.

    Args:
      push_to: the folder that models are pushed to, a path or a URI that TensorFlow can write.
      version: which; None: the latest before the deployed one, see `previous`.
      by: who does it.
      why: and for what reason; may be empty.
      names: of the candidates that the versions were; of others, the one that the pointer knows, if it does.
      log: is told of each rollback before the pointer moves, and of one that is resumed a second time.

    Yields:
      What was done. When the block ends without an error, it counts as told, and asking again asks for the next one.

    Raises:
      UserError: there is no such version, it is not whole, or is the model that is deployed.
    """
    with transaction.held(push_to):
        begun = finish_rollback(push_to, log)
        if begun is None or version not in (None, begun.to):
            begun = _intended(push_to, version or previous(push_to), by, why, names)
            fields = {name: value for name, value in dataclasses.asdict(begun).items() if name != "resumed"}
            files.write_text(posixpath.join(push_to, ROLLBACK_FILE), json.dumps(fields) + "\n")
            log(begun)
            _move(push_to, begun)
        yield begun
        _forget(push_to)


def finish_rollback(push_to: str, log: Callable[[Rollback], None] = lambda rollback: None) -> Rollback | None:
    """Finishes a rollback that was killed. Call within `transaction.held`.

    Returns:
      It, where it still decides what is deployed; it is finished, but not forgotten: who asked for it may ask again.
    """
    path = posixpath.join(push_to, ROLLBACK_FILE)
    try:
        begun = Rollback(**json.loads(files.read_bytes(path)), resumed=True)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):  # cut off by who writes without renaming: nothing had begun
        _forget(push_to)
        return None
    log(begun)
    current = pointer_file.path_of(push_to).get("version")
    if current == begun.to:
        return begun
    if current == begun.left:
        # the version may have been deleted by hand since
        with contextlib.suppress(FileNotFoundError, ValueError):
            _move(push_to, begun)
            return begun
    _forget(push_to)
    return None


def _intended(push_to: str, version: str, by: str, why: str, names: Mapping[str, str | None]) -> Rollback:
    there = versions(push_to)
    target = next((v for v in there if v.version == version), None)
    if target is None:
        raise UserError(f"{push_to} has no version {version}; there is {_listed(there)}")
    if target.problem is not None:
        raise UserError(f"version {version} in {push_to} is not whole: {target.problem}; there is {_listed(there)}")
    if target.current:
        raise UserError(f"version {version} is the one that is deployed in {push_to}")
    deployed = next((v for v in there if v.current), None)
    if deployed is not None and deployed.problem is None and deployed.sha256 == target.sha256:
        raise UserError(
            f"version {version} in {push_to} is the same file as version {deployed.version}, which is deployed: "
            f"nothing would change; there is {_listed(there)}"
        )
    known = target.withdrawn["name"] if target.withdrawn else None
    left = pointer_file.path_of(push_to).get("version")
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return Rollback(left, version, names.get(version) or known, by, why, at)


def _move(push_to: str, rollback: Rollback) -> None:
    before, target = pointer_file.path_of(push_to), rollback.to
    sha256 = pointer_file.metadata_of(posixpath.join(push_to, target))["sha256"]
    withdrawn = [entry for entry in before.get("withdrawn", []) if entry["sha256"] != sha256]
    current = str(rollback.left or "")
    if current.isdecimal() and int(target) < int(current) and before["sha256"] != sha256:
        at = datetime.datetime.fromisoformat(rollback.at).isoformat(timespec="seconds")
        withdrawn.append({
            **{key: before[key] for key in ("version", "sha256", "name")},
            "at": at, "by": rollback.by, "why": rollback.why,
        })  # fmt: skip
    pointer_file.point(push_to, target, rollback.name, withdrawn=withdrawn)


def _forget(push_to: str) -> None:
    path = posixpath.join(push_to, ROLLBACK_FILE)
    if not files.is_uri(path):
        Path(path).unlink(missing_ok=True)
        return
    import tensorflow as tf

    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(path)


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
