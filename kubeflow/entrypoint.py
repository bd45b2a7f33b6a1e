"""What runs in each container: TFX's own entrypoint, with what it needs on open-source Kubeflow Pipelines.

    python -m edgeline.kubeflow.entrypoint --executor_class_path ... --json_serialized_invocation_args '{{$}}' ...

The launcher hands over one JSON text (ExecutorInput) and reads another (ExecutorOutput) when the step is done. Stock
TFX dies of it: the types of the inputs are missing, the URIs are remote where the files are below a local mount, and
there is an output `executor-logs` of a type that TFX does not know. So both texts are rewritten on their way: `prepare`
before TFX's entrypoint, `restore` after it. On Vertex, whose texts are complete, only the URIs of its gs:// mount
change.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from edgeline.errors import UserError
from edgeline.kubeflow import check_tfx
from edgeline.kubeflow.deployment import SCRATCH
from edgeline.pipelines import endings
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.toolchain import toolchain

Json = dict[str, Any]

#: The launcher puts inputs below these folders and takes outputs from there; Vertex mounts its buckets at the first.
MOUNTS = {"gs://": "gcs", "minio://": "minio", "s3://": "s3"}

#: Before a list, a dict or the like in an artifact's metadata, of which the launcher would make something else.
JSON_PREFIX = "json:"

#: What argparse ends with after a mistake in the arguments.
_USAGE = 2

_CONTAINER = "tfx.orchestration.kubeflow.v2.container"
_RUN = f"{_CONTAINER}.kubeflow_v2_run_executor._run_executor"
_UTILS = f"{_CONTAINER}.kubeflow_v2_entrypoint_utils"
_PATCHED = (
    "parse_raw_artifact_dict",
    "parse_execution_properties",
    "translate_executor_output",
    "_get_json_value_mapping",
)


def main(argv: Sequence[str] | None = None, *, mounts: Path = Path("/")) -> None:
    """Runs the executor of a step.

    Args:
      argv: the arguments that the compiler wrote; what it does not know are Beam's.
      mounts: where the launcher's folders are.
    """
    # as the command line does, before the first import of TensorFlow
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True)
    parser.add_argument("--json_serialized_inputs_spec_args", default="{}")
    arguments, beam_args = parser.parse_known_args(argv)

    given = json.loads(arguments.json_serialized_invocation_args)
    _check_toolchain(given.get("inputs", {}).get("parameterValues", {}), arguments.executor_class_path)
    output_file = given["outputs"]["outputFile"]
    is_remote = "://" in output_file
    # with a remote output file there is no launcher that would carry files between the mounts and the stores
    paths = {s: mounts / f for s, f in MOUNTS.items() if not is_remote or (mounts / f).is_dir()}
    request = prepare(given, json.loads(arguments.json_serialized_inputs_spec_args), paths)
    arguments.json_serialized_invocation_args = json.dumps(request)

    check_tfx(_RUN, *(f"{_UTILS}.{name}" for name in _PATCHED))
    from tfx.dsl.io import fileio
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor

    with _tfx_patched():
        kubeflow_v2_run_executor._run_executor(arguments, beam_args)
    with fileio.open(output_file, "r") as file:
        result = json.loads(file.read())
    with fileio.open(output_file, "w") as file:
        file.write(json.dumps(restore(result, paths)))


def _check_toolchain(parameters: Json, executor: str) -> None:
    """Checks that the image has what the pipeline was compiled with: the lineage and the cache go by that.

    Raises:
      UserError: versions or sources differ; says which.
    """
    if "toolchain" not in parameters:  # a step that is not Edgeline's
        return
    compiled, here = parameters["toolchain"], toolchain(executor.rpartition(".")[0])
    if compiled != here:
        expected, present = set(compiled.split()), set(here.split())
        raise UserError(
            f"the image has not what this pipeline was compiled with: expected "
            f"{' '.join(sorted(expected - present))}, "
            f"found {' '.join(sorted(present - expected))}; compile with the image's versions, or "
            "build the image anew"
        )


def prepare(request: Json, declaration: Json, paths: dict[str, Path]) -> Json:
    """Returns an ExecutorInput as TFX's entrypoint can take it.

    Args:
      request: what the launcher gave.
      declaration: the component's own declaration of its inputs, from which their types are taken: Kubeflow Pipelines
        forgets them.
      paths: where the files of a URI are, by its scheme.
    """
    inputs, outputs = request.get("inputs", {}), request["outputs"]
    outputs.get("artifacts", {}).pop("executor-logs", None)  # the launcher's own
    declared = declaration.get("artifacts", {})
    for name, listed in inputs.get("artifacts", {}).items():
        for artifact in listed.get("artifacts", []):
            if name in declared:
                artifact["type"] = declared[name]["artifactType"]
            artifact["metadata"] = {key: _decode(value) for key, value in artifact.get("metadata", {}).items()}
    for side in (inputs, outputs):
        for listed in side.get("artifacts", {}).values():
            for artifact in listed.get("artifacts", []):
                artifact["uri"] = to_path(artifact["uri"], paths)
    values = inputs.get("parameterValues", {})
    inputs["parameterValues"] = {name: value for name, value in values.items() if value is not None}
    return request


def restore(result: Json, paths: dict[str, Path]) -> Json:
    """Returns an ExecutorOutput as the launcher can take it: remote URIs, and metadata that it can store."""
    for listed in result.get("artifacts", {}).values():
        for artifact in listed.get("artifacts", []):
            artifact["uri"] = to_uri(artifact.get("uri", ""), paths)
            metadata = artifact.get("metadata", {})
            if str(metadata.get("pushed_destination", "")).startswith(SCRATCH):
                metadata["pushed_destination"] = artifact["uri"]  # what lasts
            stored = {key: _encode(value, paths) for key, value in metadata.items() if value is not None}
            artifact["metadata"] = stored
    return result


def to_path(uri: str, paths: dict[str, Path]) -> str:
    """Returns the local path of a URI; other URIs as they are."""
    for scheme, path in paths.items():
        if uri.startswith(scheme):
            return str(path / uri.removeprefix(scheme))
    return uri


def to_uri(path: str, paths: dict[str, Path]) -> str:
    """Returns the URI of a local path; other paths as they are."""
    for scheme, folder in paths.items():
        if path.startswith(f"{folder}/"):
            return scheme + path.removeprefix(f"{folder}/")
    return path


def _encode(value: Any, paths: dict[str, Path]) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return to_uri(value, paths)
    return JSON_PREFIX + json.dumps(value) if isinstance(value, list | dict) else value


def _decode(value: Any) -> Any:
    is_encoded = isinstance(value, str) and value.startswith(JSON_PREFIX)
    return json.loads(value.removeprefix(JSON_PREFIX)) if is_encoded else value


@contextlib.contextmanager
def _tfx_patched() -> Iterator[None]:
    """Lets TFX's entrypoint make folders, know booleans, dicts and lists, and name the model in any blessing."""
    from google.protobuf import json_format, struct_pb2
    from ml_metadata.proto import metadata_store_pb2
    from tfx.components.evaluator import constants
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_entrypoint_utils as utils
    from tfx.types.standard_artifacts import ModelBlessing
    from tfx.types.value_artifact import ValueArtifact

    original = {name: getattr(utils, name) for name in _PATCHED}

    def parse_raw_artifact_dict(*arguments: Any) -> Any:
        parsed = original["parse_raw_artifact_dict"](*arguments)
        for artifact in (a for artifacts in parsed.values() for a in artifacts):
            # the launcher brings no empty folders, and makes only the one above an output
            if "://" not in artifact.uri and not isinstance(artifact, ValueArtifact):
                Path(artifact.uri).mkdir(parents=True, exist_ok=True)
            for name, kind in artifact.artifact_type.properties.items():
                custom = artifact.mlmd_artifact.custom_properties
                if kind == metadata_store_pb2.BOOLEAN and name in custom:
                    # TFX takes what does not fit its declared type, the number 1, for a custom property of that name
                    setattr(artifact, name, bool(artifact.get_custom_property(name)))
                    del custom[name]
        return parsed

    def parse_execution_properties(parameters: Any, *rest: Any) -> Any:
        values = original["parse_execution_properties"](parameters, *rest)
        proto = struct_pb2.Struct, struct_pb2.ListValue
        return {k: json_format.MessageToDict(v) if isinstance(v, proto) else v for k, v in values.items()}

    def translate_executor_output(output_dict: Any, name_from_id: Any) -> Any:
        key = constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY
        for artifact in (a for artifacts in output_dict.values() for a in artifacts):
            # TFX does it for its own Evaluator: an id is a hash here, of which JSON's numbers lose half
            custom = artifact.mlmd_artifact.custom_properties
            if isinstance(artifact, ModelBlessing) and key in custom and custom[key].HasField("int_value"):
                utils.refactor_model_blessing(artifact, name_from_id)
        return original["translate_executor_output"](output_dict, name_from_id)

    def get_json_value_mapping(values: Any) -> Any:
        booleans = {name: value.bool_value for name, value in values.items() if value.HasField("bool_value")}
        others = {name: value for name, value in values.items() if name not in booleans}
        return original["_get_json_value_mapping"](others) | booleans

    with mock.patch.multiple(
        utils,
        parse_raw_artifact_dict=parse_raw_artifact_dict,
        parse_execution_properties=parse_execution_properties,
        translate_executor_output=translate_executor_output,
        _get_json_value_mapping=get_json_value_mapping,
    ):
        yield


def run() -> int:
    """Runs the executor of a step, whatever it raises; returns the exit code, as the command line has them."""
    try:
        main()
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == _USAGE:  # argparse has said what it had to
            raise
        ending = endings.of(error)
        if ending.code == ExitCode.STEP_FAILED:
            traceback.print_exc()  # a pod has no other log
        sys.stderr.write(f"edgeline: {ending.text}\n")
        return ending.code
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(run())
