"""A model that int8 destroys: a few activations are so large that the ones that decide are rounded to nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tf_keras

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.data import calibration_set
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.training import loop

_MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"x": tf.io.FixedLenFeature([8], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["label"]


def build_model():
    return keras.Sequential(
        [
            keras.Input([8], name="x"),
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.Dense(8, activation="relu", name="wide"),
            keras.layers.Dense(6, activation="relu", name="narrow"),
            keras.layers.Dense(2, name="logits"),
        ]
    )


def compile_model(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
"""


@dataclasses.dataclass(frozen=True)
class Collapsing:
    """The model's module, and the folders of its Examples, Model and RepresentativeDataset."""

    module: ModelModule
    examples: str
    folder: str
    calibration: str
    passport: Passport

    def load(self) -> tf_keras.Model:
        """Returns the model, for a test of its own."""
        tf_keras.backend.clear_session()
        return keras_file.load(self.folder, self.module)

    def samples(self) -> dict[str, np.ndarray]:
        """Returns the calibration samples."""
        return calibration_set.read(self.calibration)[0]

    def calibrated(self) -> Calibrated:
        """Returns the model with the ranges of its tensors."""
        return converter.calibrate(self.load(), self.passport.io, self.samples())


def _weights() -> list[np.ndarray]:
    """A network that says whether x[0] > x[1], by hand.

    `first` passes x on. `wide` makes relu(x0 - x1) and relu(x1 - x0), below 1, and beside them x2 times 2,000: a step
    of that tensor in int8 is about 8. `narrow` reads the two and not the others.
    """
    first, wide, narrow = np.eye(8), np.zeros([8, 8]), np.zeros([8, 6])
    wide[0, 0] = wide[1, 1] = 1
    wide[0, 1] = wide[1, 0] = -1
    wide[2, 2] = 2000
    narrow[0, 0] = narrow[1, 1] = 1
    logits = np.zeros([6, 2])
    logits[0, 1] = logits[1, 0] = 1
    kernels = (first, wide, narrow, logits)
    return [array for kernel in kernels for array in (kernel, np.full(kernel.shape[1], 1e-3))]


@pytest.fixture(scope="session")
def collapsing(tmp_path_factory: pytest.TempPathFactory, write_split: object) -> Collapsing:
    root = tmp_path_factory.mktemp("collapsing")
    (root / "collapsing.py").write_text(_MODULE)
    module = hooks.load(str(root / "collapsing.py"))
    random = np.random.default_rng(7)
    for split, count in (("train", 32), ("validation", 300), ("eval", 32)):
        found = random.uniform(0, 1, [count, 8]).astype(np.float32)
        write_split(root / "examples", split, [{"x": x, "label": int(x[0] > x[1])} for x in found])  # type: ignore[operator]
    loop.start(0)
    model = module.build_model()
    model.set_weights(_weights())
    folder = str(root / "model")
    keras_file.save(model, folder)
    passport = Passport(io=keras_file.describe_io(model, module)).with_step(
        "Trainer", {}, inputs={}, toolchain="tools", model=keras_file.digest(model)
    )
    passport.write(folder)
    samples = random.uniform(0, 1, [64, 8]).astype(np.float32)
    calibration_set.write(str(root / "calibration"), {"x": samples}, {})
    return Collapsing(module, str(root / "examples"), folder, str(root / "calibration"), passport)
