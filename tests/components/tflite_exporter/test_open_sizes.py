"""Networks that take images of any size, such as the first stage of a face detector (P-Net), through the exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.data import calibration_set
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export

P_NET = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"image": tf.io.FixedLenFeature([12, 12, 3], tf.float32), "face": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["image"], {"face": features["face"]}


def block(x, filters):
    x = keras.layers.Conv2D(filters, 3, padding="valid")(x)
    return keras.layers.PReLU(shared_axes=[1, 2], alpha_initializer=keras.initializers.RandomUniform(0.1, 0.4))(x)


def build_model():
    image = keras.Input([None, None, 3], name="image")
    x = keras.layers.MaxPooling2D(2, padding="same")(block(image, 10))
    x = block(block(x, 16), 32)
    face = keras.layers.Conv2D(2, 1, activation="softmax", name="face")(x)
    return keras.Model(image, [face, keras.layers.Conv2D(4, 1, name="box")(x)])


def compile_model(model):
    model.compile("adam", {"face": "sparse_categorical_crossentropy"})
"""


def images(height: int, width: int, count: int) -> np.ndarray:
    return np.random.default_rng(height).uniform(-1, 1, [count, height, width, 3]).astype(np.float32)


@pytest.fixture(scope="module")
def p_net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelModule, tf_keras.Model]:
    root = tmp_path_factory.mktemp("p_net")
    (root / "p_net.py").write_text(P_NET)
    module = hooks.load(str(root / "p_net.py"))
    tf_keras.utils.set_random_seed(0)
    model = module.build_model()
    keras_file.save(model, str(root / "model"))
    passport = Passport(io=keras_file.describe_io(model, module))
    passport.with_step("Trainer", {}, inputs={}, toolchain="tools", model=keras_file.digest(model)).write(
        root / "model"
    )
    # the samples have one size, that at which the network makes one prediction
    calibration_set.write(str(root / "calibration"), {"image": images(12, 12, 40)}, {})
    return root, module, model


def export(p_net: tuple[Path, ModelModule, tf_keras.Model], scheme: str, io_type: str = "float32") -> dict[str, Any]:
    root, module, _ = p_net
    quantized, serving = root / f"{scheme}-{io_type}" / "quantized", root / f"{scheme}-{io_type}" / "serving"
    serving.mkdir(parents=True)
    calibration = str(root / "calibration")
    quantization.quantize(
        Quantize(scheme, io_type), module, Passport.read(root / "model"), toolchain="tools", examples_uri="",
        model_uri=str(root / "model"), calibration_uri=calibration, compressed_uri=str(quantized), run_uri="",
    )  # fmt: skip
    return conversion.export(
        Export(), module, Passport.read(quantized), toolchain="tools", model_uri=str(quantized),
        calibration_uri=calibration, serving=serving,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "io_type", "least_cosine"),
    [("float32", "float32", 0.999999), ("dynamic_range", "float32", 0.9995), ("int8", "int8", 0.99)],
)
def test_any_height_and_width(
    p_net: tuple[Path, ModelModule, tf_keras.Model], scheme: str, io_type: str, least_cosine: float
) -> None:
    metadata = export(p_net, scheme, io_type)
    assert [port["shape"] for port in metadata["inputs"]] == [[-1, -1, -1, 3]]
    assert metadata["any_batch"]
    assert min(metadata["parity"][name]["cosine"] for name in ("face", "box")) > least_cosine
    assert "PRELU" in metadata["ops"]["builtin"]
    model = TFLiteModel(p_net[0] / f"{scheme}-{io_type}" / "serving" / "model.tflite")
    # one model, resized back and forth
    for height, width, count in ((12, 12, 3), (37, 50, 2), (24, 16, 1), (12, 12, 40)):
        batch = images(height, width, count)
        received = model.run({"image": batch}, 2)
        for name, expected in zip(("face", "box"), p_net[2](batch), strict=True):
            got, want = received[name], expected.numpy()
            # three times two pixels less, and half after the first two
            places = [(size - 1) // 2 - 4 for size in (height, width)]
            assert got.shape == want.shape == (count, *places, want.shape[-1])
            cosine = np.vdot(got, want) / (np.linalg.norm(got) * np.linalg.norm(want))
            assert cosine > least_cosine, (name, height, width)
            if scheme == "float32":
                np.testing.assert_allclose(got, want, atol=1e-5)
