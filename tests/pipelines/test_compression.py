"""The DAG: its shape, what is shared, and what goes into the cache key."""

from pathlib import Path

import pytest
from google.protobuf import wrappers_pb2
from tfx.dsl.compiler.compiler import Compiler
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2
from tfx.proto.orchestration import pipeline_pb2
from tfx.utils import proto_utils

from edgeline.model_module import module_source
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.job import Job
from edgeline.pipelines.root import Root
from edgeline.recipe import Recipe
from edgeline.toolchain import toolchain

NAMES = ("float32", "int8", "prune80_int8", "prune80_cluster16_int8", "qat8")


def build(root: Path, chosen: tuple[Recipe, ...]) -> Pipeline:
    run = Job(module_source.locate("edgeline.pipelines.examples.digits.model"), chosen)
    return compression.create_pipeline(
        "digits", run, root=Root(root), examples=compression.import_examples(root / "data")
    )


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, pipeline_pb2.PipelineNode]:
    ir = Compiler().compile(build(tmp_path, tuple(recipes.RECIPES[name] for name in NAMES)))
    return {node.pipeline_node.node_info.id: node.pipeline_node for node in ir.nodes}


def test_a_shared_prefix_is_one_node(nodes: dict[str, pipeline_pb2.PipelineNode]) -> None:
    assert set(nodes) == {
        "ImportExampleGen", "RepresentativeDatasetGen", "Trainer",
        "Pruner.prune80", "Clusterer.prune80_cluster16",
        "Quantizer.float32", "Quantizer.int8", "Quantizer.prune80_int8", "Quantizer.prune80_cluster16_int8",
        "Quantizer.qat8",
        "TFLiteExporter.float32", "TFLiteExporter.int8", "TFLiteExporter.prune80_int8",
        "TFLiteExporter.prune80_cluster16_int8", "TFLiteExporter.qat8",
        "Evaluator", "Pusher",
    }  # fmt: skip


def test_edges(nodes: dict[str, pipeline_pb2.PipelineNode]) -> None:
    upstream = {name: set(node.upstream_nodes) for name, node in nodes.items()}
    data, calibration = "ImportExampleGen", "RepresentativeDatasetGen"
    assert upstream[calibration] == {data}
    assert upstream["Trainer"] == {data, calibration}  # bad data stops the run before the training
    assert upstream["Pruner.prune80"] == {data, "Trainer"}
    assert upstream["Clusterer.prune80_cluster16"] == {data, "Pruner.prune80"}
    assert upstream["Quantizer.prune80_cluster16_int8"] == {data, calibration, "Clusterer.prune80_cluster16"}
    assert upstream["TFLiteExporter.qat8"] == {calibration, "Quantizer.qat8"}
    assert upstream["Evaluator"] == {data, "Trainer", *(name for name in nodes if name.startswith("TFLiteExporter"))}
    assert upstream["Pusher"] == {"Evaluator"}


def test_one_optional_port_per_candidate(nodes: dict[str, pipeline_pb2.PipelineNode]) -> None:
    ports = nodes["Evaluator"].inputs.inputs
    others = {*NAMES} - {"float32"}  # that is the baseline's file
    assert set(ports) == {"examples", "baseline", "keras", *others}
    assert {name for name, port in ports.items() if port.min_count == 0} == {"keras", *others}


def test_the_baseline_is_there_unasked(tmp_path: Path) -> None:
    ir = Compiler().compile(build(tmp_path, (recipes.int8(),)))
    ids = {node.pipeline_node.node_info.id for node in ir.nodes}
    assert {"Quantizer.float32", "TFLiteExporter.float32"} <= ids
    [evaluator] = [n.pipeline_node for n in ir.nodes if n.pipeline_node.node_info.id == "Evaluator"]
    assert set(evaluator.inputs.inputs) == {"examples", "baseline", "keras", "int8"}


def test_every_own_node_is_keyed_by_module_and_tools(nodes: dict[str, pipeline_pb2.PipelineNode]) -> None:
    for name, node in nodes.items():
        if name not in ("ImportExampleGen", "Pusher"):
            assert {"module", "module_digest", "toolchain"} <= set(node.parameters.parameters), name
    assert "custom_config" in nodes["ImportExampleGen"].parameters.parameters


def test_every_own_node_is_keyed_by_the_code_that_it_runs(nodes: dict[str, pipeline_pb2.PipelineNode]) -> None:
    folders = {
        "RepresentativeDatasetGen": "representative_dataset", "Trainer": "trainer", "Pruner": "pruner",
        "Clusterer": "clusterer", "Quantizer": "quantizer", "TFLiteExporter": "tflite_exporter",
        "Evaluator": "evaluator",
    }  # fmt: skip
    found = {}
    for name, node in nodes.items():
        if name not in ("ImportExampleGen", "Pusher"):
            found[name.split(".")[0]] = node.parameters.parameters["toolchain"].field_value.string_value
    assert found == {name: toolchain(f"edgeline.{folder}.component") for name, folder in folders.items()}
    assert len(set(found.values())) == len(found)
    # TFX's own component runs our executor
    custom = example_gen_pb2.CustomConfig()
    given = nodes["ImportExampleGen"].parameters.parameters["custom_config"].field_value.string_value
    proto_utils.json_to_proto(given, custom)
    value = wrappers_pb2.StringValue()
    assert custom.custom_config.Unpack(value)
    assert value.value == toolchain("edgeline.span_example_gen.component")


def test_adding_a_recipe_changes_no_node_that_exists(tmp_path: Path) -> None:
    def parameters(chosen: tuple[Recipe, ...]) -> dict[str, bytes]:
        ir = Compiler().compile(build(tmp_path, chosen))
        nodes = [node.pipeline_node for node in ir.nodes]
        return {n.node_info.id: n.parameters.SerializeToString(deterministic=True) for n in nodes}

    few = parameters((recipes.prune80_int8(),))
    many = parameters((recipes.qat8(), recipes.prune80_cluster16_int8(), recipes.prune80_int8()))
    assert {name for name in few if few[name] != many[name]} == {"Evaluator"}
