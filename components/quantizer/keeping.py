"""Keeping what earlier steps promised, such as zeros and shared values, while a model is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
import tf_keras

from edgeline.keras_models.promise_kinds import kind_of
from edgeline.passport import Promise

#: Shared values of these, where they are quantized, are those of an output channel, which has a scale of its own.
_BY_CHANNEL = (tf_keras.layers.Conv1D, tf_keras.layers.Conv2D)


class Keep:
    """Sets weights back to what was promised of them, after each step of the optimizer.

    tfmot's own schemes for this know Dense and Conv2D alone, lose zeros and values in convolutions of size 1, and take
    at most 1,024 values. Here the kernels carry a constraint, which Keras' optimizers apply after each step: what was
    zero is zero again, and weights that shared a value get the mean of what each of them became.
    """

    def __init__(self, model: tf_keras.Model, promises: Iterable[Promise]):
        """Notes zeros and shared values as they are now, and puts the constraints in place.

        Args:
          model: wrapped for quantization-aware training, or plain.
          promises: of earlier steps.
        """
        kept: dict[int, tuple[Any, list[Callable[[Any], Any]]]] = {}
        for layer in model.layers:
            inner = getattr(layer, "layer", layer)
            by_channel = inner is not layer and type(inner) in _BY_CHANNEL
            own = [p for p in promises if p.layer == inner.name]
            for weight in layer.weights:
                fits = [p for p in own if p.shape == tuple(weight.shape) and _is_named(weight.name, p.weight)]
                # shared values first: the mean of zeros that others were trained with is not zero
                for promise in sorted(fits, key=lambda promise: kind_of(promise).of_zeros):
                    rules = kept.setdefault(id(weight), (weight, []))[1]
                    rules.append(kind_of(promise).keep(promise, weight, by_channel or promise.pattern == "channel"))
        self._kept = list(kept.values())
        for weight, rules in self._kept:
            own_constraint = weight.constraint
            weight._constraint = _chain([*([own_constraint] if own_constraint else []), *rules])

    def restore(self) -> None:
        """Does once more what the constraints do, for an optimizer that ignores them, and takes them away."""
        for weight, rules in self._kept:
            weight.assign(_chain(rules)(weight))
            weight._constraint = None


def _is_named(name: str, end: str) -> bool:
    # the wrapper's own variables are called after it
    return not name.startswith("quant_") and f"/{name.partition(':')[0]}".endswith(f"/{end}" if end else "")


def _chain(rules: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def apply(weight: Any) -> Any:
        value = tf.convert_to_tensor(weight)
        for rule in rules:
            value = rule(value)
        return value

    return apply
