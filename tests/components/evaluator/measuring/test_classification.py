from __future__ import annotations

import functools
import json
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from sklearn import metrics as sklearn_metrics

from edgeline.evaluator.measuring.classification import BINS, Classification, Kind, Task
from edgeline.report.dataclass_json import to_json

LOSSES = tf_keras.losses


def make(loss: Any, units: int = 3, activation: str | None = None) -> tf_keras.Model:
    layers = [tf_keras.Input([4]), tf_keras.layers.Dense(units, activation=activation)]
    model = tf_keras.Sequential(layers)
    model.compile("adam", loss)
    return model


def task_of(loss: Any, units: int = 3, activation: str | None = None) -> Task | None:
    return Task.of(make(loss, units, activation), ["scores"])


def sparse(classes: int, from_logits: bool = False) -> Task:
    return Task(classes, "sparse", from_logits, "scores")


def evaluate(task: Task, label: Any, scores: Any) -> Classification:
    return Classification.of(task, *task.read(np.asarray(label), np.asarray(scores)))


@pytest.mark.parametrize(
    ("loss", "kind", "from_logits"),
    [
        (LOSSES.SparseCategoricalCrossentropy(from_logits=True), "sparse", True),
        (LOSSES.SparseCategoricalCrossentropy(), "sparse", False),
        ("sparse_categorical_crossentropy", "sparse", False),
        ("SparseCategoricalCrossentropy", "sparse", False),
        (LOSSES.sparse_categorical_crossentropy, "sparse", False),
        ([LOSSES.SparseCategoricalCrossentropy(from_logits=True)], "sparse", True),
        ({"dense": LOSSES.SparseCategoricalCrossentropy(from_logits=True)}, "sparse", True),
        (LOSSES.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), "categorical", True),
        ("categorical_crossentropy", "categorical", False),
        (LOSSES.CategoricalFocalCrossentropy(from_logits=True), "categorical", True),
        (LOSSES.categorical_focal_crossentropy, "categorical", False),
    ],
)
def test_losses_of_several_classes(loss: Any, kind: Kind, from_logits: bool) -> None:
    tf_keras.backend.reset_uids()
    assert task_of(loss) == Task(3, kind, from_logits, "scores")


@pytest.mark.parametrize(
    ("loss", "from_logits"),
    [
        (LOSSES.BinaryCrossentropy(from_logits=True), True),
        (LOSSES.BinaryCrossentropy(label_smoothing=0.1), False),
        ("bce", False),
        (LOSSES.binary_crossentropy, False),
        (LOSSES.BinaryFocalCrossentropy(from_logits=True), True),
        ("binary_focal_crossentropy", False),
    ],
)
def test_losses_of_two_classes(loss: Any, from_logits: bool) -> None:
    assert task_of(loss, units=1) == Task(2, "binary", from_logits, "scores")


@pytest.mark.parametrize(
    ("loss", "units"),
    [
        ("mse", 3),
        ("mse", 1),
        ("kl_divergence", 3),
        (LOSSES.CategoricalHinge(), 3),
        (lambda label, scores: LOSSES.sparse_categorical_crossentropy(label, scores), 3),
        (functools.partial(LOSSES.sparse_categorical_crossentropy, from_logits=True), 3),
        (LOSSES.SparseCategoricalCrossentropy(ignore_class=255), 3),
        ("sparse_categorical_crossentropy", 1),
        ("binary_crossentropy", 3),  # several labels at once
        (None, 3),
    ],
)
def test_other_losses_and_shapes_are_no_classifiers(loss: Any, units: int) -> None:
    assert task_of(loss, units) is None


def test_other_outputs_are_no_classifiers() -> None:
    x = tf_keras.Input([8, 8, 3])
    segmentation = tf_keras.Model(x, tf_keras.layers.Conv2D(5, 1)(x))
    segmentation.compile("adam", LOSSES.SparseCategoricalCrossentropy(from_logits=True))
    assert Task.of(segmentation, ["mask"]) is None
    x = tf_keras.Input([4])
    two = tf_keras.Model(x, [tf_keras.layers.Dense(3)(x), tf_keras.layers.Dense(3)(x)])
    two.compile("adam", "sparse_categorical_crossentropy")
    assert Task.of(two, ["one", "two"]) is None


class Head(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = tf_keras.layers.Dense(3)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x)


ENDS: dict[str, tuple[bool, Callable[[], list[tf_keras.layers.Layer]]]] = {
    "activation": (False, lambda: [tf_keras.layers.Dense(3, activation="softmax")]),
    "layer": (False, lambda: [tf_keras.layers.Dense(3), tf_keras.layers.Softmax()]),
    "function": (False, lambda: [tf_keras.layers.Dense(3), tf_keras.layers.Activation(tf.nn.softmax)]),
    "nested": (
        False,
        lambda: [tf_keras.Sequential([tf_keras.Input([4]), tf_keras.layers.Dense(3, activation="softmax")])],
    ),
    "linear": (True, lambda: [tf_keras.layers.Dense(3, activation="softmax"), tf_keras.layers.Dense(3)]),
    "sigmoid": (True, lambda: [tf_keras.layers.Dense(3, activation="sigmoid")]),
    "subclassed": (True, lambda: [Head()]),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_softmax_at_the_end_gives_probabilities_whatever_the_loss_says(name: str) -> None:
    from_logits, layers = ENDS[name]
    x = y = tf_keras.Input([4])
    for layer in layers():
        y = layer(y)
    model = tf_keras.Model(x, y)
    model.compile("adam", LOSSES.SparseCategoricalCrossentropy(from_logits=True))
    assert Task.of(model, ["scores"]) == sparse(3, from_logits)


def test_a_sigmoid_at_the_end_gives_probabilities() -> None:
    loss = LOSSES.BinaryCrossentropy(from_logits=True)
    assert task_of(loss, 1, "sigmoid") == Task(2, "binary", False, "scores")
    assert task_of(loss, 1, "tanh") == Task(2, "binary", True, "scores")


def test_read_logits_by_hand() -> None:
    scores = np.log(np.float32([[1, 2, 1], [6, 1, 3]]))
    labels, probabilities, predicted = sparse(3, from_logits=True).read(tf.constant([1, 2]), scores)
    assert (labels.dtype, probabilities.dtype, predicted.dtype) == (np.int64, np.float64, np.int64)
    assert labels.tolist() == [1, 2]
    assert probabilities == pytest.approx(np.array([[0.25, 0.5, 0.25], [0.6, 0.1, 0.3]]))
    assert predicted.tolist() == [1, 0]


def test_read_is_stable() -> None:
    scores = np.float32([[1e4, 0, -1e4], [-3e38, 3e38, 0]])
    _, probabilities, _ = sparse(3, from_logits=True).read(np.array([0, 0]), scores)
    assert probabilities.tolist() == [[1, 0, 0], [0, 1, 0]]
    _, probabilities, predicted = Task(2, "binary", True, "scores").read(
        np.array([0, 0, 0]), np.float32([[1e4], [-1e4], [0]])
    )
    assert probabilities.tolist() == [[0, 1], [1, 0], [0.5, 0.5]]
    assert predicted.tolist() == [1, 0, 0]


def test_read_predicts_from_the_scores_and_takes_the_first_of_several() -> None:
    # the same in float64 after exp, but the model says 1 and 2
    scores = np.array([[0, 1e-30, 0], [0, 1e-30, 2e-30], [5, 7, 7]])
    _, probabilities, predicted = sparse(3, from_logits=True).read(np.zeros(3, int), scores)
    assert len(set(probabilities[1])) == 1
    assert predicted.tolist() == [1, 2, 1]


def test_read_scales_quantized_probabilities() -> None:
    scores = np.float32([[0.5, 0.25, 0.5], [0, 0, 0], [-0.5, 1, 1]])
    _, probabilities, predicted = sparse(3).read(np.zeros(3, int), scores)
    assert probabilities == pytest.approx(np.array([[0.4, 0.2, 0.4], [1 / 3] * 3, [0, 0.5, 0.5]]))
    assert predicted.tolist() == [0, 0, 1]


@pytest.mark.parametrize("from_logits", [False, True])
def test_read_two_classes(from_logits: bool) -> None:
    probability = np.array([[0.1], [0.5], [0.500001], [0.9]])
    scores = np.log(probability / (1 - probability)) if from_logits else probability
    task = Task(2, "binary", from_logits, "scores")
    for label in ([0, 0, 1, 1], [[0.0], [0.0], [1.0], [1.0]], [False, False, True, True], [0.2, 0.5, 0.6, 1]):
        labels, probabilities, predicted = task.read(np.array(label), scores.astype(np.float32))
        assert labels.tolist() == [0, 0, 1, 1]
        assert probabilities == pytest.approx(np.concatenate([1 - probability, probability], axis=1), abs=1e-6)
        assert predicted.tolist() == [0, 0, 1, 1]


def test_read_labels_of_all_shapes() -> None:
    scores = np.zeros([2, 3], np.float32)
    column = tf.constant([[2], [0]])
    for label in (np.uint8([2, 0]), np.float32([2, 0]), column, {"scores": column}, [column], ({"scores": column},)):
        assert sparse(3).read(label, scores)[0].tolist() == [2, 0]
    for label in (tf.one_hot([2, 0], 3), [np.array([[0.2, 0.2, 0.6], [0.9, 0.1, 0]])]):
        assert Task(3, "categorical", False, "scores").read(label, scores)[0].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("sparse", [0, 3], r"label 3 of scores is not in \[0, 3\)"),
        ("sparse", [-1, 0], r"label -1 of scores is not in \[0, 3\)"),
        ("sparse", [0, np.nan], r"label nan of scores is not in \[0, 3\)"),
        ("sparse", [[1, 0, 0], [0, 1, 0]], r"shape \[2, 3\], expected \[2\] or \[2, 1\]"),
        ("sparse", [0], r"shape \[1\], expected \[2\] or \[2, 1\]"),
        ("categorical", [0, 1], r"labels of scores have shape \[2\], expected \[2, 3\]"),
        ("binary", [-1, 1], r"label -1 of scores is not in \[0, 2\)"),
        ("binary", [0, 2], r"label 2 of scores is not in \[0, 2\)"),
    ],
)
def test_read_bad_labels(kind: Kind, label: Any, message: str) -> None:
    task = Task(2 if kind == "binary" else 3, kind, False, "scores")
    with pytest.raises(ValueError, match=message):
        task.read(np.array(label), np.zeros([2, 1 if kind == "binary" else 3], np.float32))


def test_facts_by_hand() -> None:
    scores = [[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.7, 0.2, 0.1], [0.5, 0.1, 0.4]]
    task = sparse(3)
    facts = evaluate(task, [0, 1, 1, 0], scores).report(task)
    assert to_json(facts) == {
        "output": "scores",
        "classes": 3,
        "confusion": [[2, 0, 0], [1, 1, 0], [0, 0, 0]],
        "top_k": {"1": 0.75, "2": 1.0},
        "per_class": [
            {"precision": pytest.approx(2 / 3), "recall": 1.0, "examples": 2},
            {"precision": 1.0, "recall": 0.5, "examples": 2},
            {"precision": None, "recall": None, "examples": 0},
        ],
        "log_loss": pytest.approx(-np.log(0.5 * 0.7 * 0.2 * 0.5) / 4),
        # 0.5: two of two right, 0.7: one of two
        "ece": pytest.approx(2 / 4 * 0.5 + 2 / 4 * 0.2),
        "bins": [
            {"confidence": pytest.approx(0.5), "accuracy": 1.0, "count": 2},
            {"confidence": pytest.approx(0.7), "accuracy": 0.5, "count": 2},
        ],
    }
    assert json.loads(json.dumps(to_json(facts))) == to_json(facts)


def test_bins_are_closed_on_the_right() -> None:
    # 0.2 = 3/15, 0.4 = 6/15 and 1 end their bins; a little more is in the next
    scores = np.array([[0.2] * 5, [0.4, 0.3, 0.3, 0, 0], [0.400001, 0.3, 0.299999, 0, 0], [1, 0, 0, 0, 0]])
    state = evaluate(sparse(5), [0, 0, 1, 0], scores)
    assert np.flatnonzero(state.bin_examples).tolist() == [2, 5, 6, 14]
    assert np.flatnonzero(state.bin_hits).tolist() == [2, 5, 14]
    assert len(state.bin_examples) == len(state.bin_hits) == len(state.bin_confidence) == BINS
    expected = (1 - 0.2) / 4 + (1 - 0.4) / 4 + 0.400001 / 4 + (1 - 1) / 4
    assert state.report(sparse(5)).ece == pytest.approx(expected)


def test_under_and_overconfidence_in_one_bin_cancel_out() -> None:
    # 0.75 sure four times, three times right: as it says
    state = evaluate(sparse(2), [0, 0, 0, 1], [[0.75, 0.25]] * 4)
    assert state.report(sparse(2)).ece == 0


def test_log_loss_is_that_of_keras() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 10, 500)
    logits = random.normal(size=[500, 10]) * 2
    for from_logits, scores in ((True, logits), (False, tf.nn.softmax(logits).numpy())):
        expected = float(LOSSES.SparseCategoricalCrossentropy(from_logits=from_logits)(label, scores))
        task = sparse(10, from_logits)
        assert evaluate(task, label, scores).report(task).log_loss == pytest.approx(expected, abs=1e-6)


def test_log_loss_of_two_classes_is_that_of_keras() -> None:
    random = np.random.default_rng(0)
    label, logits = random.integers(0, 2, 500), random.normal(size=[500, 1])
    task = Task(2, "binary", True, "scores")
    expected = float(LOSSES.BinaryCrossentropy(from_logits=True)(label[:, None].astype(float), logits))
    assert evaluate(task, label, logits).report(task).log_loss == pytest.approx(expected, abs=1e-6)


def test_log_loss_of_the_impossible_is_finite() -> None:
    scores = np.array([[1.0, 0], [1, 0]])
    expected = float(LOSSES.SparseCategoricalCrossentropy()([0, 1], scores))
    assert expected == pytest.approx(-np.log(1e-7) / 2, abs=1e-6)
    assert evaluate(sparse(2), [0, 1], scores).report(sparse(2)).log_loss == pytest.approx(expected, abs=1e-6)
    assert evaluate(sparse(2, True), [1], [[50.0, 0]]).log_loss == pytest.approx(-np.log(1e-7))


@pytest.mark.parametrize(("classes", "ks"), [(2, [1]), (3, [1, 2]), (5, [1, 2, 3]), (6, [1, 2, 3, 5])])
@pytest.mark.parametrize("from_logits", [False, True])
def test_top_k_is_that_of_keras_with_ties(classes: int, ks: list[int], from_logits: bool) -> None:
    random = np.random.default_rng(classes)
    # few levels, as quantized models have them: many ties, also at the border
    scores = random.integers(0 if not from_logits else -4, 5, [400, classes]).astype(np.float32) / 4
    label = random.integers(0, classes, 400)
    task = sparse(classes, from_logits)
    facts = evaluate(task, label, scores).report(task)
    assert list(facts.top_k) == [str(k) for k in ks]
    for k in ks:
        expected = np.mean(tf_keras.metrics.sparse_top_k_categorical_accuracy(label, scores, k))
        assert facts.top_k[str(k)] == pytest.approx(expected, abs=1e-7)
        assert facts.top_k[str(k)] == np.mean(tf.math.in_top_k(label, scores, k))


def test_a_sure_model_does_not_hit_everything() -> None:
    # all below Keras' epsilon, yet in an order
    state = evaluate(sparse(4), [3], [[1, 1e-8, 1e-9, 1e-10]])
    assert state.top_hits.tolist() == [0, 0, 0]


@pytest.mark.parametrize("classes", [2, 10, 200, 201])
def test_counts_are_those_of_scikit_learn(classes: int) -> None:
    random = np.random.default_rng(classes)
    label = random.integers(0, classes, 300)
    scores = random.normal(size=[300, classes]).astype(np.float32)
    scores[np.arange(150), label[:150]] += 3
    task = sparse(classes, from_logits=True)
    state = evaluate(task, label, scores)
    facts = state.report(task)
    predicted, every = scores.argmax(1), np.arange(classes)
    if classes > 200:
        assert state.confusion is None
        assert facts.confusion is None
    else:
        assert to_json(facts.confusion) == sklearn_metrics.confusion_matrix(label, predicted, labels=every).tolist()
    precision, recall, _, support = sklearn_metrics.precision_recall_fscore_support(
        label, predicted, labels=every, zero_division=np.nan
    )
    for name, expected in (("precision", precision), ("recall", recall)):
        values = np.array([getattr(entry, name) for entry in facts.per_class], np.float64)
        np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert [entry.examples for entry in facts.per_class] == support.tolist()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("from_logits", [False, True])
def test_any_split_adds_up_to_the_same(seed: int, from_logits: bool) -> None:
    random = np.random.default_rng(seed)
    classes, count = int(random.choice([2, 3, 10, 250])), 200
    # levels of a quantized model: probabilities at the edges of bins, ties
    scores = random.integers(0, 16, [count, classes]).astype(np.float32) / (4 if from_logits else 15)
    label = random.integers(0, classes, count)
    task = sparse(classes, from_logits)
    whole = evaluate(task, label, scores)
    cuts = np.sort(random.integers(0, count + 1, random.integers(1, 12)))
    for parts in ([*np.split(np.arange(count), cuts)], [[row] for row in range(count)]):
        states = [evaluate(task, label[part], scores[part]) for part in parts]
        for total in (reduce(add, states), reduce(add, states[::-1])):
            for name in vars(whole):
                mine, theirs = getattr(total, name), getattr(whole, name)
                if name in ("log_loss", "bin_confidence"):
                    assert mine == pytest.approx(theirs, abs=1e-9)
                elif mine is None:
                    assert theirs is None
                else:
                    assert mine.dtype == np.int64
                    assert np.array_equal(mine, theirs)


def test_adding_changes_neither() -> None:
    one, two = evaluate(sparse(2), [0], [[0.9, 0.1]]), evaluate(sparse(2), [1], [[0.9, 0.1]])
    total = one + two
    assert total.examples.tolist() == [1, 1]
    assert (one.examples.tolist(), two.examples.tolist()) == ([1, 0], [0, 1])


def test_no_examples() -> None:
    state = evaluate(sparse(3), np.zeros(0, np.int64), np.zeros([0, 3], np.float32))
    with pytest.raises(ValueError, match="no examples were evaluated"):
        state.report(sparse(3))


def test_many_classes_stay_small() -> None:
    random = np.random.default_rng(0)
    state = evaluate(sparse(1000, True), random.integers(0, 1000, 50), random.normal(size=[50, 1000]))
    assert sum(value.nbytes for value in vars(state).values() if isinstance(value, np.ndarray)) < 32_000
