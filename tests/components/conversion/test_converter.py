from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.conversion.nodes import _layers_in
from edgeline.tflite import litert
from edgeline.tflite.litert import TFLiteModel

INT8 = {"scheme": "int8", "io_type": "float32"}


def io_of(model: tf_keras.Model, batch: int | None = None) -> dict[str, Any]:
    def ports(names: list[str], tensors: list[Any]) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": [batch, *tensor.shape[1:]], "dtype": tensor.dtype.name}
            for name, tensor in zip(names, tensors, strict=True)
        ]

    return {"inputs": ports(model.input_names, model.inputs), "outputs": ports(model.output_names, model.outputs)}


def types_of(content: bytes) -> dict[str, str]:
    """The number type of each weight by the part of its name that is the layer's."""
    return {weight.name.split("/")[1]: weight.stored.dtype.name for weight in litert.kernels(content, at_least=12)}


@pytest.fixture(scope="module")
def calibrated(small: Any) -> Calibrated:
    return converter.calibrate(small.load(), io_of(small.load()), {"image": small.images()})


# which op is whose ----------------------------------------------------------------------------------------------------


def test_ops_know_their_layers(calibrated: Calibrated) -> None:
    found = [(node.op, node.layers[0], node.parameters) for node in calibrated.nodes]
    # the normalization is folded into the convolution, and the last op has the name of the model's output
    assert found == [
        ("CONV_2D", "conv1", 18),
        ("CONV_2D", "conv2", 144),
        ("RESHAPE", "flatten", 0),
        ("FULLY_CONNECTED", "hidden", 2048),
        ("FULLY_CONNECTED", "logits", 48),
    ]
    assert "relu" in calibrated.nodes[0].layers
    names = [node.name for node in calibrated.nodes]
    assert [node.inputs for node in calibrated.nodes] == [(), *((name,) for name in names[:-1])]
    assert calibrated.of(["conv2", "logits"]) == [names[1], names[4]]
    assert calibrated.of(ops=["CONV_2D"]) == names[:2]


def test_layers_of_models_within_models_are_found() -> None:
    inner = tf_keras.Sequential([tf_keras.Input([4]), tf_keras.layers.Dense(3, name="deep")], name="inner")
    model = tf_keras.Sequential([tf_keras.Input([4]), inner, tf_keras.layers.Dense(2, name="top")])
    assert converter.layer_names(model) == ["inner", "deep", "top"]
    nodes = converter.calibrate(
        model,
        io_of(model),
        {"input_2": np.ones([2, 4], np.float32)} | {name: np.ones([2, 4], np.float32) for name in model.input_names},
    ).nodes
    assert [node.layers for node in nodes] == [("deep",), ("top",)]


def test_paths_are_searched_for_the_innermost_layer() -> None:
    layers = ["block", "block/conv", "conv", "Relu"]
    assert _layers_in("model/block/conv/Conv2D", layers) == ["block/conv"]
    assert _layers_in("model/conv/Relu;model/block/BiasAdd", layers) == ["conv", "block"]
    assert _layers_in("StatefulPartitionedCall:0", layers) == []


# what stays float -----------------------------------------------------------------------------------------------------


def test_nothing_kept_is_what_the_converter_makes(small: Any, calibrated: Calibrated) -> None:
    images = {"image": small.images()}
    whole = converter.convert(small.load(), io_of(small.load()), INT8, images)
    assert types_of(whole) == types_of(converter.quantize(calibrated))
    [first] = TFLiteModel(whole).run(images).values()
    [second] = TFLiteModel(converter.quantize(calibrated)).run(images).values()
    np.testing.assert_array_equal(first, second)


def test_kept_layers_are_float_and_no_others(small: Any, calibrated: Calibrated) -> None:
    scheme = {**INT8, "keep_float": {"layers": ["hidden"], "ops": ["CONV_2D"]}}
    content = converter.convert(small.load(), io_of(small.load()), scheme, {"image": small.images()})
    assert types_of(content) == {"conv1": "float32", "conv2": "float32", "hidden": "float32", "logits": "int8"}
    content = converter.quantize(calibrated, calibrated.of(["logits"]))
    assert types_of(content) == {"conv1": "int8", "conv2": "int8", "hidden": "int8", "logits": "float32"}
    [port] = TFLiteModel(content).outputs
    assert (port.name, port.dtype) == ("logits", np.float32)


@pytest.mark.parametrize("io_type", ["int8", "uint8"])
def test_the_interface_is_as_asked_though_a_layer_is_float(calibrated: Calibrated, io_type: str) -> None:
    model = TFLiteModel(converter.quantize(calibrated, calibrated.of(["conv2"]), io_type))
    assert {port.dtype.name for port in (*model.inputs, *model.outputs)} == {io_type}


# other models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_inputs() -> tuple[tf_keras.Model, dict[str, np.ndarray], list[np.ndarray]]:
    layers = tf_keras.layers
    image, words = tf_keras.Input([8, 8, 1], name="image"), tf_keras.Input([5], dtype="int32", name="words")
    seen = layers.Flatten()(layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    read = layers.GlobalAveragePooling1D()(layers.Embedding(20, 6, name="embedding")(words))
    both = layers.Dense(8, activation="relu", name="both")(layers.Concatenate()([seen, read]))
    outputs = [layers.Dense(3, activation="softmax", name="kind")(both), layers.Dense(1, name="size")(both)]
    model = tf_keras.Model([image, words], outputs)
    random = np.random.default_rng(0)
    samples = {
        "image": random.random((16, 8, 8, 1), np.float32),
        "words": random.integers(0, 20, (16, 5)).astype(np.int32),
    }
    return model, samples, [tensor.numpy() for tensor in model([samples["image"], samples["words"]])]


@pytest.mark.parametrize("scheme", ["dynamic_range", "float16", "int8", "int16x8"])
def test_a_model_of_two_inputs_and_two_outputs(two_inputs: Any, scheme: str) -> None:
    model, samples, expected = two_inputs
    content = converter.convert(model, io_of(model), {"scheme": scheme, "io_type": "float32"}, samples)
    received = TFLiteModel(content).run(dict(reversed(samples.items())))
    for name, values in zip(model.output_names, expected, strict=True):
        np.testing.assert_allclose(received[name], values, atol=0.02)


def test_what_two_inputs_feed_can_stay_float(two_inputs: Any) -> None:
    model, samples, expected = two_inputs
    calibrated = converter.calibrate(model, io_of(model), samples)
    assert calibrated.layers[-2:] == ["kind", "size"]
    content = converter.quantize(calibrated, calibrated.of(["both", "embedding"]))
    assert types_of(content)["both"] == types_of(content)["embedding"] == "float32"
    assert types_of(content)["kind"] == "int8"
    received = TFLiteModel(content).run(samples)
    np.testing.assert_allclose(received["kind"], expected[0], atol=0.02)
