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


def read_data(folder: Path) -> dict[str, np.ndarray]:
    """Returns the features of a split by name, shape [examples] or [examples, n]."""
    import tensorflow as tf

    columns: dict[str, list[Any]] = {}
    for record in tf.data.TFRecordDataset(str(folder / f"data{SHARD_SUFFIX}"), "GZIP").as_numpy_iterator():
        for name, feature in tf.train.Example.FromString(record).features.feature.items():
            columns.setdefault(name, []).append(list(feature.int64_list.value or feature.float_list.value))
    return {
        name: np.array(values, np.int64 if name == "kind" else np.float32).squeeze() for name, values in columns.items()
    }


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
def test_two_inputs_two_outputs_and_a_layer_of_the_users_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(MODULE)
    (tmp_path / "recipes.py").write_text(RECIPES)
    write_data(tmp_path / "data")
    root = tmp_path / "root"
    asked = (
        "run", "--module", tmp_path / "model.py", "--data", tmp_path / "data", "--root", root, "--epochs", 8,
        "--metric", "size_mae:min:0.1", "--metric", "kind_accuracy", "--max-accuracy-drop", 0.05,
        "--recipes-file", tmp_path / "recipes.py",
        "--recipe", "int8", "--recipe", "prune50_int8",
        "--recipe", "prune50_cluster16_qat8",
    )  # fmt: skip
    assert main.main([str(argument) for argument in asked]) == 0
    assert "size_mae (less is better; rise at most 0.1), kind_accuracy (more" in capfd.readouterr().out
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
    # both metrics and their drops, from the pushed file alone
    rows = read_data(tmp_path / "data" / "eval")
    made = model.run({name: rows[name] for name in ("left", "right")})
    ours = {
        "size_mae": np.abs(made["size"][:, 0].astype(float) - rows["size"]).mean(),
        "kind_accuracy": (made["kind"].argmax(1) == rows["kind"]).mean(),
    }
    selected, baseline = by_name[report["selected"]], report["baseline"]["metrics"]
    assert {name: selected["metrics"][name] for name in ours} == pytest.approx(ours, rel=1e-6)
    assert selected["drop"] == pytest.approx(ours["size_mae"] - baseline["size_mae"], abs=1e-6)
    lost = baseline["kind_accuracy"] - ours["kind_accuracy"]
    assert selected["more_drops"]["kind_accuracy"]["drop"] == pytest.approx(lost, abs=1e-9)
    for candidate in by_name.values():
        over = [
            candidate["metrics"]["size_mae"] - baseline["size_mae"] > 0.1,
            baseline["kind_accuracy"] - candidate["metrics"]["kind_accuracy"] > 0.05 + 1e-9,
        ]
        assert candidate["blessed"] is (not any(over)), candidate["reasons"]

    # the same files, served from the cache, lose too much by the second metric alone
    strict = [*asked, "--metric", "size_mae:min:9", "--metric", "kind_accuracy:max:1e-9", "--value-threshold", 9]
    at = strict.index("--metric")
    del strict[at : at + 4]
    code = main.main([str(argument) for argument in strict])
    report = json.loads((root / "report" / "report.json").read_text())
    losers = [c for c in report["candidates"] if c["more_drops"]["kind_accuracy"]["drop"] > 1e-6]
    assert all(c["reasons"][0].startswith("kind_accuracy drop") for c in losers)
    assert code == (1 if len(losers) == len(report["candidates"]) else 0)
