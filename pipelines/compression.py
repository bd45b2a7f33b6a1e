"""The whole pipeline: recipes folded into one DAG, in which a shared prefix is one node, trained once, cached once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import wrappers_pb2
from tfx.components import ExampleValidator, ImportExampleGen, StatisticsGen
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, pusher_pb2
from tfx.types.channel import BaseChannel
from tfx.utils import proto_utils

from edgeline import (
    Clusterer,
    DataGate,
    Evaluator,
    ModelImporter,
    Pruner,
    Quantizer,
    RepresentativeDatasetGen,
    TFLiteExporter,
    Trainer,
    files,
)
from edgeline.budget import Budget, slice_drops
from edgeline.clusterer.config import Cluster
from edgeline.data.data_folder import SHARD_SUFFIX, SPLITS
from edgeline.data.spans import Window
from edgeline.errors import UserError
from edgeline.evaluator.measuring import compiled as compiled_metrics
from edgeline.evaluator.measuring import slices
from edgeline.model_importer.config import Import
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.pipelines.job import Job
from edgeline.pipelines.recipes import float32
from edgeline.pipelines.root import Root
from edgeline.pruner.config import Prune
from edgeline.pusher.component import Pusher
from edgeline.quantizer.config import Quantize
from edgeline.recipe import Recipe, Step
from edgeline.span_example_gen.component import SpanExampleGen
from edgeline.toolchain import toolchain
from edgeline.training import loop

#: The component that does a step, by its config. It takes examples, a model and, where it asks for them, calibration
#: samples, and makes a `compressed` model.
COMPONENTS: dict[type[Step], type[BaseComponent]] = {Prune: Pruner, Cluster: Clusterer, Quantize: Quantizer}

Ingest = TypeVar("Ingest", bound=ImportExampleGen)


def check(job: Job) -> None:
    """Checks before any work what only the imported module can tell.

    Raises:
      UserError: the module cannot be imported, its phases are none, it does not compile a metric that the budget names,
        or a slice that it or the budget names cannot be made.
    """
    module = hooks.load(job.module.reference)
    if job.model is None:
        module.phases()
        loop.start(job.train.seed)
        _check_budget(job.budget, module)
    else:
        slices.check_asked([key for key in job.budget.max_slice_drops if ":" not in key.partition("=")[0]], module)


def check_imported(job: Job, model: str) -> None:
    """Checks before any work on a model that was imported what only the model can tell.

    Args:
      job: what is made of it.
      model: folder of the ModelImporter's output.

    Raises:
      UserError: the module does not compile a metric for it that the budget names, or a slice cannot be made.
    """
    form = keras_file.form(model, Passport.read(Path(model)).io)
    _check_budget(job.budget, hooks.load(job.module.reference, form=form))


def _check_budget(budget: Budget, module: hooks.ModelModule) -> None:
    compiled = compiled_metrics.directions_of(module)
    names = [metric.name for metric in (budget.judged(compiled) if compiled else budget.metrics)]
    limited = {key for name in names for key in slice_drops(budget.max_slice_drops, name, names)}
    slices.check_asked(sorted(limited) if names else budget.max_slice_drops, module)


def create_pipeline(
    name: str,
    job: Job,
    *,
    root: Root,
    examples: BaseNode,
    schema: BaseNode | None = None,
    beam_args: Sequence[str] = (),
    enable_cache: bool = True,
) -> Pipeline:
    """Builds the DAG of a run on this machine.

    Args:
      name: of the pipeline, the same at every retraining: the cache and the lineage go by it.
      job: what is made.
      root: where artifacts, metadata and pushed models are kept.
      examples: a component with an `examples` output that has the splits train, validation and eval.
      schema: a component with a `schema` output, by which the data are checked first; None: they are not.
      beam_args: for the nodes that use Beam.
      enable_cache: whether nodes with equal inputs and parameters are served from earlier runs.
    """
    return Pipeline(
        pipeline_name=name,
        pipeline_root=str(root.artifacts),
        components=create_components(
            name, job, examples=examples, schema=schema, push_to=str(root.pushed), beam_args=beam_args
        ),
        enable_cache=enable_cache,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root.metadata_db)),
        beam_pipeline_args=list(beam_args),
    )


def create_components(
    name: str,
    job: Job,
    *,
    examples: BaseNode | BaseChannel,
    push_to: str,
    schema: BaseNode | None = None,
    beam_args: Sequence[str] = (),
    **inputs: BaseChannel,
) -> list[BaseNode]:
    """Builds the nodes of a run, wherever they will run.

    Args:
      name: of the pipeline.
      job: what is made.
      examples: a component with an `examples` output that has the splits train, validation and eval, which is then the
        first of the nodes; or such an output, of a node that the pipeline has besides.
      push_to: the folder that gets a folder per pushed model.
      schema: a component with a `schema` output, by which the data are checked first; None: they are not.
      beam_args: for the nodes that use Beam.
      **inputs: of the Trainer, `transform_graph` and `hyperparameters`; or instead of a Trainer, `trained`: a Model of
        TFX's own, to be imported (`job.model` may say how).
    """

    def made_with(component: Any) -> dict[str, str]:
        return {
            "module": job.module.reference,
            "module_digest": job.module.digest,
            "toolchain": toolchain(component.__module__),
        }

    data = examples if isinstance(examples, BaseChannel) else examples.outputs["examples"]
    if job.model is not None or "trained" in inputs:
        source = ModelImporter(examples=data, **inputs, **made_with(ModelImporter), config=job.model or Import())
        sampled = {"model": source.outputs["model"]}  # the module may build another model, or none
    else:
        source, sampled = Trainer(examples=data, **inputs, **made_with(Trainer), config=job.train), {}
    sampler = RepresentativeDatasetGen(
        examples=data, **sampled, **made_with(RepresentativeDatasetGen), config=job.sample
    )
    sampler = sampler.with_beam_pipeline_args(list(beam_args))
    if not sampled:
        source.add_upstream_node(sampler)  # bad data must stop the run before the training
    checks: list[BaseNode] = []
    if schema is not None:
        described = schema.outputs["schema"]
        statistics = StatisticsGen(examples=data, schema=described).with_beam_pipeline_args(list(beam_args))
        found = {"statistics": statistics.outputs["statistics"], "schema": described}
        validator = ExampleValidator(**found)
        gate = DataGate(**found, anomalies=validator.outputs["anomalies"], **made_with(DataGate), config=job.gate)
        checks = [schema, statistics, validator, gate]
        sampler.add_upstream_node(gate)
        source.add_upstream_node(gate)
    nodes: dict[str, BaseNode] = {"sampler": sampler, "source": source}
    calibration = sampler.outputs["calibration"]

    def candidate(recipe: Recipe) -> BaseChannel:
        model = source.outputs["model"]
        for step, prefix in zip(recipe.steps, recipe.prefixes(), strict=True):
            component = COMPONENTS[type(step)]
            node_id = f"{component.__name__}.{prefix}"
            if node_id not in nodes:
                takes_samples = "calibration" in component.SPEC_CLASS.INPUTS
                extra = {"calibration": calibration} if takes_samples else {}
                node = component(examples=data, model=model, **extra, **made_with(component), config=step)
                nodes[node_id] = node.with_id(node_id)
            model = nodes[node_id].outputs["compressed"]
        node_id = f"TFLiteExporter.{recipe.prefixes()[-1]}"
        if node_id not in nodes:
            exporter = TFLiteExporter(
                model=model, calibration=calibration, **made_with(TFLiteExporter), config=job.export
            )
            nodes[node_id] = exporter.with_id(node_id)
        return nodes[node_id].outputs["tflite"]

    baseline = candidate(float32())
    evaluator = Evaluator(
        data,
        baseline,
        {recipe.name: candidate(recipe.for_run(job.finetune)) for recipe in job.recipes},
        keras=source.outputs["model"],
        budget=job.budget,
        evaluation=job.evaluation,
        deployed=push_to,
        pipeline=name,
        **made_with(Evaluator),
    ).with_beam_pipeline_args(list(beam_args))
    pusher = Pusher(
        model=evaluator.outputs["selected"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=push_to)
        ),
    )
    ingest = [] if isinstance(examples, BaseChannel) else [examples]
    return [*ingest, *checks, *nodes.values(), evaluator, pusher]


def import_examples(data_dir: Path) -> ImportExampleGen:
    """Returns TFX's component that ingests a data folder: `<data_dir>/<split>/*.tfrecord.gz`; it has our executor."""
    splits = [example_gen_pb2.Input.Split(name=split, pattern=f"{split}/*{SHARD_SUFFIX}") for split in SPLITS]
    ingest = ImportExampleGen(input_base=str(data_dir), input_config=example_gen_pb2.Input(splits=splits))
    ingest.executor_spec = SpanExampleGen.EXECUTOR_SPEC.copy()
    return _keyed(ingest)


def import_spans(window: Window) -> SpanExampleGen:
    """Returns the component that ingests a window of spans as one data set."""
    return _keyed(SpanExampleGen(window))


def import_schema(file: Path, root: Root) -> ImportSchemaGen:
    """Returns the stock component that takes a schema in; its cache key has the path only, so that gets the content.

    Args:
      file: the user's.
      root: of the pipeline; keeps a copy.

    Raises:
      UserError: the root cannot be written.
    """
    content = file.read_bytes()
    copy = root.schemas / f"{files.digest_of_bytes(content)[:16]}.pbtxt"
    try:
        files.make_folder(copy.parent)
        files.write_bytes(copy, content)
    except OSError as error:
        raise UserError(f"{copy} cannot be written: {error.strerror}") from error
    return ImportSchemaGen(schema_file=str(copy))


def _keyed(ingest: Ingest) -> Ingest:
    # it reads no custom config, but what stands there is part of its cache key
    custom = example_gen_pb2.CustomConfig()
    custom.custom_config.Pack(wrappers_pb2.StringValue(value=toolchain(SpanExampleGen.__module__)))
    ingest.exec_properties["custom_config"] = proto_utils.proto_to_json(custom)
    return ingest
