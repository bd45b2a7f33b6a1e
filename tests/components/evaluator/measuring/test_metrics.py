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


@pytest.mark.parametrize(
    "name",
    # weights are shown by hand below, several outputs beside Keras
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("weighted", "two outputs"))) for name in CASES],
)
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


# what Keras itself says, on the whole split as one batch --------------------------------------------------------------

TIMES = """
def build_model():
    x = keras.Input([6], dtype="int32", name="words")
    h = keras.layers.Embedding(5, 4, mask_zero={masked})(x)
    return keras.Model(x, {outputs})


def compile_model(model):
    model.compile("adam", {loss}, metrics={metrics}, weighted_metrics={weighted}, loss_weights={shares})
"""
TAGS = "keras.layers.Dense(3, name='tags')(h)"
LEVEL = "keras.layers.Dense(1, name='level')(h)"
SPARSE_LOSS = "keras.losses.SparseCategoricalCrossentropy(from_logits=True{})"

#: By name: whether there is a mask, the outputs, the loss, the metrics, the weighted ones, and the losses' shares.
BESIDE_KERAS = {
    "mask": (True, TAGS, SPARSE_LOSS.format(""), "['accuracy']", "['accuracy']", "None"),
    "ignored class": (False, TAGS, SPARSE_LOSS.format(", ignore_class=0"), "['accuracy']", "['accuracy']", "None"),
    "mask and ignored class": (True, TAGS, SPARSE_LOSS.format(", ignore_class=1"), "['accuracy']", "[]", "None"),
    "ignored class in a metric": (
        False, TAGS, SPARSE_LOSS.format(""),
        "[keras.metrics.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)]",
        "[keras.metrics.SparseCategoricalCrossentropy(name='w', from_logits=True, ignore_class=2)]", "None",
    ),
    "sum": (True, TAGS, SPARSE_LOSS.format(", reduction='sum'"), "['accuracy']", "[]", "None"),
    "sum, scaled": (False, TAGS, SPARSE_LOSS.format(", reduction='sum'"), "['accuracy']", "[]", "[0.5]"),
    "two outputs": (
        True, f"[{TAGS}, {LEVEL}]", f"[{SPARSE_LOSS.format(', ignore_class=1')}, 'mse']",
        "[['accuracy'], ['mae', keras.metrics.RootMeanSquaredError(name='rmse')]]", "[['accuracy'], ['mae']]",
        "[1.0, 0.25]",
    ),
    "two outputs without a mask": (
        False, f"[{TAGS}, {LEVEL}]", f"[{SPARSE_LOSS.format('')}, 'huber']", "[['accuracy'], ['mae']]",
        "[[], ['mse']]", "[2.0, 0.5]",
    ),
    "regression": (
        True, LEVEL, "'mse'", "['mae', 'mape', 'msle', 'cosine_similarity', 'logcosh']", "['mae']", "None",
    ),
    "binary": (
        True, "keras.layers.Dense(1, 'sigmoid', name='tags')(h)",
        "keras.losses.BinaryCrossentropy(label_smoothing=0.2)",
        "['accuracy', keras.metrics.AUC(name='auc'), keras.metrics.Precision(name='precision'), "
        "keras.metrics.Recall(name='recall'), 'hinge', 'squared_hinge', 'poisson']",
        "[keras.metrics.AUC(name='auc_w'), 'binary_crossentropy']", "None",
    ),
    "focal": (
        False, "keras.layers.Dense(1, name='tags')(h)",
        "keras.losses.BinaryFocalCrossentropy(from_logits=True)", "['mse']", "['mse']", "None",
    ),
}  # fmt: skip


WEIGHTS = ("none", "of examples", "of elements")
#: These are quick; the other combinations are for the slow tests.
QUICK = {("mask and ignored class", "of examples"), ("two outputs", "of elements")}
COMBINED = [
    pytest.param(name, weights, marks=[] if (name, weights) in QUICK else pytest.mark.slow)
    for name in BESIDE_KERAS
    for weights in WEIGHTS
]


@pytest.mark.parametrize(("name", "weights"), COMBINED)
def test_is_what_keras_says_of_all_as_one_batch(tiny_module: Path, name: str, weights: str) -> None:
    masked, outputs, loss, metrics, weighted, shares = BESIDE_KERAS[name]
    code = TIMES.format(masked=masked, outputs=outputs, loss=loss, metrics=metrics, weighted=weighted, shares=shares)
    tiny_module.write_text(tiny_module.read_text() + code)
    module = hooks.load(str(tiny_module))
    tf_keras.utils.set_random_seed(0)
    model = module.build_model()
    module.compile_model(model)
    random = np.random.default_rng(3)
    count, steps = 24, 6
    words = random.integers(1, 5, [count, steps])
    for row, length in enumerate(random.integers(1, steps + 1, count)):
        words[row, length:] = 0
    binary = "sigmoid" in outputs or "Focal" in loss
    tags = (
        random.integers(0, 2, [count, steps, 1]).astype(np.float32) if binary else random.integers(0, 3, [count, steps])
    )
    level = random.normal(size=[count, steps, 1]).astype(np.float32)
    label: Any = [tags, level] if outputs.startswith("[") else level if outputs == LEVEL else tags
    shape = {"none": None, "of examples": [count], "of elements": [count, steps]}[weights]
    weight: Any = None if shape is None else random.uniform(0, 3, shape).astype(np.float32)
    given = [weight, weight] if outputs.startswith("[") and weight is not None else weight

    model.compiled_loss.build(model.output)  # whatever is built first, it is built alike
    expected = model.evaluate(words, label, sample_weight=given, batch_size=count, verbose=0, return_dict=True)
    predicted = model.predict(words, verbose=0)
    predicted = predicted if isinstance(predicted, list) else [predicted]
    own = CompiledMetrics(module)
    for split in ([count], [5, 1, 18]):
        states, begin = [], 0
        for size in split:
            rows = slice(begin, begin + size)
            masks = own.masks(tf.constant(words[rows], tf.int32))
            assert (masks[0] is not None) == masked
            parts = [output[rows] for output in predicted]
            states.append(own.batch(pick(label, rows), parts, None if weight is None else pick(given, rows), masks))
            begin += size
        result = own.result(reduce(add, states))
        assert set(expected) - set(result) <= {"tags_loss", "level_loss"}
        assert result == pytest.approx({key: expected[key] for key in result}, rel=1e-5)
    assert own.undefined(reduce(add, states)) == {}


FLAT = """
def build_model():
    return keras.Sequential([keras.Input([4], name="x"), keras.layers.Dense({size})])


def compile_model(model):
    model.compile("adam", {loss}, metrics=[{metrics}], weighted_metrics=[{weighted}])
"""

#: By name: numbers of an output, the loss, and what people measure beside it; `f` makes a metric of a loss's function.
#: Top-k accuracies take float32 alone, and compare exactly.
IN_FLOAT64 = {
    "numbers": (
        3, "keras.losses.Huber(0.5)",
        ("f(keras.losses.huber)", "f(keras.losses.mse)", "f(keras.losses.mae)", "f(keras.losses.mape)",
         "f(keras.losses.msle)", "f(keras.losses.log_cosh)", "f(keras.losses.poisson)", "m.CosineSimilarity()",
         "m.RootMeanSquaredError()", "m.R2Score()"),
    ),
    "one-hot": (
        4, "keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)",
        ("m.CategoricalAccuracy()", "m.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)",
         "m.CategoricalHinge()", "m.TopKCategoricalAccuracy(2, dtype='float32')",
         "f(keras.losses.categorical_focal_crossentropy)"),
    ),
    "one-hot probabilities": (
        4, "keras.losses.KLDivergence()",
        ("m.KLDivergence()", "m.CategoricalCrossentropy(label_smoothing=0.05)", "m.Precision(0.2, class_id=1)"),
    ),
    "tags": (
        3, "keras.losses.BinaryCrossentropy(label_smoothing=0.2)",
        ("m.BinaryAccuracy(threshold=0.4)", "m.BinaryCrossentropy(label_smoothing=0.1)", "m.Hinge()", "m.AUC()",
         "m.SquaredHinge()", "m.Precision()", "m.Recall()", "f(keras.losses.binary_focal_crossentropy)"),
    ),
    "class numbers": (
        4, "keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)",
        ("m.SparseCategoricalAccuracy()", "m.SparseTopKCategoricalAccuracy(2, dtype='float32')",
         "m.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)"),
    ),
}  # fmt: skip


def metrics_of(codes: tuple[str, ...], prefix: str) -> list[Any]:
    known: dict[str, Any] = {"keras": tf_keras, "m": tf_keras.metrics, "f": tf_keras.metrics.MeanMetricWrapper}
    found = []
    for number, code in enumerate(codes):
        metric = eval(code, known)
        metric._name = f"{prefix}{number}"
        found.append(metric)
    return found


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(kind, seed, marks=[] if (kind, seed) == ("class numbers", 0) else pytest.mark.slow)
        for kind in IN_FLOAT64
        for seed in (0, 1)
    ],
)
def test_losses_and_metrics_beside_keras_in_float64(tiny_module: Path, kind: str, seed: int) -> None:
    size, loss, codes = IN_FLOAT64[kind]
    random, count = np.random.default_rng(seed), 40
    scores = random.normal(size=[count, size]).astype(np.float32)
    classes, label = random.integers(0, size, count), random.uniform(0.5, 2, [count, size])
    if kind in ("numbers", "tags", "one-hot probabilities"):
        scores = 1 / (1 + np.exp(-scores))
    if kind == "one-hot probabilities":
        scores /= scores.sum(1, keepdims=True)
    if kind != "numbers":
        label = {"tags": (label > 1).astype(float), "class numbers": classes}.get(kind, np.eye(size)[classes])
    label = label.astype(np.int64 if kind == "class numbers" else np.float32)
    weight = random.uniform(0, 2, count).astype(np.float32)

    made = [[f"made({code!r}, '{prefix}{i}')" for i, code in enumerate(codes)] for prefix in ("plain", "weighted")]
    helper = """
def made(code, name):
    metric = eval(code, {"keras": keras, "m": keras.metrics, "f": keras.metrics.MeanMetricWrapper})
    metric._name = name
    return metric
"""
    code = FLAT.format(size=size, loss=loss, metrics=", ".join(made[0]), weighted=", ".join(made[1]))
    tiny_module.write_text(tiny_module.read_text() + helper + code)
    own = CompiledMetrics(hooks.load(str(tiny_module)))
    cuts = np.sort(random.choice(np.arange(1, count), 3, replace=False))
    states = [
        own.batch(tf.constant(label[rows]), [scores[rows]], tf.constant(weight[rows]))
        for rows in np.split(np.arange(count), cuts)
    ]
    result = own.result(reduce(add, states))

    wide = label if label.dtype == np.int64 else label.astype(np.float64)
    tf_keras.backend.set_floatx("float64")
    try:
        expected = {"loss": float(eval(loss, {"keras": tf_keras})(wide, scores.astype(np.float64), weight))}
        for prefix, weights in (("plain", None), ("weighted", weight.astype(np.float64))):
            for metric in metrics_of(codes, prefix):
                metric.update_state(wide, scores.astype(np.float64), weights)
                expected[metric.name] = float(metric.result())
    finally:
        tf_keras.backend.set_floatx("float32")
    assert result.keys() == expected.keys()
    assert result == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert np.isfinite(list(expected.values())).all()


def test_a_loss_under_a_mask_by_hand(tiny_module: Path) -> None:
    # labels 1, 2 and 0, which is ignored: the mean is over two elements, and not over three
    code = TIMES.format(
        masked=False,
        outputs=TAGS,
        loss=SPARSE_LOSS.format(", ignore_class=0"),
        metrics="[]",
        weighted="[]",
        shares="None",
    )
    tiny_module.write_text(tiny_module.read_text() + code)
    own = CompiledMetrics(hooks.load(str(tiny_module)))
    logits = np.log(np.float32([[[0.2, 0.5, 0.3], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]]))
    state = own.batch(tf.constant([[1, 2, 0]]), [logits])
    assert own.result(state)["loss"] == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2, rel=1e-6)
    nothing = own.batch(tf.constant([[0, 0, 0]]), [logits])
    assert np.isnan(own.result(nothing)["loss"])
    assert own.undefined(nothing) == {"loss": "no example counts: all have weight 0, or are masked or ignored"}
    assert own.result(state + nothing) == own.result(state)


LATE = """
def build_model():
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3, activation="sigmoid")])


def compile_model(model):
    late = [keras.metrics.AUC(multi_label=True, name="auc"), keras.metrics.FBetaScore("macro", name="f")]
    model.compile("adam", "binary_crossentropy", metrics=late)
"""


def test_metrics_that_make_their_variables_late(tiny_module: Path) -> None:
    label = RANDOM.integers(0, 2, [COUNT, 3]).astype(np.float32)
    case = make(tiny_module, LATE, label)
    states = [
        CompiledMetrics(case.module).batch(pick(label, rows), [case.outputs[0][rows]])
        for rows in (slice(7), slice(7, COUNT))
    ]
    reader = CompiledMetrics(case.module)  # as the process that merges
    reader.prepare(tf.constant(label[:2]), [case.outputs[0][:2]])
    assert reader.result(reduce(add, states)) == pytest.approx(case.expected, rel=1e-5)


ALL_KINDS = """
def build_model():
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(1, activation="sigmoid")])


def compile_model(model):
    m = keras.metrics
    model.compile("adam", "mse", metrics=[
        m.AUC(name="roc"), m.AUC(curve="PR", name="pr"), m.Precision(name="precision"), m.Recall(name="recall"),
        m.SensitivityAtSpecificity(0.5, name="sensitivity"), m.PrecisionAtRecall(0.5, name="precision_at"),
        m.BinaryIoU(target_class_ids=[1], name="iou"), m.R2Score(name="r2"),
    ])
"""


NO_POSITIVE, NO_NEGATIVE = "no example has a positive label", "no example has a negative label"
#: Labels, predictions, and which metrics have no value.
WITHOUT_A_VALUE: list[tuple[list[float], list[float], dict[str, str]]] = [
    ([0, 1], [0.2, 0.8], {}),
    (
        [0, 0],
        [0.2, 0.3],
        {
            **dict.fromkeys(("roc", "pr", "recall", "sensitivity", "precision_at"), NO_POSITIVE),
            "precision": "no example is predicted to be positive",
            "iou": "no element has one of the classes or is predicted to have one",
            "r2": "all labels are equal",
        },
    ),
    ([1, 1], [0.8, 0.3], {"roc": NO_NEGATIVE, "sensitivity": NO_NEGATIVE, "r2": "all labels are equal"}),
    ([0, 1], [0.2, 0.3], {"precision": "no example is predicted to be positive"}),
]


def test_nothing_by_nothing_is_no_value(tiny_module: Path) -> None:
    tiny_module.write_text(tiny_module.read_text() + ALL_KINDS)
    metrics = CompiledMetrics(hooks.load(str(tiny_module)))
    for labels, predicted, expected in WITHOUT_A_VALUE:
        state = metrics.batch(tf.constant(labels, tf.float32)[:, None], [np.float32(predicted)[:, None]])
        assert metrics.undefined(state) == expected
        assert {name for name, value in metrics.result(state).items() if np.isnan(value)} == set(expected)


def test_a_tag_without_examples_leaves_the_mean_over_tags_without_a_value(tiny_module: Path) -> None:
    case = make(tiny_module, LATE, RANDOM.integers(0, 2, [COUNT, 3]).astype(np.float32))
    label = case.label.copy()
    label[:, 1] = 0
    metrics = CompiledMetrics(case.module)
    assert metrics.undefined(metrics.batch(tf.constant(label), case.outputs)) == {
        "auc": "no example has a positive label of tag 1"
    }
