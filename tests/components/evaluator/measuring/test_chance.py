"""What a guess has of a metric, worked out again in NumPy; merged in any order."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline.evaluator.measuring import chance
from edgeline.evaluator.measuring.chance import Chance, CommonestClass, Mean
from edgeline.evaluator.measuring.metrics import CompiledMetrics
from edgeline.model_module import hooks
from edgeline.report.schema import ChanceReport

RANDOM = np.random.default_rng(3)


def parts(count: int, cuts: int = 5) -> list[np.ndarray]:
    return np.array_split(RANDOM.permutation(count), cuts)


def total(states: list[Any]) -> Any:
    RANDOM.shuffle(states)
    return functools.reduce(operator.add, states)


def read(state: Chance, value: float) -> ChanceReport:
    guess = state.report(value)
    assert guess is not None
    return guess


def test_the_commonest_class_by_weight() -> None:
    labels, weights = RANDOM.integers(0, 4, 500), RANDOM.uniform(0, 2, 500)
    weights[labels == 2] *= 3
    state = total([CommonestClass.of(labels[rows], weights[rows], 4) for rows in parts(500)])
    share = weights[labels == 2].sum() / weights.sum()
    margin = 1.96 * np.sqrt(share * (1 - share) / (weights.sum() ** 2 / (weights**2).sum()))
    guess = read(state, share + 0.999 * margin)
    assert (guess.guess, guess.answer, guess.beaten) == ("commonest class", 2, False)
    assert (guess.value, guess.margin) == pytest.approx((share, margin))
    assert read(state, share + 1.001 * margin).beaten
    assert CommonestClass.of(labels, np.zeros(500), 4).report(0.5) is None


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("count", [40, 9000])
def test_the_mean_beside_a_models_errors(squared: bool, count: int) -> None:
    labels = RANDOM.normal(1000, 2, [count, 3])  # far from zero: sums of squares would lose all digits
    predicted = labels + RANDOM.normal(0, 1.9, [count, 3])
    measure: Callable[[np.ndarray], np.ndarray] = np.square if squared else np.abs
    errors, digests = measure(predicted - labels).mean(1), RANDOM.permutation(10 * count)[:count]
    state = total([Mean.of(squared, digests[rows], labels[rows], errors[rows]) for rows in parts(count)])
    kept = np.argsort(digests)[: chance.MOST_EXAMPLES]
    gain = measure(labels[kept] - labels[kept].mean(0)).mean(1) - errors[kept]
    margin = 1.96 * gain.std(ddof=1) / np.sqrt(len(kept))
    guess = read(state, errors.mean())
    assert guess.answer is None
    assert (guess.value, guess.margin) == pytest.approx((errors.mean() + gain.mean(), margin), rel=1e-12)
    assert guess.beaten == (gain.mean() > margin)
    if count == 40:
        assert guess.value == pytest.approx(measure(labels - labels.mean(0)).mean())


@pytest.mark.parametrize("squared", [True, False])
def test_one_example_says_nothing(squared: bool) -> None:
    one = Mean.of(squared, np.array([1]), np.array([[5.0]]), np.array([0.0]))
    assert one.report(0.0) == ChanceReport(guess="mean", value=0.0, margin=None, beaten=False)
    assert not read(CommonestClass.of(np.array([1]), np.ones(1), 3), 1.0).beaten
    nothing = Mean.of(squared, np.zeros(0, np.int64), np.zeros([0, 1]), np.zeros(0))
    assert nothing.report(0.0) is None
    assert read(one + nothing, 0.0) == one.report(0.0)


MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {{"x": tf.io.FixedLenFeature([4], tf.float32)}}


def preprocess(features):
    return features["x"], features["x"]


def build_model():
    x = keras.Input([4], name="x")
    return keras.Model(x, {outputs})


def compile_model(model):
    model.compile("adam", {loss}, {metrics})
"""

#: Outputs, loss, metrics, labels of two examples, and what a guess is made of: the class, or the mean's error at both.
COMPILED = {
    "sparse": (
        "keras.layers.Dense(3)(x)", "'sparse_categorical_crossentropy'", "['accuracy']", [2, 2], {"accuracy": 2},
    ),
    "one-hot": (
        "keras.layers.Dense(3)(x)", "'categorical_crossentropy'",
        "['accuracy', keras.metrics.CategoricalAccuracy('own')]",
        [[0, 1, 0], [0, 1, 0]], {"accuracy": 1, "own": 1},
    ),
    "binary": (
        "keras.layers.Dense(1)(x)", "'binary_crossentropy'",
        "[keras.metrics.BinaryAccuracy(), keras.metrics.BinaryAccuracy('strict', threshold=0.9)]",
        [[1], [1]], {"binary_accuracy": 1},
    ),
    "tags": ("keras.layers.Dense(3)(x)", "'binary_crossentropy'", "['accuracy']", [[1, 1, 0], [0, 0, 1]], {}),
    "pixels": (
        "keras.layers.Reshape([2, 2])(x)", "'sparse_categorical_crossentropy'", "['accuracy']", [[0, 1], [1, 1]], {},
    ),
    "numbers": (
        "keras.layers.Dense(1)(x)", "'mse'", "['mae', keras.metrics.RootMeanSquaredError()]", [[1.0], [3.0]],
        {"loss": [1.0, 1.0], "mae": [1.0, 1.0]},
    ),
    "two outputs": (
        "[keras.layers.Dense(3, name='c')(x), keras.layers.Dense(2, name='b')(x)]",
        "{'c': 'sparse_categorical_crossentropy', 'b': 'mse'}", "{'c': 'accuracy', 'b': 'mse'}",
        {"c": [1, 1], "b": [[1.0, 5.0], [3.0, 5.0]]}, {"c_accuracy": 1, "b_mse": [0.5, 0.5]},
    ),
    "another loss": ("keras.layers.Dense(1)(x)", "'huber'", "['mape']", [[1.0], [3.0]], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_which_metrics_are_compared_with_what(name: str, tmp_path: Path) -> None:
    outputs, loss, metrics, label, expected = COMPILED[name]
    path = tmp_path / "module.py"
    path.write_text(MODULE.format(outputs=outputs, loss=loss, metrics=metrics))
    compiled = CompiledMetrics(hooks.load(str(path)))
    predicted = [output.numpy() for output in tf.nest.flatten(compiled.model(np.zeros([2, 4], np.float32)))]
    labels: Any = {k: tf.constant(v) for k, v in label.items()} if isinstance(label, dict) else tf.constant(label)
    scores = compiled.scores(labels, predicted)
    states = compiled.chance(labels, predicted, scores, np.arange(2))
    assert states.keys() == expected.keys()
    for metric, answer in expected.items():
        value = compiled.result(compiled.batch(labels, predicted))[metric]
        state = states[metric]
        if isinstance(answer, int):
            assert read(state, value).answer == answer
        else:
            assert isinstance(state, Mean)
            assert read(state, value).value == pytest.approx(np.mean(answer), abs=1e-6)
    # weights of examples count in a weighted metric alone, and the mean is not compared under masks
    masked = compiled.chance(labels, predicted, scores, np.arange(2), True)
    assert masked.keys() == {metric for metric, answer in expected.items() if isinstance(answer, int)}
