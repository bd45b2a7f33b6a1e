from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from apache_beam.options.pipeline_options import PipelineOptions
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx.orchestration.experimental.interactive.standard_visualizations import ModelEvaluationVisualization
from tfx.types.standard_artifacts import ModelEvaluation

from edgeline.data import reading
from edgeline.data.reading import ExampleParser
from edgeline.evaluator.measuring import transforms
from edgeline.evaluator.measuring.measurements import Plan
from edgeline.evaluator.measuring.metrics import CompiledMetrics
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.report import tfma_result
from edgeline.report.report_file import parse
from edgeline.report.schema import Report
from edgeline.tflite.litert import TFLiteModel

SEVEN = (("label", 7),)
DIM_FRONT = (("camera", "front"), ("light", "dim"))


def model(name: str, accuracy: float, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "metrics": {"accuracy": accuracy, "loss": 0.5},
        "reasons": list(reasons),
        "slices": [
            {"features": {"light": "dim", "camera": "front"}, "examples": 30, "metrics": {"accuracy": 0.5, "loss": 1}},
            {"features": {"label": 7}, "examples": 20, "metrics": {"accuracy": accuracy - 0.25, "loss": None}},
        ],
    }


def report(**changes: Any) -> Report:
    broken = {"name": "broken", "metrics": None, "reasons": ["Quantizer failed"], "slices": []}
    facts = {
        "dataset": {
            "split": "eval",
            "fingerprint": "0123456789abcdef",
            "examples": 100,
            "slice_features": [["label"], ["camera", "light"]],
        },
        **{"schema_version": 3, "created": "2026-11-22T02:00:00+00:00", "pipeline": "p", "module": "m"},
        "budget": {"metric": "accuracy", "direction": "max", "objective": "zlib_bytes"},
        "baseline": model("baseline", 0.75),
        "candidates": [model("float16", 0.75), model("prune80", 0.5, ("drop 0.25 is above 0.01",)), broken],
        "selected": "float16",
        "closest": None,
        **{"versions": {}, "machine": {}},
    }
    return parse(facts | changes, "the report")


def doubles(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value["doubleValue"] for name, value in metrics.items()}


def test_tfma_reads_every_model_by_slice(tmp_path: Path) -> None:
    tfma_result.write(report(), tmp_path)
    result = tfma.load_eval_result(str(tmp_path), model_name="prune80")
    assert result.get_slice_names() == [(), DIM_FRONT, SEVEN]
    assert doubles(result.get_metrics_for_slice()) == {
        "accuracy": 0.5, "loss": 0.5, "example_count": 100, "accuracy_diff": -0.25, "loss_diff": 0,
    }  # fmt: skip
    assert doubles(result.get_metrics_for_slice(DIM_FRONT)) == {
        "accuracy": 0.5, "loss": 1, "example_count": 30, "accuracy_diff": 0, "loss_diff": 0,
    }  # fmt: skip
    # NaN is null in the report, and the text "NaN" in protobuf's JSON
    assert doubles(result.get_metrics_for_slice(SEVEN)) == {
        "accuracy": 0.25, "loss": "NaN", "example_count": 20, "accuracy_diff": -0.25, "loss_diff": "NaN",
    }  # fmt: skip
    assert (result.data_location, result.model_location) == ("eval-0123456789ab", "prune80")
    baseline = tfma.load_eval_result(str(tmp_path), model_name="baseline")
    assert doubles(baseline.get_metrics_for_slice()) == {"accuracy": 0.75, "loss": 0.5, "example_count": 100}
    assert doubles(baseline.get_metrics_for_slice(SEVEN)) == {"accuracy": 0.5, "loss": "NaN", "example_count": 20}


def test_all_models_are_found_and_one_is_the_baseline(tmp_path: Path) -> None:
    tfma_result.write(report(), tmp_path)
    results = tfma.load_eval_results(str(tmp_path)).get_results()
    accuracies = {r.model_location: doubles(r.get_metrics_for_slice())["accuracy"] for r in results}
    assert accuracies == {"baseline": 0.75, "float16": 0.75, "prune80": 0.5}
    config = results[0].config
    assert [spec.name for spec in config.model_specs if spec.is_baseline] == ["baseline"]
    assert [list(spec.feature_keys) for spec in config.slicing_specs] == [[], ["label"], ["camera", "light"]]


@pytest.mark.parametrize(
    ("selected", "closest", "accuracy"), [("float16", None, 0.75), (None, "prune80", 0.5), (None, None, 0.75)]
)
def test_without_a_name_the_selected_or_closest_candidate_is_read(
    tmp_path: Path, selected: str | None, closest: str | None, accuracy: float
) -> None:
    tfma_result.write(report(selected=selected, closest=closest), tmp_path)
    found = doubles(tfma.load_eval_result(str(tmp_path)).get_metrics_for_slice())
    assert found["accuracy"] == accuracy
    assert found["accuracy_diff"] == accuracy - 0.75


def test_a_report_without_candidates_and_slices(tmp_path: Path) -> None:
    baseline = {"metrics": {"loss": 0.5}, "slices": []}
    dataset = {"split": "eval", "fingerprint": "", "examples": 9}
    facts = report(candidates=[], selected=None, baseline=baseline, dataset=dataset)
    tfma_result.write(facts, tmp_path)
    result = tfma.load_eval_result(str(tmp_path))
    assert result.get_slice_names() == [()]
    assert doubles(result.get_metrics_for_slice()) == {"loss": 0.5, "example_count": 9}


def test_a_slice_that_the_baseline_has_not_is_read_without_a_difference(tmp_path: Path) -> None:
    tfma_result.write(report(baseline=model("baseline", 0.75) | {"slices": None}), tmp_path)
    result = tfma.load_eval_result(str(tmp_path), model_name="float16")
    assert doubles(result.get_metrics_for_slice(DIM_FRONT)) == {"accuracy": 0.5, "loss": 1, "example_count": 30}
    # TFMA's own warning, and nothing of the slice
    assert tfma.load_eval_result(str(tmp_path), model_name="baseline").get_metrics_for_slice(DIM_FRONT) is None


def test_the_verdict_and_its_reasons(tmp_path: Path) -> None:
    tfma_result.write(report(), tmp_path)
    verdict = tfma.load_validation_result(str(tmp_path))
    assert verdict.validation_ok
    [overall] = verdict.metric_validations_per_slice
    assert [(f.metric_key.model_name, f.metric_key.name, f.message) for f in overall.failures] == [
        ("prune80", "accuracy", "drop 0.25 is above 0.01"),
        ("broken", "accuracy", "Quantizer failed"),
    ]
    tfma_result.write(report(selected=None, closest="prune80"), tmp_path)
    assert not tfma.load_validation_result(str(tmp_path)).validation_ok


def test_views_of_tfma_and_tfx_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tfma_result.write(report(), tmp_path)
    view = tfma.view.render_slicing_metrics(tfma.load_eval_result(str(tmp_path)), slicing_column="label")
    assert [(row["slice"], row["metrics"][""][""]["accuracy"]) for row in view.data] == [
        ("label:7", {"doubleValue": 0.5})
    ]
    assert view.config == {"weightedExamplesColumn": "example_count"}
    # what a notebook's context.show(evaluator.outputs["evaluation"]) calls
    artifact = ModelEvaluation()
    artifact.uri = str(tmp_path)
    ModelEvaluationVisualization().display(artifact)
    assert "SlicingMetricsViewer" in capsys.readouterr().out


def test_only_these_files_are_written(tmp_path: Path) -> None:
    tfma_result.write(report(), tmp_path)
    names = ["eval_config.json", "metrics-00000-of-00001.tfrecord", "validations.tfrecord"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# beside TFMA's own evaluation -----------------------------------------------------------------------------------------

Slices = dict[tuple[tuple[str, Any], ...], dict[str, float]]

SLICED_MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {
        "image": tf.io.FixedLenFeature([64], tf.float32),
        "camera": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }


def preprocess(features):
    return tf.reshape(features["image"], [-1, 8, 8, 1]), features["label"]


def slice_features():
    return ["camera"]


def build_model():
    start = keras.initializers.RandomNormal(stddev=0.3, seed=3)
    return keras.Sequential(
        [
            keras.Input([8, 8, 1], name="image"),
            keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=start),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer=start),
        ]
    )


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
"""


def edgeline_metrics(files: list[str], model: bytes, module: ModelModule) -> Slices:
    """Returns Edgeline's metrics, and `example_count`, of a model: of all examples, of each camera and each label."""
    path = Path(files[0]).parents[1] / "model.tflite"
    path.write_bytes(model)
    runner = TFLiteModel(path)
    outputs = tuple(port.name for port in runner.outputs)
    plan = Plan(module.source.reference, ("image",), outputs, {"model": str(path)}, "model")
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = pipeline | beam.Create(files) | transforms.Evaluate(plan)
        results | beam.Map(transforms.write_results, f"{path}.results")
    evaluated = transforms.read_results(f"{path}.results").models["model"]
    inputs, label, _ = next(iter(reading.parsed_batches(files, ExampleParser(module), 2)))
    metrics = CompiledMetrics(module)
    metrics.prepare(label, list(runner.run({"image": inputs.numpy()}).values()))
    states = {(): evaluated.overall, **evaluated.slices}
    return {key: metrics.result(state) | {"example_count": state.examples} for key, state in states.items()}


def tfma_metrics(files: list[str], model: bytes, folder: Path) -> Slices:
    # the file's name tells TFMA what it is; its shards are read by a pattern
    (folder / "model").mkdir()
    (folder / "model" / "tflite").write_bytes(model)
    config = text_format.Parse(
        """
        model_specs { model_type: "tf_lite" label_key: "label" }
        metrics_specs {
          metrics { class_name: "ExampleCount" }
          metrics { class_name: "SparseCategoricalAccuracy" config: '"name": "accuracy"' }
          metrics { class_name: "SparseCategoricalCrossentropy" config: '"name": "loss", "from_logits": true' }
        }
        slicing_specs {}
        slicing_specs { feature_keys: "camera" }
        slicing_specs { feature_keys: "label" }
        """,
        config_pb2.EvalConfig(),
    )
    result = tfma.run_model_analysis(
        eval_shared_model=tfma.default_eval_shared_model(str(folder / "model"), eval_config=config),
        eval_config=config,
        data_location=str(Path(files[0]).parent / "*"),
        output_path=str(folder / "results"),
        pipeline_options=PipelineOptions(["--runner=FnApiRunner"]),
    )
    return {key: doubles(result.get_metrics_for_slice(key)) for key in result.get_slice_names()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_metrics_per_slice_are_those_of_tfma(tmp_path: Path, write_split: Any) -> None:
    path = tmp_path / "sliced.py"
    path.write_text(SLICED_MODULE)
    module = hooks.load(str(path))
    content = tf.lite.TFLiteConverter.from_keras_model(module.build_model()).convert()
    random = np.random.default_rng(0)
    images = (random.integers(0, 17, [300, 8, 8, 1]) / 16).astype(np.float32)
    [logits] = TFLiteModel(content).run({"image": images}).values()
    # the untrained model is right about 7 of 10
    labels = np.where(random.random(300) < 0.7, logits.argmax(axis=1), random.integers(0, 10, 300))
    examples = [
        {"image": image, "camera": ["front", "rear", "side"][index % 3], "label": label}
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    files = write_split(tmp_path, "eval", examples, 2)
    ours, theirs = edgeline_metrics(files, content, module), tfma_metrics(files, content, tmp_path)
    assert len(ours) == 1 + 3 + 10
    assert ours.keys() == theirs.keys()
    assert ours[()]["example_count"] == 300
    assert ours[()]["accuracy"] == pytest.approx(np.mean(labels == logits.argmax(axis=1)))
    for key, metrics in ours.items():
        assert metrics.keys() == theirs[key].keys()
        for name, value in metrics.items():
            assert math.isclose(value, theirs[key][name], rel_tol=1e-6, abs_tol=1e-6), (key, name)
