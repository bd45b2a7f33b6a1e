"""Functional models taken apart into their layers and put together anew, models within them too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.engine.functional import Functional

#: Is told a layer and the arguments it was called with; returns its outputs, in the structure of its own.
Call = Callable[[tf_keras.layers.Layer, tuple[Any, ...], dict[str, Any]], Any]


def is_nested(model: tf_keras.Model) -> bool:
    """Returns whether there are Sequential or functional models among the model's layers."""
    return any(_has_graph(layer) for layer in model.layers)


def _has_graph(layer: tf_keras.layers.Layer) -> bool:
    # a subclassed model has no graph to take apart, and a subclass with a `call` of its own may do more than its graph
    plain = type(layer) in (tf_keras.Model, Functional, tf_keras.Sequential)
    return plain and layer._is_graph_network


def flatten(model: tf_keras.Model) -> tf_keras.Model:
    """Returns a model of the same outputs that has no models among its layers.

    A layer or model that is used twice stays one layer with one set of weights.

    Args:
      model: Sequential or functional, built; it stays as it is. A subclassed model within it stays one layer.

    Returns:
      A functional model of layers of its own, which have the same weights. Layers keep their names where those are
      unique in the whole, and else get the name of the model that they are in before it. Its outputs are called as
      the model's are: where a model within it makes one, an activation that does nothing carries its name.
    """
    counts = Counter(layer.name for layer in _leaves(model))
    names: dict[int, str] = {}
    taken = {layer.name for layer in model.layers}
    for layer, path in _with_paths(model, ()):
        if id(layer) in names:
            continue
        name = layer.name
        if path and (counts[name] > 1 or name in taken):
            parts = [*path, layer.name]
            name = next(
                (n for start in reversed(range(len(path))) if (n := "_".join(parts[start:])) not in taken),
                f"{'_'.join(parts)}_{len(names)}",
            )
        taken.add(name)
        names[id(layer)] = name
    copies: dict[int, tf_keras.layers.Layer] = {}

    def call(layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(layer) in copies:
            return copies[id(layer)](*args, **kwargs)
        copied = copies[id(layer)] = renamed(layer, names[id(layer)])
        outputs = copied(*args, **kwargs)
        copy_weights(layer, copied)
        return outputs

    return rebuilt(model, call)


def renamed(layer: tf_keras.layers.Layer, name: str, **changes: Any) -> tf_keras.layers.Layer:
    """Returns a new layer of the same config but for its name and these changes, not built."""
    return type(layer).from_config({**layer.get_config(), "name": name, **changes})


def copy_weights(source: tf_keras.layers.Layer, target: tf_keras.layers.Layer) -> None:
    """Gives a layer the weights of another one of the same config; both are built."""
    target.set_weights(source.get_weights())
    follow_weights(target)


def follow_weights(layer: tf_keras.layers.Layer) -> None:
    """Lets a layer that got other weights compute with them: what some compute with was made of them when built."""
    if isinstance(layer, tf_keras.layers.Normalization | tf_keras.layers.Discretization):
        layer.finalize_state()


def rebuilt(model: tf_keras.Model, call: Call) -> tf_keras.Model:
    """Returns a functional model with the same inputs, made by calling each layer anew.

    Args:
      model: Sequential or functional, built.
      call: makes the outputs of a layer of the new model, for each use of a layer and in an order in which they can
        be computed; never called for an input or for a model whose layers it is called for instead.
    """
    inputs = [
        tf_keras.Input(type_spec=tensor.type_spec, name=name)
        for tensor, name in zip(model.inputs, model.input_names, strict=True)
    ]
    outputs = tf.nest.flatten(replay(model, inputs, call))
    present = {tensor.node.layer.name for tensor in outputs}
    for index, (tensor, name) in enumerate(zip(model.outputs, model.output_names, strict=True)):
        if _has_graph(tensor.node.layer) and name not in present:
            outputs[index] = tf_keras.layers.Activation("linear", name=name)(outputs[index])
    single = not isinstance(model.output, list | tuple | dict)
    inner = outputs[0] if single else tf.nest.pack_sequence_as(model.output, outputs)
    shape = model.input
    outer = inputs[0] if not isinstance(shape, list | tuple | dict) else tf.nest.pack_sequence_as(shape, inputs)
    return tf_keras.Model(outer, inner, name=model.name)


def replay(model: tf_keras.Model, inputs: list[Any], call: Call, training: bool | None = None) -> Any:
    """Returns the outputs of a model when `call` does what its layers do; see `rebuilt`.

    Args:
      model: Sequential or functional, built.
      inputs: in the order of the model's.
      call: see `rebuilt`.
      training: what the model is called with by the one it is in; None: nothing.
    """
    tensors = {id(tensor): new for tensor, new in zip(model.inputs, inputs, strict=True)}
    for node in nodes(model):
        if any(id(tensor) not in tensors for tensor in node.keras_inputs):
            continue
        args, kwargs = tf.nest.map_structure(
            lambda value: tensors.get(id(value), value), (tuple(node.call_args), dict(node.call_kwargs))
        )
        layer = node.layer
        if training is not None and layer._expects_training_arg and kwargs.get("training") is None:
            kwargs["training"] = training
        if _has_graph(layer):
            within = layer._flatten_to_reference_inputs(args[0])
            outputs = replay(layer, within, call, kwargs.get("training"))
        else:
            outputs = call(layer, args, kwargs)
        for old, new in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            tensors[id(old)] = new
    replayed = [tensors[id(tensor)] for tensor in model.outputs]
    return tf.nest.pack_sequence_as(model.output, replayed) if len(replayed) > 1 else replayed[0]


def nodes(model: tf_keras.Model) -> list[Any]:
    """Returns the uses of a model's layers but for its inputs, in an order in which they can be computed."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def _with_paths(model: tf_keras.Model, path: tuple[str, ...]) -> list[tuple[tf_keras.layers.Layer, tuple[str, ...]]]:
    pairs = []
    for layer in model.layers:
        if _has_graph(layer):
            pairs += _with_paths(layer, (*path, layer.name))
        elif not (path and isinstance(layer, tf_keras.layers.InputLayer)):
            pairs.append((layer, path))
    return pairs


def _leaves(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    return list({id(layer): layer for layer, _ in _with_paths(model, ())}.values())
