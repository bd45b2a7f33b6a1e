"""Whether a film review is positive, by an embedding and an LSTM: `edgeline data imdb DIR --source imdb.npz`.

Its loop converts to TFLite's own operators with `dynamic_range` or `float16`; pruning goes before either.
"""

import tensorflow as tf
import tf_keras as keras

WORDS, STEPS = 20_000, 100


def feature_spec():
    """Each example holds the numbers of its last 100 words, 0 for none, and a label: 1 is positive."""
    return {"tokens": tf.io.FixedLenFeature([STEPS], tf.int64), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    """The word numbers as int32, shape [batch, 100]."""
    return tf.cast(features["tokens"], tf.int32), features["label"]


def build_model():
    """An embedding of 20,000 words and an LSTM, one probability: 1,293,505 parameters."""
    return keras.Sequential(
        [
            keras.Input([STEPS], dtype="int32", name="tokens"),
            keras.layers.Embedding(WORDS, 64),
            keras.layers.LSTM(32),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid", name="positive"),
        ]
    )


def compile_model(model):
    """Adam and binary cross-entropy."""
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])


def output_names():
    """The probability that the review is positive."""
    return ["positive"]
