"""What holds of a model's layers: the facts that passports list, and the promises that steps have to keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tf_keras

from edgeline.passport import Promise

#: More distinct values than this are not counted one by one in a passport.
_MANY_VALUES = 65_536


class BrokenPromiseError(Exception):
    """A step did not do what it promised, or undid what an earlier one did; the message names the layers."""


def share(weights: Iterable[Any], model: tf_keras.Model) -> float:
    """Returns the fraction of the model's parameters that these variables hold, 0-1."""
    return sum(int(np.prod(w.shape)) for w in weights) / max(model.count_params(), 1)


def selection(
    model: tf_keras.Model, kernels: dict[str, list[Any]], min_layer_share: float, unable: str
) -> dict[str, str | None]:
    """Decides which layers a technique touches.

    Args:
      model: flat model.
      kernels: by layer name, the variables that the technique would change; layers it cannot handle are absent.
      min_layer_share: layers whose kernels hold a smaller fraction of the model's weights are left alone, 0-1.
      unable: the note for layers it cannot handle, e.g. `"tfmot cannot prune"`.

    Returns:
      For every layer with weights, in the model's order, why it is skipped, or None where it is not.
    """
    reasons: dict[str, str | None] = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        found = kernels.get(layer.name)
        if not found:
            reasons[layer.name] = f"{unable} {type(layer).__name__}"
        elif share(found, model) < min_layer_share:
            reasons[layer.name] = f"holds {share(found, model):.2%} of the weights, under {min_layer_share:.2%}"
        else:
            reasons[layer.name] = None
    return reasons


def facts(model: tf_keras.Model, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Returns what a passport says of each layer with weights.

    Args:
      model: any tf-keras model.
      notes: by layer name, what was done to it, or why it was skipped.

    Returns:
      Per layer: name, type, parameters, sparsity (fraction of zeros in its largest weight, 0-1), unique_values (of that
      weight, None above 65,536), note.
    """
    entries = []
    for layer in model.layers:
        if not layer.weights:
            continue
        largest = max((w.numpy() for w in layer.weights), key=np.size)
        unique = len(np.unique(largest))
        entries.append(
            {
                "name": layer.name,
                "type": type(layer).__name__,
                "parameters": int(layer.count_params()),
                "sparsity": float(np.mean(largest == 0)),
                "unique_values": unique if unique <= _MANY_VALUES else None,
                "note": notes.get(layer.name, ""),
            }
        )
    return entries


def holds(promise: Promise, zeros: float, most_values: int, size: int) -> bool:
    """Returns whether a weight with these properties keeps a promise.

    Args:
      promise: what was promised.
      zeros: fraction of zeros, 0-1; one weight less than promised is rounding, not a breach.
      most_values: distinct values, in Keras of the whole kernel, after a quantization-aware training and in a
        flatbuffer of the output channel that has most.
      size: number of values.
    """
    if promise.kind == "sparsity":
        return zeros >= promise.value - 1 / size - 1e-9
    return most_values <= promise.value


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
    for promise in promises:
        layer = by_name.get(promise.layer)
        weights = [w for w in layer.weights if not w.name.startswith("quant_")] if layer is not None else []
        arrays = [w.numpy() for w in weights if tuple(w.shape) == promise.shape]
        wrapped = layer is not None and layer.name.startswith("quant_")
        found = [(float(np.mean(a == 0)), _most_values(a, wrapped), a.size) for a in arrays]
        if not any(holds(promise, *properties) for properties in found):
            seen = ", ".join(f"{zeros:.4f} zeros and {values} values" for zeros, values, _ in found) or "no such layer"
            broken.append(f"{promise.layer} ({promise.kind} {promise.value:g}, found {seen})")
    if broken:
        raise BrokenPromiseError(f"{step} broke what was promised for {len(broken)} layers: {'; '.join(broken)}")


def _most_values(kernel: np.ndarray, per_channel: bool) -> int:
    return max(len(np.unique(part)) for part in (np.moveaxis(kernel, -1, 0) if per_channel else [kernel]))
