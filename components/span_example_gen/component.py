"""Ingests a window of spans as one Examples artifact: TFX's own ImportExampleGen takes one span only."""

import json
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx.components import ImportExampleGen
from tfx.components.example_gen import driver, utils
from tfx.components.example_gen.import_example_gen import executor
from tfx.dsl.components.base import executor_spec
from tfx.orchestration.portable import data_types
from tfx.proto import example_gen_pb2, range_config_pb2
from tfx.proto.orchestration import driver_output_pb2
from tfx.utils import io_utils, proto_utils

from edgeline.artifacts import SPANS_PROPERTY
from edgeline.data.data_folder import SHARD_SUFFIX, SPLITS
from edgeline.data.spans import Window

# between the patterns of a split, one per span
_SEPARATOR = "\n"


class Executor(executor.Executor):
    """TFX's executor, reading the patterns of every span of a split, and always writing an example as the same bytes.

    TFX's own writes its features in an order that differs from process to process, and by their bytes the calibration
    samples are drawn.
    """

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """Returns what reads a split: TFX's own transform, once for each span."""
        read_one = super().GetInputSourceToExamplePTransform()

        @beam.ptransform_fn
        @beam.typehints.with_input_types(beam.Pipeline)
        @beam.typehints.with_output_types(bytes)
        def ReadSpans(pipeline: beam.Pipeline, exec_properties: dict[str, Any], split_pattern: str) -> beam.PCollection:
            parts = [
                pipeline | f"Span {number}" >> read_one(exec_properties, pattern)
                for number, pattern in enumerate(split_pattern.split(_SEPARATOR))
            ]
            return parts | beam.Flatten() | "Serialize" >> beam.Map(_serialized)

        return ReadSpans


def _serialized(example: tf.train.Example) -> bytes:
    return example.SerializeToString(deterministic=True)


class Driver(driver.FileBasedDriver):
    """TFX's driver, which finds out what a run would read: of all spans instead of the newest."""

    def resolve_exec_properties(
        self, exec_properties: dict[str, Any], pipeline_info: Any, component_info: Any
    ) -> dict[str, Any]:
        """Adds span, version and fingerprint, which are part of the cache key."""
        window = range_config_pb2.RangeConfig()
        proto_utils.json_to_proto(exec_properties["range_config"], window)
        fingerprints = [
            io_utils.generate_fingerprint(name, f"{exec_properties['input_base']}/{pattern}")
            for name, patterns in _patterns(exec_properties).items()
            for pattern in patterns
        ]
        exec_properties[utils.SPAN_PROPERTY_NAME] = window.static_range.end_span_number
        exec_properties[utils.VERSION_PROPERTY_NAME] = None
        exec_properties[utils.FINGERPRINT_PROPERTY_NAME] = "\n".join(fingerprints)
        return exec_properties

    def run(self, execution_info: data_types.ExecutionInfo) -> driver_output_pb2.DriverOutput:
        """Also writes the spans to the artifact."""
        result = super().run(execution_info)
        patterns = _patterns(execution_info.exec_properties)[SPLITS[0]]
        names = [pattern.removesuffix(f"/{SPLITS[0]}/*{SHARD_SUFFIX}") for pattern in patterns]
        for artifact in result.output_artifacts["examples"].artifacts:
            artifact.custom_properties[SPANS_PROPERTY].string_value = json.dumps(names)
        return result


def _patterns(exec_properties: dict[str, Any]) -> dict[str, list[str]]:
    config = example_gen_pb2.Input()
    proto_utils.json_to_proto(exec_properties["input_config"], config)
    return {split.name: split.pattern.split(_SEPARATOR) for split in config.splits}


class SpanExampleGen(ImportExampleGen):
    """ImportExampleGen for a window of spans.

    Args:
      window: the spans.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(self, window: Window):
        splits = [
            example_gen_pb2.Input.Split(
                name=split, pattern=_SEPARATOR.join(f"{span.name}/{split}/*{SHARD_SUFFIX}" for span in window.spans)
            )
            for split in SPLITS
        ]
        numbers = range_config_pb2.StaticRange(
            start_span_number=window.spans[0].number, end_span_number=window.spans[-1].number
        )
        super().__init__(
            input_base=str(window.base),
            input_config=example_gen_pb2.Input(splits=splits),
            range_config=range_config_pb2.RangeConfig(static_range=numbers),
        )
