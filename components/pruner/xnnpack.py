"""Whether XNNPACK's sparse kernels can run a pruned model faster: its rules, with every layer that breaks one named."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers as keras_layers

from edgeline.errors import UserError

_POLICY = tfmot.sparsity.keras.PruneForLatencyOnXNNPack()


def violations(model: tf_keras.Model) -> list[str]:
    """Returns which layer breaks which rule of tfmot's `PruneForLatencyOnXNNPack`, all of them.

    tfmot's own check stops at the first and names only the layer's type. The model must be a chain of parts: a 3x3
    convolution of 3 channels with stride 2 behind a ZeroPadding2D of 1, then what XNNPACK computes in sparse form, then
    a GlobalAveragePooling2D with keepdims; what comes before and after is free.

    Args:
      model: Sequential or functional, built.
    """
    lines: list[str] = []

    def walk(
        layers: list[tf_keras.layers.Layer],
        stop: Callable[[tf_keras.layers.Layer], bool],
        step: Callable[[tf_keras.layers.Layer], list[tf_keras.layers.Layer]],
    ) -> tuple[list[tf_keras.layers.Layer], list[tf_keras.layers.Layer]]:
        """Returns the layers where a walk stops, and those where it has nowhere to go on to."""
        seen, stopped, stranded, todo = set(), [], [], list(layers)
        while todo:
            layer = todo.pop(0)
            if layer.name in seen:
                continue
            seen.add(layer.name)
            if stop(layer):
                stopped.append(layer)
            elif following := step(layer):
                todo += following
            else:
                stranded.append(layer)
        return stopped, stranded

    inputs = [tensor._keras_history.layer for tensor in model.inputs]
    outputs = [tensor._keras_history.layer for tensor in model.outputs]
    starts, without = walk(inputs, _POLICY._start_layer_stop_fn, _consumers)
    if without:  # what is meant to be the start is looked for, so that all that is behind it is checked too
        starts, without = walk(inputs, lambda layer: type(layer) is keras_layers.Conv2D, _consumers)
        lines += [
            f"{layer.name} (Conv2D): the first must be 3x3 of 3 input channels with strides 2 and padding valid, "
            f"behind a ZeroPadding2D of 1; it is {_convolution(layer)}, of {layer.kernel.shape[2]} channels, behind "
            f"{', '.join(type(before).__name__ for before in _producers(layer))}"
            for layer in starts
            if not _POLICY._start_layer_stop_fn(layer)
        ]
        lines += [
            f"{layer.name} ({type(layer).__name__}): no Conv2D on a path from an input to it" for layer in without
        ]
    stopped, without = walk(outputs, _POLICY._end_layer_stop_fn, _producers)
    ends = {layer.name for layer in stopped}
    lines += [
        f"{layer.name} ({type(layer).__name__}): no GlobalAveragePooling2D on a path from it to an output"
        for layer in without
    ]

    within: set[str] = set()

    def visit(layer: tf_keras.layers.Layer) -> bool:
        if layer.name not in within:
            within.add(layer.name)
            if reason := _unsupported(layer):
                lines.append(f"{layer.name} ({type(layer).__name__}): {reason}")
        return layer.name in ends

    walk([consumer for start in starts for consumer in _consumers(start)], visit, _consumers)
    return lines


def check(model: tf_keras.Model) -> None:
    """Checks that a model can be pruned for XNNPACK's sparse kernels.

    Raises:
      UserError: it cannot; names every layer and the rule it breaks.
    """
    violated = violations(model)
    if violated:
        raise UserError(
            f"Prune.policy xnnpack: the model breaks {len(violated)} rules of XNNPACK's sparse inference: "
            f"{'; '.join(violated)}. Change these layers, or prune with policy none"
        )


def _producers(layer: tf_keras.layers.Layer) -> list[tf_keras.layers.Layer]:
    return tf.nest.flatten([node.inbound_layers for node in layer.inbound_nodes])


def _consumers(layer: tf_keras.layers.Layer) -> list[tf_keras.layers.Layer]:
    return [node.outbound_layer for node in layer.outbound_nodes]


def _unsupported(layer: tf_keras.layers.Layer) -> str | None:
    """Returns why XNNPACK has no sparse form of a layer; tfmot's policy decides, this finds the words."""
    if _POLICY._check_layer_support(layer):
        return None
    if isinstance(layer, keras_layers.DepthwiseConv2D):
        return (
            f"a DepthwiseConv2D must be 3x3 or 5x5 without dilation or multiplier, with padding same and strides 1, or "
            f"valid behind a ZeroPadding2D of 1 or 2; it is {_convolution(layer)}"
        )
    if isinstance(layer, keras_layers.Conv2D):
        return f"a Conv2D must be 1x1 with strides 1, without dilation or groups; it is {_convolution(layer)}"
    if isinstance(layer, keras_layers.GlobalAveragePooling2D):
        return "must have keepdims=True"
    if isinstance(layer, keras_layers.BatchNormalization):
        return f"must normalize the last of 4 axes, not {list(layer.axis)}"
    if isinstance(layer, keras_layers.UpSampling2D):
        return f"must be bilinear, not {layer.interpolation}"
    if isinstance(layer, keras_layers.Activation):
        return f"activation {layer.activation.__name__} has no sparse kernel; relu, relu6, elu and sigmoid have"
    return "has no sparse kernel"


def _convolution(layer: tf_keras.layers.Layer) -> str:
    return f"{'x'.join(map(str, layer.kernel_size))} with strides {layer.strides}, padding {layer.padding}"
