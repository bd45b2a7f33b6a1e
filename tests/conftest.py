"""What all tests share. The environment is set before anything imports TensorFlow."""

import os
import shutil
import warnings
from pathlib import Path

import pytest

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}

with warnings.catch_warnings():
    # what TensorFlow, TFX and Beam say of themselves at import is not ours to fail on
    warnings.simplefilter("ignore")
    import apache_beam  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_model_optimization  # noqa: F401
    import tf_keras  # noqa: F401
    import tfx.v1  # noqa: F401

from edgeline import model_module
from edgeline.pipelines import datasets

DIGITS_MODULE = "edgeline.pipelines.examples.digits.model"


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with scikit-learn's digits: 1,461 train, 163 validation, 173 eval."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    datasets.write_digits(folder, shards=3)
    return folder


@pytest.fixture(scope="session")
def digits_examples(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The uri of an Examples artifact of the digits."""
    root = tmp_path_factory.mktemp("examples")
    for split in datasets.SPLITS:
        shutil.copytree(digits_data / split, root / f"Split-{split}")
    return str(root)


@pytest.fixture(scope="session")
def digits_module() -> model_module.ModelModule:
    return model_module.load(DIGITS_MODULE)


TINY_MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["y"]


def build_model():
    layers = [keras.Input([4], name="x"), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    return keras.Sequential(layers)


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
"""


@pytest.fixture
def tiny_module(tmp_path: Path) -> Path:
    """The path of a minimal model module: four numbers in, three logits out."""
    path = tmp_path / "tiny_model.py"
    path.write_text(TINY_MODULE)
    return path
