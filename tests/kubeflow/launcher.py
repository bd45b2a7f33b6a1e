"""What Kubeflow Pipelines' driver and launcher do with a compiled file, without a cluster.

As in the sources of 2.5 and 2.16 (backend/src/v2: driver, component/launcher_v2.go, objectstore, metadata):

- every step has folders of its own, empty at first, below which the object stores are mounted;
- of an input its files are downloaded (empty folders and empty outputs do not exist), its type is forgotten, and of its
  metadata only what ML Metadata can keep comes back;
- of an output the files are uploaded from the mount, but only below the folder of the run;
- inputs and outputs are recorded in ML Metadata (metadata/client.go: CreateExecution has one event per input and key,
  RecordArtifact one per output), whose own rules hold: an artifact is an input of an execution once;
- with published logs every step has one more output, `executor-logs`.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import recorder
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2

Json = dict[str, Any]
Step = Callable[[list[str], list[str], Path], None]

MOUNTS = {"gs": "gcs", "minio": "minio", "s3": "s3"}


class RefusedError(Exception):
    """The server, the driver or the launcher would not go on."""


def in_process(command: list[str], arguments: list[str], mounts: Path) -> None:
    """Runs a step here, where TFX is imported already."""
    from edgeline.kubeflow import entrypoint

    assert command == ["python", "-m", "edgeline.kubeflow.entrypoint"]
    entrypoint.main(arguments, mounts=mounts)


def in_container(command: list[str], arguments: list[str], mounts: Path) -> None:
    """Runs a step as a container would: in a process of its own, which writes what its executor is given to `seen`."""
    assert command == ["python", "-m", "edgeline.kubeflow.entrypoint"]
    done = subprocess.run([sys.executable, recorder.__file__, str(mounts), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def stock(command: list[str], arguments: list[str], mounts: Path) -> None:
    """Runs a step with TFX's own entrypoint."""
    import argparse

    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor

    parser = argparse.ArgumentParser()
    for name in ("executor_class_path", "json_serialized_invocation_args", "json_serialized_inputs_spec_args"):
        parser.add_argument(f"--{name}")
    kubeflow_v2_run_executor._run_executor(*parser.parse_known_args(arguments))


@dataclass
class Artifact:
    """An artifact as ML Metadata keeps it."""

    id: int
    uri: str
    title: str
    metadata: Json


@dataclass
class Result:
    """What a run left: by task, its artifacts and parameters by key; tasks that were skipped are not there."""

    artifacts: dict[str, dict[str, Artifact]] = field(default_factory=dict)
    parameters: dict[str, Json] = field(default_factory=dict)
    inputs: dict[str, Json] = field(default_factory=dict)


class Cluster:
    """A cluster of one machine.

    Args:
      folder: for the object store and the steps' folders.
      version: whose contract: `2.5` or `2.16`.
      publish_logs: the setting PUBLISH_LOGS of the server.
      step: what runs a container.
    """

    def __init__(self, folder: Path, *, version: str = "2.16", publish_logs: bool = True, step: Step = in_process):
        self.store = folder / "store"
        self._pods = folder / "pods"
        self._version = version
        self._publish_logs = publish_logs
        self._step = step
        self._runs = 0
        self.metadata = MetadataStore(
            metadata_store_pb2.ConnectionConfig(fake_database=metadata_store_pb2.FakeDatabaseConfig())
        )
        kind = metadata_store_pb2.ExecutionType(name="system.ContainerExecution")
        self._execution_type = self.metadata.put_execution_type(kind)

    def path(self, uri: str) -> Path:
        """Where the object store keeps what has this URI."""
        return self.store / uri.replace("://", "/")

    def run(self, text: str, root: str, values: Json | None = None) -> Result:
        """Submits a compiled file and runs it to its end."""
        spec, *_ = yaml.safe_load_all(text)
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        if spec["schemaVersion"] != "2.1.0":
            raise RefusedError(f"unsupported schema version {spec['schemaVersion']}")
        for executor in spec["deploymentSpec"]["executors"].values():
            if not set(executor) <= {"container", "importer"}:
                raise RefusedError(f"executor not implemented: {set(executor)}")
        self._runs += 1
        self._spec = spec
        self._root = f"{root}/{spec['pipelineInfo']['name']}/run-{self._runs}"
        self._result = Result()
        self._dag(spec["root"], dict(values or {}))
        return self._result

    def _dag(self, component: Json, values: Json) -> None:
        for name, parameter in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if name not in values:
                if "defaultValue" not in parameter and not parameter.get("isOptional"):
                    raise RefusedError(f"parameter {name} is required but was not given")
                if "defaultValue" in parameter:
                    values[name] = parameter["defaultValue"]
        waiting = dict(component["dag"]["tasks"])
        done: set[str] = set()
        while waiting:
            ready = [n for n, task in waiting.items() if set(task.get("dependentTasks", [])) <= done]
            if not ready:
                raise RefusedError(f"stuck: {sorted(waiting)} wait for tasks that are not there")
            for name in ready:
                if not re.fullmatch("[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?", name):
                    raise RefusedError(f"{name} is no name of an Argo task")
                done.add(name)
                self._task(name, waiting.pop(name), values)

    def _task(self, name: str, task: Json, outer: Json) -> None:
        component = self._spec["components"][task["componentRef"]["name"]]
        artifacts: dict[str, Artifact] = {}
        given = task.get("inputs", {})
        for key, source in given.get("artifacts", {}).items():
            producer = source["taskOutputArtifact"]
            if producer["producerTask"] not in self._result.artifacts:
                return  # it was skipped, so this one is
            artifacts[key] = self._result.artifacts[producer["producerTask"]][producer["outputArtifactKey"]]
        kinds = {k: p["parameterType"] for k, p in component.get("inputDefinitions", {}).get("parameters", {}).items()}
        values = {
            key: _typed(key, self._value(source, outer), kinds[key])
            for key, source in given.get("parameters", {}).items()
        }
        runtime = {
            key: {
                "artifacts": [{"name": str(a.id), "type": {"instanceSchema": ""}, "uri": a.uri, "metadata": a.metadata}]
            }
            for key, a in artifacts.items()
        }
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is not None and not _holds(condition, runtime):
            return
        if "dag" in component:
            self._dag(component, values)
            return
        executor = self._spec["deploymentSpec"]["executors"][component["executorLabel"]]
        declared = component.get("outputDefinitions", {})
        if "importer" in executor:
            self._import(name, executor["importer"], values, declared)
        else:
            execution = self._execution({key: artifact.id for key, artifact in artifacts.items()})
            inputs = {"artifacts": runtime, "parameterValues": values}
            outputs = self._container(name, executor["container"], inputs, declared, task.get("retryPolicy", {}))
            for key, artifact in outputs.items():
                self.metadata.put_events([_event("OUTPUT", artifact.id, key, execution)])
            self._result.artifacts[name] = outputs

    def _value(self, source: Json, outer: Json) -> Any:
        if "componentInputParameter" in source:
            if source["componentInputParameter"] not in outer:
                raise RefusedError(f"parent DAG has no input parameter {source['componentInputParameter']}")
            return outer[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            producer = source["taskOutputParameter"]
            if producer["producerTask"] not in self._result.parameters:
                raise RefusedError(f"cannot find producer task {producer['producerTask']}")
            return self._result.parameters[producer["producerTask"]][producer["outputParameterKey"]]
        return source["runtimeValue"]["constant"]

    def _import(self, name: str, importer: Json, values: Json, declared: Json) -> None:
        uri = importer["artifactUri"]
        uri = values[uri["runtimeParameter"]] if "runtimeParameter" in uri else uri["constant"]
        [key] = declared["artifacts"]
        title = yaml.safe_load(importer["typeSchema"]["instanceSchema"])["title"]
        self._result.artifacts[name] = {key: self._record(uri, title, importer.get("metadata", {}))}

    def _execution(self, inputs: dict[str, int]) -> int:
        """Records a step with the ids of its inputs by key, as the driver does before the step runs."""
        execution = metadata_store_pb2.Execution(type_id=self._execution_type)
        known = {artifact.id: artifact for artifact in self.metadata.get_artifacts_by_id(list(inputs.values()))}
        events = [(known[artifact], _event("INPUT", artifact, key)) for key, artifact in inputs.items()]
        return int(self.metadata.put_execution(execution, events, [])[0])

    def _container(
        self, name: str, container: Json, inputs: Json, declared: Json, retries: Json
    ) -> dict[str, Artifact]:
        pod = self._pods / f"{self._runs}-{name}"
        # later versions put a step's unique name between
        salt = [] if self._version == "2.5" else ["3f2504e0-4f89"]
        outputs: Json = {key: a["artifactType"] for key, a in declared.get("artifacts", {}).items()}
        if self._publish_logs:
            outputs["executor-logs"] = {"schemaTitle": "system.Artifact"}
        request = {
            "inputs": inputs,
            "outputs": {
                "artifacts": {
                    key: {"artifacts": [{"uri": "/".join([self._root, name, *salt, key]), "type": kind}]}
                    for key, kind in outputs.items()
                },
                "parameters": {
                    key: {"outputFile": str(pod / "tmp" / "kfp" / "outputs" / key)}
                    for key in declared.get("parameters", {})
                },
                "outputFile": str(pod / "tmp" / "kfp_outputs" / "output_metadata.json"),
            },
        }
        message = json_format.ParseDict(request, pipeline_spec_pb2.ExecutorInput())
        self._result.inputs[name] = request
        text = json_format.MessageToJson(message)
        for left in reversed(range(_attempts(retries))):
            shutil.rmtree(pod, ignore_errors=True)  # each attempt is a pod of its own
            for listed in inputs["artifacts"].values():
                self._download(listed["artifacts"][0]["uri"], pod)
            for listed in request["outputs"]["artifacts"].values():
                self._mounted(listed["artifacts"][0]["uri"], pod).parent.mkdir(parents=True, exist_ok=True)
            if self._publish_logs:
                log = request["outputs"]["artifacts"]["executor-logs"]["artifacts"][0]["uri"]
                self._mounted(log, pod).write_text("log")
            try:
                self._step(container["command"], [part.replace("{{$}}", text) for part in container["args"]], pod)
                break
            except Exception:
                if not left:
                    raise

        written = Path(request["outputs"]["outputFile"]).read_text()
        result = json_format.ParseDict(json.loads(written), pipeline_spec_pb2.ExecutorOutput())
        self._result.parameters[name] = json.loads(json_format.MessageToJson(result)).get("parameterValues", {})
        artifacts = {}
        for key, kind in outputs.items():
            uri, metadata = request["outputs"]["artifacts"][key]["artifacts"][0]["uri"], {}
            if key in result.artifacts:
                [merged] = result.artifacts[key].artifacts
                uri, metadata = merged.uri or uri, json_format.MessageToDict(merged.metadata)
            self._upload(uri, pod)
            title = kind.get("schemaTitle") or yaml.safe_load(kind["instanceSchema"])["title"]
            artifacts[key] = self._record(uri, title, metadata)
        return artifacts

    def _record(self, uri: str, title: str, metadata: Json) -> Artifact:
        kept = {key: _through_mlmd(value) for key, value in metadata.items()}
        kind = self.metadata.put_artifact_type(metadata_store_pb2.ArtifactType(name=title))
        [id_] = self.metadata.put_artifacts([metadata_store_pb2.Artifact(type_id=kind, uri=uri)])
        return Artifact(id_, uri, title, kept | {"display_name": uri.rpartition("/")[2], "store_session_info": ""})

    def _mounted(self, uri: str, pod: Path) -> Path:
        scheme, _, rest = uri.partition("://")
        if scheme not in MOUNTS:
            raise RefusedError(f"unsupported storage scheme: {uri}")
        return pod / MOUNTS[scheme] / rest

    def _download(self, uri: str, pod: Path) -> None:
        source = self.path(uri)
        for file in source.rglob("*"):
            target = self._mounted(uri, pod) / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target) if file.is_file() else None

    def _upload(self, uri: str, pod: Path) -> None:
        source = self._mounted(uri, pod)
        if not uri.startswith(self._root):
            raise RefusedError(f"URI {uri} does not have expected bucket prefix {self._root}")
        for file in [source] if source.is_file() else source.rglob("*"):
            if file.is_file():
                target = self.path(uri) / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def _event(kind: str, artifact: int, key: str, execution: int | None = None) -> metadata_store_pb2.Event:
    path = metadata_store_pb2.Event.Path(steps=[metadata_store_pb2.Event.Path.Step(key=key)])
    return metadata_store_pb2.Event(
        type=metadata_store_pb2.Event.Type.Value(kind), artifact_id=artifact, execution_id=execution, path=path
    )


def _attempts(policy: Json) -> int:
    """Returns how often a step is begun that fails at once.

    The compiler fills in 0 for a duration that is missing (argocompiler/container.go of 2.16), and Argo then has no
    time left (3.7, workflow/controller/operator.go, processNodeRetries: "Max duration limit exceeded").
    """
    wait, most = (float(policy.get(key, "0s")[:-1]) for key in ("backoffDuration", "backoffMaxDuration"))
    return 1 + (policy.get("maxRetryCount", 0) if most > wait else 0)


_KINDS = {
    "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool, "LIST": list, "STRUCT": dict
}  # fmt: skip


def _typed(name: str, value: Any, kind: str) -> Any:
    """Returns a parameter as the driver hands it on: where text is declared it makes text of anything."""
    if kind == "STRING":
        return value if isinstance(value, str) else json.dumps(value)
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise RefusedError(f"input parameter {name} type mismatch: expect {kind}, got {value!r}")
    return value


def _through_mlmd(value: Any) -> Any:
    """Returns what comes back of a value that the launcher has written to ML Metadata."""
    if value is None:
        raise RefusedError("unknown/unsupported value type null")
    if isinstance(value, bool):
        return int(value)
    return {"list": value} if isinstance(value, list) else {"struct": value} if isinstance(value, dict) else value


class _Attributes(dict):
    __getattr__ = dict.__getitem__


def _holds(condition: str, artifacts: Json) -> bool:
    """Evaluates the little of CEL that TFX writes."""
    text = condition.replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"!(?!=)", " not ", text)
    inputs = _Attributes(artifacts=json.loads(json.dumps(artifacts), object_hook=_Attributes))
    try:
        return bool(eval(text, {}, {"inputs": inputs}))
    except KeyError as error:
        raise RefusedError(f"condition {condition}: no such key: {error}") from error
