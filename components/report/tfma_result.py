"""The report as TFMA writes its own results: what notebooks and dashboards made for TFX's stock Evaluator read.

`tfma.load_eval_result(folder, model_name=...)` then gives the metrics of a model by slice, and
`tfma.load_validation_result(folder)` the verdict.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import json_format
from tensorflow_model_analysis import version
from tensorflow_model_analysis.metrics.metric_types import MetricKey
from tensorflow_model_analysis.proto import config_pb2, validation_result_pb2
from tensorflow_model_analysis.writers.metrics_plots_and_validations_writer import convert_slice_metrics_to_proto

from edgeline.report.schema import ModelReport, Report, SliceReport


def write(report: Report, folder: Path) -> None:
    """Writes what TFMA's writers write: `eval_config.json`, the metrics' and the validation's TFRecords.

    Models are called as in the report, the float32 one `baseline`. Each has the compiled metrics and `example_count`
    per slice, a candidate also the difference to the baseline (`accuracy_diff`). Read without a model's name, the
    folder shows the selected candidate, or the closest where none is.

    Args:
      report: to write.
      folder: an existing one.
    """
    models = {candidate.name: candidate for candidate in report.candidates if candidate.metrics is not None}
    shown = report.selected or report.closest or next(iter(models), None)
    baseline = _by_slice(report.baseline, report.dataset.examples)
    slices: dict[tuple[Any, ...], dict[Any, float]] = {
        key: _values(report.baseline.name, row) for key, row in baseline.items()
    }
    for name, candidate in models.items():
        for key, row in _by_slice(candidate, report.dataset.examples).items():
            values = slices.setdefault(key, {})
            values |= _values(name, row) | _differences(name, row, baseline.get(key, {}), flagged=name == shown)
    with tf.io.TFRecordWriter(str(folder / "metrics-00000-of-00001.tfrecord")) as writer:
        for item in slices.items():
            writer.write(convert_slice_metrics_to_proto(item, []).SerializeToString())

    verdict = validation_result_pb2.ValidationResult(validation_ok=report.selected is not None)
    failures = verdict.metric_validations_per_slice.add(slice_key={}).failures
    for candidate in report.candidates:
        for reason in candidate.reasons:
            failures.add(metric_key={"name": report.budget.metric, "model_name": candidate.name}, message=reason)
    with tf.io.TFRecordWriter(str(folder / "validations.tfrecord")) as writer:
        writer.write(verdict.SerializeToString())

    (folder / "eval_config.json").write_text(json_format.MessageToJson(_run(report, list(models))), encoding="utf-8")


def _by_slice(model: ModelReport, examples: int) -> dict[tuple[Any, ...], dict[str, float]]:
    """Returns a model's metrics and `example_count` by TFMA's slice key; () is the whole split."""
    whole = SliceReport(features={}, examples=examples, metrics=model.metrics or {})
    return {
        tuple(sorted(part.features.items())): {
            **{name: math.nan if value is None else value for name, value in part.metrics.items()},
            "example_count": part.examples,
        }
        for part in (whole, *model.slices)
    }


def _values(model: str, row: dict[str, float]) -> dict[Any, float]:
    return {MetricKey(name, model): value for name, value in row.items()}


def _differences(model: str, row: dict[str, float], baseline: dict[str, float], *, flagged: bool) -> dict[Any, float]:
    # A reader that is given no model's name takes the one whose metrics are flagged as differences, and finds nothing
    # if several are; it adds `_diff` to their names, so that all models' differences are read under the same names.
    return {
        MetricKey(name, model, is_diff=True) if flagged else MetricKey(f"{name}_diff", model): value - baseline[name]
        for name, value in row.items()
        if name in baseline and name != "example_count"
    }


def _run(report: Report, candidates: list[str]) -> Any:
    config = config_pb2.EvalConfig()
    for name in (report.baseline.name, *candidates):
        config.model_specs.add(name=name, model_type="tf_lite", is_baseline=name == report.baseline.name)
    config.slicing_specs.add()
    for features in report.dataset.slice_features:
        config.slicing_specs.add(feature_keys=features)
    # without any metric here, TFMA's views look for the example count under a name of older versions
    config.metrics_specs.add().metrics.add(class_name="ExampleCount")
    dataset = report.dataset
    return config_pb2.EvalRun(
        eval_config=config,
        version=version.VERSION,
        data_location=f"{dataset.split}-{(dataset.fingerprint or '')[:12]}",
        # what a view calls a model is the last part of its location; and one without a location is not found at all
        model_locations={spec.name: spec.name for spec in config.model_specs},
    )
