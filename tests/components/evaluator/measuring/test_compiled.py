"""Which metrics a module compiles, and whether more or less of each is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tf_keras

from edgeline.budget import Budget
from edgeline.errors import UserError
from edgeline.evaluator.measuring import compiled, directions
from edgeline.model_module import hooks

METRICS = tf_keras.metrics


class Complement(METRICS.AUC):
    """What an AUC lacks of 1."""

    def result(self) -> Any:
        return 1 - super().result()


class OwnAUC(METRICS.AUC):
    """An AUC of another name."""


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        (METRICS.AUC(name="x"), "max"),
        (OwnAUC(name="x"), "max"),
        (Complement(name="x"), None),
        (METRICS.MeanIoU(3, name="x"), "max"),
        (METRICS.F1Score(name="x"), "max"),
        (METRICS.R2Score(name="x"), "max"),
        (METRICS.PrecisionAtRecall(0.5, name="x"), "max"),
        (METRICS.TruePositives(name="x"), "max"),
        (METRICS.FalseNegatives(name="x"), "min"),
        (METRICS.RootMeanSquaredError(name="x"), "min"),
        (METRICS.MeanAbsoluteError(name="x"), "min"),
        (METRICS.SparseTopKCategoricalAccuracy(2, name="x"), "max"),
        (METRICS.KLDivergence(name="x"), "min"),
        (METRICS.LogCoshError(name="x"), "min"),
        (METRICS.Poisson(name="x"), "min"),
        (METRICS.CategoricalHinge(name="x"), "min"),
        (METRICS.CosineSimilarity(name="x"), "max"),
        (METRICS.BinaryCrossentropy(name="x"), "min"),
        (METRICS.MeanMetricWrapper(lambda y, p: p, name="accuracy"), None),
        (METRICS.Mean(name="x"), None),
        (METRICS.Sum(name="loss"), None),
    ],
    ids=lambda value: "" if isinstance(value, str | None) else type(value).__name__,
)
def test_what_is_better_by_the_class_of_a_metric(metric: Any, direction: str | None) -> None:
    assert directions.of_metric(metric) == direction


DETECTOR = """

def preprocess(features):
    return features["x"], {"boxes": features["boxes"], "classes": features["y"]}


def feature_spec():
    return {
        "x": tf.io.FixedLenFeature([4], tf.float32),
        "boxes": tf.io.FixedLenFeature([4], tf.float32),
        "y": tf.io.FixedLenFeature([], tf.int64),
    }


def build_model():
    x = keras.Input([4], name="x")
    outputs = {"boxes": keras.layers.Dense(4, name="boxes")(x), "classes": keras.layers.Dense(3, name="classes")(x)}
    return keras.Model(x, outputs)


def nearness(label, predicted):
    return -tf.reduce_mean(tf.abs(label - predicted), axis=-1)


def compile_model(model):
    model.compile(
        "adam",
        {"boxes": "mse", "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        metrics={"boxes": ["mae", nearness], "classes": ["accuracy"]},
    )
"""


@pytest.fixture
def detector(tiny_module: Path) -> hooks.ModelModule:
    tiny_module.write_text(tiny_module.read_text() + DETECTOR)
    return hooks.load(str(tiny_module))


def test_all_metrics_of_all_outputs(detector: hooks.ModelModule) -> None:
    known = compiled.directions_of(detector)
    assert known == {"loss": "min", "boxes_mae": "min", "boxes_nearness": None, "classes_accuracy": "max"}
    assert [metric.name for metric in Budget().judged(known)] == ["boxes_mae"]
    asked = Budget(metric=["classes_accuracy", "boxes_nearness:max:0.5"])
    assert [(metric.name, metric.direction) for metric in asked.judged(known)] == [
        ("classes_accuracy", "max"),
        ("boxes_nearness", "max"),
    ]
    with pytest.raises(UserError, match=r"'mae' \(did you mean 'boxes_mae'\?\) is not compiled"):
        Budget(metric="mae:min:0.5").judged(known)
    with pytest.raises(UserError, match="write --metric boxes_nearness:max or --metric boxes_nearness:min"):
        Budget(metric="boxes_nearness").judged(known)


def test_a_module_that_fails_is_told_by_the_step_that_needs_it(tiny_module: Path) -> None:
    tiny_module.write_text(tiny_module.read_text() + "\n\ndef build_model():\n    raise OSError('no weights')\n")
    assert compiled.directions_of(hooks.load(str(tiny_module))) == {}
