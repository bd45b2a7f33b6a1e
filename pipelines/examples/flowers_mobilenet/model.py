"""MobileNetV2 on photos of five kinds of flowers: `edgeline data images PHOTOS DIR`, one sub-folder per kind.

The base begins with random weights. With pretrained ones, other classes or another size, write a module of your own, so
that what you change is part of its digest, and with it of the cache:

    from edgeline.pipelines.examples.flowers_mobilenet import model as flowers
    from edgeline.pipelines.examples.flowers_mobilenet.model import *

    def build_model():
        return flowers.build_model(weights="/data/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_160_no_top.h5")
"""

import tensorflow as tf
import tf_keras as keras

SIZE = 160
KINDS = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]

#: The base's layers before this one stay as they were pretrained.
FINE_TUNE_FROM = 100


def feature_spec():
    """Each example holds a JPEG or PNG file and a label."""
    return {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features, size=SIZE):
    """Decodes and resizes the photos to float32 in [-1, 1], shape [batch, size, size, 3]."""

    def decoded(content):
        photo = tf.io.decode_image(content, channels=3, expand_animations=False)
        return tf.image.resize(photo, [size, size]) / 127.5 - 1.0

    photos = tf.map_fn(decoded, features["image"], fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32))
    return photos, features["label"]


def augment(inputs, label, seed):
    """Mirrors photos at random."""
    return tf.image.stateless_random_flip_left_right(inputs, seed), label


def build_model(size=SIZE, classes=5, weights=None, alpha=1.0):
    """A frozen MobileNetV2 and one dense layer, a logit per class.

    Args:
      size: width and height of the photos.
      classes: how many there are.
      weights: `.h5` file of the base's weights, or "imagenet" where they may be downloaded; None: random ones.
      alpha: of MobileNetV2, its width.
    """
    base = keras.applications.MobileNetV2([size, size, 3], alpha, include_top=False, weights=weights)
    base.trainable = False
    photo = keras.Input([size, size, 3], name="photo")
    # training=False: batch normalization keeps its statistics when the base is fine-tuned
    x = keras.layers.GlobalAveragePooling2D()(base(photo, training=False))
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(photo, keras.layers.Dense(classes, name="logits")(x))


def phases():
    """First the dense layer on the frozen base, then the end of the base with it."""
    return [("top", 5, train_top), ("fine_tuning", None, train_end_of_base)]


def train_top(model):
    """Freezes the base."""
    _base(model).trainable = False


def train_end_of_base(model):
    """Freezes the base up to its hundredth layer."""
    base = _base(model)
    base.trainable = True
    for layer in base.layers[:FINE_TUNE_FROM]:
        layer.trainable = False


def _base(model):
    [base] = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return base


def compile_model(model, phase=None):
    """RMSprop and cross-entropy on logits; a tenth of the learning rate where the base is trained."""
    model.compile(
        optimizer=keras.optimizers.RMSprop(1e-4 if phase == "top" else 1e-5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def class_names():
    """The five kinds, sorted, as `edgeline data images` numbers their folders."""
    return list(KINDS)
