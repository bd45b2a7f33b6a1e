"""Compiles a pipeline to the one YAML file that open-source Kubeflow Pipelines and Vertex take.

TFX's own compiler does most of it. `convert` mends what it writes, `settings` adds what it has no words for, and what
comes out is checked by everything that will read it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from google.protobuf import json_format
from kfp import components as kfp_components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.components import InfraValidator
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.dsl.component.experimental.executor_specs import TemplatedExecutorContainerSpec
from tfx.dsl.components.base import executor_spec
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2 import compiler_utils, kubeflow_v2_dag_runner
from tfx.orchestration.pipeline import Pipeline
from tfx.types import standard_artifacts
from tfx.types.artifact import Artifact, PropertyType
from tfx.types.channel import Channel
from tfx.utils import import_utils

from edgeline.data.data_folder import SPLITS
from edgeline.errors import UserError
from edgeline.isolation import limits
from edgeline.kubeflow import check_tfx, convert, settings
from edgeline.kubeflow.deployment import Deployment, check_module, check_uri
from edgeline.pipelines.compression import create_components
from edgeline.pipelines.job import Job
from edgeline.pipelines.run.local_runner import BEAM_ARGS
from edgeline.schemes import SCHEMES

COMMAND = ("python", "-m", "edgeline.kubeflow.entrypoint")

_COMPILER = "tfx.orchestration.kubeflow.v2.compiler_utils"
_SCHEMA_TYPES = {
    PropertyType.INT: "integer",
    PropertyType.FLOAT: "number",
    PropertyType.STRING: "string",
    PropertyType.BOOLEAN: "boolean",
    PropertyType.JSON_VALUE: "object",
}


def compile_run(
    job: Job,
    data: str,
    deployment: Deployment,
    *,
    name: str,
    schema: str = "",
    fixed_data: bool = False,
    enable_cache: bool = True,
) -> str:
    """Compiles the pipeline of a job.

    Its parameters, each with the job's value as default: `data`, `schema` (where there is one), `module`,
    `module_digest`, `epochs`, `finetune_epochs` (where a recipe trains), and the fields of the budget.

    Args:
      job: what is made; its module must be installed in the image.
      data: URI of the examples: a folder with Split-train, Split-validation and Split-eval of GZIP TFRecords.
      deployment: where it will run.
      name: of the pipeline, `[a-z0-9][a-z0-9-]*`, the same at every retraining.
      schema: URI of a folder that holds one file, the schema that the data are checked by; empty: they are not checked.
      fixed_data: whether the data under a URI never changes, so that steps may be served from earlier runs on it. Else
        every run reads the data anew, and with it does everything anew.
      enable_cache: whether steps may be served from earlier runs at all.

    Returns:
      The text of the file.

    Raises:
      UserError: something of that cannot work on the target.
    """
    check_uri("--data", data, deployment.target)
    check_module(job.module.reference)
    examples = Importer(
        source_uri=_parameter("data", data),
        artifact_type=standard_artifacts.Examples,
        reimport=not fixed_data,
        properties={"split_names": json.dumps(SPLITS)},
        custom_properties={"file_format": "tfrecords_gzip", "payload_format": "FORMAT_TF_EXAMPLE"},
        output_key="examples",
    ).with_id("Examples")
    described = None
    if schema:
        check_uri("--schema", schema, deployment.target)
        described = Importer(
            source_uri=_parameter("schema", schema),
            artifact_type=standard_artifacts.Schema,
            reimport=True,
            output_key="schema",
        ).with_id("Schema")
    nodes = create_components(
        name, job, examples=examples, schema=described, push_to=deployment.push_destination, beam_args=BEAM_ARGS
    )
    _parameterise(nodes, job)
    [evaluator] = [node for node in nodes if node.id == "Evaluator"]
    evaluator.exec_properties["deployed"] = deployment.deployed
    pipeline = Pipeline(
        pipeline_name=name,
        pipeline_root=deployment.pipeline_root,
        components=nodes,
        enable_cache=enable_cache,
    )
    return compile_pipeline(pipeline, deployment)


def _parameter(name: str, value: Any) -> RuntimeParameter:
    return RuntimeParameter(name, type(value), value)


def _parameterise(nodes: list[BaseNode], job: Job) -> None:
    """Lets what a run may be asked differently come from the pipeline's parameters."""
    everywhere = {"module": job.module.reference, "module_digest": job.module.digest}
    epochs = _parameter("epochs", job.train.epochs)
    finetune_epochs = _parameter("finetune_epochs", job.finetune.epochs)
    budget = {name: _parameter(name, value) for name, value in job.budget.encoded().items()}
    for node in nodes:
        parameters = {name: _parameter(name, value) for name, value in everywhere.items()}
        if node.id == "Trainer":
            parameters["epochs"] = epochs
        elif node.id == "Evaluator":
            parameters |= budget
        # a Quantizer whose scheme trains nothing must not run again for other epochs
        elif "scheme" not in node.exec_properties or SCHEMES[node.exec_properties["scheme"]].trained:
            parameters["epochs"] = finetune_epochs
        node.exec_properties.update({name: value for name, value in parameters.items() if name in node.exec_properties})


def compile_pipeline(pipeline: Pipeline, deployment: Deployment, *, exit_handler: BaseComponent | None = None) -> str:
    """Compiles any TFX pipeline.

    Args:
      pipeline: its nodes' Beam arguments get those of the settings appended.
      deployment: where it will run.
      exit_handler: runs when all else has ended, however.

    Returns:
      The text of the file: the PipelineSpec, and after it the platform document where the settings need one.

    Raises:
      UserError: a node cannot work on the target; says why and what to do.
    """
    check_tfx(f"{_COMPILER}.get_artifact_schema")
    nodes = [*pipeline.components, *([exit_handler] if exit_handler else [])]
    for node in nodes:
        _check_node(node, deployment.target)
    beam = [node for node in nodes if isinstance(node.executor_spec, executor_spec.BeamExecutorSpec)]
    containers = [node.id for node in nodes if not isinstance(node, Importer)]
    settings.check_fits(deployment.settings, containers, [node.id for node in beam], deployment.target)
    for node in beam:
        node.with_beam_pipeline_args(deployment.settings.of(node.id).get("beam_args", []))

    config = kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
        default_image=deployment.image, default_commands=list(COMMAND), use_pipeline_spec_2_1=True
    )
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(config)
    if exit_handler:
        runner.set_exit_handler(exit_handler)
    with _schemas_with_properties():
        spec: convert.Json = runner.run(pipeline, write_out=False)["pipelineSpec"]

    parameters = [
        value for node in nodes for value in node.exec_properties.values() if isinstance(value, RuntimeParameter)
    ]
    convert.restore_types(spec, {node.id: node.exec_properties for node in nodes})
    convert.fix_producers(spec)
    convert.fix_conditions(spec)
    convert.forward_parameters(spec)
    convert.restore_defaults(spec, {parameter.name: parameter.default for parameter in parameters})
    convert.set_caching(spec, pipeline.enable_cache)
    convert.bake_declarations(spec)
    convert.check_wiring(spec)
    if deployment.memory_limit is not None:
        convert.set_environment(spec, {limits.MEMORY_LIMIT: f"{deployment.memory_limit:g}"})
    names = convert.rename_nodes(spec)
    # servers of one's own never read it, but `edgeline kubeflow submit` and Vertex do
    spec["defaultPipelineRoot"] = deployment.pipeline_root
    platform = settings.apply(deployment.settings, spec, names)
    text = _header(spec, deployment) + yaml.safe_dump_all(
        [spec] if platform is None else [spec, platform], sort_keys=True, width=1000, allow_unicode=True
    )
    validate(text, deployment.target)
    return text


def validate(text: str, target: str) -> None:
    """Lets everything that will read a compiled file read it.

    Raises:
      UserError: the strict parser of the server, the SDK's loader or Vertex' client refuses it.
    """
    spec, *platforms = yaml.safe_load_all(text)
    readers: dict[str, Callable[[], Any]] = {
        "the strict parser of PipelineSpec": lambda: json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()),
        "KFP's loader": lambda: kfp_components.load_component_from_text(text),
    }
    for platform in platforms:
        readers["the strict parser of PlatformSpec"] = lambda p=platform: json_format.ParseDict(  # type: ignore[misc]
            p, pipeline_spec_pb2.PlatformSpec()
        )
        for name, config in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
            readers[f"the strict parser of the platform's {name}"] = lambda c=config: json_format.ParseDict(  # type: ignore[misc]
                c, kubernetes_executor_config_pb2.KubernetesExecutorConfig()
            )
    if target == "vertex":
        readers["Vertex' client"] = lambda: _read_as_vertex(text)
    for reader, read in readers.items():
        try:
            read()
        except Exception as error:
            raise UserError(f"{reader} refuses the compiled pipeline: {type(error).__name__}: {error}") from error


def _read_as_vertex(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the client says of itself at import
        from google.auth import credentials
        from google.cloud import aiplatform
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        path.write_text(text)
        # it talks to nobody until it is submitted
        aiplatform.PipelineJob(
            display_name="check",
            template_path=str(path),
            project="check",
            location="us-central1",
            credentials=credentials.AnonymousCredentials(),
        )


def _header(spec: convert.Json, deployment: Deployment) -> str:
    lines = [
        f"# {spec['pipelineInfo']['name']}, "
        f"compiled by edgeline {version('edgeline')} for --target {deployment.target}",  # `submit` reads this line
        "# Parameters:",
    ]
    for name, parameter in sorted(spec["root"].get("inputDefinitions", {}).get("parameters", {}).items()):
        default = f" [default: {parameter['defaultValue']!r}]" if "defaultValue" in parameter else ""
        lines.append(f"#   {name}: {parameter['parameterType']}{default}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _schemas_with_properties() -> Iterator[None]:
    """Lets TFX write the properties of custom artifact types; without, it refuses types that have any."""
    original = compiler_utils.get_artifact_schema

    def schema(artifact_type: type[Artifact]) -> str:
        text: str = original(artifact_type)
        content = yaml.safe_load(text)
        if not artifact_type.PROPERTIES or "properties" in content:
            return text
        properties = {name: {"type": _SCHEMA_TYPES[p.type]} for name, p in artifact_type.PROPERTIES.items()}
        return yaml.safe_dump(content | {"properties": properties}, sort_keys=False)

    with mock.patch(f"{_COMPILER}.get_artifact_schema", schema):
        yield


def _check_node(node: BaseNode, target: str) -> None:
    """Refuses what cannot work, before TFX compiles it without a word or dies of it."""

    def refuse(reason: str) -> None:
        raise UserError(f"{node.id} cannot run on Kubeflow: {reason}")

    spec = node.executor_spec
    if target == "oss":
        if isinstance(node, Resolver):
            refuse("open-source Kubeflow Pipelines has no resolvers; import the artifact by its URI (Importer)")
        if isinstance(node, FileBasedExampleGen):
            refuse(
                "its driver, which finds the files, is never called by open-source Kubeflow Pipelines; import "
                "examples that are laid out by split (Importer)"
            )
        if isinstance(spec, TemplatedExecutorContainerSpec):
            refuse("TFX's container components need placeholders that open-source Kubeflow Pipelines does not have")
    if isinstance(node, InfraValidator):
        refuse("TFX does not compile InfraValidator")
    for name in ("module_file", "module_path"):
        if node.exec_properties.get(name):
            refuse(
                f"{name} makes TFX build a wheel from a file of this machine; install the code in the image and pass "
                f"a dotted name (run_fn=, preprocessing_fn=, ...)"
            )
    if getattr(getattr(spec, "executor_class", None), "__module__", "") == "__main__":
        refuse("it is defined in the script that is run, which the container cannot import; move it into a module")
    for key, channel in node.inputs.items():
        if not isinstance(channel, Channel):
            refuse(f"its input {key} is a union of channels; give it one named input per channel")
    for channel in (*node.inputs.values(), *node.outputs.values()):
        _check_type(channel.type, refuse)


def _check_type(artifact_type: type[Artifact], refuse: Callable[[str], None]) -> None:
    """Refuses custom types that the container would not find: it imports them by their TYPE_NAME."""
    title = compiler_utils.get_artifact_title(artifact_type)
    if title != "tfx.Artifact":
        return
    name = artifact_type.TYPE_NAME
    try:
        found_type = import_utils.import_class_by_path(name)
    except (ImportError, AttributeError, ValueError, TypeError):
        found_type = None
    if found_type is not artifact_type:
        refuse(
            f"the artifact type {artifact_type.__name__} is imported by its TYPE_NAME {name!r} there; call it "
            f"<top-level package>.{artifact_type.__name__} and export it in that package's __init__"
        )
    unknown = [key for key, p in (artifact_type.PROPERTIES or {}).items() if p.type not in _SCHEMA_TYPES]
    if unknown:
        refuse(f"the artifact type {name} has properties that do not travel: {', '.join(unknown)}; use INT or STRING")
