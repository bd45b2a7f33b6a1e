"""Distillation: a fine-tuning that learns from the model it began with beside the labels."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.engine import compile_utils

from edgeline.config import Distilling

#: Losses whose outputs are one distribution over the classes of the last axis.
_OF_CLASSES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "categorical_focal_crossentropy")
#: Losses whose outputs are a probability each.
_OF_YES_OR_NO = ("binary_crossentropy", "binary_focal_crossentropy")


def teacher(model: tf_keras.Model, config: Distilling) -> tf_keras.Model | None:
    """Returns a copy of the model that a technique begins with, to learn from; None where the config asks for none.

    tfmot's wrappers share layers and weights with the model that they are given: that one would change with its pupil.
    """
    if not config.distillation:
        return None
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def teach(model: tf_keras.Model, teacher: tf_keras.Model, share: float, temperature: float) -> None:
    """Lets the training of a compiled model minimize `(1 - share) * loss + share * distance to the teacher`.

    The distance is, for each output by its compiled loss: for categorical cross-entropies the Kullback-Leibler
    divergence of both distributions softened by the temperature, times its square, so that its gradients stay as large
    as those of the loss (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, section 2); for
    binary ones the cross-entropy with the teacher's probabilities; for all others the mean squared difference. Loss
    weights and example weights count as in the loss. Metrics, and the loss that is reported, are those of the labels.

    Args:
      model: changed in place, until it is compiled anew and its `train_step` deleted.
      teacher: with the same inputs and outputs; shares no layer with the model.
      share: of the distance, in (0, 1].
      temperature: above 0.
    """

    def soften(loss: Any) -> Any:
        return None if loss is None else _distance(tf_keras.losses.get(loss), temperature)

    distance = compile_utils.LossesContainer(
        tf.nest.map_structure(soften, model.loss),
        loss_weights=model.compiled_loss._user_loss_weights,
        output_names=model.output_names,
    )

    def train_step(batch: Any) -> dict[str, Any]:
        inputs, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = model.compute_loss(inputs, labels, outputs, weights)
            far = distance(teacher(inputs, training=False), outputs, sample_weight=weights)
            total = (1 - share) * loss + share * far
        model.optimizer.minimize(total, model.trainable_variables, tape=tape)
        return dict(model.compute_metrics(inputs, labels, outputs, weights))

    vars(model)["train_step"] = train_step


def _distance(loss: Any, temperature: float) -> tf_keras.losses.Loss:
    name = getattr(getattr(loss, "fn", loss), "__name__", "")
    from_logits = bool(getattr(loss, "_fn_kwargs", {}).get("from_logits", False))
    if name in _OF_CLASSES:
        return _Divergence(from_logits, temperature)
    if name in _OF_YES_OR_NO:
        return _BinaryCrossentropy(from_logits)
    return tf_keras.losses.MeanSquaredError(reduction="sum_over_batch_size")


class _Divergence(tf_keras.losses.Loss):
    """The Kullback-Leibler divergence of softened distributions, times the squared temperature."""

    def __init__(self, from_logits: bool, temperature: float):
        super().__init__("sum_over_batch_size")
        self._from_logits = from_logits
        self._temperature = temperature

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        goal, found = (self._log_softened(values) for values in (y_true, y_pred))
        return self._temperature**2 * tf.reduce_sum(tf.exp(goal) * (goal - found), axis=-1)

    def _log_softened(self, values: tf.Tensor) -> tf.Tensor:
        if not self._from_logits:
            values = tf.math.log(tf.maximum(values, tf_keras.backend.epsilon()))
        return tf.nn.log_softmax(values / self._temperature)


class _BinaryCrossentropy(tf_keras.losses.Loss):
    """The cross-entropy with the teacher's probabilities."""

    def __init__(self, from_logits: bool):
        super().__init__("sum_over_batch_size")
        self._from_logits = from_logits

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        goal = tf.sigmoid(y_true) if self._from_logits else y_true
        return tf_keras.losses.binary_crossentropy(goal, y_pred, from_logits=self._from_logits)
