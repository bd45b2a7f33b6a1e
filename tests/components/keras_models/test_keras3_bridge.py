from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline import layout
from edgeline.errors import UserError
from edgeline.keras_models import keras3_bridge
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.training import loop

layers, ops = keras.layers, keras.ops


def sequential(shape: list[int | None], *parts: Any, **options: Any) -> Any:
    return keras.Sequential([keras.Input(shape, **options), *parts])


def convolutions() -> Any:
    return sequential(
        [8, 8, 3],
        layers.Rescaling(1 / 255),
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01)),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3, use_bias=False),
        layers.SeparableConv2D(5, 2, activation="silu"),
        layers.Conv2DTranspose(3, 2, strides=2),
        layers.Cropping2D(1),
        layers.LeakyReLU(0.1),
        layers.PReLU(),
        layers.UpSampling2D(2),
        layers.MaxPooling2D(2),
        layers.AveragePooling2D(2, padding="same"),
        layers.SpatialDropout2D(0.1),
        layers.RandomFlip("horizontal"),
        layers.Resizing(4, 4),
        layers.Permute((2, 1, 3)),
        layers.Reshape((8, -1)),
        layers.Conv1D(3, 3, padding="causal"),
        layers.Flatten(),
        layers.Dropout(0.2),
        layers.Dense(3, activation="softmax", kernel_constraint=keras.constraints.MaxNorm(2)),
    )


def recurrent() -> Any:
    return sequential(
        [6],
        layers.Embedding(10, 4, mask_zero=True),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(4, return_sequences=True, reset_after=False),
        layers.GRU(4),
        layers.Dense(2),
    )


def time_distributed() -> Any:
    inner = layers.TimeDistributed(layers.Conv2D(2, 3))
    return sequential([None, 6, 6, 1], inner, layers.TimeDistributed(layers.Flatten()), layers.SimpleRNN(3))


def normalizations() -> Any:
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(5, 3, [100, 4]))
    return sequential(
        [4],
        normalization,
        layers.Dense(6),
        layers.LayerNormalization(),
        layers.GroupNormalization(3),
        layers.UnitNormalization(),
    )


def activations() -> Any:
    # of these Keras 2 lacks some, and its hard_sigmoid is another function
    names = ["hard_silu", "hard_sigmoid", "leaky_relu", "relu6", "gelu", "selu", "log_softmax"]
    return sequential([4], *(layers.Dense(5, activation=name) for name in names), layers.Activation("hard_sigmoid"))


def several_inputs_and_outputs() -> Any:
    a, b = keras.Input([4], name="a"), keras.Input([3], name="b")
    shared = layers.Dense(5, activation="tanh", name="shared")
    joined = layers.Concatenate()([a, b])
    total = layers.Add(name="total")([shared(joined), shared(joined * 2.0), layers.Dense(5)(a)])
    return keras.Model([a, b], [total, layers.Dense(2, name="scores")(ops.relu(total) - 1.0)])


def dictionaries() -> Any:
    model = several_inputs_and_outputs()
    total, scores = model.outputs
    return keras.Model(dict(zip("ab", model.inputs, strict=True)), {"total": total, "scores": scores})


def nested() -> Any:
    base = keras.Sequential(
        [keras.Input([8, 8, 3]), layers.Conv2D(3, 3, name="conv"), layers.BatchNormalization()], name="base"
    )
    base.trainable = False
    image = keras.Input([8, 8, 3], name="image")
    first = base(layers.Conv2D(3, 1, name="conv")(image), training=False)
    pooled = layers.GlobalAveragePooling2D()(first * base(image))
    return keras.Model(image, layers.Dense(2, name="logits")(pooled))


def attention() -> Any:
    query, key = keras.Input([5, 8], name="query"), keras.Input([7, 8], name="key")
    x = layers.LayerNormalization()(query + layers.MultiHeadAttention(2, 4)(query, key))
    return keras.Model([query, key], layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))


def masked_attention() -> Any:
    tokens = keras.Input([6], dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(tokens)
    return keras.Model(tokens, layers.GlobalAveragePooling1D()(x + layers.MultiHeadAttention(2, 4)(x, x)))


def operations() -> Any:
    image = keras.Input([6, 6, 2])
    x = ops.transpose(ops.reshape(image, (-1, 12, 6)), (0, 2, 1))[:, 1:4, :]
    x = ops.mean(x, axis=-1, keepdims=True)
    x = ops.clip(ops.sigmoid(x) / 2.0 + 0.1, 0.2, 0.9)
    x = ops.squeeze(ops.concatenate([x, ops.square(x), -x], axis=1), -1)
    x = ops.softmax(ops.where(x > 0.1, ops.maximum(x, 0.3), ops.exp(x)))
    return keras.Model(image, ops.stack([x, ops.max(x, axis=-1, keepdims=True) * x], axis=1))


KINDS: list[Callable[[], Any]] = [
    convolutions, recurrent, time_distributed, normalizations, activations, several_inputs_and_outputs, dictionaries,
    nested, attention, masked_attention, operations,
]  # fmt: skip

SLOW = {recurrent: pytest.mark.slow}


def randomise(model: Any) -> Any:
    """Fresh weights prove little: BatchNormalization's statistics are 0 and 1, biases 0."""
    draw = np.random.default_rng(1)
    for weight in model.weights:
        name = weight.path.split("/")[-1]
        if name in ("gamma", "moving_variance"):
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
        elif name not in ("mean", "variance", "count"):
            weight.assign(draw.normal(size=weight.shape) * 0.3)
    return model


def build(kind: Callable[[], Any]) -> Any:
    keras.utils.clear_session()
    tf_keras.backend.clear_session()
    return randomise(kind())


def feeds(model: Any) -> list[np.ndarray]:
    shapes = [[3, *(5 if n is None else n for n in tensor.shape[1:])] for tensor in model.inputs]
    return [
        np.random.default_rng(7).integers(1, 10, s).astype(t.dtype) for s, t in zip(shapes, model.inputs, strict=True)
    ]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=SLOW.get(kind, ())) for kind in KINDS], ids=lambda k: k.__name__
)
def test_the_twin_does_what_the_original_does(kind: Callable[[], Any], tmp_path: Path) -> None:
    model = build(kind)
    twin = keras3_bridge.convert(model)
    values = feeds(model)
    given = dict(zip("ab", values, strict=True)) if kind is dictionaries else values
    expected = keras.tree.flatten(model(given if len(values) > 1 else values[0], training=False))
    assert isinstance(twin, tf_keras.Model)
    assert [tensor.shape.as_list() for tensor in twin.inputs] == [list(tensor.shape) for tensor in model.inputs]
    assert twin.input_names == [tensor._keras_history.operation.name for tensor in model.inputs]
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    assert twin.output_names == (["activation_output"] if kind is activations else names)
    # as every later step will see it
    keras_file.save(twin, str(tmp_path))
    loaded = tf_keras.models.load_model(tmp_path / layout.KERAS_FILE, safe_mode=True)
    for again in (twin, loaded):
        outputs = tf.nest.flatten(again(values if len(values) > 1 else values[0], training=False))
        for want, got in zip(expected, outputs, strict=True):
            assert np.ptp(want) > 1e-3
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_layers_keep_what_training_needs() -> None:
    twin = keras3_bridge.convert(build(convolutions))
    assert twin.get_layer("conv2d").kernel_regularizer.l2 == pytest.approx(0.01)
    assert twin.get_layer("dense").kernel_constraint.max_value == 2
    assert twin.get_layer("dropout").rate == pytest.approx(0.2)
    assert type(twin.get_layer("random_flip")) is tf_keras.layers.RandomFlip


def test_nested_models_dissolve_into_their_layers() -> None:
    twin = keras3_bridge.convert(build(nested))
    names = [layer.name for layer in twin.layers]
    assert names == [
        "image", "conv", "base_conv", "batch_normalization", "multiply", "global_average_pooling2d", "logits",
    ]  # fmt: skip
    # called twice, and the same; frozen, as the nested model was
    assert len(twin.get_layer("base_conv").inbound_nodes) == 2
    assert [layer.trainable for layer in twin.layers] == [True, True, False, False, True, True, True]


def test_masks_are_left_to_tf_keras() -> None:
    twin = keras3_bridge.convert(build(recurrent))
    kinds = [type(layer).__name__ for layer in twin.layers]
    assert kinds == ["InputLayer", "Embedding", "Bidirectional", "GRU", "GRU", "Dense"]


@pytest.mark.parametrize(
    ("kind", "name"), [(nested, "m.keras"), (masked_attention, "m.keras"), (normalizations, "m.h5")]
)
def test_a_file_of_keras_3(tmp_path: Path, kind: Callable[[], Any], name: str) -> None:
    model = build(kind)
    model.save(tmp_path / name)
    twin = keras3_bridge.convert(keras3_bridge.load(str(tmp_path / name)))
    [values] = feeds(model)
    np.testing.assert_allclose(twin(values), model(values), atol=1e-5 * np.abs(model(values)).max())
    assert [layer.name for layer in twin.layers] == [layer.name for layer in keras3_bridge.convert(model).layers]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "MobileNetV3Small", "DenseNet121"])
def test_published_architectures(name: str) -> None:
    keras.utils.clear_session()
    model = getattr(keras.applications, name)(weights=None, classes=10, input_shape=[64, 64, 3])
    draw = np.random.default_rng(1)
    for weight in model.weights:
        kind = weight.path.split("/")[-1]
        if kind in ("gamma", "moving_variance"):
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
        elif kind in ("beta", "moving_mean"):
            weight.assign(draw.normal(size=weight.shape) * 0.1)
    twin = keras3_bridge.convert(model)
    assert twin.count_params() == model.count_params()
    images = draw.uniform(0, 255, [2, 64, 64, 3]).astype(np.float32)
    np.testing.assert_allclose(twin(images, training=False), model(images, training=False), atol=1e-5)


# what cannot be rebuilt -----------------------------------------------------------------------------------------------


class Own(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


class Subclassed(keras.Model):
    def call(self, x: Any) -> Any:
        return x


def test_all_layers_without_a_twin_are_listed_with_the_reasons() -> None:
    keras.utils.clear_session()
    model = sequential(
        [4],
        layers.RMSNormalization(name="norm"),
        layers.Dense(3, activation="squareplus", name="plus"),
        layers.Lambda(lambda x: 2 * x, name="twice"),
        layers.Dense(3, name="known"),
        *(Own(name=f"own{i}") for i in range(5)),
        layers.Reshape([3, 1]),
        layers.TimeDistributed(layers.Dense(3, activation="squareplus"), name="each"),
    )
    with pytest.raises(UserError) as error:
        keras3_bridge.convert(model, "the Keras 3 model m.keras")
    message = str(error.value)
    assert message.startswith("the Keras 3 model m.keras has 9 layers or operations without a twin in tf-keras:\n")
    for line in (
        "  norm: RMSNormalization: Keras 2 has no such layer\n",
        "  plus: Dense: tf-keras has no activation 'squareplus' that means the same inside this layer\n",
        "  twice: Lambda: holds Python code of its own; use layers or keras.ops in its place\n",
        "  own0, own1, own2 and 2 more: Own: a class of its own, not one of Keras' layers\n",
        "  each: TimeDistributed: tf-keras has no activation 'squareplus' that means the same inside this layer\n",
    ):
        assert line in message
    assert "known" not in message


def test_an_option_without_a_twin() -> None:
    x = keras.Input([4, 4])
    with pytest.raises(UserError, match="attention: MultiHeadAttention: tf-keras has no option sliding_window=2"):
        keras3_bridge.convert(keras.Model(x, layers.MultiHeadAttention(2, 4, sliding_window=2, name="attention")(x, x)))


def test_an_operation_without_a_twin() -> None:
    x = keras.Input([4, 4])
    with pytest.raises(UserError, match="trace: Trace: an operation that Edgeline does not know"):
        keras3_bridge.convert(keras.Model(x, ops.trace(x, axis1=1, axis2=2)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Subclassed(), "is Subclassed; only Sequential and functional Keras 3 models can be rebuilt"),
        (lambda: keras.Sequential([layers.Dense(3)]), r"without an input shape; .*Begin it with keras.Input\(shape\)"),
    ],
)
def test_models_without_a_graph(model: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        keras3_bridge.convert(model())


def test_a_twin_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(tf_keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    class Thrice(tf_keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 3 * x

    model = sequential([4], layers.Dense(3, name="dense"), Own(name="own"))
    monkeypatch.setitem(tf_keras.utils.get_custom_objects(), "Own", Twice)
    values = np.ones([2, 4], np.float32)
    np.testing.assert_allclose(keras3_bridge.convert(model)(values), model(values), rtol=1e-5)
    # nothing is taken on trust
    monkeypatch.setitem(tf_keras.utils.get_custom_objects(), "Own", Thrice)
    with pytest.raises(UserError, match=r"what comes out of own differs by 0.5 of its largest .*; it begins at own"):
        keras3_bridge.convert(model)


def test_a_model_that_proves_nothing() -> None:
    x = keras.Input([4])
    with pytest.raises(UserError, match="returns NaN or infinity for random inputs"):
        keras3_bridge.convert(keras.Model(x, ops.sqrt(-ops.square(x) - 1.0)))


# as a model module writes it ------------------------------------------------------------------------------------------

MODULE = """
import keras
import tensorflow as tf


def feature_spec():
    return {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["y"]


def build_model():
    return keras.Sequential([keras.Input([4], name="x"), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])


def compile_model(model):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 100, 0.9)
    model.compile(
        keras.optimizers.Adam(schedule, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
"""


def test_a_module_may_be_written_with_keras_3(tmp_path: Path) -> None:
    path = tmp_path / "modern.py"
    path.write_text(MODULE)
    module = hooks.load(str(path))
    loop.start(3)
    first = module.build_model()
    loop.start(3)
    model = module.build_model()
    assert [layer.name for layer in model.layers] == [layer.name for layer in first.layers] == ["x", "dense", "dense_1"]
    for one, two in zip(first.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    module.compile_model(model)
    assert isinstance(model.optimizer, tf_keras.optimizers.Adam)
    assert isinstance(model.optimizer._learning_rate, tf_keras.optimizers.schedules.ExponentialDecay)
    assert model.optimizer.clipnorm == 1.0
    assert isinstance(model.loss, tf_keras.losses.SparseCategoricalCrossentropy)
    assert model.loss.get_config()["from_logits"] is True
    x = np.random.default_rng(0).normal(size=[256, 4]).astype(np.float32)
    history = model.fit(x, x.argmax(1) % 3, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] / 2
    assert set(history) == {"loss", "accuracy", "top2"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: keras.optimizers.Muon(), "Muon of Keras 3: tf-keras has no optimizers Muon; use tf_keras'"),
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=4),
            "Adam of Keras 3: tf-keras has no option gradient_accumulation_steps=4",
        ),
    ],
)
def test_what_cannot_be_compiled(value: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        keras3_bridge.compile_arguments({"optimizer": value()})


def test_other_arguments_of_compile_come_back() -> None:
    loss = tf_keras.losses.MeanSquaredError()
    given = {"optimizer": "adam", "loss": {"a": loss}, "metrics": [["accuracy"], None], "jit_compile": False}
    received = keras3_bridge.compile_arguments(given)
    assert received == given
    assert received["loss"]["a"] is loss
    assert keras3_bridge.compile_arguments(keras.losses.mean_squared_error) == "mean_squared_error"


@pytest.mark.slow
def test_keras_3_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, edgeline.keras_models.keras3_bridge\nprint('keras' in sys.modules, 'keras.src' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["False", "False"]
