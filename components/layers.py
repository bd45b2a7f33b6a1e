"""What holds of a model's layers: the facts that passports list, and the promises that steps have to keep."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.config import LayerChoice
from edgeline.errors import UserError
from edgeline.passport import Promise

#: Small layers are left alone as long as all of them hold at most this many times what one may.
_SMALL_TOGETHER = 5

#: More distinct values than this are not counted one by one in a passport.
_MANY_VALUES = 65_536


class BrokenPromiseError(Exception):
    """A step did not do what it promised, or undid what an earlier one did; the message names the layers."""


def share(weights: Iterable[Any], model: tf_keras.Model) -> float:
    """Returns the fraction of the model's parameters that these variables hold, 0-1."""
    return sum(int(np.prod(w.shape)) for w in weights) / max(model.count_params(), 1)


def matches(pattern: str, layer: tf_keras.layers.Layer) -> bool:
    """Returns whether a glob fits a layer's name or its type."""
    return fnmatch.fnmatchcase(layer.name, pattern) or fnmatch.fnmatchcase(type(layer).__name__, pattern)


def by_pattern(layer: tf_keras.layers.Layer, values: dict[str, Any], default: Any) -> Any:
    """Returns the value of the first pattern that fits the layer, or the default."""
    return next((value for pattern, value in values.items() if matches(pattern, layer)), default)


def selection(
    model: tf_keras.Model,
    kernels: dict[str, list[Any]],
    config: LayerChoice,
    min_layer_share: float,
    *,
    values: str,
    unable: str,
    unfit: Callable[[tf_keras.layers.Layer], str | None] = lambda layer: None,
) -> dict[str, str | None]:
    """Decides which layers a technique touches.

    Args:
      model: any tf-keras model; models within it are left alone.
      kernels: by layer name, the variables that the technique would change; layers it cannot handle are absent.
      config: the layers that are asked for.
      min_layer_share: layers whose kernels hold a smaller fraction of the model's weights are left alone, 0-1, smallest
        first and at most five times that fraction in all.
      values: the config's field that holds values by pattern.
      unable: the note for layers it cannot handle, e.g. `"tfmot cannot prune"`.
      unfit: says why a layer that it can handle cannot be given what is asked, None where it can.

    Returns:
      For every layer with weights, in the model's order, why it is skipped, or None where it is not.

    Raises:
      UserError: a pattern matches no layer, or a layer that is named in full is skipped; names all of them.
    """
    weighted = [layer for layer in model.layers if layer.weights]
    include, exclude, by_layer = (config.decoded(name) for name in ("include", "exclude", values))
    for field, patterns in (("include", include), ("exclude", exclude), (values, by_layer)):
        for pattern in patterns:
            if not any(matches(pattern, layer) for layer in weighted):
                known = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in weighted)
                raise UserError(
                    f"{config.where(field)}: {pattern!r} matches no layer with weights; the model has {known}"
                )
    guarded = _ends(model, set(kernels), config.protect)

    def reason(layer: tf_keras.layers.Layer) -> str | None:
        found = kernels.get(layer.name)
        if isinstance(layer, tf_keras.Model):
            return f"is a {type(layer).__name__} within the model"
        if not found:
            return f"{unable} {type(layer).__name__}"
        if any(matches(pattern, layer) for pattern in exclude):
            return "is excluded"
        if layer.name in guarded:
            return f"is protected as {guarded[layer.name]} layer"
        if include and not any(matches(pattern, layer) for pattern in include):
            return "is not included"
        return unfit(layer)

    reasons = {layer.name: reason(layer) for layer in weighted}
    shares = {
        layer.name: share(kernels[layer.name], model)
        for layer in weighted
        if reasons[layer.name] is None and not include and not any(matches(pattern, layer) for pattern in by_layer)
    }
    for name in _small(shares, min_layer_share):
        reasons[name] = f"holds {shares[name]:.2%} of the weights, under {min_layer_share:.2%}"
    refused = [f"{name} {why}" for name, why in reasons.items() if why and name in (*include, *by_layer)]
    if refused:
        raise UserError(f"{type(config).__name__}: layers that are named cannot be had: {'; '.join(refused)}")
    return reasons


def _small(shares: dict[str, float], least: float) -> list[str]:
    """Returns the layers that are not worth it, by what share of the weights each holds and one has to hold at least.

    Deep networks consist of small layers (those under 1% hold 59% of DenseNet201), so there is a limit to all of them.
    """
    small = sorted((held, place, name) for place, (name, held) in enumerate(shares.items()) if held < least)
    together = itertools.accumulate(held for held, _, _ in small)
    return [name for (_, _, name), held in zip(small, together, strict=True) if held <= _SMALL_TOGETHER * least]


def _ends(model: tf_keras.Model, names: set[str], protect: str) -> dict[str, str]:
    """Returns `first` or `last` by name for those of the named layers that no other of them comes before or after."""
    before: dict[str, set[str]] = {}
    for layer in model.layers:  # what comes before a layer stands before it in this list
        inbound = tf.nest.flatten([node.inbound_layers for node in layer.inbound_nodes])
        before[layer.name] = {n for i in inbound for n in before.get(i.name, set()) | ({i.name} & names)}
    first = {name for name in names if not before[name]} if protect in ("first", "both") else set()
    last = names - {n for name in names for n in before[name]} if protect in ("last", "both") else set()
    return {**dict.fromkeys(last, "last"), **dict.fromkeys(first, "first")}


def weight_name(weight: Any, layer: tf_keras.layers.Layer) -> str:
    """Returns the end of a weight's name, as long as it takes to tell it from the layer's other weights."""
    parts = _path(weight).split("/")
    ends = ("/".join(parts[i:]) for i in reversed(range(len(parts))))
    return next((end for end in ends if sum(_ends_with(w, end) for w in layer.weights) == 1), "")


def _path(weight: Any) -> str:
    return str(weight.name).partition(":")[0]


def _ends_with(weight: Any, end: str) -> bool:
    return f"/{_path(weight)}".endswith(f"/{end}")


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
