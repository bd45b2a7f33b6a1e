from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgeline.conversion import converter, float_tflite, tflite_quantizer
from edgeline.conversion.failures import ConversionError
from edgeline.errors import UserError
from edgeline.model_importer import importing
from edgeline.model_importer.config import Import, kind_of
from edgeline.model_io import graph_model
from edgeline.model_io.graph_model import GraphModel, TFLiteGraph
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.schemes import SCHEMES
from edgeline.tflite import inspection, litert

SAMPLES = np.random.default_rng(0).uniform(0, 1, [48, 8, 8, 3]).astype(np.float32)


def convolutional(activation: Any = "relu") -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input([8, 8, 3])
    hidden = tf_keras.layers.Conv2D(8, 3, padding="same", activation=activation)(x)
    hidden = tf_keras.layers.DepthwiseConv2D(3, activation="relu6")(hidden)
    hidden = tf_keras.layers.Add()([hidden, tf_keras.layers.Conv2D(8, 1)(hidden)])
    hidden = tf_keras.layers.GlobalAveragePooling2D()(hidden)
    return tf_keras.Model(x, [tf_keras.layers.Dense(5)(hidden), tf_keras.layers.Dense(2, activation="softmax")(hidden)])


def prelu() -> tf_keras.layers.Layer:
    return tf_keras.layers.PReLU(shared_axes=[1, 2], alpha_initializer=tf_keras.initializers.Constant(0.2))


def converted(model: tf_keras.Model, batch: int | None = None, names: tuple[str, ...] = ("logits", "side")) -> bytes:
    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, tf.nest.flatten(model(image)), strict=True))

    spec = tf.TensorSpec([batch, *model.inputs[0].shape[1:]], tf.float32, name="image")
    function = tf.function(call, input_signature=[spec]).get_concrete_function()
    content: bytes = tf.lite.TFLiteConverter.from_concrete_functions([function], model).convert()
    return content


@pytest.fixture(scope="module")
def plain() -> tuple[tf_keras.Model, bytes]:
    model = convolutional()
    return model, converted(model)


def read(folder: Path, content: bytes, signature: str = "") -> tuple[bytes, dict[str, Any]]:
    (folder / "m.tflite").write_bytes(content)
    return float_tflite.read(folder / "m.tflite", signature)


def quantized(content: bytes, scheme: str, io_type: str = "float32", samples: np.ndarray = SAMPLES) -> bytes:
    how = {"scheme": scheme, "io_type": io_type}
    batches = [{"image": samples[i : i + 1]} for i in range(len(samples))]
    [made] = tflite_quantizer.quantized(content, SCHEMES[scheme], how, batches if SCHEMES[scheme].calibrated else [])
    return made


# schemes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "io_type", "relative"),
    [
        ("float32", "float32", 1e-5),
        ("float16", "float32", 2e-3),
        ("dynamic_range", "float32", 0.03),
        ("int8", "float32", 0.05),
        ("int8", "int8", 0.05),
        ("int8", "uint8", 0.05),
        ("int16x8", "float32", 0.02),
    ],
)
def test_schemes(plain: tuple[tf_keras.Model, bytes], scheme: str, io_type: str, relative: float) -> None:
    model, source = plain
    content = quantized(source, scheme, io_type)
    for reference in (True, False):
        runner = litert.TFLiteModel(content, reference=reference)
        received = runner.run({"image": SAMPLES}, 16)
        for name, expected in zip(("logits", "side"), model(SAMPLES), strict=True):
            assert np.abs(received[name] - expected).max() < relative * np.abs(expected).max(), name
    assert {port.dtype.name for port in (*runner.inputs, *runner.outputs)} == {io_type}
    assert runner.any_batch
    facts = inspection.facts(content)
    assert not facts["violations"]
    kernels = {weight["dtype"] for weight in facts["weights"] if len(weight["shape"]) >= 2}
    assert kernels == {{"float32": "float32", "float16": "float16"}.get(scheme, "int8")}
    assert bool(facts["float_ops"]) == (scheme in ("float32", "float16", "dynamic_range"))
    assert (content == source) == (scheme == "float32")
    assert quantized(source, scheme, io_type) == content


def test_the_ranges_are_those_of_all_samples_in_any_order(plain: tuple[tf_keras.Model, bytes]) -> None:
    samples = SAMPLES.copy()
    samples[5, 0, 0, 0] = 3.0
    one, other = (quantized(plain[1], "int8", "int8", values) for values in (samples, samples[::-1]))
    assert one == other
    # from almost 0 to 3 in 255 steps
    assert inspection.facts(one)["inputs"][0]["scale"] == pytest.approx(3 / 255, rel=1e-3)


def test_what_only_tensorflow_has_in_int8() -> None:
    model = convolutional(prelu())
    source = converted(model)
    content = quantized(source, "int8", "int8")
    facts = inspection.facts(content)
    assert facts["ops"]["builtin"]["PRELU"] == 1
    assert facts["float_ops"] == []
    assert {port["dtype"] for port in (*facts["inputs"], *facts["outputs"])} == {"int8"}
    received = litert.TFLiteModel(content).run({"image": SAMPLES})["logits"]
    expected = model(SAMPLES)[0].numpy()
    assert np.abs(received - expected).max() < 0.05 * np.abs(expected).max()
    # int16 is ai-edge-quantizer's alone, and what it leaves float is the exporter's to refuse
    left = inspection.facts(quantized(source, "int16x8"))["float_ops"]
    assert "PRELU" in {op["op"] for op in left}


def recurrent(layer: type[tf_keras.layers.Layer]) -> tuple[bytes, np.ndarray]:
    model = tf_keras.Sequential([tf_keras.Input([6, 3]), layer(8), tf_keras.layers.Dense(2)])
    return converted(model, batch=1, names=("logits",)), np.ascontiguousarray(SAMPLES[:, :6, 0])


@pytest.mark.slow
def test_loops_and_lstms() -> None:
    content, samples = recurrent(tf_keras.layers.GRU)
    for scheme in ("int8", "int16x8"):
        with pytest.raises(ConversionError, match=rf"{scheme} cannot be made of a TFLite model with loops \(WHILE\)"):
            quantized(content, scheme, samples=samples)
    expected = litert.TFLiteModel(content).run({"image": samples})["logits"]
    received = litert.TFLiteModel(quantized(content, "dynamic_range", samples=samples)).run({"image": samples})
    assert np.abs(received["logits"] - expected).max() < 0.05 * np.abs(expected).max()
    content, samples = recurrent(tf_keras.layers.LSTM)
    floats = {op["op"] for op in inspection.facts(quantized(content, "int8", samples=samples))["float_ops"]}
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in floats


def test_layers_can_stay_float(tmp_path: Path, plain: tuple[tf_keras.Model, bytes]) -> None:
    source = TFLiteGraph(*read(tmp_path, plain[1]))
    calibrated = converter.calibrate(source, source.io, {"image": SAMPLES})
    assert [node.op for node in calibrated.nodes].count("CONV_2D") == 2
    scheme = {"scheme": "int8", "io_type": "float32", "keep_float": {"layers": [], "ops": ["DEPTHWISE_CONV_2D"]}}
    content = converter.convert(source, source.io, scheme, {"image": SAMPLES})
    assert [op["op"] for op in inspection.facts(content)["float_ops"] if "QUANT" not in op["op"]] == [
        "DEPTHWISE_CONV_2D"
    ]


def test_a_file_that_does_not_take_the_batches_it_says(tmp_path: Path) -> None:
    spec = tf.TensorSpec([None, 2], tf.float32, name="x")
    function = tf.function(lambda x: {"y": tf.reshape(x, [1, 2]) + 1.0}, input_signature=[spec])
    made = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module()).convert()
    source = TFLiteGraph(*read(tmp_path, made))
    assert source.io["inputs"][0]["shape"] == [None, 2]
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_allclose(source(tf.constant(values))[0], values + 1)
    content = converter.convert(
        source, converter.for_one_example(source.io), {"scheme": "float32", "io_type": "float32"}, {}
    )
    assert [port["shape"] for port in inspection.facts(content)["inputs"]] == [[1, 2]]
    np.testing.assert_allclose(litert.TFLiteModel(content).run({"x": values})["y"], values + 1)


# reading --------------------------------------------------------------------------------------------------------------


def test_a_source_is_called_as_a_graph(
    tmp_path: Path, plain: tuple[tf_keras.Model, bytes], module: ModelModule
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(plain[1])
    assert kind_of(path) == "tflite"
    model, io = importing.load(Import(str(path)), module)
    assert isinstance(model, GraphModel)
    assert io == {
        "inputs": [{"name": "image", "shape": [None, 8, 8, 3], "dtype": "float32"}],
        "outputs": [
            {"name": "logits", "shape": [None, 5], "dtype": "float32"},
            {"name": "side", "shape": [None, 2], "dtype": "float32"},
        ],
        "labels": [],
    }
    expected = plain[0](SAMPLES)[0]
    np.testing.assert_allclose(model(tf.constant(SAMPLES))[0], expected, atol=1e-5)
    # in an artifact
    graph_model.save(model, module, io, str(tmp_path / "one"))
    graph_model.copy(str(tmp_path / "one"), str(tmp_path / "two"))
    assert graph_model.is_one(str(tmp_path / "two"))
    again = graph_model.load(str(tmp_path / "two"), io)
    np.testing.assert_allclose(again(tf.constant(SAMPLES))[0], expected, atol=1e-5)
    assert (tmp_path / "two/Format-Serving/model.tflite").read_bytes() == plain[1]


@pytest.fixture
def module(tiny_module: Path) -> ModelModule:
    return hooks.load(str(tiny_module))


def edited(content: bytes, edit: Callable[[Any], None]) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    edit(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def test_without_a_signature_the_tensors_name_the_ports(tmp_path: Path, plain: tuple[tf_keras.Model, bytes]) -> None:
    content, io = read(tmp_path, edited(plain[1], lambda model: setattr(model, "signatureDefs", None)))
    assert [port["name"] for port in io["inputs"]] == ["serving_default_image:0"]
    assert [port["name"] for port in io["outputs"]] == ["StatefulPartitionedCall:0", "StatefulPartitionedCall:1"]
    assert [found["name"] for found in inspection.facts(content)["signatures"]] == ["serving_default"]
    received = litert.TFLiteModel(content).run({"serving_default_image:0": SAMPLES})
    np.testing.assert_allclose(received["StatefulPartitionedCall:0"], plain[0](SAMPLES)[0], atol=1e-5)


def several(folder: Path, *names: str) -> bytes:
    """A file of signatures: the first multiplies, each adds its position, and the last one does so in a loop."""
    holder = tf.Module()
    holder.kernel = tf.Variable(np.eye(60, dtype=np.float32) * np.arange(60, dtype=np.float32))

    def function(index: int) -> Any:
        @tf.function(input_signature=[tf.TensorSpec([1, 60], tf.float32, name=f"x{index}")])
        def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
            y = tf.matmul(x, holder.kernel) if index == 0 else x + 1.0
            if index == len(names) - 1:
                y = tf.while_loop(lambda i, y: i < index, lambda i, y: (i + 1, y + 1.0), [1, y])[1]
            return {f"y{index}": y}

        return call.get_concrete_function()

    signatures = {name: function(index) for index, name in enumerate(names)}
    tf.saved_model.save(holder, str(folder), signatures=signatures)
    content: bytes = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=list(names)).convert()
    return content


def test_one_of_several_signatures(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(several(tmp_path / "sm", "encode", "shift", "loop"))
    with pytest.raises(UserError, match=r"3 signatures \(encode, loop, shift\), none of them serving_default; choose"):
        float_tflite.read(path)
    with pytest.raises(UserError, match="has no signature 'decode'; its signatures are encode, loop, shift"):
        float_tflite.read(path, "decode")
    x = SAMPLES.reshape(-1)[:60][None]
    for name, index, expected in (("shift", 1, x + 1), ("loop", 2, x + 2), ("encode", 0, x * np.arange(60))):
        content, io = float_tflite.read(path, name)
        assert [port["name"] for side in io.values() for port in side] == [f"x{index}", f"y{index}"]
        facts = inspection.facts(content)
        assert [found["name"] for found in facts["signatures"]] == [name]
        assert facts["ops"]["builtin"].get("WHILE", 0) == (name == "loop")
        # the 3,600 weights are the first one's alone
        assert (len(content) > 14_400) == (name == "encode")
        received = litert.TFLiteModel(content).run({f"x{index}": x})[f"y{index}"]
        np.testing.assert_allclose(received, expected, rtol=1e-6)


# files of other converters --------------------------------------------------------------------------------------------


def old_numbers(model: Any) -> None:
    """As converters before TensorFlow 2.4 wrote them: the number of an operator in the older field alone."""
    for code in model.operatorCodes:
        assert code.builtinCode == code.deprecatedBuiltinCode
        code.builtinCode = 0


def one_name(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"model/same/Tensor"


@pytest.mark.parametrize("edit", [old_numbers, one_name], ids=lambda edit: edit.__name__)
def test_what_quantizers_read_otherwise_than_the_runtime(
    tmp_path: Path, plain: tuple[tf_keras.Model, bytes], edit: Callable[[Any], None]
) -> None:
    other = edited(plain[1], edit)
    content, io = read(tmp_path, other)
    assert io == read(tmp_path, plain[1])[1]
    expected = litert.TFLiteModel(plain[1]).run({"image": SAMPLES})
    for name, values in litert.TFLiteModel(content).run({"image": SAMPLES}).items():
        np.testing.assert_array_equal(values, expected[name])
    for scheme in ("int8", "dynamic_range", "float16"):
        facts, plain_facts = (inspection.facts(quantized(file, scheme)) for file in (content, plain[1]))
        assert facts["ops"] == plain_facts["ops"]
        assert facts["number_types"] == plain_facts["number_types"]
        if edit is old_numbers:  # names are bytes of the file
            assert facts["bytes"] == plain_facts["bytes"]


def test_weights_stored_as_float16_are_the_same_numbers_in_float32(
    tmp_path: Path, plain: tuple[tf_keras.Model, bytes]
) -> None:
    model, source = plain
    half = quantized(source, "float16")
    assert inspection.structure(half)["ops"]["builtin"]["DEQUANTIZE"] > 4
    content, io = read(tmp_path, half)
    facts = inspection.facts(content)
    assert facts["ops"] == inspection.structure(source)["ops"]
    assert "float16" not in facts["number_types"]
    assert facts["bytes"] < 1.1 * len(source)  # the halves are gone
    values = {weight["name"]: weight["values"] for weight in facts["weights"] if weight["dtype"] == "float32"}
    halves = {w["name"]: w["values"] for w in inspection.facts(half)["weights"] if w["dtype"] == "float16"}
    assert halves.items() <= values.items()
    expected = litert.TFLiteModel(half).run({"image": SAMPLES})
    received = litert.TFLiteModel(content).run({"image": SAMPLES})
    for name in ("logits", "side"):
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-6)
    assert io == read(tmp_path, source)[1]
    whole = litert.TFLiteModel(quantized(content, "int8")).run({"image": SAMPLES})["logits"]
    assert np.abs(whole - model(SAMPLES)[0]).max() < 0.05 * np.abs(model(SAMPLES)[0]).max()


def test_weights_in_loops_are_folded_and_named_too(tmp_path: Path) -> None:
    """A loop's body is a graph of its own, whose tensors have the names of the condition's."""
    path = tmp_path / "m.tflite"
    path.write_bytes(several(tmp_path / "sm", "encode", "loop"))
    content, _ = float_tflite.read(path, "loop")
    tensors = [t for graph in schema.ModelT.InitFromPackedBuf(content, 0).subgraphs for t in graph.tensors]
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    x = SAMPLES.reshape(-1)[:60][None]
    np.testing.assert_allclose(litert.TFLiteModel(content).run({"x1": x})["y1"], x + 1, rtol=1e-6)


def test_a_file_in_which_nothing_was_quantized_is_refused(plain: tuple[tf_keras.Model, bytes]) -> None:
    """As it was before operators got their numbers: the quantizer took each for an ADD, and left it alone."""
    with pytest.raises(ConversionError, match=r"dynamic_range changed none of the \d+ weights: ai-edge-quantizer"):
        quantized(edited(plain[1], old_numbers), "dynamic_range")


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "words"), [("int8", r"int8\)"), ("dynamic_range", r"int8\)")])
def test_a_quantized_file_is_refused(
    tmp_path: Path, plain: tuple[tf_keras.Model, bytes], scheme: str, words: str
) -> None:
    with pytest.raises(UserError, match=rf"is quantized already: .*\({words}.* Only a float32 model can be quantized"):
        read(tmp_path, quantized(plain[1], scheme))


def test_damaged_files_are_refused(tmp_path: Path, plain: tuple[tf_keras.Model, bytes]) -> None:
    content = plain[1]
    for damaged in (content[:8], content[: len(content) // 2], content[:-40], content[:8] + os.urandom(400)):
        with pytest.raises(UserError, match=r"m\.tflite"):
            read(tmp_path, damaged)


def test_operators_that_litert_lacks_are_refused(tmp_path: Path) -> None:
    function = tf.function(lambda x: {"y": tf.linalg.det(x)}, input_signature=[tf.TensorSpec([1, 2, 2], name="x")])
    made = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    with pytest.raises(UserError, match=r"cannot be run by LiteRT: .*MatrixDeterminant"):
        read(tmp_path, made.convert())


def test_an_input_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    function = tf.function(lambda x: {"y": tf.exp(x)}, input_signature=[tf.TensorSpec([], name="x")])
    made = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    with pytest.raises(UserError, match="input 'x' is a single number; a batch must be its first axis"):
        read(tmp_path, made.convert())
