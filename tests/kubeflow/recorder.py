"""Writes down what executors are given, by whichever runner; as a script, runs a step in a process of its own."""

import contextlib
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

Json = dict[str, Any]


@contextlib.contextmanager
def recording(folder: Path, *, work: bool = True) -> Iterator[None]:
    """Lets every executor that TFX loads write what it is given to `<node>.json` in a folder.

    Args:
      folder: is made.
      work: whether the executor then does its work.
    """
    from tfx.dsl.components.base import base_executor
    from tfx.utils import import_utils

    load = import_utils.import_class_by_path
    recorded = set()
    folder.mkdir(parents=True, exist_ok=True)

    def load_recorded(path: str) -> Any:
        found = load(path)
        if isinstance(found, type) and issubclass(found, base_executor.BaseExecutor) and found not in recorded:
            recorded.add(found)
            patches.enter_context(mock.patch.object(found, "Do", _recorded(found.Do, folder, work)))
        return found

    with contextlib.ExitStack() as patches, mock.patch.object(import_utils, "import_class_by_path", load_recorded):
        yield


def _recorded(do: Callable[..., Any], folder: Path, work: bool) -> Callable[..., Any]:
    def record(self: Any, input_dict: Json, output_dict: Json, exec_properties: Json) -> Any:
        [output, *_] = next(iter(output_dict.values()))
        seen = {
            "inputs": {key: [describe(artifact) for artifact in given] for key, given in input_dict.items()},
            "outputs": {key: [artifact.type_name for artifact in given] for key, given in output_dict.items()},
            "exec_properties": {name: [type(value).__name__, value] for name, value in exec_properties.items()},
        }
        (folder / f"{node_of(output.uri)}.json").write_text(json.dumps(seen))
        return do(self, input_dict, output_dict, exec_properties) if work else None

    return record


def read(folder: Path) -> dict[str, Json]:
    """Returns what was written, by node."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def node_of(uri: str) -> str:
    """Returns the node that made an artifact: .../<node>/<key>/<execution> here, .../<node>/<unique>/<key> there."""
    return re.sub("[._]", "-", uri.split("/")[-3])


def describe(artifact: Any) -> Json:
    """Returns an artifact's type, its properties, and its files with a digest of what is the same in every run."""
    files = sorted(path for path in Path(artifact.uri).rglob("*") if path.is_file())
    return {
        "type": artifact.type_name,
        "properties": {name: getattr(artifact, name) for name in artifact.mlmd_artifact.properties},
        "custom": {name: artifact.get_custom_property(name) for name in artifact.mlmd_artifact.custom_properties},
        "files": {path.relative_to(artifact.uri).as_posix(): _digest(path) for path in files},
    }


def _digest(path: Path) -> str:
    if path.name in ("saved_model.pb", "fingerprint.pb"):
        return "one order of the graph's functions, of many"
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:  # beside these there is the time of saving
            return str([archive.getinfo(name).CRC for name in ("config.json", "model.weights.h5")])
    if path.name == "metadata.json":
        facts = json.loads(path.read_text())
        facts.pop("peak_rss_bytes", None)  # measured, so never twice the same
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    from edgeline.kubeflow import entrypoint

    pod, *arguments = sys.argv[1:]
    with recording(Path(pod, "seen")):
        entrypoint.main(arguments, mounts=Path(pod))
