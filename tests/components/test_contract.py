"""What all components have in common, so that steps can be put in any allowed order and values are found in MLMD."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import channel
from tfx.types.standard_artifacts import (
    ExampleAnomalies,
    Examples,
    ExampleStatistics,
    HyperParameters,
    Model,
    ModelBlessing,
    ModelEvaluation,
    ModelRun,
    Schema,
    TransformGraph,
)

import edgeline
from edgeline.artifacts import RepresentativeDataset
from edgeline.budget import Budget
from edgeline.clusterer.component import Clusterer
from edgeline.clusterer.config import Cluster
from edgeline.config import StepConfig
from edgeline.data_gate.component import DataGate
from edgeline.data_gate.config import Gate
from edgeline.evaluator.component import Evaluator
from edgeline.evaluator.config import Evaluation
from edgeline.model_importer.component import ModelImporter
from edgeline.model_importer.config import Import
from edgeline.pruner.component import Pruner
from edgeline.pruner.config import Prune
from edgeline.pusher.component import Pusher
from edgeline.quantizer.component import Quantizer
from edgeline.quantizer.config import Quantize
from edgeline.representative_dataset.component import RepresentativeDatasetGen
from edgeline.representative_dataset.config import Sample
from edgeline.span_example_gen.component import SpanExampleGen
from edgeline.tflite_exporter.component import TFLiteExporter
from edgeline.tflite_exporter.config import Export
from edgeline.trainer.component import Trainer
from edgeline.trainer.config import Train

COMPONENTS: dict[Any, type[StepConfig]] = {
    Trainer: Train,
    ModelImporter: Import,
    Pruner: Prune,
    Clusterer: Cluster,
    Quantizer: Quantize,
    RepresentativeDatasetGen: Sample,
    TFLiteExporter: Export,
    DataGate: Gate,
}
MODULE = {"module": "m.py", "module_digest": "d", "toolchain": "t"}

COMPRESSED = {"compressed": Model, "model_run": ModelRun}
PORTS: dict[Any, tuple[dict[str, type], dict[str, type]]] = {
    Trainer: (
        {"examples": Examples, "transform_graph": TransformGraph, "hyperparameters": HyperParameters},
        {"model": Model, "model_run": ModelRun},
    ),
    ModelImporter: ({"examples": Examples, "trained": Model, "transform_graph": TransformGraph}, {"model": Model}),
    Pruner: ({"examples": Examples, "model": Model}, COMPRESSED),
    Clusterer: ({"examples": Examples, "model": Model}, COMPRESSED),
    Quantizer: ({"examples": Examples, "model": Model, "calibration": RepresentativeDataset}, COMPRESSED),
    RepresentativeDatasetGen: ({"examples": Examples, "model": Model}, {"calibration": RepresentativeDataset}),
    TFLiteExporter: ({"model": Model, "calibration": RepresentativeDataset}, {"tflite": Model}),
    DataGate: (
        {"statistics": ExampleStatistics, "schema": Schema, "anomalies": ExampleAnomalies},
        {"drift": ExampleAnomalies},
    ),
}
#: Without a model the samples are for the one that the module builds; the rest is for TFX's own components before ours.
OPTIONAL = {
    RepresentativeDatasetGen: {"model"},
    Trainer: {"transform_graph", "hyperparameters"},
    ModelImporter: {"trained", "transform_graph"},
}

#: A request of each, in Python's own types.
OTHER: dict[type[StepConfig], dict[str, Any]] = {
    Train: {"epochs": 7, "deterministic": False, "early_stopping_patience": 2, "warm_start": "a.keras"},
    Import: {"source": "/m", "inputs": ["b", "a"], "allow_lambda": True},
    Prune: {"sparsity": 0.8, "include": ["stem*", "Dense"], "layer_sparsity": {"stem": 0.3}, "block_size": (1, 4)},
    Cluster: {"clusters": 8, "layer_clusters": {"Dense": 4}, "per_channel": True, "protect": "both"},
    Quantize: {"scheme": "int8", "keep_float": ["logits"], "sensitivity_layers": 3},
    Sample: {"samples": 7, "strategy": "diverse", "max_bad_fraction": 0.5},
    Export: {"one_example": True, "batch_size": 8},
    Gate: {"max_drift": None, "allow_drift": True, "last_statistics": "gs://b/last"},
}

every = pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.__name__)


@every
def test_parameters_are_the_configs_fields_and_what_decides_the_result(component: Any) -> None:
    declared = dict(component.SPEC_CLASS.PARAMETERS)
    declared.pop("beam_pipeline", None)  # TFX hands it over when the step runs
    expected = COMPONENTS[component].encoded_types()
    assert {name: parameter.type for name, parameter in declared.items()} == {
        **expected,
        **dict.fromkeys(MODULE, str),
    }
    assert {field.name for field in dataclasses.fields(COMPONENTS[component])} == expected.keys()
    # a default would neither be recorded nor be part of the cache key
    assert not any(parameter.optional for parameter in declared.values())


@every
def test_ports(component: Any) -> None:
    inputs, outputs = PORTS[component]
    assert {name: port.type for name, port in component.SPEC_CLASS.INPUTS.items()} == inputs
    assert {name: port.type for name, port in component.SPEC_CLASS.OUTPUTS.items()} == outputs
    assert {name for name, port in component.SPEC_CLASS.INPUTS.items() if port.optional} == OPTIONAL.get(
        component, set()
    )


@every
def test_a_config_fits_its_component(component: Any) -> None:
    inputs = {name: channel.Channel(type=kind) for name, kind in PORTS[component][0].items()}
    config = COMPONENTS[component]()
    node = component(**inputs, **MODULE, config=config)
    assert node.exec_properties == {**MODULE, **config.encoded()}
    # ML Metadata and the cache know a component by this path: moving it breaks lineage
    folder = component.__module__.removeprefix("edgeline.").removesuffix(".component")
    assert node.type == f"edgeline.{folder}.component.{component.__name__}"
    assert node.executor_spec.class_path.startswith(f"edgeline.{folder}.component.")


@every
def test_a_component_takes_a_configs_fields_as_they_are_in_python(component: Any) -> None:
    config = COMPONENTS[component]
    inputs = {name: channel.Channel(type=kind) for name, kind in PORTS[component][0].items()}
    # what is left out has the config's default, and TFX is given that too: a default is no part of its cache key
    assert component(**inputs, **MODULE).exec_properties == {**MODULE, **config().encoded()}
    others = OTHER[config]
    node = component(**inputs, **MODULE, **others)
    assert node.exec_properties == {**MODULE, **config(**others).encoded()}
    assert node.exec_properties != component(**inputs, **MODULE).exec_properties
    with pytest.raises(TypeError, match=f"takes a {config.__name__} as `config` or its fields by name"):
        component(**inputs, **MODULE, **others, config=config())
    with pytest.raises(TypeError, match=f"takes a {config.__name__} as `config` or its fields by name, received Bud"):
        component(**inputs, **MODULE, config=Budget())
    name = next(iter(others))
    with pytest.raises(ValueError, match=rf"^{config.__name__}\.{name} must be "):
        component(**inputs, **MODULE, **{name: object()})


@every
def test_a_value_may_be_known_only_when_the_pipeline_runs(component: Any) -> None:
    inputs = {name: channel.Channel(type=kind) for name, kind in PORTS[component][0].items()}
    name, value = next(iter(COMPONENTS[component](**OTHER[COMPONENTS[component]]).encoded().items()))
    late = RuntimeParameter(name, type(value), value)
    assert component(**inputs, **MODULE, **{name: late}).exec_properties[name] is late


@every
def test_the_function_of_a_step_is_given_the_config(component: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = component.EXECUTOR_SPEC.executor_class._FUNCTION
    config = COMPONENTS[component](**OTHER[COMPONENTS[component]])
    given = {}
    cell = next(c for n, c in zip(executed.__code__.co_freevars, executed.__closure__, strict=True) if n == "function")
    monkeypatch.setattr(cell, "cell_contents", lambda **values: given.update(values))
    executed(**MODULE, **config.encoded(), model="port")
    assert given.pop("config") == config
    assert given.pop("model") == "port"
    assert given.items() <= MODULE.items()


@every
def test_what_help_says_of_a_component_is_true(component: Any) -> None:
    inputs, outputs = PORTS[component]
    config = COMPONENTS[component]
    parameters = inspect.signature(component).parameters
    assert list(parameters) == [*inputs, *MODULE, *config.field_types(), "config"]
    assert {name for name in inputs if parameters[name].default is None} == OPTIONAL.get(component, set())
    for name, hint in config.field_types().items():
        assert parameters[name].annotation == hint
        assert parameters[name].default == getattr(config(), name)
    text = inspect.getdoc(component) or ""
    assert text.splitlines()[0] in pydoc.render_doc(component, renderer=pydoc.plaintext)
    for name, kind in (inputs | outputs).items():
        assert f"`{name}` ({kind.__name__}" in text
    documented = {name for line in re.findall(r"^  ([a-z][a-z_, ]+): ", text, re.M) for name in line.split(", ")}
    assert documented == {*config.field_types(), *MODULE, "config"}


@every
def test_a_component_is_exported(component: Any) -> None:
    assert getattr(edgeline, component.__name__) is component


def test_every_folder_with_a_component_is_in_the_table() -> None:
    folders = {path.parent.name for path in Path(edgeline.__file__).parent.glob("*/component.py")}
    covered = {component.__module__.split(".")[1] for component in (*COMPONENTS, Evaluator, Pusher, SpanExampleGen)}
    assert folders == covered


# Evaluator ------------------------------------------------------------------------------------------------------------


def evaluator(candidates: list[str], **changes: Any) -> Evaluator:
    return Evaluator(
        channel.Channel(type=Examples),
        channel.Channel(type=Model),
        {name: channel.Channel(type=Model) for name in candidates},
        budget=Budget(max_drop=0.02, max_latency_ms=3),
        evaluation=Evaluation(max_bad_records=2),
        deployed="/pushed",
        pipeline="p",
        **{**MODULE, **changes},
    )


def test_the_evaluator_has_a_port_for_every_candidate() -> None:
    node = evaluator(["float16", "prune80_int8"])
    assert set(node.spec.INPUTS) == {"examples", "baseline", "keras", "float16", "prune80_int8"}
    # a candidate may be absent, where an earlier step of it failed; the baseline may not
    assert {name for name, port in node.spec.INPUTS.items() if port.optional} == {"keras", "float16", "prune80_int8"}
    assert {name: port.type for name, port in node.spec.OUTPUTS.items()} == {
        "evaluation": ModelEvaluation,
        "selected": Model,
        "blessing": ModelBlessing,
    }
    assert node.exec_properties == {
        **MODULE,
        **Budget(max_drop=0.02, max_latency_ms=3).encoded(),
        **Evaluation(max_bad_records=2).encoded(),
        "deployed": "/pushed",
        "pipeline": "p",
        "candidates": '{"float16": "float16", "prune80_int8": "prune80_int8"}',
    }
    assert node.type == "edgeline.evaluator.component.Evaluator"


def test_one_output_is_one_port_whatever_candidates_it_is() -> None:
    exporters = [
        TFLiteExporter(
            model=channel.Channel(type=Model), calibration=channel.Channel(type=RepresentativeDataset), **MODULE
        ).with_id(f"TFLiteExporter.{name}")
        for name in ("float32", "int8")
    ]
    float32, int8 = (exporter.outputs["tflite"] for exporter in exporters)
    node = Evaluator(
        channel.Channel(type=Examples),
        float32,
        {"float32": float32, "first": int8, "second": int8},
        budget=Budget(),
        evaluation=Evaluation(),
        pipeline="p",
        **MODULE,
    )
    # ML Metadata allows one INPUT event per artifact, execution and type
    assert set(node.inputs) == {"examples", "baseline", "first"}
    named = {"float32": "baseline", "first": "first", "second": "first"}
    assert json.loads(node.exec_properties["candidates"]) == named


def test_two_evaluators_do_not_share_ports() -> None:
    first, second = evaluator(["a"]), evaluator(["b"])
    assert "b" not in first.spec.INPUTS
    assert "a" not in second.spec.INPUTS


# imports --------------------------------------------------------------------------------------------------------------


def heavy_modules(code: str) -> set[str]:
    """What a fresh interpreter has imported of the slow packages after running some code."""
    names = "{'tensorflow', 'tfx', 'tf_keras', 'keras', 'apache_beam', 'sklearn', 'tensorflow_model_optimization'}"
    child = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*({names} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(child.stdout.split())


def test_import_edgeline_is_cheap() -> None:
    code = """
import edgeline
edgeline.UserError, dir(edgeline)
import edgeline.model_module.module_source, edgeline.passport, edgeline.errors, edgeline.progress
import edgeline.trainer.config, edgeline.pruner.config, edgeline.clusterer.config, edgeline.quantizer.config
import edgeline.representative_dataset.config, edgeline.tflite_exporter.config, edgeline.evaluator.config
import edgeline.recipe, edgeline.pipelines.recipes, edgeline.pipelines.run.new_data
edgeline.model_module.module_source.locate("edgeline.pipelines.examples.digits.model")
"""
    assert heavy_modules(code) == set()


def test_the_child_process_of_the_exporter_does_without_tensorflow() -> None:
    assert heavy_modules("import edgeline.tflite.litert") == set()


def test_all_exports_exist() -> None:
    assert all(getattr(edgeline, name) is not None for name in edgeline.__all__)
    assert set(edgeline.__all__) <= set(dir(edgeline))
    with pytest.raises(AttributeError, match="module 'edgeline' has no attribute 'Pruned'"):
        edgeline.Pruned  # noqa: B018


def test_type_checkers_are_told_of_the_same_exports() -> None:
    imports = [
        node for node in ast.walk(ast.parse(Path(edgeline.__file__).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    told = {alias.name: node.module for node in imports for alias in node.names}
    assert edgeline._EXPORTS.items() <= told.items()
