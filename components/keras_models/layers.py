"""What holds of a model's layers: the facts that passports list, and the promises that steps have to keep."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.config import LayerChoice
from edgeline.errors import UserError

#: Small layers are left alone as long as all of them hold at most this many times what one may.
_SMALL_TOGETHER = 5

#: More distinct values than this are not counted one by one in a passport.
_MANY_VALUES = 65_536


def share(weights: Iterable[Any], model: tf_keras.Model) -> float:
    """Returns the fraction of the model's parameters that these variables hold, 0-1."""
    return sum(int(np.prod(w.shape)) for w in weights) / max(model.count_params(), 1)


def matches(pattern: str, layer: tf_keras.layers.Layer) -> bool:
    """Returns whether a glob fits a layer's name or its type."""
    return fnmatch.fnmatchcase(layer.name, pattern) or fnmatch.fnmatchcase(type(layer).__name__, pattern)


def by_pattern(layer: tf_keras.layers.Layer, values: Mapping[str, Any], default: Any) -> Any:
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
    include, exclude, by_layer = config.include, config.exclude, getattr(config, values)
    for field, patterns in (("include", include), ("exclude", exclude), (values, by_layer)):
        for pattern in patterns:
            if not any(matches(pattern, layer) for layer in weighted):
                known = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in weighted)
                raise UserError(
                    f"{config.where(field)}: {pattern!r} matches no layer with weights; the model has {known}"
                )
    guarded = _ends(model, set(kernels), config.protect)

    def reason(layer: tf_keras.layers.Layer) -> str | None:
        kernel = kernels.get(layer.name)
        if isinstance(layer, tf_keras.Model):
            return f"is a {type(layer).__name__} within the model"
        if not kernel:
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


def _ends(model: tf_keras.Model, names: set[str], protect: str | None) -> dict[str, str]:
    """Returns `first` or `last` by name for those of the named layers that no other of them comes before or after."""
    before: dict[str, set[str]] = {}
    for layer in model.layers:  # what comes before a layer stands before it in this list
        inbound = tf.nest.flatten([node.inbound_layers for node in layer.inbound_nodes])
        before[layer.name] = {n for i in inbound for n in before.get(i.name, set()) | ({i.name} & names)}
    first = {name for name in names if not before[name]} if protect in ("first", "both") else set()
    last = names - {n for name in names for n in before[name]} if protect in ("last", "both") else set()
    return {**dict.fromkeys(last, "last"), **dict.fromkeys(first, "first")}


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
