"""The large CNN of the field's notebooks for images of 28x28, on Fashion-MNIST: `edgeline data fashion-mnist DIR`."""

import tensorflow as tf
import tf_keras as keras


def feature_spec():
    """Each example holds 784 raw uint8 pixels and a label."""
    return {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    """Scales the pixels to float32 in [0, 1], shape [batch, 28, 28]."""
    pixels = tf.io.decode_raw(features["image"], tf.uint8, fixed_length=784)
    return tf.reshape(tf.cast(pixels, tf.float32) / 255.0, [-1, 28, 28]), features["label"]


def build_model():
    """Two convolutions of 5x5, batch normalization, and a wide dense layer: 3,274,762 parameters, 10 logits."""
    return keras.Sequential(
        [
            keras.Input([28, 28], name="image"),
            keras.layers.Reshape([28, 28, 1]),
            keras.layers.Conv2D(32, 5, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(64, 5, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(10, name="logits"),
        ]
    )


def compile_model(model):
    """Adam and cross-entropy on logits."""
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def class_names():
    """The ten kinds of clothes, in label order."""
    return [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
