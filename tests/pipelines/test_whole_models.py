"""Models of more than one input and output, with layers of the user's own, through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.data.data_folder import SHARD_SUFFIX, SPLITS
from edgeline.pipelines.cli import main
from edgeline.tflite.litert import TFLiteModel

MODULE = '''
import tensorflow as tf
import tf_keras as keras


class Gate(keras.layers.Layer):
    """Multiplies by weights of its own, between 0 and 1."""

    def __init__(self, start=0.0, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def build(self, shape):
        start = keras.initializers.Constant(self.start)
        self.gate = self.add_weight("gate", [shape[-1]], initializer=start)

    def call(self, x):
        return x * tf.sigmoid(self.gate)

    def get_config(self):
        return super().get_config() | {"start": self.start}


def custom_objects():
    return {"Gate": Gate}


def feature_spec():
    return {
        "left": tf.io.FixedLenFeature([6], tf.float32),
        "right": tf.io.FixedLenFeature([4], tf.float32),
        "kind": tf.io.FixedLenFeature([], tf.int64),
        "size": tf.io.FixedLenFeature([], tf.float32),
    }


def preprocess(features):
    inputs = {name: features[name] for name in ("left", "right")}
    return inputs, {"kind": features["kind"], "size": tf.reshape(features["size"], [-1, 1])}


def build_model():
    left, right = keras.Input([6], name="left"), keras.Input([4], name="right")
    x = keras.layers.Concatenate()([left, Gate(1.0, name="gate")(right)])
    x = keras.layers.Dense(32, activation="relu", name="shared")(x)
    outputs = {"kind": keras.layers.Dense(3, name="kind")(x), "size": keras.layers.Dense(1, name="size")(x)}
    return keras.Model({"left": left, "right": right}, outputs)


def compile_model(model):
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )


def output_names():
    return ["kind", "size"]
'''


def write_data(folder: Path) -> None:
    import tensorflow as tf

    random = np.random.default_rng(0)
    for split, count in zip(SPLITS, (600, 100, 150), strict=True):
        (folder / split).mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / split / f"data{SHARD_SUFFIX}"), "GZIP") as writer:
            for _ in range(count):
                left, right = random.normal(size=6), random.normal(size=4)
                found: dict[str, Any] = {
                    "left": tf.train.FloatList(value=left),
                    "right": tf.train.FloatList(value=right),
                    "size": tf.train.FloatList(value=[left[0] - right[1]]),
                }
                features = {name: tf.train.Feature(float_list=value) for name, value in found.items()}
                kind = tf.train.Int64List(value=[int(np.argmax(left[:3]))])
                features["kind"] = tf.train.Feature(int64_list=kind)
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


RECIPES = """
from edgeline.clusterer.config import Cluster
from edgeline.recipe import Recipe
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize


def prune50_int8():
    return Recipe("prune50_int8", (Prune(0.5), Quantize("int8")))


def prune50_cluster16_qat8():
    return Recipe("prune50_cluster16_qat8", (Prune(0.5), Cluster(16), Quantize("qat8")))
"""


@pytest.mark.slow
def test_two_inputs_two_outputs_and_a_layer_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODULE)
    (tmp_path / "recipes.py").write_text(RECIPES)
    write_data(tmp_path / "data")
    root = tmp_path / "root"
    asked = (
        "run", "--module", tmp_path / "model.py", "--data", tmp_path / "data", "--root", root, "--epochs", 8,
        "--metric", "kind_accuracy", "--max-accuracy-drop", 0.05, "--recipes-file", tmp_path / "recipes.py",
        "--recipe", "int8", "--recipe", "prune50_int8",
        "--recipe", "prune50_cluster16_qat8",
    )  # fmt: skip
    assert main.main([str(argument) for argument in asked]) == 0
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["baseline"]["metrics"]["kind_accuracy"] > 0.85
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    for candidate in by_name.values():
        assert candidate["failure"] is None
        assert candidate["metrics"]["kind_accuracy"] > 0.85
        assert candidate["metrics"]["size_mae"] < 0.4
    layers = {layer["name"]: layer for layer in by_name["prune50_int8"]["layers"]}
    assert layers["shared"]["sparsity"] >= 0.5 - 1 / 320
    assert layers["gate"]["note"] == "tfmot has nothing to prune in Gate"
    trained = {layer["name"]: layer["note"] for layer in by_name["prune50_cluster16_qat8"]["layers"]}
    assert trained["gate"] == "left float: Gate"
    assert trained["quant_shared"] == trained["quant_kind"] == trained["quant_size"] == "quantized to 8 bits"
    [pushed] = (root / "pushed").glob("*/model.tflite")
    model = TFLiteModel(pushed)
    assert {port.name for port in model.inputs} == {"left", "right"}
    assert {port.name for port in model.outputs} == {"kind", "size"}
