"""TFX's Pusher with an executor of its own: what is pushed appears at once, and a pointer names it.

The stock executor copies file by file into the folder that apps look at, so that a killed push looks like a finished
one, and it skips a second push within the same second.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tfx.components import Pusher as StockPusher
from tfx.components.pusher import executor
from tfx.dsl.components.base import executor_spec
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils
from tfx.utils import io_utils, proto_utils

from edgeline import files, layout
from edgeline.deployed import pointer_file, transaction, versions


class Executor(executor.Executor):
    """Pushes a blessed model as `<base_directory>/<version>/`, then points `latest.json` at it (`edgeline.deployed`).

    The version is the time in seconds, or one more than the greatest that is there. On a path its folder appears
    complete, by a rename; on a URI it fills file by file, so there a reader has to go by the pointer. A model that is
    not blessed, was rolled back or is deployed already leaves everything as it is. A push that was killed before the
    pointer moved is finished by the next one of the same model.
    """

    def Do(self, input_dict: dict[str, Any], output_dict: dict[str, Any], exec_properties: dict[str, Any]) -> None:
        """Lets the stock executor push to where nobody looks, and delivers that; see TFX's BaseExecutor."""
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties["push_destination"], destination)
        push_to = destination.filesystem.base_directory.rstrip("/")
        pushed = artifact_utils.get_single_instance(output_dict["pushed_model"])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        sha256 = files.sha256_of(f"{self.GetModelPath(input_dict)}/{layout.TFLITE_FILE}")
        if not files.is_uri(push_to):
            files.make_folder(Path(push_to))
        with transaction.held(push_to):
            versions.finish_rollback(push_to)
            # what was rolled back stays so, however often a run selects the same file again
            if versions.withdrawal(push_to, sha256):
                self._MarkNotPushed(pushed)
                return
            # a rename needs the same file system
            staging = Path(tempfile.mkdtemp()) if files.is_uri(push_to) else transaction.staging(push_to)
            destination.filesystem.base_directory = str(staging)
            staged_properties = {**exec_properties, "push_destination": proto_utils.proto_to_json(destination)}
            try:
                super().Do(input_dict, output_dict, staged_properties)
                [staged] = staging.iterdir()
                names = [model.get_string_custom_property("candidate") for model in input_dict.get("model", [])]
                version = _push(staged, push_to, next(filter(None, names), None))
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        self._MarkPushed(pushed, pushed_destination=f"{push_to}/{version}", pushed_version=version)


def _push(staged: Path, push_to: str, name: str | None) -> str:
    """Deploys the model in a folder, which is moved away; returns the version that it is.

    A version that is deployed, or that a killed push has left behind it, and is the same model stays the only one.
    """
    pointer, there = pointer_file.path_of(push_to), _numbers(push_to)
    current = str(pointer.get("version", ""))
    oldest = int(current) if current.isdecimal() else 0
    for number in sorted((number for number in there if number >= oldest), reverse=True):
        if _is_same(staged, f"{push_to}/{number}"):
            if str(number) != current:
                pointer_file.point(push_to, str(number), name)
            return str(number)
    version = _deliver(staged, push_to, max([int(time.time()), *(number + 1 for number in there)]))
    try:
        pointer_file.point(push_to, version, name)
    except Exception:
        fileio.rmtree(f"{push_to}/{version}")  # what no pointer names was not pushed
        raise
    return version


def _numbers(push_to: str) -> list[int]:
    names = [name.rstrip("/") for name in fileio.listdir(push_to)] if fileio.isdir(push_to) else []
    return [int(name) for name in names if versions.is_version(name)]


def _is_same(folder: Path, version: str) -> bool:
    """Returns whether a version has the files of a folder, and no others."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    try:
        # the model first: it tells most versions apart
        ordered = sorted(contents, key=lambda name: name != layout.TFLITE_FILE)
        return all(files.read_bytes(f"{version}/{name}") == contents[name] for name in ordered) and (
            sorted(fileio.listdir(version)) == sorted(path.name for path in folder.iterdir())
        )
    except OSError:
        return False


def _deliver(staged: Path, push_to: str, version: int) -> str:
    """Moves a folder to where versions lie, as a new one of this number or the next free one; returns its name."""
    if files.is_uri(push_to):
        try:
            io_utils.copy_dir(str(staged), f"{push_to}/{version}")
        except Exception:
            io_utils.delete_dir(f"{push_to}/{version}")
            raise
        return str(version)
    files.sync_tree(staged)  # a name may reach the disk before the files that it names
    while True:
        folder = Path(push_to, str(version))
        try:
            staged.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            version += 1  # another push, by one who knows of no lock, was faster
        else:
            files.sync(folder.parent)
            return folder.name


class Pusher(StockPusher):
    """TFX's Pusher, with all its arguments; only the executor is another one."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
