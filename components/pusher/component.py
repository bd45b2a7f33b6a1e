"""TFX's Pusher with an executor of its own: what is pushed appears at once, and a pointer names it.

The stock executor copies file by file into the folder that apps look at, so that a killed push looks like a finished
one, and it skips a second push within the same second.
"""

import shutil
import tempfile
import time
import uuid
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
from edgeline.deployed import pointer_file, versions


class Executor(executor.Executor):
    """Pushes a blessed model as `<base_directory>/<version>/`, then points `latest.json` at it (`edgeline.deployed`).

    The version is the time in seconds, or one more than the greatest that is there. On a path its folder appears
    complete, by a rename; on a URI it fills file by file, so there a reader has to go by the pointer. A model that is
    not blessed, or was rolled back, leaves everything as it is.
    """

    def Do(self, input_dict: dict[str, Any], output_dict: dict[str, Any], exec_properties: dict[str, Any]) -> None:
        """Lets the stock executor push to where nobody looks, and delivers that; see TFX's BaseExecutor."""
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties["push_destination"], destination)
        push_to = destination.filesystem.base_directory.rstrip("/")
        # what was rolled back stays so, however often a run selects the same file again
        if self.CheckBlessing(input_dict):
            sha256 = files.sha256_of(f"{self.GetModelPath(input_dict)}/{layout.TFLITE_FILE}")
            if versions.withdrawal(push_to, sha256):
                self._MarkNotPushed(artifact_utils.get_single_instance(output_dict["pushed_model"]))
                return
        # a rename needs the same file system
        staging = tempfile.mkdtemp() if files.is_uri(push_to) else f"{push_to}/.pushing-{uuid.uuid4()}"
        destination.filesystem.base_directory = staging
        staged_properties = {**exec_properties, "push_destination": proto_utils.proto_to_json(destination)}
        try:
            super().Do(input_dict, output_dict, staged_properties)
            pushed = artifact_utils.get_single_instance(output_dict["pushed_model"])
            if not pushed.get_int_custom_property("pushed"):
                return
            [staged] = Path(staging).iterdir()
            version = _deliver(staged, push_to)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        names = [model.get_string_custom_property("candidate") for model in input_dict.get("model", [])]
        try:
            pointer_file.point(push_to, version, next(filter(None, names), None))
        except Exception:
            fileio.rmtree(f"{push_to}/{version}")  # what no pointer names was not pushed
            raise
        self._MarkPushed(pushed, pushed_destination=f"{push_to}/{version}", pushed_version=version)


def _deliver(staged: Path, push_to: str) -> str:
    """Moves a folder to where versions lie, as a new one; returns its name."""
    there = [name.rstrip("/") for name in fileio.listdir(push_to)] if fileio.isdir(push_to) else []
    version = max([int(time.time()), *(int(name) + 1 for name in there if versions.is_version(name))])
    if files.is_uri(push_to):
        try:
            io_utils.copy_dir(str(staged), f"{push_to}/{version}")
        except Exception:
            io_utils.delete_dir(f"{push_to}/{version}")
            raise
        return str(version)
    while True:
        folder = Path(push_to, str(version))
        try:
            staged.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            version += 1  # another push was faster
        else:
            return folder.name


class Pusher(StockPusher):
    """TFX's Pusher, with all its arguments; only the executor is another one."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
