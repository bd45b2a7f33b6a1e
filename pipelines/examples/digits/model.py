"""A small CNN on scikit-learn's digits: `edgeline data digits DIR`."""

import tensorflow as tf
import tf_keras as keras


def feature_spec():
    """Each example holds 64 raw uint8 pixels (0 to 16) and a label."""
    return {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    """Scales the pixels to float32 in [0, 1], shape [batch, 8, 8, 1]."""
    pixels = tf.io.decode_raw(features["image"], tf.uint8, fixed_length=64)
    return tf.reshape(tf.cast(pixels, tf.float32) / 16.0, [-1, 8, 8, 1]), features["label"]


def build_model():
    """Two convolutions and two dense layers, 10 logits."""
    return keras.Sequential(
        [
            keras.Input([8, 8, 1], name="image"),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, name="logits"),
        ]
    )


def compile_model(model):
    """Adam and cross-entropy on logits."""
    model.compile(
        optimizer=keras.optimizers.Adam(2e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def class_names():
    """The ten digits."""
    return [str(digit) for digit in range(10)]
