"""Beginning a training with the weights of a model that was trained before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from edgeline import files
from edgeline.errors import UserError, first_line
from edgeline.keras_models import rebuilding
from edgeline.model_module.hooks import ModelModule
from edgeline.trainer.config import Train
from edgeline.untrusted import sandbox


class _ChangedError(Exception):
    """The file is not the one that the pipeline was built with."""


def begin(model: tf_keras.Model, module: ModelModule, config: Train) -> dict[str, Any]:
    """Gives a model the weights of the file that the config names, all of them or none.

    A file that is not there, cannot be read, or holds another model is no reason to stop: the model then keeps its
    initial weights.

    Args:
      model: as the module builds it; changed in place.
      module: for its custom objects.
      config: its `warm_start` is not None.

    Returns:
      What the passport says of it: `from`, `sha256` of the file (None where it could not be read), `taken`, and `note`
      in words.

    Raises:
      UserError: the file is not the one that the pipeline was built with.
    """
    path, expected = config.warm_start or "", config.warm_start_digest
    record: dict[str, Any] = {"from": path, "sha256": None, "taken": False}
    try:
        record["sha256"] = files.sha256_of(path)
        if expected is not None and expected != record["sha256"]:
            raise _ChangedError(
                f"warm start: {path} is not the file this run began with (digest {record['sha256'][:12]}, expected "
                f"{expected[:12]}): start the run again"
            )
        source = _load(path, module)
    except _ChangedError as error:
        raise UserError(str(error)) from None
    except Exception as error:
        reason = f"{path} cannot be read: {first_line(error)}"
    else:
        reason = _take(source, model)
    if reason:
        return {**record, "note": f"starts from scratch because {reason}"}
    return {**record, "taken": True, "note": f"starts from the weights of {path}"}


def _load(path: str, module: ModelModule) -> tf_keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        if files.is_uri(path):
            copy = str(Path(folder, "model.keras"))
            tf.io.gfile.copy(path, copy)
            path = copy
        return sandbox.load(Path(path), "keras", module)


def _take(source: tf_keras.Model, model: tf_keras.Model) -> str:
    """Copies all weights, layer by layer; returns why not where the layers differ, and then changes nothing."""
    there, here = dict(_layers(source)), dict(_layers(model))
    for name, layer in here.items():
        if name not in there:
            return f"layer {name} is only here"
        ours, theirs = _weights(layer), _weights(there[name])
        if len(ours) != len(theirs):
            return f"layer {name}: {len(ours)} weights here, {len(theirs)} there"
        for weight, their_weight in zip(ours, theirs, strict=True):
            if weight.shape != their_weight.shape:
                kind = weight.name.rsplit("/", 1)[-1].partition(":")[0]
                return f"layer {name}: {kind} {tuple(weight.shape)} here, {tuple(their_weight.shape)} there"
    if extra := [name for name in there if name not in here]:
        return f"layer {extra[0]} is only there"
    for name, layer in here.items():
        for weight, their_weight in zip(_weights(layer), _weights(there[name]), strict=True):
            weight.assign(their_weight)
        rebuilding.follow_weights(layer)
    return ""


def _layers(model: tf_keras.Model, path: str = "") -> Iterator[tuple[str, tf_keras.layers.Layer]]:
    """Yields the layers that have weights, those of models within a model by the path to them."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model) and layer._is_graph_network:
            yield from _layers(layer, f"{path}{layer.name}/")
        elif layer.weights:
            yield f"{path}{layer.name}", layer


def _weights(layer: tf_keras.layers.Layer) -> list[tf.Variable]:
    """Returns a layer's weights in an order that does not depend on what is trainable; `layer.weights` does."""
    return [w for each in layer._flatten_layers() for w in each._trainable_weights + each._non_trainable_weights]
