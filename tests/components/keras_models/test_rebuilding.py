from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline.keras_models import rebuilding

_L = tf_keras.layers


def check(model: tf_keras.Model, *inputs: Any) -> tf_keras.Model:
    """Returns the flat model, after comparing outputs in inference and training, and checking that it can be saved."""
    flat = rebuilding.flatten(model)
    assert not rebuilding.is_nested(flat)
    assert flat.output_names == model.output_names
    assert flat.input_names == model.input_names
    expected, found = (tf.nest.flatten(net(*inputs, training=False)) for net in (model, flat))
    for want, got in zip(expected, found, strict=True):
        np.testing.assert_array_equal(want, got)
    again = tf_keras.models.clone_model(flat)
    assert [layer.name for layer in again.layers] == [layer.name for layer in flat.layers]
    return flat


def names(model: tf_keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


@pytest.fixture
def base() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    layers = [tf_keras.Input([8, 8, 3]), _L.Conv2D(4, 3, name="conv"), _L.BatchNormalization(name="norm")]
    model = tf_keras.Sequential(layers, name="base")
    model.get_layer("norm").moving_mean.assign([0.5, -1, 2, 0])
    return model


IMAGES = np.random.default_rng(0).uniform(size=[2, 8, 8, 3]).astype(np.float32)


def test_layers_keep_their_names_where_they_are_unique(base: tf_keras.Model) -> None:
    image = tf_keras.Input([8, 8, 3], name="image")
    model = tf_keras.Model(image, _L.Dense(3, name="conv")(_L.Flatten(name="flat")(base(image))))
    assert rebuilding.is_nested(model)
    flat = check(model, IMAGES)
    assert names(flat) == ["image", "base_conv", "norm", "flat", "conv"]
    # its layers are its own
    flat.get_layer("conv").kernel.assign_add(tf.ones_like(flat.get_layer("conv").kernel))
    assert not np.array_equal(flat.get_layer("conv").kernel, model.get_layer("conv").kernel)


def test_models_within_models(base: tf_keras.Model) -> None:
    outer = tf_keras.Sequential([base, _L.ReLU(name="relu")], name="outer")
    image = tf_keras.Input([8, 8, 3], name="image")
    flat = check(tf_keras.Model(image, outer(image)), IMAGES)
    assert names(flat) == ["image", "conv", "norm", "relu", "outer"]
    assert flat.get_layer("outer").activation is tf_keras.activations.linear


def test_a_model_used_twice_keeps_one_set_of_weights(base: tf_keras.Model) -> None:
    one, two = (tf_keras.Input([8, 8, 3], name=name) for name in ("one", "two"))
    model = tf_keras.Model({"one": one, "two": two}, [base(one) - base(two), base(one)])
    flat = check(model, {"one": IMAGES, "two": IMAGES + 1})
    assert flat.count_params() == model.count_params() == base.count_params()
    assert names(flat).count("conv") == 1


def test_a_frozen_model_stays_frozen(base: tf_keras.Model) -> None:
    image = tf_keras.Input([8, 8, 3], name="image")
    flat = check(tf_keras.Model(image, base(image, training=False)), IMAGES)
    np.testing.assert_array_equal(flat(IMAGES, training=True), flat(IMAGES, training=False))
    base.trainable = False
    flat = check(tf_keras.Model(image, base(image)), IMAGES)
    assert not flat.trainable_weights


def test_several_inputs_and_outputs_and_operators() -> None:
    a, b = tf_keras.Input([4], name="a"), tf_keras.Input([4], name="b")
    inner = tf_keras.Model([a, b], [a * 2 + b, _L.Dense(2, name="dense")(a)], name="inner")
    x, y = tf_keras.Input([4], name="x"), tf_keras.Input([4], name="y")
    joined, reduced = inner([y, x])
    model = tf_keras.Model([x, y], [tf.concat([joined, x], -1), reduced])
    check(model, [np.float32([[1, 2, 3, 4]]), np.float32([[5, 6, 7, 8]])])


def test_a_normalization_computes_with_its_own_statistics() -> None:
    norm = _L.Normalization(name="norm")
    norm.adapt(np.float32([[1], [3]]))
    inner = tf_keras.Sequential([tf_keras.Input([1]), norm], name="inner")
    image = tf_keras.Input([1], name="x")
    flat = check(tf_keras.Model(image, inner(image)), np.float32([[5]]))
    np.testing.assert_allclose(flat(np.float32([[5]])), [[3]], rtol=1e-6)  # (5 - 2) / 1


def test_a_subclassed_model_stays_one_layer() -> None:
    class Own(tf_keras.Model):
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.dense = _L.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def get_config(self) -> dict[str, Any]:
            return {"name": self.name}

    x = tf_keras.Input([3], name="x")
    model = tf_keras.Model(x, Own(name="own")(x))
    assert not rebuilding.is_nested(model)
    assert names(check(model, np.float32([[1, 2, 3]]))) == ["x", "own"]
