from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from edgeline.conversion import converter
from edgeline.errors import UserError
from edgeline.keras_models import quantization_aware
from edgeline.tflite import inspection, litert

_L = tf_keras.layers
SLOW = pytest.mark.slow


def wrap(model: tf_keras.Model, keep_float: Sequence[str] = ()) -> tuple[tf_keras.Model, dict[str, str]]:
    """Returns the wrapped model and, by name, why layers stay float."""
    prepared = quantization_aware.prepared(model)
    reasons = quantization_aware.reasons(prepared, keep_float)
    chosen = [name for name, why in reasons.items() if why is None]
    return quantization_aware.wrap(prepared, chosen), {name: why for name, why in reasons.items() if why is not None}


def converted(
    model: tf_keras.Model,
    samples: np.ndarray,
    keep_float: Sequence[str] = (),
    io_type: str = "float32",
    batch: Any = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Wraps and converts a model; returns the file's facts, after comparing its outputs with the wrapped model's."""
    wrapped, left_float = wrap(model, keep_float)
    wrapped(samples, training=True)  # the ranges
    io = {
        "inputs": [{"name": "x", "shape": [batch, *samples.shape[1:]], "dtype": "float32"}],
        "outputs": [{"name": "y"}],
    }
    content = converter.convert(wrapped, io, {"scheme": "qat8", "io_type": io_type}, {})
    received = litert.TFLiteModel(content).run({"x": samples}, 1)["y"]
    expected = wrapped(samples, training=False).numpy()
    # a few of the 256 steps of the output's range; where rounding falls the other way early on it may be more
    assert np.mean(np.abs(received - expected) <= 4 * np.ptp(expected) / 255) > 0.99
    return inspection.facts(content), left_float


def float_ops(facts: dict[str, Any]) -> set[str]:
    return {op["op"] for op in facts["float_ops"]} - {"QUANTIZE", "DEQUANTIZE"}


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, [count, 8, 8, 4]).astype(np.float32)


def sequential(*layers: Any, shape: Sequence[int] = (8, 8, 4)) -> tf_keras.Model:
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential([tf_keras.Input(shape, name="x"), *layers])


def norm(**kwargs: Any) -> tf_keras.layers.Layer:
    random = tf_keras.initializers.RandomUniform(0.5, 1.5, seed=1)
    return _L.BatchNormalization(
        gamma_initializer=random, beta_initializer=random, moving_mean_initializer=random,
        moving_variance_initializer=random, **kwargs,
    )  # fmt: skip


# everything that has an integer operator ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "ops"),
    [
        pytest.param([_L.Conv2D(3, 3), norm(), _L.ReLU()], {"CONV_2D": 1}, id="conv"),
        pytest.param(
            [_L.DepthwiseConv2D(3), norm(), _L.ReLU(6.0)], {"DEPTHWISE_CONV_2D": 1}, marks=SLOW, id="depthwise"
        ),
        pytest.param([norm(), _L.ReLU(), _L.Conv2D(3, 1)], {"DEPTHWISE_CONV_2D": 1, "CONV_2D": 1}, id="norm"),
        pytest.param([_L.Rescaling(2.0, -1.0)], {"DEPTHWISE_CONV_2D": 1}, marks=SLOW, id="rescaling"),
        pytest.param(
            [_L.Normalization(mean=[1, 0, 0, 2], variance=[1, 2, 3, 4])],
            {"DEPTHWISE_CONV_2D": 1},
            marks=SLOW,
            id="normalization",
        ),
        pytest.param(
            [_L.SeparableConv2D(3, 3, activation="swish"), norm(), _L.ReLU()],
            {"DEPTHWISE_CONV_2D": 2, "CONV_2D": 1, "LOGISTIC": 1, "MUL": 1},
            id="separable with swish",
        ),
        pytest.param(
            [_L.Reshape([64, 4]), _L.Conv1D(3, 5, activation="relu"), norm()],
            {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1},
            id="conv1d",
        ),
        pytest.param(
            [_L.Conv2DTranspose(3, 3), _L.GlobalAveragePooling2D(), _L.Dense(3)],
            {"TRANSPOSE_CONV": 1, "MEAN": 1, "FULLY_CONNECTED": 1},
            marks=SLOW,
            id="transpose",
        ),
        pytest.param(
            [_L.Flatten(), _L.Dense(3), norm(), _L.Dense(2, activation="softmax")],
            {"FULLY_CONNECTED": 2, "SOFTMAX": 1},
            marks=SLOW,
            id="dense",
        ),
    ],
)
def test_integer_operators_alone(layers: list[Any], ops: dict[str, int]) -> None:
    layers = [type(layer).from_config(layer.get_config()) for layer in layers]
    facts, left_float = converted(sequential(*layers), images())
    assert left_float == {}
    assert facts["float_ops"] == []
    assert facts["violations"] == []
    found = Counter(facts["ops"]["builtin"])
    assert {name: found[name] for name in ops} == ops


def test_hard_swish_is_one_operator_and_its_gate_alone_is_too() -> None:
    x = tf_keras.Input([8, 8, 4], name="x")
    y = _L.Conv2D(4, 1)(x)
    swish = _L.Multiply()([y, _L.ReLU(6.0)(y + 3.0) * (1.0 / 6.0)])
    gate = _L.ReLU(6.0)(_L.Conv2D(4, 1)(swish) + 3.0) * (1.0 / 6.0)
    facts, left_float = converted(tf_keras.Model(x, _L.Multiply()([swish, gate])), images())
    assert left_float == {}
    assert facts["float_ops"] == []
    assert facts["ops"]["builtin"]["HARD_SWISH"] == 1


def test_what_is_joined_has_one_range() -> None:
    x = tf_keras.Input([8, 8, 4], name="x")
    first = _L.Concatenate()([_L.Conv2D(4, 1)(x), _L.Conv2D(4, 1)(x)])
    second = _L.Concatenate()([first, _L.Conv2D(4, 1)(norm()(first))])
    facts, _ = converted(tf_keras.Model(x, _L.Conv2D(2, 1)(second)), images())
    assert facts["float_ops"] == []
    assert facts["ops"]["builtin"]["QUANTIZE"] == 1  # the input's: nothing is rounded twice


@SLOW
def test_models_within_the_model() -> None:
    inner = sequential(_L.Conv2D(4, 3), norm(), _L.ReLU())
    facts, left_float = converted(sequential(inner, _L.Flatten(), _L.Dense(3)), images())
    assert left_float == {}
    assert facts["float_ops"] == []


# what stays float -----------------------------------------------------------------------------------------------------


@SLOW
@pytest.mark.parametrize(
    ("kind", "ops"), [("LSTM", {"UNIDIRECTIONAL_SEQUENCE_LSTM", "ELU"}), ("GRU", {"LOGISTIC", "TANH", "ELU"})]
)
def test_layers_without_an_integer_operator_stay_float(kind: str, ops: set[str]) -> None:
    model = sequential(
        _L.Conv1D(4, 3, name="conv"), getattr(_L, kind)(4, name="memory"), _L.Dense(4, activation="elu", name="dense"),
        _L.LayerNormalization(name="norm"), _L.Dense(3, name="logits"), shape=(12, 4),
    )  # fmt: skip
    samples = np.random.default_rng(0).uniform(-1, 1, [16, 12, 4]).astype(np.float32)
    facts, left_float = converted(model, samples, batch=1)
    assert left_float == {"memory": kind, "dense_activation": "Activation elu", "norm": "LayerNormalization"}
    assert ops <= float_ops(facts)
    assert "CONV_2D" not in float_ops(facts)
    assert [w["dtype"] for w in facts["weights"] if w["shape"] == [3, 4]] == ["int8"]  # of the logits


@SLOW
def test_attention_stays_float() -> None:
    x = tf_keras.Input([6, 4], name="x")
    y = _L.Dense(4, name="before")(x)
    y = _L.MultiHeadAttention(2, 2, name="attention")(y, y)
    model = tf_keras.Model(x, _L.Dense(3, name="after")(_L.Flatten(name="flatten")(y)))
    samples = np.random.default_rng(0).uniform(-1, 1, [16, 6, 4]).astype(np.float32)
    facts, left_float = converted(model, samples)
    assert left_float == {"attention": "MultiHeadAttention"}
    assert [w["dtype"] for w in facts["weights"] if "after" in w["name"] and "MatMul" in w["name"]] == ["int8"]


@pytest.mark.parametrize("io_type", [pytest.param("float32", marks=SLOW), "int8", pytest.param("uint8", marks=SLOW)])
def test_kept_layers_stay_float_with_what_they_include(io_type: str) -> None:
    model = sequential(
        _L.Conv2D(4, 3, name="first"), _L.Conv2D(4, 3, name="kept"), norm(name="norm"), _L.ReLU(name="relu"),
        _L.Conv2D(2, 1, name="last"),
    )  # fmt: skip
    facts, left_float = converted(model, images(), ["k*"], io_type)
    assert left_float == dict.fromkeys(["kept", "norm", "relu"], "keep_float")
    kernels = {w["shape"][0]: w["dtype"] for w in facts["weights"] if len(w["shape"]) == 4}
    assert Counter(w["dtype"] for w in facts["weights"] if len(w["shape"]) == 4) == {"int8": 2, "float32": 1}, kernels
    assert float_ops(facts) == {"CONV_2D", "LEAKY_RELU"}
    assert facts["inputs"][0]["dtype"] == facts["outputs"][0]["dtype"] == io_type


def test_a_pattern_that_matches_nothing() -> None:
    prepared = quantization_aware.prepared(sequential(_L.Conv2D(4, 3, name="conv")))
    with pytest.raises(UserError, match=r"Quantize.keep_float: 'dense\*' matches no layer; the model has conv$"):
        quantization_aware.reasons(prepared, ["dense*"])


def test_other_reasons() -> None:
    x = tf_keras.Input([8, 8, 4], name="x")
    y = _L.BatchNormalization(axis=1, name="rows")(x)
    y = tf.math.exp(y)
    y = _L.Lambda(lambda t: t + 1, name="own")(y)
    reasons = quantization_aware.reasons(quantization_aware.prepared(tf_keras.Model(x, y)))
    assert reasons == {
        "rows": "BatchNormalization over other axes than the last one", "tf.math.exp": "operator tf.math.exp",
        "own": "Lambda",
    }  # fmt: skip


class Own(tf_keras.layers.Layer):
    """A layer of the user's own."""


def test_sequence_models_are_never_refused() -> None:
    """What tfmot refuses a whole model for is a reason for one layer, and only where it has no integer operator."""
    x = tf_keras.Input([6], dtype=tf.int32, name="x")
    y = _L.Embedding(20, 4, name="embedding")(x)
    y = _L.Conv1D(4, 3, name="conv")(y)
    y = _L.LayerNormalization(name="norm")(y)
    y = _L.MultiHeadAttention(2, 2, name="attention")(y, y)
    y = _L.GRU(4, return_sequences=True, name="gru")(y)
    y = _L.LSTM(4, name="lstm")(y)
    y = _L.Rescaling(2.0, name="rescaling")(y)
    y = _L.Normalization(mean=0.0, variance=1.0, name="normalization")(y)
    y = _L.BatchNormalization(name="batch")(y)
    inner = tf_keras.Sequential([tf_keras.Input([4]), Own(name="own"), _L.Dense(3, name="within")], name="inner")
    wrapped, left_float = wrap(tf_keras.Model(x, inner(y) * 2.0))
    assert left_float == {
        "embedding": "Embedding", "norm": "LayerNormalization", "attention": "MultiHeadAttention", "gru": "GRU",
        "lstm": "LSTM", "own": "Own",
    }  # fmt: skip
    quantized = {layer.name.removeprefix("quant_") for layer in wrapped.layers if layer.name.startswith("quant_")}
    assert quantized == {"conv", "rescaling", "normalization", "batch", "within", "tf.math.multiply"}


# what is simulated ----------------------------------------------------------------------------------------------------


def test_the_same_layers_are_rounded_as_by_tfmot() -> None:
    model = sequential(
        _L.Conv2D(4, 3, name="a"), norm(name="b"), _L.ReLU(name="c"), _L.DepthwiseConv2D(3, name="d"), norm(name="e"),
        _L.Flatten(name="f"), _L.Dense(3, activation="relu", name="g"), _L.Dense(3, name="h"),
    )  # fmt: skip
    stock = tfmot.quantization.keras.quantize_model(model)
    ours, _ = wrap(model)

    def ranged(net: tf_keras.Model) -> set[str]:
        names = {w.name for layer in net.layers for w in layer.non_trainable_weights}
        return {name.partition("/")[0] for name in names if name.endswith(("output_max:0", "activation_max:0"))}

    assert ranged(ours) == ranged(stock) == {"quant_c", "quant_e", "quant_g", "quant_h"}


def test_weights_are_rounded_by_output_channel() -> None:
    grid = quantization_aware.Grid((0, 1))
    kernel = tf.Variable(np.float32([[[[1.27], [254.0]], [[0.0], [3.1]], [[-0.636], [0.0]]]]))  # depthwise, 2 channels
    with tf.GradientTape() as tape:
        rounded = grid(kernel, True, {})
    # steps of 0.01 and 2
    np.testing.assert_allclose(rounded, [[[[1.27], [254]], [[0], [4]], [[-0.64], [0]]]], rtol=1e-6)
    np.testing.assert_array_equal(tape.gradient(rounded, kernel), tf.ones_like(kernel))
    np.testing.assert_array_equal(grid(tf.zeros([2, 2, 3, 1]), True, {}), tf.zeros([2, 2, 3, 1]))


def test_a_range_starts_at_the_first_batch_and_moves_slowly() -> None:
    holder = _L.Layer()
    quantizer = quantization_aware.Range()
    variables = quantizer.build(None, "r", holder)
    quantizer(tf.constant([0.5, 51.0]), True, variables)
    assert [float(variables[key]) for key in ("min_var", "max_var")] == [0, 51]
    quantizer(tf.constant([-10.0, 53.0]), True, variables)
    assert [float(variables[key]) for key in ("min_var", "max_var")] == [-5, 52]
    np.testing.assert_allclose(quantizer(tf.constant([99.0, -99.0]), False, variables), [52, -5], atol=0.2)
    assert float(variables["max_var"]) == 52


def test_preparing_changes_no_output() -> None:
    model = sequential(
        _L.SeparableConv2D(6, 3, strides=2, activation="swish", name="pair"), _L.Conv2D(3, 2, activation="tanh")
    )
    prepared = quantization_aware.prepared(model)
    np.testing.assert_allclose(prepared(images()), model(images()), atol=1e-6)
    assert [layer.name for layer in prepared.layers][1:4] == ["pair_depthwise", "pair", "pair_activation"]


def test_a_frozen_normalization_stays_frozen_and_its_range_is_learned() -> None:
    inner = sequential(norm(name="norm"))
    x = tf_keras.Input([8, 8, 4], name="x")
    wrapped, _ = wrap(tf_keras.Model(x, _L.Conv2D(2, 1)(inner(x, training=False))))
    layer = wrapped.get_layer("quant_norm")
    before = [w.numpy() for w in layer.layer.layer.weights]
    wrapped(images(), training=True)
    for was, now in zip(before, layer.layer.layer.weights, strict=True):
        np.testing.assert_array_equal(was, now)
    [seen] = [w for w in layer.weights if "batches" in w.name]
    assert seen == 1
