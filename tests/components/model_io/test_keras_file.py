from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline import layout
from edgeline.data import reading
from edgeline.errors import UserError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule


def test_a_saved_model_comes_back_equal(small: Any, tmp_path: Path) -> None:
    model = small.load()
    keras_file.save(model, str(tmp_path))
    again = keras_file.load(str(tmp_path), small.module)
    assert again.get_config() == model.get_config()
    for mine, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(model.predict(small.images(), verbose=0), again.predict(small.images(), verbose=0))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "Format-Keras/model.keras"
    ]


def test_the_optimizer_is_not_saved(small: Any, tmp_path: Path) -> None:
    model = small.load()
    small.module.compile_model(model)
    model.optimizer.build(model.trainable_variables)  # Adam: two more numbers per weight
    keras_file.save(model, str(tmp_path))
    assert not getattr(keras_file.load(str(tmp_path), small.module), "optimizer", None)
    with zipfile.ZipFile(tmp_path / layout.KERAS_FILE) as file:
        assert file.getinfo("model.weights.h5").file_size < 2 * 4 * model.count_params() + 30_000
        assert b"optimizer" not in file.read("model.weights.h5")
    assert model.optimizer is not None  # the model itself is as it was


def test_custom_objects_come_from_the_module(tiny_module: Path, tmp_path: Path) -> None:
    code = tiny_module.read_text().replace('keras.layers.Dense(8, activation="relu")', "Double()")
    code += (
        "\n\nclass Double(keras.layers.Layer):\n    def call(self, x):\n        return 2 * x\n"
        "\n\ndef custom_objects():\n    return {'Double': Double}\n"
    )
    tiny_module.write_text(code)
    module = hooks.load(str(tiny_module))
    model = module.build_model()
    keras_file.save(model, str(tmp_path))
    x = np.float32([[1, 2, 3, 4]])
    np.testing.assert_array_equal(keras_file.load(str(tmp_path), module)(x), model(x))


def test_the_digest_is_of_config_and_weights(small: Any, tmp_path: Path) -> None:
    model = small.load()
    digest = keras_file.digest(model)
    assert len(bytes.fromhex(digest)) == 32
    for folder in ("one", "two"):
        keras_file.save(model, str(tmp_path / folder))
        model = keras_file.load(str(tmp_path / folder), small.module)
        assert keras_file.digest(model) == digest
    small.module.compile_model(model)
    assert keras_file.digest(model) == digest
    kernel = model.get_layer("hidden").kernel
    before = kernel.numpy()
    changed = before.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(10))
    kernel.assign(changed)
    assert keras_file.digest(model) != digest
    kernel.assign(before)
    assert keras_file.digest(model) == digest
    model.get_layer("hidden").activation = tf_keras.activations.tanh
    assert keras_file.digest(model) != digest


# quantization-aware ---------------------------------------------------------------------------------------------------

LAYERS = ["conv1", "norm", "relu", "conv2", "flatten", "hidden", "logits"]


def test_a_model_wrapped_for_quantization_comes_back_equal(small: Any, tmp_path: Path) -> None:
    plan = {"layers": LAYERS}
    base = small.load()
    keras_file.save(base, str(tmp_path))
    wrapped = keras_file.quantization_aware(base, plan)
    names = ["image", "quantize_layer", *(f"quant_{name}" for name in LAYERS)]
    assert [layer.name for layer in wrapped.layers] == names
    # what a training does: moves the ranges of the activations, and the weights
    wrapped(small.images(), training=True)
    [bias] = [weight for weight in wrapped.get_layer("quant_logits").trainable_weights if weight.shape == [3]]
    bias.assign_add([0.25, 0.5, 0.75])
    expected = wrapped(small.images()).numpy()
    keras_file.save_qat(wrapped, str(tmp_path))

    again = keras_file.load_qat(str(tmp_path), small.module, plan)
    np.testing.assert_allclose(again(small.images()).numpy(), expected, atol=1e-6)
    # the base beside it is the float model
    assert keras_file.load(str(tmp_path), small.module).get_layer("hidden").count_params() == 128 * 16 + 16


def test_weights_of_another_wrapping_are_refused(tiny_module: Path, tmp_path: Path) -> None:
    module = hooks.load(str(tiny_module))
    base = module.build_model()
    first, second = (layer.name for layer in base.layers)
    keras_file.save(base, str(tmp_path))
    keras_file.save_qat(keras_file.quantization_aware(base, {"layers": [first, second]}), str(tmp_path))
    with pytest.raises(
        ValueError, match=r"qat.npz does not fit the model wrapped by this version.*train the qat8 step"
    ):
        keras_file.load_qat(str(tmp_path), module, {"layers": [second]})


# ports ----------------------------------------------------------------------------------------------------------------


def test_describe_io(small: Any) -> None:
    io = keras_file.describe_io(small.load(), small.module)
    assert io == {
        "inputs": [{"name": "image", "shape": [None, 8, 8, 1], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [None, 3], "dtype": "float32"}],
        "labels": ["top", "middle", "bottom"],
    }
    signature = keras_file.input_signature(io)
    assert signature == {"image": tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")}
    assert keras_file.input_signature(io, 5)["image"].shape == (5, 8, 8, 1)


TWO_HEADS = """
def build_model():
    b, a = keras.Input([3], name="b"), keras.Input([1], name="a")
    joined = keras.layers.Concatenate()([b, a])
    heads = [keras.layers.Dense(2, name="first"), keras.layers.Dense(3, name="second")]
    return keras.Model([b, a], [head(joined) for head in heads])


def preprocess(features):
    return {"a": features["x"][:, :1], "b": features["x"][:, 1:]}, features["y"]
"""


def two_heads(tiny_module: Path, code: str = "") -> ModelModule:
    tiny_module.write_text(tiny_module.read_text() + TWO_HEADS + code)
    return hooks.load(str(tiny_module))


def names(ports: list[dict[str, Any]]) -> list[str]:
    return [port["name"] for port in ports]


def test_inputs_and_outputs_are_in_the_order_of_the_model(tiny_module: Path) -> None:
    module = two_heads(tiny_module)
    io = keras_file.describe_io(module.build_model(), module)
    assert names(io["inputs"]) == ["b", "a"]
    assert names(io["outputs"]) == ["first", "second"]
    assert io["labels"] == []


def test_output_names_rename_the_outputs(tiny_module: Path) -> None:
    module = two_heads(tiny_module, "\n\ndef output_names():\n    return ['scores', 'boxes']\n")
    model = module.build_model()
    io = keras_file.describe_io(model, module)
    assert names(io["outputs"]) == ["scores", "boxes"]
    a, b = tf.constant([[1.0]]), tf.constant([[2.0, 3.0, 4.0]])
    outputs = keras_file.inference_function(model, io)(a=a, b=b)
    first, second = model([b, a])
    np.testing.assert_array_equal(outputs["scores"], first)
    np.testing.assert_array_equal(outputs["boxes"], second)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("['scores']", r"output_names\(\) of .* returns 1 names, but the model has 2 outputs: first, second"),
        (
            "['scores', 'scores']",
            r"has outputs of the same name: scores, scores; give each its own in output_names\(\)",
        ),
    ],
)
def test_output_names_that_do_not_fit(tiny_module: Path, returned: str, message: str) -> None:
    module = two_heads(tiny_module, f"\n\ndef output_names():\n    return {returned}\n")
    with pytest.raises(UserError, match=message):
        keras_file.describe_io(module.build_model(), module)


# SavedModel -----------------------------------------------------------------------------------------------------------


def eval_examples(examples: str, count: int) -> tf.Tensor:
    return next(iter(reading.read_serialized(reading.split_files(examples, "eval")).batch(count)))


def test_both_signatures_of_the_saved_model_agree_with_keras(small: Any, tmp_path: Path) -> None:
    model = small.load()
    io = keras_file.describe_io(model, small.module)
    keras_file.save_serving(model, small.module, io, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path / layout.SERVING_FOLDER))
    serialized = eval_examples(small.examples, 32)
    inputs, _, _ = reading.ExampleParser(small.module)(serialized)
    expected = model.predict(inputs, verbose=0)
    assert np.ptp(expected) > 0.1
    for count in (32, 1):
        default = loaded.signatures["serving_default"](examples=serialized[:count])
        assert list(default) == ["logits"]
        np.testing.assert_allclose(default["logits"], expected[:count], atol=1e-5)
        raw = loaded.signatures["serving_raw"](image=inputs[:count])
        assert list(raw) == ["logits"]
        np.testing.assert_allclose(raw["logits"], expected[:count], atol=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "needed"),
    [
        ('features["x"] * 2, features["y"]', {"x"}),
        ('features["x"] * tf.cast(features["z"], tf.float32)[:, None], features["y"]', {"x", "z"}),
        ('features["x"] + tf.cast(features["y"], tf.float32)[:, None], features["y"]', {"x", "y"}),
    ],
)
def test_only_what_the_inputs_depend_on_is_asked_of_served_examples(
    tiny_module: Path, tmp_path: Path, write_split: Any, preprocess: str, needed: set[str]
) -> None:
    code = tiny_module.read_text().replace('features["x"], features["y"]', preprocess)
    tiny_module.write_text(code.replace('return {"x"', 'return {"z": tf.io.FixedLenFeature([], tf.int64), "x"'))
    module = hooks.load(str(tiny_module))
    model = module.build_model()
    keras_file.save_serving(model, module, keras_file.describe_io(model, module), str(tmp_path))
    served = tf.saved_model.load(str(tmp_path / layout.SERVING_FOLDER)).signatures["serving_default"]
    whole = {"x": np.float32([1, 2, 3, 4]), "y": 2, "z": 3}
    write_split(tmp_path / "whole", "eval", [whole])
    write_split(tmp_path / "part", "eval", [{name: value for name, value in whole.items() if name in needed}])
    [expected], [received] = (
        served(examples=eval_examples(str(tmp_path / folder), 1)).values() for folder in ("whole", "part")
    )
    np.testing.assert_array_equal(received, expected)
    write_split(tmp_path / "less", "eval", [{name: value for name, value in whole.items() if name != "x"}])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Feature: x"):
        served(examples=eval_examples(str(tmp_path / "less"), 1))


def test_the_saved_model_of_several_inputs_and_outputs(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    module = two_heads(tiny_module)
    model = module.build_model()
    keras_file.save_serving(model, module, keras_file.describe_io(model, module), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path / layout.SERVING_FOLDER))
    write_split(tmp_path, "eval", [{"x": np.float32([1, 2, 3, 4]), "y": 0}])
    outputs = loaded.signatures["serving_default"](examples=eval_examples(str(tmp_path), 1))
    for name, expected in zip(("first", "second"), model([np.float32([[2, 3, 4]]), np.float32([[1]])]), strict=True):
        np.testing.assert_allclose(outputs[name], expected, atol=1e-6)
