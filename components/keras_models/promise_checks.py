"""What steps promise of a model's weights, and whether a Keras model keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

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


def holds(promise: Promise, zero: np.ndarray, most_values: int) -> bool:
    """Returns whether a weight with these properties keeps a promise.

    Args:
      promise: what was promised.
      zero: where the weight is zero, of the promise's shape; one weight or block less than promised is rounding, not a
        breach.
      most_values: distinct values, in Keras of the whole kernel, where each output channel has its own of the one that
        has most.
    """
    if promise.kind == "clusters":
        return most_values <= promise.value
    if promise.kind == "sparsity":
        parts = zero
    else:
        # what is missing at the edges counts as zero: tfmot fills up with zeros too
        height, width = map(int, promise.pattern.split("x"))
        if promise.kind == "m_by_n":
            inputs = np.moveaxis(zero, -2, -1)
            edges = [(0, 0)] * (zero.ndim - 1) + [(0, -inputs.shape[-1] % width)]
            groups = np.pad(inputs, edges, constant_values=True).reshape(-1, width)
            return bool((groups.sum(-1) >= height).all())
        rows, columns = zero.shape
        filled = np.pad(zero, [(0, -rows % height), (0, -columns % width)], constant_values=True)
        parts = np.asarray(filled.reshape(filled.shape[0] // height, height, -1, width).all((1, 3)))
    return bool(parts.mean() >= promise.value - 1 / parts.size - 1e-9)


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
    """
    by_name = {layer.name.removeprefix("quant_"): layer for layer in model.layers}
    broken = []
    for promise in dict.fromkeys(promises):
        layer = by_name.get(promise.layer)
        weights = [w for w in layer.weights if not w.name.startswith("quant_")] if layer is not None else []
        shaped = [w for w in weights if tuple(w.shape) == promise.shape]
        # a layer that was built anew may number its parts otherwise
        arrays = [w.numpy() for w in shaped if promise.weight and _ends_with(w, promise.weight)]
        arrays = arrays or [w.numpy() for w in shaped]
        per_channel = promise.pattern == "channel" or (layer is not None and layer.name.startswith("quant_"))
        found = [(array == 0, _most_values(array, per_channel)) for array in arrays]
        if not any(holds(promise, *properties) for properties in found):
            seen = ", ".join(f"{zero.mean():.4f} zeros and {values} values" for zero, values in found)
            broken.append(f"{describe(promise)}, found {seen or 'no such layer'})")
    if broken:
        raise BrokenPromiseError(f"{step} broke what was promised for {len(broken)} layers: {'; '.join(broken)}")


def _most_values(kernel: np.ndarray, per_channel: bool) -> int:
    return max(len(np.unique(part)) for part in (np.moveaxis(kernel, -1, 0) if per_channel else [kernel]))


class KeepZeros(tf_keras.callbacks.Callback):
    """Keeps the zeros of weights that an earlier step has pruned and this one trains without a mask of its own."""

    def __init__(self, model: tf_keras.Model, promises: Iterable[Promise]):
        """Takes the zeros as they are now.

        Args:
          model: pruned; layers that are wrapped have another name and keep their zeros themselves.
          promises: of earlier steps.
        """
        super().__init__()
        pruned = {(promise.layer, promise.shape) for promise in promises if promise.of_zeros}
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
