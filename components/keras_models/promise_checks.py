"""What steps promise of a model's weights, and whether a Keras model keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras

from edgeline.keras_models.promise_kinds import Kernel, kind_of
from edgeline.passport import Promise


class BrokenPromiseError(Exception):
    """A step did not do what it promised, or undid what an earlier one did; the message names the layers."""


def weight_name(weight: Any, layer: tf_keras.layers.Layer) -> str:
    """Returns the end of a weight's name, as long as it takes to tell it from the layer's other weights."""
    parts = _path(weight).split("/")
    ends = ("/".join(parts[i:]) for i in reversed(range(len(parts))))
    return next((end for end in ends if sum(_ends_with(w, end) for w in layer.weights) == 1), "")


def _path(weight: Any) -> str:
    return str(weight.name).partition(":")[0]


def _ends_with(weight: Any, end: str) -> bool:
    return f"/{_path(weight)}".endswith(f"/{end}")


def describe(promise: Promise) -> str:
    """Returns a promise in words, e.g. `memory/recurrent_kernel (sparsity 0.8`, to which what was found is added."""
    where = f"{promise.layer}/{promise.weight}" if promise.weight else promise.layer
    return f"{where} ({' '.join(filter(None, (promise.kind, promise.pattern, f'{promise.value:g}')))}"


def check_promises(model: tf_keras.Model, promises: Iterable[Promise], step: str) -> None:
    """Checks a Keras model against everything that was promised about it.

    Args:
      model: plain, or wrapped for quantization-aware training (layers and the wrappers' own variables are then called
        `quant_...`; shared values are those of an output channel, each of which trains its own).
      promises: of this step and of all before it.
      step: which step is responsible now, for the message.

    Raises:
      BrokenPromiseError: names each layer, what was promised and what is there.
      UnknownPromiseError: a promise is of an unknown kind.
    """
    by_name = {layer.name.removeprefix("quant_"): layer for layer in model.layers}
    broken = []
    for promise in dict.fromkeys(promises):
        kind, layer = kind_of(promise), by_name.get(promise.layer)
        weights = [w for w in layer.weights if not w.name.startswith("quant_")] if layer is not None else []
        shaped = [w for w in weights if tuple(w.shape) == promise.shape]
        # a layer that was built anew may number its parts otherwise
        arrays = [w.numpy() for w in shaped if promise.weight and _ends_with(w, promise.weight)]
        arrays = arrays or [w.numpy() for w in shaped]
        per_channel = promise.pattern == "channel" or (layer is not None and layer.name.startswith("quant_"))
        kernels = [Kernel(array, array == 0, -1 if per_channel else None) for array in arrays]
        if not any(kind.in_keras(promise, kernel) for kernel in kernels):
            seen = ", ".join(kind.describe(promise, kernel) for kernel in kernels)
            broken.append(f"{describe(promise)}, found {seen or 'no such layer'})")
    if broken:
        raise BrokenPromiseError(f"{step} broke what was promised for {len(broken)} layers: {'; '.join(broken)}")


class KeepZeros(tf_keras.callbacks.Callback):
    """Keeps the zeros of weights that an earlier step has pruned and this one trains without a mask of its own."""

    def __init__(self, model: tf_keras.Model, promises: Iterable[Promise]):
        """Takes the zeros as they are now.

        Args:
          model: pruned; layers that are wrapped have another name and keep their zeros themselves.
          promises: of earlier steps.
        """
        super().__init__()
        pruned = {(promise.layer, promise.shape) for promise in promises if kind_of(promise).of_zeros}
        self._masked = [
            (weight, tf.cast(tf.not_equal(weight, 0), weight.dtype))
            for layer in model.layers
            for weight in layer.weights
            if (layer.name, tuple(weight.shape)) in pruned
        ]

    # leaves the logs as tensors: turning them into numbers in every batch would wait for the device each time
    _supports_tf_logs = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Sets what the optimizer has moved to zero again."""
        for weight, mask in self._masked:
            weight.assign(weight * mask)
