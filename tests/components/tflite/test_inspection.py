from __future__ import annotations

import json
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from edgeline.errors import UserError
from edgeline.tflite import inspection

#: 3x3 filters, two of one channel; the first is half zeros and has 3 distinct values, the second 9.
FILTERS = np.stack(
    [np.float32([0, 0, 0, 0, 1, 1, 1, 2, 2]), np.arange(1, 10, dtype=np.float32)], axis=-1
).reshape(3, 3, 1, 2)  # fmt: skip


class Network(tf.Module):
    """A convolution, a dense layer and, where asked, a sine between them."""

    def __init__(self, sine: bool = False):
        super().__init__()
        self._sine = sine

    @tf.function
    def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.name_scope("net/conv/"):
            found = tf.nn.relu(tf.nn.conv2d(image, FILTERS, 1, "VALID") + np.float32([0.5, -0.25]))
        if self._sine:
            with tf.name_scope("net/wave/"):
                found = tf.sin(found)
        with tf.name_scope("net/dense/"):
            kernel = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
            return {"y": tf.matmul(tf.reshape(found, [-1, 8]), kernel) + np.float32([1, 2])}


def convert(scheme: str, *, io_type: str = "float32", sine: bool = False) -> bytes:
    module = Network(sine)
    concrete = module.__call__.get_concrete_function(tf.TensorSpec([None, 4, 4, 1], tf.float32, name="image"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in ("int8", "int16x8"):
        images = np.random.default_rng(0).uniform(0, 1, [20, 1, 4, 4, 1]).astype(np.float32)
        converter.representative_dataset = lambda: ({"image": image} for image in images)
        ops = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            ops.TFLITE_BUILTINS_INT8 if scheme == "int8"
            else ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]  # fmt: skip
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io_type)
    return converter.convert()


@pytest.fixture(scope="module")
def files() -> Callable[..., bytes]:
    """Converts each network once."""
    made: dict[Any, bytes] = {}

    def get(scheme: str, **options: Any) -> bytes:
        key = (scheme, *options.items())
        if key not in made:
            made[key] = convert(scheme, **options)
        return made[key]

    return get


def weight(facts: dict[str, Any], layer: str) -> dict[str, Any]:
    """The kernel of a layer: its largest constant."""
    return max((w for w in facts["weights"] if w["layer"] == layer and w["op"] != "RESHAPE"), key=lambda w: w["bytes"])


# what is found --------------------------------------------------------------------------------------------------------


def test_a_float_model(files: Any) -> None:
    content = files("float32")
    facts = inspection.facts(content)
    assert facts["bytes"] == len(content)
    assert facts["zlib_bytes"] == len(zlib.compress(content, 9))
    assert facts["inputs"] == [
        {"name": "image", "shape": [-1, 4, 4, 1], "dtype": "float32", "scale": 0.0, "zero_point": 0, "step": 0.0}
    ]
    assert [(port["name"], port["shape"]) for port in facts["outputs"]] == [("y", [-1, 2])]
    assert facts["ops"] == {"builtin": {"CONV_2D": 1, "FULLY_CONNECTED": 1, "RESHAPE": 1}, "custom": {}, "flex": {}}
    assert [(op["op"], op["layer"]) for op in facts["float_ops"]] == [
        ("CONV_2D", "conv"), ("RESHAPE", "dense"), ("FULLY_CONNECTED", "dense"),
    ]  # fmt: skip
    conv = weight(facts, "conv")
    expected = np.moveaxis(FILTERS, 3, 0).tobytes()
    assert conv | {"name": ""} == {
        "name": "", "layer": "conv", "op": "CONV_2D", "shape": [2, 3, 3, 1], "dtype": "float32", "bytes": 72,
        "zlib_bytes": len(zlib.compress(expected, 9)), "sparse": False, "zeros": 4 / 18, "values": 10,
        "channel_values": 9, "scales": 0, "axis": None, "min_scale": None, "max_scale": None, "zero_points": [],
    }  # fmt: skip
    # kernel and bias of each in bytes, and what the dense layer's input is reshaped to
    assert {layer: sizes["bytes"] for layer, sizes in facts["layers"].items() if layer in ("conv", "dense")} == {
        "conv": 72 + 8,
        "dense": 64 + 8 + 8,
    }
    assert facts["violations"] == []


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_an_integer_model(files: Any, scheme: str) -> None:
    facts = inspection.facts(files(scheme))
    assert facts["float_ops"] == []
    assert facts["violations"] == []
    assert facts["ops"]["builtin"]["QUANTIZE"] == facts["ops"]["builtin"]["DEQUANTIZE"] == 1
    conv = weight(facts, "conv")
    assert (conv["dtype"], conv["scales"], conv["axis"], conv["zero_points"]) == ("int8", 2, 0, [0])
    # the largest value of each filter becomes 127
    assert conv["min_scale"] == pytest.approx(2 / 127)
    assert conv["max_scale"] == pytest.approx(9 / 127)
    assert (conv["zeros"], conv["channel_values"]) == (4 / 18, 9)
    [output] = facts["outputs"]
    assert (output["dtype"], output["scale"]) == ("float32", 0.0)
    assert output["step"] > 0


def test_integer_ports(files: Any) -> None:
    facts = inspection.facts(files("int8", io_type="uint8"))
    assert [port["dtype"] for port in (*facts["inputs"], *facts["outputs"])] == ["uint8", "uint8"]
    assert facts["inputs"][0]["scale"] == pytest.approx(1 / 255, rel=0.05)
    assert facts["inputs"][0]["step"] == facts["inputs"][0]["scale"]
    assert facts["float_ops"] == []


def test_what_stays_float_is_named(files: Any) -> None:
    facts = inspection.facts(files("int8", sine=True))
    assert [(op["op"], op["layer"]) for op in facts["float_ops"]][1] == ("SIN", "wave")
    assert {op["op"] for op in facts["float_ops"]} == {"DEQUANTIZE", "SIN", "QUANTIZE"}


def test_float16_weights_belong_to_their_layers(files: Any) -> None:
    facts = inspection.facts(files("float16"))
    conv = weight(facts, "conv")
    assert (conv["dtype"], conv["bytes"], conv["op"]) == ("float16", 36, "CONV_2D")
    assert facts["violations"] == []


def test_layers_in_names() -> None:
    for name, layer in (
        ("model/conv/Conv2D", "conv"),
        ("model/relu/Relu;model/conv/BiasAdd", "conv"),
        ("StatefulPartitionedCall/StatefulPartitionedCall/model/conv/Conv2D", "conv"),
        ("arith.constant3", ""),
        ("StatefulPartitionedCall:0", ""),
        ("conv/Conv2D", ""),
        ("", ""),
    ):
        assert inspection.layer_of(name) == layer


# the quantization specification ---------------------------------------------------------------------------------------


def changed(content: bytes, change: Callable[[Any, Any, Any], None]) -> bytes:
    """Returns a model of which `change` has changed the convolution's weights and bias; it gets model and tensors."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    [conv] = [
        operator for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.CONV_2D
    ]  # fmt: skip
    change(model, *(graph.tensors[index] for index in conv.inputs[1:3]))
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def shift_zero_point(model: Any, weights: Any, bias: Any) -> None:
    weights.quantization.zeroPoint = np.int64([0, 3])


def store_minus_128(model: Any, weights: Any, bias: Any) -> None:
    model.buffers[weights.buffer].data = np.frombuffer(bytes([128]) + bytes(17), np.uint8)


def merge_scales(model: Any, weights: Any, bias: Any) -> None:
    weights.quantization.scale = np.float32([0.1])
    weights.quantization.zeroPoint = np.int64([0])


def turn_axis(model: Any, weights: Any, bias: Any) -> None:
    weights.quantization.quantizedDimension = 3


def lose_scales(model: Any, weights: Any, bias: Any) -> None:
    weights.quantization.scale = np.float32([0.1, np.nan])


def scale_bias(model: Any, weights: Any, bias: Any) -> None:
    bias.quantization.scale = bias.quantization.scale * np.float32(1.01)


def clear_and_scale_bias(model: Any, weights: Any, bias: Any) -> None:
    scale_bias(model, weights, bias)
    model.buffers[bias.buffer].data = np.zeros(8, np.uint8)


def type_bias(model: Any, weights: Any, bias: Any) -> None:
    bias.type = schema.TensorType.INT64


def shift_bias(model: Any, weights: Any, bias: Any) -> None:
    bias.quantization.zeroPoint = np.int64([7, 7])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shift_zero_point, "weights of CONV_2D have the zero point 3, must be 0"),
        (store_minus_128, "weights of CONV_2D hold -128, must be in [-127, 127]"),
        (merge_scales, "weights of CONV_2D have 1 scales on axis 0, must be one per output channel (2 on axis 0)"),
        (turn_axis, "weights of CONV_2D have 2 scales on axis 3, must be one per output channel (2 on axis 0)"),
        (lose_scales, "weights of CONV_2D have scales that are missing or not above 0"),
        (scale_bias, "bias of CONV_2D on int8 has scales that are not those of its input times those of its weights"),
        (type_bias, "bias of CONV_2D on int8 is int64, must be int32"),
        (shift_bias, "bias of CONV_2D on int8 has the zero point 7, must be 0"),
    ],
)
def test_violations_name_the_tensor(files: Any, change: Any, said: str) -> None:
    found = inspection.facts(changed(files("int8"), change))["violations"]
    # other scales of the weights make another product with the input's: then the bias is wrong too
    assert len(found) == (2 if change is merge_scales else 1)
    name, _, what = found[0].partition(": ")
    assert "conv" in name or name.startswith("arith.constant")
    assert what == said


def test_a_bias_of_zeros_may_have_any_scale(files: Any) -> None:
    assert inspection.facts(changed(files("int8"), clear_and_scale_bias))["violations"] == []


def test_int16_activations_are_symmetric(files: Any) -> None:
    model = schema.ModelT.InitFromPackedBuf(files("int16x8"), 0)
    shifted = next(t for t in model.subgraphs[0].tensors if t.type == schema.TensorType.INT16)
    shifted.quantization.zeroPoint = np.int64([5])
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    [found] = inspection.facts(bytes(builder.Output()))["violations"]
    assert found.endswith("int16 with the zero point 5, must be 0")


def test_structure_is_what_needs_no_look_at_weights(files: Any) -> None:
    content = files("int8")
    facts = inspection.facts(content)
    sizes = {"bytes", "zlib_bytes", "weights", "layers"}
    assert inspection.structure(content) == {key: value for key, value in facts.items() if key not in sizes}


# damaged files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"not a model at all", b"\0\0\0\0TFL3", b"\xff" * 4 + b"TFL3" + bytes(99)]
)
@pytest.mark.parametrize("find", [inspection.facts, inspection.structure])
def test_what_is_no_model(content: bytes, find: Callable[[bytes], Any]) -> None:
    with pytest.raises(ValueError, match=r"^not a (sound )?TFLite model: "):
        find(content)


def mutated(content: bytes, seed: int) -> bytes:
    """Returns a model that was hit somewhere: bytes, whole numbers, a piece moved, the end lost."""
    dice = random.Random(seed)
    data = bytearray(content)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(8, len(data) - 8)
        kind = dice.randrange(5)
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at] = dice.randrange(256)
        elif kind == 2:
            value = dice.choice([0, 1, -1, 2**31 - 1, -(2**31), len(data), dice.randrange(len(data))])
            struct.pack_into("<i", data, at & ~3, value)
        elif kind == 3:
            length = dice.randrange(1, 64)
            other = dice.randrange(8, len(data) - 8)
            data[at : at + length] = data[other : other + length]
        else:
            del data[max(at, 64) :]
        if len(data) < 32:
            break
    return bytes(data)


def test_no_damage_crashes_the_reader(files: Any) -> None:
    read = refused = 0
    for seed in range(400):
        content = mutated(files(("int8", "float32")[seed % 2]), seed)
        try:
            facts = inspection.facts(content)
        except ValueError:
            refused += 1
        else:
            json.dumps(facts, allow_nan=False)
            assert all(port["name"].isprintable() for port in facts["inputs"])
            read += 1
    # the mutations are neither harmless nor all fatal
    assert read > 40
    assert refused > 40


# the child process ----------------------------------------------------------------------------------------------------


def test_a_file_is_read_in_a_child_process(files: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(files("int8"))
    assert inspection.read(path) == json.loads(json.dumps(inspection.facts(files("int8"))))
    assert inspection.read(path, weights=False) == json.loads(json.dumps(inspection.structure(files("int8"))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "m.tflite: cannot be read: No such file or directory$"),
        (b"no model", "m.tflite: not a TFLite model: it lacks"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "m.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        inspection.read(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "crashed its reader with SIGSEGV; it must be a damaged TFLite file$"),
        ("exec sleep 60", "was not read in 1 s; it must be a damaged TFLite file$"),
        ("echo MemoryError >&2; exit 1", "cannot be inspected: MemoryError$"),
    ],
)
def test_a_reader_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(UserError, match=f"^m.tflite {message}"):
        inspection.read("m.tflite", timeout=1)
