"""A model wrapped for quantization-aware training: what the TFLite converter will round is rounded in training too.

tfmot's `quantize_apply` refuses a whole model for one layer that it does not know, and takes minutes for a deep one.
Here its wrappers are put on layer by layer, by the rules of its `Default8Bit...` scheme, where the converter makes
integer operators; the other layers stay float. Unlike tfmot's:
- weights are rounded per output channel, as the converter does, in depthwise and one-dimensional convolutions too;
- ranges of activations start at those of the first batch, not at [-6, 6], from which a short training never comes back;
- a normalization that folds into no convolution becomes, for inference, a depthwise convolution of size 1, which is
  exact in int8.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantizers
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from edgeline.errors import UserError
from edgeline.keras_models import rebuilding

_L = tf_keras.layers

#: Layers with a kernel that becomes int8: the attribute, and its axes along which values share a scale.
_WEIGHTED = {
    _L.Conv1D: ("kernel", (0, 1)),
    _L.Conv2D: ("kernel", (0, 1, 2)),
    _L.DepthwiseConv2D: ("depthwise_kernel", (0, 1)),
    _L.Conv2DTranspose: ("kernel", (0, 1, 3)),
    _L.Dense: ("kernel", (0, 1)),
}
#: Of these the converter folds a normalization that follows.
_FOLDING = (_L.Conv2D, _L.DepthwiseConv2D, _L.Dense)
#: Layers that multiply and add per channel in inference.
_AFFINE = (_L.BatchNormalization, _L.Normalization, _L.Rescaling)
#: Layers whose output has a range of its own.
_RANGED = (
    _L.Add, _L.AveragePooling1D, _L.AveragePooling2D, _L.Concatenate, _L.GlobalAveragePooling1D,
    _L.GlobalAveragePooling2D, _L.LeakyReLU, _L.Multiply, _L.ReLU, _L.Subtract, _L.UpSampling2D,
)  # fmt: skip
#: Layers that hand their input's range on, or have a fixed one.
_PASSING = (
    _L.ActivityRegularization, _L.Cropping1D, _L.Cropping2D, _L.Dropout, _L.Flatten, _L.GaussianDropout,
    _L.GaussianNoise, _L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D, _L.MaxPooling1D, _L.MaxPooling2D, _L.Permute,
    _L.Reshape, _L.Softmax, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.ZeroPadding1D, _L.ZeroPadding2D,
)  # fmt: skip
_RANGED_ACTIVATIONS = ("gelu", "relu", "relu6", "silu", "swish")
_PASSING_ACTIVATIONS = ("linear", "sigmoid", "softmax", "tanh")
#: Keras' names of operators that became layers, such as that of `x + 3.0`.
_RANGED_FUNCTIONS = (
    "__operators__.add", "math.add", "math.multiply", "math.subtract", "math.reduce_mean", "nn.relu", "nn.relu6",
)  # fmt: skip
#: Where an activation that follows is computed in the same operator.
_FUSING = (*_WEIGHTED, *_AFFINE, _L.Add, _L.Multiply, _L.Subtract, TFOpLambda)
_FUSED = ("relu", "relu6")


def prepared(model: tf_keras.Model) -> tf_keras.Model:
    """Returns the model as it is wrapped: flat, and with activations and the halves of separable convolutions apart.

    Args:
      model: Sequential or functional; it stays as it is.

    Returns:
      A model of the same outputs and of layers of its own. A convolution with an activation that no operator includes
      (`conv` with swish) is followed by a layer `conv_activation`; a SeparableConv2D `conv` is `conv_depthwise` and
      `conv`.
    """
    layers_by_node: dict[int, list[tf_keras.layers.Layer]] = {}

    def call(layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parts = layers_by_node.get(id(layer))
        if parts is None:
            parts = layers_by_node[id(layer)] = _parts(layer)
            outputs = _chain(parts, args, kwargs)
            if len(parts) == 1 or type(layer) is not _L.SeparableConv2D:
                rebuilding.copy_weights(layer, parts[0])
            else:
                depthwise, *pointwise = layer.get_weights()
                parts[0].set_weights([depthwise])
                parts[1].set_weights(pointwise)
            return outputs
        return _chain(parts, args, kwargs)

    return rebuilding.rebuilt(rebuilding.flatten(model) if rebuilding.is_nested(model) else model, call)


def _chain(parts: list[tf_keras.layers.Layer], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    outputs = parts[0](*args, **kwargs)
    for part in parts[1:]:
        outputs = part(outputs)
    return outputs


def _parts(layer: tf_keras.layers.Layer) -> list[tf_keras.layers.Layer]:
    if type(layer) not in (*_WEIGHTED, _L.SeparableConv2D):
        return [rebuilding.renamed(layer, layer.name)]
    activation = [] if _name_of(layer) in ("linear", *_FUSED) else [
        _L.Activation(layer.activation, name=f"{layer.name}_activation")
    ]  # fmt: skip
    changes = {"activation": "linear"} if activation else {}
    if type(layer) is not _L.SeparableConv2D:
        return [rebuilding.renamed(layer, layer.name, **changes), *activation]
    config = layer.get_config()
    shared = ("padding", "data_format", "dilation_rate", "trainable", "dtype")
    depthwise = _L.DepthwiseConv2D(
        layer.kernel_size, layer.strides, depth_multiplier=layer.depth_multiplier, use_bias=False,
        name=f"{layer.name}_depthwise", **{name: config[name] for name in shared},
    )  # fmt: skip
    pointwise = _L.Conv2D(
        layer.filters, 1, use_bias=layer.use_bias, name=layer.name, data_format=layer.data_format,
        activation=None if activation else layer.activation, trainable=layer.trainable,
    )  # fmt: skip
    return [depthwise, pointwise, *activation]


def _name_of(layer: tf_keras.layers.Layer) -> str:
    """Returns the name of a layer's activation, "" where it has none that has one."""
    return getattr(getattr(layer, "activation", None), "__name__", "")


# what can be quantized ------------------------------------------------------------------------------------------------


def reasons(model: tf_keras.Model, keep_float: Iterable[str] = ()) -> dict[str, str | None]:
    """Decides which layers are quantized.

    Args:
      model: as `prepared` returns it.
      keep_float: patterns of names of layers that are to stay float.

    Returns:
      For every layer but the inputs, in the model's order, why it stays float, or None where it is quantized.

    Raises:
      UserError: a pattern matches no layer.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, _L.InputLayer)]
    kept: set[str] = set()
    for pattern in keep_float:
        matching = fnmatch.filter([layer.name for layer in layers], pattern)
        if not matching:
            raise UserError(
                f"Quantize.keep_float: {pattern!r} matches no layer; the model has "
                f"{', '.join(layer.name for layer in layers)}"
            )
        kept.update(matching)
    graph = _Graph(model)
    why: dict[str, str | None] = {}
    for layer in layers:
        why[layer.name] = "keep_float" if layer.name in kept else _reason(layer)
    for node in rebuilding.nodes(model):  # in their order: one decides for the next
        layer, before = node.layer, graph.only_source(node)
        joins = _is_fused(layer) or (isinstance(layer, _L.BatchNormalization) and type(before) in _FOLDING)
        if joins and why[layer.name] is None and before is not None and why[before.name] == "keep_float":
            why[layer.name] = "keep_float"  # the converter computes them in one operator
    return {layer.name: why[layer.name] for layer in layers}


def _reason(layer: tf_keras.layers.Layer) -> str | None:
    kind = type(layer)
    outputs = [tensor for node in layer.inbound_nodes for tensor in tf.nest.flatten(node.outputs)]
    if any(tensor.dtype != tf.float32 for tensor in outputs):
        return f"its outputs are {outputs[0].dtype.name}"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return f"{kind.__name__} with channels first"
    if kind in _WEIGHTED or kind in _RANGED or kind in _PASSING:
        return None
    if kind in _AFFINE or isinstance(layer, _L.BatchNormalization):
        return None if _is_by_channel(layer) else f"{kind.__name__} over other axes than the last one"
    if kind is _L.Activation:
        name = _name_of(layer)
        return None if name in (*_RANGED_ACTIVATIONS, *_PASSING_ACTIVATIONS) else f"Activation {name}"
    if kind is TFOpLambda:
        name = layer.get_config()["function"]
        return None if name in _RANGED_FUNCTIONS else f"operator tf.{name}"
    return kind.__name__


def _is_by_channel(layer: tf_keras.layers.Layer) -> bool:
    rank = layer.inbound_nodes[0].outputs.shape.rank
    if rank is None or not 2 <= rank <= 4:
        return False
    return isinstance(layer, _L.Rescaling) or list(layer.axis) in ([-1], [rank - 1])


class _Graph:
    """Which layer's output is used where."""

    def __init__(self, model: tf_keras.Model):
        self._model = model
        self._users: dict[int, list[Any]] = {}
        for node in rebuilding.nodes(model):
            for tensor in node.keras_inputs:
                self._users.setdefault(id(tensor), []).append(node)
        self._ends = {id(tensor) for tensor in model.outputs}

    def only_source(self, node: Any) -> Any:
        """Returns the layer whose output is used by this node alone and is its only input; None: there is none."""
        if len(node.keras_inputs) != 1 or len(node.layer.inbound_nodes) != 1:
            return None
        tensor = node.keras_inputs[0]
        before = tensor.node.layer
        alone = len(self._users[id(tensor)]) == 1 and id(tensor) not in self._ends and len(before.inbound_nodes) == 1
        return before if alone and not isinstance(before, _L.InputLayer) else None

    def users(self, layer: tf_keras.layers.Layer) -> list[tf_keras.layers.Layer]:
        """Returns the layers that use a layer's outputs, one for each use."""
        tensors = [tensor for node in layer.inbound_nodes for tensor in tf.nest.flatten(node.outputs)]
        return [user.layer for tensor in tensors for user in self._users.get(id(tensor), [])]

    def is_end(self, layer: tf_keras.layers.Layer) -> bool:
        """Returns whether a layer makes an output of the model."""
        tensors = [tensor for node in layer.inbound_nodes for tensor in tf.nest.flatten(node.outputs)]
        return any(id(tensor) in self._ends for tensor in tensors)


def _is_fused(layer: tf_keras.layers.Layer) -> bool:
    """Returns whether a layer is an activation that operators include."""
    if type(layer) is _L.ReLU:
        is_plain = not float(layer.negative_slope) and not float(layer.threshold)
        return is_plain and (layer.max_value is None or float(layer.max_value) == 6.0)
    return type(layer) is _L.Activation and _name_of(layer) in _FUSED


def folded(model: tf_keras.Model, chosen: Collection[str]) -> set[str]:
    """Returns the names of the normalizations that the converter folds into the layer before them.

    Args:
      model: as `prepared` returns it.
      chosen: names of the layers that are quantized.
    """
    graph = _Graph(model)
    names = set()
    for node in rebuilding.nodes(model):
        layer, before = node.layer, graph.only_source(node)
        if before is None or not {layer.name, before.name} <= set(chosen):
            continue
        if isinstance(layer, _L.BatchNormalization) and type(before) in _FOLDING and _name_of(before) == "linear":
            names.add(layer.name)
    return names


def _unranged(model: tf_keras.Model, chosen: Collection[str], folds: Collection[str]) -> set[str]:
    """Returns the names of the layers whose output is never rounded, since the operator that makes it does more."""
    graph = _Graph(model)
    names = set()
    for node in rebuilding.nodes(model):
        layer, before = node.layer, graph.only_source(node)
        if layer.name not in chosen:
            continue
        if before is not None and before.name in chosen:
            is_linear = type(before) not in _WEIGHTED or _name_of(before) == "linear"
            fuses = _is_fused(layer) and is_linear and (type(before) in _FUSING or before.name in folds)
            if fuses or layer.name in folds:
                names.add(before.name)
        if type(layer) is _L.Concatenate:
            # TFLite's needs one range for all: that of its output, so that nothing is rounded twice
            sources = [tensor.node.layer for tensor in node.keras_inputs]
            joined = [user for source in sources for user in graph.users(source) if type(user) is _L.Concatenate]
            if all(joined.count(layer) and set(map(id, _joins(graph, source))) == {id(layer)} for source in sources):
                names |= {source.name for source in sources if source.name in chosen and not graph.is_end(source)}
        if type(layer) is _L.Multiply:
            names |= _hard_swish(node, graph)
    return names


def _joins(graph: _Graph, layer: tf_keras.layers.Layer) -> list[tf_keras.layers.Layer]:
    return [user for user in graph.users(layer) if type(user) is _L.Concatenate]


def _hard_swish(node: Any, graph: _Graph) -> set[str]:
    """Returns the names of the layers inside `x * relu6(x + 3) / 6`, one operator in TFLite, given the product."""
    for gate, other in (node.keras_inputs, reversed(node.keras_inputs)) if len(node.keras_inputs) == 2 else ():
        sixth = gate.node
        inner = graph.only_source(sixth) if type(sixth.layer) is TFOpLambda else None
        if inner is None or type(inner) is not _L.ReLU or inner.max_value is None or float(inner.max_value) != 6.0:
            continue
        plus = graph.only_source(inner.inbound_nodes[0])
        if type(plus) is TFOpLambda and plus.inbound_nodes[0].keras_inputs[0] is other:
            constants = [_constant(sixth), _constant(plus.inbound_nodes[0])]
            if constants[0] is not None and abs(constants[0] - 1 / 6) < 1e-6 and constants[1] == 3.0:
                return {sixth.layer.name, inner.name, plus.name}
    return set()


def _constant(node: Any) -> float | None:
    constants = [v for v in tf.nest.flatten((node.call_args, node.call_kwargs)) if isinstance(v, int | float)]
    return float(constants[0]) if len(constants) == 1 else None


# wrapping -------------------------------------------------------------------------------------------------------------


def wrap(model: tf_keras.Model, chosen: Collection[str]) -> tf_keras.Model:
    """Wraps a model for quantization-aware training.

    Args:
      model: as `prepared` returns it; not to be used afterwards: its layers go into the result.
      chosen: names of the layers to be quantized, of those that `reasons` allows.

    Returns:
      A model whose layers are called `quant_<name>` where they are quantized. Where a float layer, or an input, hands
      its output to one that is quantized, a layer `quantize_<name>` stands between, `quantize_layer` after the first
      input.
    """
    folds = folded(model, chosen)
    unranged = _unranged(model, chosen, folds)
    ranged: set[int] = set()
    alive: list[Any] = []  # an id is that of no other tensor while the tensor lives
    bounds: dict[int, Any] = {}
    wrapped: dict[str, tf_keras.layers.Layer] = {}

    def bounded(tensor: Any) -> Any:
        if not tf.is_tensor(tensor) and not isinstance(tensor, type(model.outputs[0])):
            return tensor
        if id(tensor) in ranged or tensor.dtype != tf.float32:
            return tensor
        if id(tensor) not in bounds:
            alive.append(tensor)
            source = tensor.node.layer
            is_input = isinstance(source, _L.InputLayer)
            first = not any(layer.name == "quantize_layer" for layer in wrapped.values())
            name = "quantize_layer" if is_input and first else f"quantize_{source.name}"
            count = sum(key.startswith(f"{name}#") for key in wrapped)
            quantizer = _input_quantizer() if is_input else Range()
            layer = QuantizeLayer(quantizer, name=f"{name}_{count}" if count else name)
            layer.supports_masking = True
            wrapped[f"{name}#{count}"] = layer
            bounds[id(tensor)] = layer(tensor if is_input else Barrier(name=f"{layer.name}_barrier")(tensor))
        return bounds[id(tensor)]

    def call(layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if layer.name not in chosen:
            return layer(*args, **kwargs)
        args, kwargs = tf.nest.map_structure(bounded, (args, kwargs))
        if kwargs.pop("training", None) is False and isinstance(layer, _L.BatchNormalization):
            layer.trainable = False  # the ranges around it are learned all the same
        if type(layer) is TFOpLambda:
            outputs = layer(*args, **kwargs)
            if layer.name not in unranged:
                if layer.name not in wrapped:
                    wrapped[layer.name] = QuantizeLayer(Range(), name=f"quant_{layer.name}")
                outputs = wrapped[layer.name](outputs)
        else:
            if layer.name not in wrapped:
                wrapped[layer.name] = _wrapped(layer, layer.name in folds, layer.name not in unranged)
            outputs = wrapped[layer.name](*args, **kwargs)
        alive.append(outputs)
        ranged.add(id(outputs))
        return outputs

    return rebuilding.rebuilt(model, call)


def _wrapped(layer: tf_keras.layers.Layer, folds: bool, has_range: bool) -> QuantizeWrapperV2:
    if (type(layer) in _AFFINE or isinstance(layer, _L.BatchNormalization)) and not folds:
        layer = ByChannel(layer, name=layer.name)
    is_passing = type(layer) in _PASSING or (type(layer) is _L.Activation and _name_of(layer) in _PASSING_ACTIVATIONS)
    attribute, axes = _WEIGHTED.get(type(layer), ("", ()))
    wrapper = QuantizeWrapperV2(layer, Config(attribute, axes, has_range and not is_passing))
    wrapper.supports_masking = layer.supports_masking
    return wrapper


class Barrier(tf_keras.layers.Layer):
    """Does nothing, but ends what the converter takes for one quantized region.

    It makes any operator int8 that stands between two known ranges. The output of a layer that is to stay float has
    therefore no range: between it and its range stands this operator, which is never folded away.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the inputs, all but the last bit."""
        return tf.nn.leaky_relu(inputs, alpha=1 - 2**-24)  # the float32 next to 1


class ByChannel(tf_keras.layers.Wrapper):
    """A normalization or rescaling which in inference is a depthwise convolution of size 1.

    As one it is a single integer operator, with a scale per channel for a single weight, which loses nothing.
    """

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        """Returns what the layer does in training, else the same as a convolution."""
        if not isinstance(self.layer, _L.BatchNormalization):
            return self._infer(inputs)
        if training is None:
            training = tf_keras.backend.learning_phase()
        if isinstance(training, bool | int):
            return self.layer(inputs, training=True) if training else self._infer(inputs)
        return tf.cond(training, lambda: self.layer(inputs, training=True), lambda: self._infer(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return tf.TensorShape(input_shape)

    def _infer(self, inputs: tf.Tensor) -> tf.Tensor:
        rank, channels = inputs.shape.rank, inputs.shape[-1]
        scale, offset = (tf.broadcast_to(tf.reshape(v, [-1]), [channels]) for v in self._factors())
        image = inputs
        for _ in range(4 - rank):
            image = tf.expand_dims(image, 1)
        image = tf.nn.depthwise_conv2d(image, scale[None, None, :, None], [1, 1, 1, 1], "VALID") + offset
        return tf.squeeze(image, list(range(1, 5 - rank))) if rank < 4 else image

    def _factors(self) -> tuple[Any, Any]:
        layer = self.layer
        if isinstance(layer, _L.Rescaling):
            return tf.cast(layer.scale, tf.float32), tf.cast(layer.offset, tf.float32)
        if isinstance(layer, _L.Normalization):
            scale = 1 / tf.maximum(tf.sqrt(layer.variance), tf_keras.backend.epsilon())
            return (1 / scale, layer.mean) if layer.invert else (scale, -layer.mean * scale)
        scale = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
        scale = scale * layer.gamma if layer.scale else scale
        return scale, (layer.beta if layer.center else 0.0) - layer.moving_mean * scale


class Config(tfmot.quantization.keras.QuantizeConfig):
    """What is rounded in a layer.

    Attributes:
      attribute: name of its kernel, "" where it has none.
      axes: of the kernel, along which values share a scale.
      has_range: whether its output is rounded.
    """

    def __init__(self, attribute: str, axes: Iterable[int], has_range: bool):
        self.attribute = attribute
        self.axes = tuple(axes)
        self.has_range = has_range

    def get_weights_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        """Returns the kernel."""
        return [(getattr(layer, self.attribute), Grid(self.axes))] if self.attribute else []

    def set_quantize_weights(self, layer: tf_keras.layers.Layer, quantize_weights: list[Any]) -> None:
        """Puts the rounded kernel in place of the kernel."""
        if self.attribute:
            setattr(layer, self.attribute, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        """Returns nothing: the output is rounded as a whole."""
        return []

    def set_quantize_activations(self, layer: tf_keras.layers.Layer, quantize_activations: list[Any]) -> None:
        """Does nothing; see `get_activations_and_quantizers`."""
        del layer, quantize_activations  # AutoGraph warns of a function that has nothing but a docstring

    def get_output_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        """Returns what rounds the output."""
        return [Range()] if self.has_range else []

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments by which it is made."""
        return {"attribute": self.attribute, "axes": self.axes, "has_range": self.has_range}


class Grid(quantizers.Quantizer):
    """Rounds weights to 255 values around zero; gradients pass.

    The converter finds the same grid in the rounded values, so that it needs no ranges here. Zeros stay zeros, and
    equal values of a channel stay equal.
    """

    def __init__(self, axes: Iterable[int]):
        self.axes = tuple(axes)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Returns the variables: none."""
        return {}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Any, **kwargs: Any) -> tf.Tensor:
        """Returns the rounded weights."""
        step = tf.reduce_max(tf.abs(inputs), self.axes, keepdims=True) / 127
        rounded = tf.math.divide_no_nan(inputs, step)
        return inputs + tf.stop_gradient(tf.round(rounded) * step - inputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments by which it is made."""
        return {"axes": self.axes}


class Range(quantizers.Quantizer):
    """Rounds activations to 256 values between the smallest and the largest one: the mean of the last 100 batches'."""

    _MOMENTUM = 0.99

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        """Returns the variables, which become the layer's."""

        def add(kind: str, value: float) -> Any:
            initializer = tf_keras.initializers.Constant(value)
            return layer.add_weight(f"{name}_{kind}", shape=[], initializer=initializer, trainable=False)

        return {"min_var": add("min", -6.0), "max_var": add("max", 6.0), "batches": add("batches", 0.0)}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
        """Returns the rounded activations; in training, widens or narrows the range first."""
        low, high = weights["min_var"], weights["max_var"]
        if training:
            seen = weights["batches"]
            keep = tf.minimum(seen / (seen + 1), self._MOMENTUM)
            # zero must be among the values
            low = low.assign(keep * low + (1 - keep) * tf.minimum(tf.reduce_min(inputs), 0.0))
            high = high.assign(keep * high + (1 - keep) * tf.maximum(tf.reduce_max(inputs), 0.0))
            seen.assign_add(1.0)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments by which it is made."""
        return {}


def _input_quantizer() -> Any:
    return quantizers.AllValuesQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
