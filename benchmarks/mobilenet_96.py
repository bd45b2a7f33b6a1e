"""A model module for the benchmarks: MobileNetV2 on jpeg images of 96x96 pixels, 10 classes."""

import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    def decode(content):
        return tf.ensure_shape(tf.cast(tf.io.decode_jpeg(content, channels=3), tf.float32) / 127.5 - 1, [96, 96, 3])

    return tf.map_fn(decode, features["image"], fn_output_signature=tf.float32), features["label"]


def build_model():
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2([96, 96, 3], include_top=False, weights=None, pooling="avg")
    image = keras.Input([96, 96, 3], name="image")
    return keras.Model(image, keras.layers.Dense(10, name="logits")(base(image)))


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
