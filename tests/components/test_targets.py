"""What a target can run: the rules one by one, and real files of each scheme."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from edgeline import targets
from edgeline.tflite import inspection

INTEGER_TARGETS = ["edgetpu", "dsp", "micro"]


def facts(**changes: Any) -> dict[str, Any]:
    """Of a file that every target can run."""
    return {
        "inputs": [{"name": "image", "shape": [1, 8, 8, 1], "dtype": "int8"}],
        "outputs": [{"name": "logits", "shape": [1, 10], "dtype": "int8"}],
        "ops": {"builtin": {"CONV_2D": 2, "RESHAPE": 1, "SOFTMAX": 1}, "custom": {}, "flex": {}},
        "float_ops": {},
        "number_types": {"int8": ["CONV_2D", "RESHAPE", "SOFTMAX"], "int32": ["CONV_2D", "RESHAPE"]},
        **changes,
    }


def port(name: str, dtype: str, shape: list[int]) -> list[dict[str, Any]]:
    return [{"name": name, "shape": shape, "dtype": dtype}]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_file_that_every_target_can_run(name: str) -> None:
    assert targets.misfits(name, facts()) == []


@pytest.mark.parametrize("name", targets.TARGETS)
def test_all_operators_are_litert_s(name: str) -> None:
    target = targets.TARGETS[name]
    known = vars(schema.BuiltinOperator).keys()
    assert target is None or (target.operators and target.operators <= known)


def test_the_cpu_runs_what_could_be_exported() -> None:
    assert targets.misfits("cpu", {}) == []


def test_number_types_of_inputs_and_outputs() -> None:
    image = port("image", "float32", [1, 8])
    [found] = targets.misfits("edgetpu", facts(inputs=image))
    assert found == "target edgetpu: inputs must be int8 or uint8, image is float32; choose int8_io"
    [found] = targets.misfits("dsp", facts(outputs=port("y", "float32", [1, 8])))
    assert found == "target dsp: outputs must be int8 or uint8, y is float32; choose int8_io"
    [found] = targets.misfits("micro", facts(inputs=image, outputs=port("y", "float32", [1, 8])))
    assert found == (
        "target micro: inputs and outputs must be int8, uint8, int16 or int32, image is float32, y is float32; choose "
        "int8_io"
    )
    assert targets.misfits("gpu", facts(inputs=image)) == []
    [found] = targets.misfits("gpu", facts(outputs=port("y", "int64", [1])))
    assert found.endswith("y is int64; choose float16")


@pytest.mark.parametrize(("name", "fixed"), [("edgetpu", True), ("micro", True), ("dsp", False), ("gpu", False)])
def test_open_sizes(name: str, fixed: bool) -> None:
    found = targets.misfits(name, facts(inputs=port("image", "int8", [-1, 8, 8, 1])))
    expected = (
        f"target {name}: all sizes must be fixed, image is [any, 8, 8, 1]; export with --target {name}, which makes "
        "the file for one example"
    )
    assert found == ([expected] if fixed else [])
    assert targets.needs_fixed_shapes(name) is fixed


@pytest.mark.parametrize("name", INTEGER_TARGETS)
def test_operators_on_floats(name: str) -> None:
    floats = {"float_ops": {"FULLY_CONNECTED": 2, "SOFTMAX": 1}, "number_types": {"float32": ["SOFTMAX"]}}
    assert targets.misfits(name, facts(**floats)) == [
        f"target {name}: it computes on integers only, but on floats compute 2 FULLY_CONNECTED, SOFTMAX; quantize "
        "them, or replace their layers"
    ]
    assert targets.misfits("gpu", facts(**floats)) == []


def test_numbers_inside() -> None:
    shorts = facts(number_types={"int16": ["CONV_2D", "SOFTMAX"], "int8": ["CONV_2D"], "int64": ["CONV_2D"]})
    assert targets.misfits("edgetpu", shorts) == [
        "target edgetpu: numbers must be int8, uint8 or int32, found int16 in CONV_2D, SOFTMAX, int64 in CONV_2D; "
        "choose int8_io"
    ]
    assert targets.misfits("micro", shorts) == []
    [found] = targets.misfits("gpu", shorts)
    assert "found int16 in CONV_2D, SOFTMAX" in found


def test_operators() -> None:
    ops = {"builtin": {"SQUEEZE": 1, "CONV_2D": 1}, "custom": {"Resampler": 1}, "flex": {"FlexErf": 2}}
    assert targets.misfits("dsp", facts(ops=ops)) == [
        "target dsp: it has no SQUEEZE, Resampler, FlexErf; replace the layers that need them"
    ]
    assert targets.misfits("gpu", facts(ops=ops)) == [
        "target gpu: it has no SQUEEZE, FlexErf; replace the layers that need them"
    ]
    ops = {"builtin": {"CONV_2D": 1}, "custom": {"edgetpu-custom-op": 1}, "flex": {}}
    assert targets.misfits("edgetpu", facts(ops=ops)) == []
    [found] = targets.misfits("micro", facts(ops=ops))
    assert found == "target micro: it has no edgetpu-custom-op; replace the layers that need it"


# real files -----------------------------------------------------------------------------------------------------------


def converted(scheme: str, batch: int | None = 1) -> dict[str, Any]:
    """The facts of a convolution and a softmax, by one of the schemes of the Quantizer."""
    kernel = np.random.default_rng(0).normal(size=[3, 3, 1, 4]).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([batch, 6, 6, 1], tf.float32, name="image")])
    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME"))
        return {"y": tf.nn.softmax(tf.reduce_mean(features, [1, 2]))}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], tf.Module())
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif scheme != "float32":
        images = np.random.default_rng(1).normal(size=[8, 1, 6, 6, 1]).astype(np.float32)
        converter.representative_dataset = lambda: ([image] for image in images)
        kind = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        if scheme == "int16x8":
            kind = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [kind]
    if scheme == "int8_io":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    found = inspection.facts(converter.convert())
    return {**found, "float_ops": dict(Counter(op["op"] for op in found["float_ops"]))}


@pytest.mark.parametrize(
    ("scheme", "runs"),
    [
        ("float32", {"cpu", "gpu"}),
        ("float16", {"cpu", "gpu"}),
        ("int8", {"cpu", "gpu"}),
        ("int16x8", {"cpu"}),
        ("int8_io", {"cpu", "gpu", "edgetpu", "dsp", "micro"}),
    ],
)
def test_the_schemes(scheme: str, runs: set[str]) -> None:
    found = converted(scheme)
    assert {name for name in targets.TARGETS if not targets.misfits(name, found)} == runs
    if scheme == "float32":  # a DEQUANTIZE for every port would be one message too many
        [ports, floats] = targets.misfits("micro", found)
        assert "image is float32, y is float32" in ports
        assert "CONV_2D" in floats
    if scheme == "int8":
        assert [text.split(";")[0] for text in targets.misfits("dsp", found)] == [
            "target dsp: inputs and outputs must be int8 or uint8, image is float32, y is float32"
        ]


def test_a_file_for_any_batch() -> None:
    [found] = targets.misfits("micro", converted("int8_io", None))[:1]
    assert "image is [any, 6, 6, 1]" in found
