from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline.conversion import onnx
from edgeline.errors import UserError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.pipelines.cli import export as export_command

pytest.importorskip("tf2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

VALUES = np.random.default_rng(0).normal(size=[20, 4]).astype(np.float32)

MODULE = """
import tensorflow as tf


def feature_spec():
    return {"x": tf.io.FixedLenFeature([4], tf.float32)}


def preprocess(features):
    return {"b": features["x"], "a": 2 * features["x"]}, None


def output_names():
    return ["sum", "mean"]


def compile_model(model):
    model.compile("adam", "mse")
"""


def network() -> tf_keras.Model:
    """Two inputs and two outputs, in another order than that of their names."""
    tf_keras.utils.set_random_seed(0)
    b, a = tf_keras.Input([4], name="b"), tf_keras.Input([4], name="a")
    hidden = tf_keras.layers.Dense(6, activation="swish")(b) + tf_keras.layers.Dense(6)(a)
    hidden = tf_keras.layers.BatchNormalization()(hidden)
    return tf_keras.Model([b, a], [tf_keras.layers.Dense(3)(hidden), tf_keras.layers.Dense(2)(hidden)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx")
    (root / "module.py").write_text(MODULE)
    (root / "data" / "train").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(root / "data/train/a.tfrecord.gz"), "GZIP") as writer:
        for row in VALUES:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=row))
            features = tf.train.Features(feature={"x": feature})
            writer.write(tf.train.Example(features=features).SerializeToString())
    network().save(root / "m.keras")
    return root


def export(root: Path, model: Path, *arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    export_command.add_commands(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    given = ["export", model, "--data", root / "data", "--module", root / "module.py", *arguments]
    parsed = parser.parse_args([str(argument) for argument in given])
    return int(parsed.command(parsed))


@pytest.mark.parametrize("opset", [None, 13])
def test_a_keras_model(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opset: int | None) -> None:
    out = tmp_path / "m.onnx"
    assert export(root, root / "m.keras", "--onnx", out, *(["--opset", opset] if opset else [])) == 0
    printed = capsys.readouterr().out
    assert f"{out}: {out.stat().st_size:,} bytes, opset {opset or 17}" in printed
    assert "output sum: largest difference" in printed
    session = onnxruntime.InferenceSession(out.read_bytes())
    assert {(i.name, *i.shape) for i in session.get_inputs()} == {("a", "batch", 4), ("b", "batch", 4)}
    assert [(o.name, *o.shape) for o in session.get_outputs()] == [("sum", "batch", 3), ("mean", "batch", 2)]
    for rows in (1, 20):
        expected = network()([VALUES[:rows], 2 * VALUES[:rows]])
        received = session.run(["sum", "mean"], {"b": VALUES[:rows], "a": 2 * VALUES[:rows]})
        for want, got in zip(expected, received, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_saved_model_of_fixed_batch_size(root: Path, tmp_path: Path) -> None:
    kernel = tf.constant(np.arange(12, dtype=np.float32).reshape(4, 3))  # a constant that is captured, no variable
    specs = [tf.TensorSpec([8, 4], tf.float32, name=name) for name in ("a", "b")]
    call = tf.function(
        lambda a, b: {"sum": tf.matmul(a + b, kernel), "mean": tf.reduce_mean(a, -1)}, input_signature=specs
    )
    holder = tf.Module()
    holder.call, holder.kernel = call, kernel
    tf.saved_model.save(holder, str(tmp_path / "sm"), signatures=call)
    out = tmp_path / "m.onnx"
    assert export(root, tmp_path / "sm", "--onnx", out) == 0
    received = onnx.run(out.read_bytes(), {"a": VALUES, "b": VALUES}, batch=8)
    np.testing.assert_allclose(received["sum"], 2 * VALUES @ kernel.numpy(), atol=1e-4)
    assert received["mean"].shape == (20,)


def test_constants_that_a_layer_holds() -> None:
    # as in EfficientNet, which converts in no other way
    x = tf_keras.Input([4], name="x")
    model = tf_keras.Model(
        x, tf_keras.layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 4.0, 9.0, 16.0])(x)
    )
    port = {"shape": [None, 4], "dtype": "float32"}
    content = onnx.convert(model, {"inputs": [{"name": "x", **port}], "outputs": [{"name": "y", **port}]})
    received = onnx.run(content, {"x": np.float32([[1, 4, 9, 0]])})["y"]
    np.testing.assert_allclose(received, [[0, 1, 2, -1]], atol=1e-6)


# bad input ------------------------------------------------------------------------------------------------------------


def test_without_the_extra(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r"--onnx needs tf2onnx, which is not installed: pip install edgeline\[onnx\]"):
        export(root, root / "m.keras", "--onnx", tmp_path / "m.onnx")


def test_what_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(20))
    with pytest.raises(
        UserError, match=r"--onnx is for a model that TensorFlow runs, but .*m\.tflite is a \.tflite file"
    ):
        export(root, tmp_path / "m.tflite", "--onnx", tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"--onnx .*no/m\.onnx: the folder .* does not exist"):
        export(root, root / "m.keras", "--onnx", tmp_path / "no" / "m.onnx")
    for wrong in (["--onnx", "m.onnx", "--opset", "99"], ["--onnx", "m.onnx", "-o", "m.tflite"], []):
        with pytest.raises(SystemExit):
            export(root, root / "m.keras", *wrong)
    assert "invalid choice: 99" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_operators_that_onnx_lacks(root: Path, tmp_path: Path) -> None:
    call = tf.function(
        lambda a, b: {"sum": tf.math.betainc(a, b, b), "mean": b},
        input_signature=[tf.TensorSpec([None, 4], tf.float32, name=name) for name in ("a", "b")],
    )
    holder = tf.Module()
    holder.call = call
    tf.saved_model.save(holder, str(tmp_path / "sm"), signatures=call)
    with pytest.raises(UserError, match=r"cannot be run by onnxruntime: .*Betainc"):
        export(root, tmp_path / "sm", "--onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_what_onnxruntime_makes_of_zeros_before_a_max_pooling(tmp_path: Path) -> None:
    x = tf_keras.Input([8, 8, 2], name="x")
    hidden = tf_keras.layers.Conv2D(2, 1, kernel_initializer="ones")(x)
    model = tf_keras.Model(x, tf_keras.layers.MaxPooling2D(3, 2)(tf_keras.layers.ZeroPadding2D(1)(hidden)))
    ports = {"inputs": ("x", [None, 8, 8, 2]), "outputs": ("y", [None, 4, 4, 2])}
    io = {side: [{"name": name, "shape": shape, "dtype": "float32"}] for side, (name, shape) in ports.items()}
    below = {"x": -np.ones([1, 8, 8, 2], np.float32)}
    with pytest.raises(UserError, match=r"output 'y' differs .*onnxruntime's optimizer Pad_Fusion does it"):
        onnx.export(model, io, below, tmp_path / "m.onnx")
    assert onnx.run(onnx.convert(model, io), below, pad_fusion=False)["y"].max() == 0


def test_a_result_that_differs_is_not_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    io = keras_file.describe_io(model, hooks.load(str(root / "module.py")))
    right = onnx.convert(model, io)
    model.layers[-1].bias.assign_add([0.0, 0.5])
    monkeypatch.setattr(onnx, "convert", lambda *_: right)
    with pytest.raises(UserError, match=r"output 'mean' differs from the source model's by 0\.5.* with onnxruntime"):
        onnx.export(model, io, {"a": VALUES, "b": VALUES}, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
