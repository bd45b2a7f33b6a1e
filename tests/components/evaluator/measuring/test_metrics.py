from __future__ import annotations

import dataclasses
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline.evaluator.measuring.metrics import CompiledMetrics, State
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule

COUNT = 60
#: How the examples are split into batches: no result may depend on it.
SPLITS = [[60], [1] * 60, [7, 20, 1, 32], [59, 1]]

BINARY = """
def build_model():
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(1, activation="sigmoid")])


def compile_model(model):
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc"), "mae", "Recall"])
"""

SPARSE = """
def compile_model(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    top2 = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    model.compile("adam", loss, metrics=["accuracy", top2])
"""

WEIGHTED = """
def compile_model(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weighted = keras.metrics.SparseCategoricalAccuracy("weighted")
    model.compile("adam", loss, metrics=["accuracy"], weighted_metrics=[weighted])
"""

TWO_OUTPUTS = """
def build_model():
    x = keras.Input([4])
    return keras.Model(x, [keras.layers.Dense(3, name="kind")(x), keras.layers.Dense(1, name="size")(x)])


def compile_model(model):
    model.compile(
        "adam",
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"],
        metrics=[["accuracy"], ["mae", keras.metrics.RootMeanSquaredError(name="rmse")]],
        loss_weights=[1.0, 0.25],
    )
"""

NAMED_OUTPUTS = """
def build_model():
    x = keras.Input([4])
    kind, size = keras.layers.Dense(3, name="kind")(x), keras.layers.Dense(1, name="size")(x)
    return keras.Model(x, {"size": size, "kind": kind})


def compile_model(model):
    model.compile(
        "adam",
        {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
        metrics={"size": ["mae"], "kind": ["accuracy"]},
    )
"""


@dataclasses.dataclass
class Case:
    """Labels and predictions of a model, and what Keras itself makes of them."""

    module: ModelModule
    label: Any
    outputs: list[np.ndarray]
    weight: np.ndarray | None
    expected: dict[str, float]


def pick(tree: Any, rows: slice) -> Any:
    """The rows as preprocess returns them: tensors."""
    return tf.nest.map_structure(lambda values: tf.constant(values[rows]), tree)


def make(tiny_module: Path, code: str, label: Any, weight: np.ndarray | None = None) -> Case:
    tiny_module.write_text(tiny_module.read_text() + code)
    module = hooks.load(str(tiny_module))
    tf_keras.utils.set_random_seed(0)
    model = module.build_model()
    module.compile_model(model)
    inputs = np.random.default_rng(1).normal(size=[COUNT, 4]).astype(np.float32)
    predicted = model.predict(inputs, verbose=0)
    if isinstance(predicted, dict):
        outputs = [predicted[name] for name in sorted(predicted)]
    else:
        outputs = predicted if isinstance(predicted, list) else [predicted]
    expected = model.evaluate(inputs, label, sample_weight=weight, batch_size=17, verbose=0, return_dict=True)
    return Case(module, label, outputs, weight, expected)


RANDOM = np.random.default_rng(2)
KIND = RANDOM.integers(0, 3, COUNT)
SIZE = RANDOM.normal(size=[COUNT, 1]).astype(np.float32)
WEIGHT = RANDOM.uniform(0, 3, COUNT).astype(np.float32)

CASES = {
    "binary": (BINARY, (KIND > 1).astype(np.int64), None),
    "sparse": (SPARSE, KIND, None),
    "weighted": (WEIGHTED, KIND, WEIGHT),
    "two outputs": (TWO_OUTPUTS, [KIND, SIZE], None),
    "named outputs": (NAMED_OUTPUTS, {"kind": KIND, "size": SIZE}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_any_split_into_batches_gives_what_keras_gives(tiny_module: Path, name: str) -> None:
    case = make(tiny_module, *CASES[name])
    metrics = CompiledMetrics(case.module)
    for split in SPLITS:
        states, begin = [], 0
        for size in split:
            rows = slice(begin, begin + size)
            weight = None if case.weight is None else pick(case.weight, rows)
            states.append(metrics.batch(pick(case.label, rows), [o[rows] for o in case.outputs], weight))
            begin += size
        total = reduce(add, states)
        assert total.examples == COUNT
        result = metrics.result(total)
        # Keras also lists the loss of each output; all else must be there and agree
        assert set(case.expected) - set(result) <= {"kind_loss", "size_loss"}
        assert result == pytest.approx({key: case.expected[key] for key in result}, abs=1e-6)
        # merged the other way round, as Beam may do it
        assert metrics.result(reduce(add, states[::-1])) == pytest.approx(result, abs=1e-12)


def test_by_hand(tiny_module: Path) -> None:
    code = "\n\ndef compile_model(model):\n    model.compile('adam', 'mse', metrics=['mae'])\n"
    tiny_module.write_text(tiny_module.read_text() + code)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    label = tf.constant([[0.0, 0, 0], [1, 1, 1]])
    outputs = [np.float32([[3, 0, 0], [1, 1, 0]])]
    state = metrics.batch(label, outputs)
    # squared errors 9, 0, 0 and 0, 0, 1; their means by example 3 and 1/3
    assert state.examples == 2
    assert state.sums is not None
    assert state.sums[0] == pytest.approx(3 + 1 / 3)
    assert metrics.result(state) == pytest.approx({"loss": 5 / 3, "mae": 4 / 6})
    # one more example without any error
    more = metrics.batch(label[:1], [np.zeros([1, 3], np.float32)])
    assert metrics.result(state + more) == pytest.approx({"loss": 10 / 9, "mae": 4 / 9})


def test_weights_by_hand(tiny_module: Path) -> None:
    tiny_module.write_text(tiny_module.read_text() + WEIGHTED)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    right, wrong = [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]
    state = metrics.batch(tf.constant([0, 0], tf.int64), [np.float32([right, wrong])], tf.constant([3.0, 1.0]))
    result = metrics.result(state)
    assert result["accuracy"] == 0.5
    assert result["weighted"] == 0.75


def test_states_add_up() -> None:
    one = State(3, np.array([1.5, 2.0]), np.array([3.0, 3.0]), [np.array([1.0, 2.0]), np.array(4.0)])
    two = State(2, np.array([0.5, 1.0]), np.array([2.0, 1.0]), [np.array([10.0, 20.0]), np.array(5.0)])
    total = one + two
    assert total.examples == 5
    assert total.sums is not None
    assert total.totals is not None
    assert (total.sums.tolist(), total.totals.tolist()) == ([2.0, 3.0], [5.0, 4.0])
    assert [value.tolist() for value in total.others] == [[11.0, 22.0], 9.0]
    assert one.others[0].tolist() == [1.0, 2.0]  # neither is changed
    for same in (State() + one, one + State()):
        assert same is one
    assert (State() + State()).sums is None


def test_counts_do_not_stop_at_2_to_the_24(tiny_module: Path) -> None:
    tiny_module.write_text(tiny_module.read_text() + SPARSE)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    right = metrics.batch(tf.constant([0], tf.int64), [np.float32([[9, 0, 0]])])
    wrong = metrics.batch(tf.constant([0], tf.int64), [np.float32([[0, 9, 5]])])
    assert right.sums is not None
    assert right.totals is not None
    assert right.sums.dtype == np.float64
    many = State(2**25, right.sums * 2**25, right.totals * 2**25)
    result = metrics.result(many + wrong)
    # float32 would have 1.0
    assert result["accuracy"] == 2**25 / (2**25 + 1) < 1.0
    assert many.sums is not None
    assert wrong.sums is not None
    assert result["loss"] == pytest.approx((many.sums[0] + wrong.sums[0]) / (2**25 + 1), rel=1e-12)


def test_one_state_leaves_no_trace_in_the_next(tiny_module: Path) -> None:
    tiny_module.write_text(tiny_module.read_text() + SPARSE)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    first = metrics.batch(tf.constant([0], tf.int64), [np.float32([[9, 0, 0]])])
    metrics.batch(tf.constant([1], tf.int64), [np.float32([[9, 0, 0]])])
    assert metrics.result(first)["accuracy"] == 1.0
    assert metrics.result(first)["accuracy"] == 1.0
    again = metrics.batch(tf.constant([0], tf.int64), [np.float32([[9, 0, 0]])])
    assert metrics.result(again) == metrics.result(first)


def test_another_process_can_read_a_state(tiny_module: Path) -> None:
    case = make(tiny_module, *CASES["binary"])
    state = CompiledMetrics(case.module).batch(tf.constant(case.label), case.outputs)
    reader = CompiledMetrics(case.module)
    reader.prepare(tf.constant(case.label[:2]), [case.outputs[0][:2]])
    assert reader.result(state) == pytest.approx(case.expected, abs=1e-6)


def test_no_examples(tiny_module: Path) -> None:
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    with pytest.raises(ValueError, match="no examples were evaluated"):
        metrics.result(State())


def test_a_module_without_metrics_has_a_loss(tiny_module: Path) -> None:
    code = "\n\ndef compile_model(model):\n    model.compile('adam', 'mse')\n"
    tiny_module.write_text(tiny_module.read_text() + code)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    state = metrics.batch(tf.zeros([2, 3]), [np.ones([2, 3], np.float32)])
    assert metrics.result(state) == {"loss": 1.0}


OWN_METRIC = """
class Above(keras.metrics.Mean):
    def __init__(self, threshold, name="above", **kwargs):
        super().__init__(name=name, **kwargs)
        self.threshold = threshold

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(tf.cast(y_pred > self.threshold, tf.float32), sample_weight)

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


def share_of_positive(y_true, y_pred):
    return tf.reduce_mean(tf.cast(y_pred > 0, tf.float32), -1)


def compile_model(model):
    model.compile("adam", "mse", metrics=[Above(2.0), share_of_positive])
"""


def test_metrics_of_the_module_itself(tiny_module: Path) -> None:
    tiny_module.write_text(tiny_module.read_text() + OWN_METRIC)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    outputs = [np.float32([[1, 3, -1], [-1, -1, 5]])]
    result = metrics.result(metrics.batch(tf.zeros([2, 3]), outputs))
    assert result["above"] == pytest.approx(2 / 6)
    assert result["share_of_positive"] == pytest.approx(3 / 6)
