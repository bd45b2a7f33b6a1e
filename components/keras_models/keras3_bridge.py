"""Rebuilds a Keras 3 model in tf-keras (Keras 2), the Keras that tensorflow-model-optimization works on.

The graph of the Keras 3 model is walked once: each layer gets a twin of the same class and config, each operation the
TensorFlow op it stands for, and nested models dissolve into their layers, so that every layer can be compressed. Then
the weights are copied, and the twin counts only if its outputs are those of the original.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.errors import UserError

#: How far the twin's outputs may be from the original's, as a fraction of the largest output. Rounding grows with
#: depth: to 4e-5 in an untrained EfficientNetV2S.
TOLERANCE = 1e-4

#: Options that decide how fast or from which seed, never what comes out of inference.
_HARMLESS = ("autocast", "build_config", "dtype", "flash_attention", "quantization_config", "seed", "use_cudnn")
_LAYER_OPTIONS = frozenset({"name", "trainable", "dtype", "activity_regularizer"})
_RNN_OPTIONS = frozenset({"zero_output_for_mask"})
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}

_PACKAGES = ("layers", "initializers", "regularizers", "constraints", "optimizers.schedules")

_ACTIVATIONS = {"silu": "swish"}
#: Activations that Keras 2 lacks or means something else by: the layer stays linear, and one of these follows it.
_FOLLOWING: dict[str, Callable[[Any], Any]] = {
    "hard_sigmoid": lambda x: tf.nn.relu6(x + 3.0) / 6.0,
    "hard_silu": lambda x: x * (tf.nn.relu6(x + 3.0) / 6.0),
    "hard_swish": lambda x: x * (tf.nn.relu6(x + 3.0) / 6.0),
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, alpha=0.2),
    "log_softmax": lambda x: tf.nn.log_softmax(x),
    "relu6": lambda x: tf.nn.relu6(x),
}

_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda op, x: function(x, axis=op.axis, keepdims=op.keepdims)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda op, *arguments: function(*arguments)


#: What each operation of Keras 3 is in TensorFlow, by class name: called with the operation and its arguments.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Absolute": _plain(tf.abs),
    "Add": _plain(tf.add),
    "Argmax": lambda op, x: tf.argmax(x, axis=op.axis, output_type=tf.int32),
    "BroadcastTo": lambda op, x: tf.broadcast_to(x, op.shape),
    "Cast": lambda op, x: tf.cast(x, op.dtype),
    "Clip": lambda op, x: tf.clip_by_value(x, op.x_min, op.x_max),
    "Concatenate": lambda op, xs: tf_keras.layers.Concatenate(axis=op.axis, name=op.name)(xs),
    "Divide": _plain(tf.divide),
    "Einsum": lambda op, *operands: tf.einsum(op.subscripts, *operands),
    "Elu": lambda op, x: tf_keras.layers.ELU(op.alpha, name=op.name)(x),
    "Equal": _plain(tf.equal),
    "Exp": _plain(tf.exp),
    "ExpandDims": lambda op, x: tf.expand_dims(x, op.axis),
    "Floor": _plain(tf.floor),
    "Gelu": lambda op, x: tf.nn.gelu(x, approximate=op.approximate),
    "GetItem": lambda op, x, key: x[key],
    "Greater": _plain(tf.greater),
    "GreaterEqual": _plain(tf.greater_equal),
    "HardSigmoid": lambda op, x: _FOLLOWING["hard_sigmoid"](x),
    "HardSilu": lambda op, x: _FOLLOWING["hard_silu"](x),
    "LeakyRelu": lambda op, x: tf.nn.leaky_relu(x, alpha=op.negative_slope),
    "Less": _plain(tf.less),
    "LessEqual": _plain(tf.less_equal),
    "Log": _plain(tf.math.log),
    "LogSoftmax": lambda op, x: tf.nn.log_softmax(x, axis=op.axis),
    "LogicalAnd": _plain(tf.logical_and),
    "LogicalNot": _plain(tf.logical_not),
    "LogicalOr": _plain(tf.logical_or),
    "Matmul": _plain(tf.matmul),
    "Max": _reduction(tf.reduce_max),
    "Maximum": _plain(tf.maximum),
    "Mean": _reduction(tf.reduce_mean),
    "Min": _reduction(tf.reduce_min),
    "Minimum": _plain(tf.minimum),
    "Multiply": _plain(tf.multiply),
    "Negative": _plain(tf.negative),
    "NotEqual": _plain(tf.not_equal),
    "Power": _plain(tf.pow),
    "Relu": lambda op, x: tf_keras.layers.ReLU(name=op.name)(x),
    "Relu6": lambda op, x: tf_keras.layers.ReLU(6.0, name=op.name)(x),
    "Reshape": lambda op, x: tf.reshape(x, op.newshape),
    "Rsqrt": _plain(tf.math.rsqrt),
    "Sigmoid": _plain(tf.sigmoid),
    "Silu": _plain(tf.nn.silu),
    "Softmax": lambda op, x: tf_keras.layers.Softmax(op.axis, name=op.name)(x),
    "Softplus": _plain(tf.math.softplus),
    "Sqrt": _plain(tf.sqrt),
    "Square": _plain(tf.square),
    "Squeeze": lambda op, x: tf.squeeze(x, axis=op.axis),
    "Stack": lambda op, xs: tf.stack(xs, axis=op.axis),
    "Subtract": _plain(tf.subtract),
    "Sum": _reduction(tf.reduce_sum),
    "Swapaxes": lambda op, x: tf.experimental.numpy.swapaxes(x, op.axis1, op.axis2),
    "Tanh": _plain(tf.tanh),
    "Transpose": lambda op, x: tf.transpose(x, perm=op.axes),
    "TrueDivide": _plain(tf.divide),
    "Where": _plain(tf.where),
}


class _NoTwinError(Exception):
    """Why a layer or an operation cannot be rebuilt."""


@dataclasses.dataclass(frozen=True)
class _Missing:
    """Stands for an output of what could not be rebuilt."""

    of: str


def is_keras3(value: Any) -> bool:
    """Returns whether an object's class is one of Keras 3, or derived from one; imports nothing."""
    return any(base.__module__.split(".")[0] == "keras" for base in type(value).__mro__)


def load(path: str) -> Any:
    """Loads a model that Keras 3 saved (`.keras` or `.h5`), uncompiled, in safe mode.

    Raises:
      ValueError, TypeError, OSError: it cannot be read, or holds what safe mode refuses; Keras' own message.
    """
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True)


def convert(model: Any, what: str = "the Keras 3 model") -> tf_keras.Model:
    """Rebuilds a Keras 3 model in tf-keras, with its weights.

    Args:
      model: Sequential or Functional, built; its layers are those that Keras ships.
      what: how messages call it.

    Returns:
      A flat functional model with the same inputs, outputs, layer names and weights.

    Raises:
      UserError: it is of another kind, layers have no twin (all are listed, with the reasons), or the outputs differ.
    """
    graph = _graph(model)
    if graph is None:
        unbuilt = hasattr(model, "layers") and type(model).__name__ == "Sequential"
        raise UserError(
            f"{what} is {'a Sequential model without an input shape' if unbuilt else type(model).__name__}; only "
            f"Sequential and functional Keras 3 models can be rebuilt in tf-keras. "
            f"{'Begin it with keras.Input(shape)' if unbuilt else 'Write it with tf_keras, or as a functional model'}"
        )
    feeds = [
        tf_keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name, sparse=bool(getattr(tensor, "sparse", False))
        )
        for layer, tensor in _inputs(graph)
    ]
    rebuilder = _Rebuilder()
    outputs = rebuilder.run(graph, feeds, "")
    if rebuilder.problems or any(isinstance(output, _Missing) for output in outputs):
        raise UserError(
            f"{what} has {len(rebuilder.problems)} layers or operations without a twin in tf-keras:\n"
            f"{_listed(rebuilder.problems)}\n"
            f"Replace them, write a tf_keras layer of the same name and return it from custom_objects() of the model "
            f"module, or build the model with tf_keras"
        )
    outputs = [
        _named(output, f"{name}{'_output' if id(layer) in rebuilder.twins else ''}")
        for output, (layer, name) in zip(outputs, _makers(graph.outputs), strict=True)
    ]
    twin = tf_keras.Model(feeds, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    for original, copy in rebuilder.twins.values():
        _copy_weights(original, copy)
    _check(graph, twin, rebuilder, what)
    return twin


def _listed(problems: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in problems.items():
        by_reason.setdefault(reason, []).append(name)
    return "\n".join(
        f"  {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
        for reason, names in by_reason.items()
    )


def _graph(model: Any) -> Any:
    """Returns a model's functional graph, or None where it has none."""
    graph = getattr(model, "_functional", None) if type(model).__name__ == "Sequential" else model
    own_call = getattr(getattr(type(graph), "call", None), "__qualname__", "")
    functional = hasattr(graph, "_nodes_by_depth") and own_call == "Functional.call"
    return graph if functional else None


def _makers(tensors: list[Any]) -> list[tuple[Any, str]]:
    return [(operation, operation.name) for operation in (tensor._keras_history.operation for tensor in tensors)]


def _named(output: Any, name: str) -> Any:
    """Returns an output that a bare op made as one of a layer: outputs are called after their layers."""
    bare = type(output._keras_history.layer).__name__ in ("TFOpLambda", "SlicingOpLambda")
    return tf_keras.layers.Activation("linear", name=name)(output) if bare else output


def _inputs(graph: Any) -> list[tuple[Any, Any]]:
    return [(tensor._keras_history.operation, tensor) for tensor in graph.inputs]


def _nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of a graph, each after those it needs, without the inputs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


class _Rebuilder:
    """Walks graphs of Keras 3 and calls a twin for each layer and operation that they call.

    Attributes:
      twins: by the original layer's id, original and twin: a shared layer stays one.
      problems: by name, why there is no twin.
      pairs: original and twin tensors in the order in which they were made, with the name of what made them.
    """

    def __init__(self) -> None:
        self.twins: dict[int, tuple[Any, Any]] = {}
        self.problems: dict[str, str] = {}
        self.pairs: list[tuple[str, Any, Any]] = []
        self._names: set[str] = set()
        self._following: dict[int, Callable[[Any], Any]] = {}

    def run(self, graph: Any, feeds: list[Any], prefix: str) -> list[Any]:
        """Returns the twins of a graph's outputs, `_Missing` where there is none.

        Args:
          graph: with as many inputs as there are feeds.
          feeds: symbolic tensors of tf-keras.
          prefix: for names that are taken: those of the nested models this is inside of.
        """
        import keras

        rebuilt = {id(tensor): feed for tensor, feed in zip(graph.inputs, feeds, strict=True)}

        def twin_of(value: Any) -> Any:
            return rebuilt[id(value)] if isinstance(value, keras.KerasTensor) else value

        for node in _nodes(graph):
            operation = node.operation
            name = f"{prefix}{operation.name}"
            kwargs = {k: v for k, v in node.arguments.kwargs.items() if v is not None and k != "training"}
            args = list(node.arguments.args)
            outputs: list[Any] = []
            try:
                nested = _graph(operation) if isinstance(operation, keras.Model) else None
                if isinstance(operation, keras.Layer) and nested is None:
                    self._twin(operation, name)  # found out first, so that all that have none are listed
                    args, kwargs = _layer_arguments(operation, args, kwargs)
                new_args, new_kwargs = keras.tree.map_structure(twin_of, (args, kwargs))
                if any(isinstance(value, _Missing) for value in keras.tree.flatten((new_args, new_kwargs))):
                    raise _NoTwinError("")
                if nested is not None:
                    outputs = self.run(nested, keras.tree.flatten(new_args), f"{name}_")
                elif isinstance(operation, keras.Layer):
                    outputs = keras.tree.flatten(self._call(operation, new_args, new_kwargs))
                else:
                    outputs = keras.tree.flatten(_operate(operation, new_args, new_kwargs))
            except _NoTwinError as error:
                if str(error):
                    self.problems[name] = f"{type(operation).__name__}: {error}"
                outputs = [_Missing(name)] * len(node.outputs)
            for tensor, twin in zip(node.outputs, outputs, strict=True):
                rebuilt[id(tensor)] = twin
                if not isinstance(twin, _Missing) and not prefix:
                    self.pairs.append((name, tensor, twin))
        return [rebuilt[id(tensor)] for tensor in graph.outputs]

    def _twin(self, layer: Any, name: str) -> Any:
        if id(layer) not in self.twins:
            config = layer.get_config()
            activation = config.get("activation")
            if not hasattr(layer, "cell") and isinstance(activation, str) and activation in _FOLLOWING:
                self._following[id(layer)] = _FOLLOWING[activation]
                config["activation"] = "linear"
            twin = _make(type(layer), config)
            if twin.name in self._names and twin.name != name:
                twin = _make(type(layer), config | {"name": name})
            self._names.add(twin.name)
            self.twins[id(layer)] = layer, twin
        return self.twins[id(layer)][1]

    def _call(self, layer: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        twin = self.twins[id(layer)][1]
        known = inspect.signature(twin.call).parameters
        variable = any(p.kind is p.VAR_KEYWORD for p in known.values())
        foreign = [name for name in kwargs if name not in known and not variable]
        if foreign:
            raise _NoTwinError(f"tf-keras' layer is not called with {', '.join(foreign)}")
        try:
            outputs = twin(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise _NoTwinError(f"tf-keras refuses it: {str(error).splitlines()[0]}") from error
        following = self._following.get(id(layer))
        return following(outputs) if following else outputs


def _layer_arguments(layer: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the first argument alone by position, and the others by name, without what tf-keras finds by itself."""
    named = inspect.signature(layer.call).bind_partial(*args, **kwargs).arguments
    first = next(iter(named))
    rest = {k: v for k, v in named.items() if k not in (first, "training") and v is not None}
    for name in [n for n in rest if n == "mask" or n.endswith("_mask")]:
        source = named.get(name.removesuffix("_mask"), named[first]) if name != "mask" else named[first]
        if _is_automatic(rest[name], source):
            del rest[name]
    return [named[first]], rest


def _is_automatic(mask: Any, source: Any) -> bool:
    """Returns whether a mask is the one that Keras propagates from what the layer is called on."""
    import keras

    masks, sources = keras.tree.flatten(mask), keras.tree.flatten(source)
    if all(m is None for m in masks):
        return True
    propagated = [getattr(tensor, "_keras_mask", None) for tensor in sources]
    return len(masks) == len(propagated) and all(_same(a, b) for a, b in zip(masks, propagated, strict=True))


def _same(a: Any, b: Any) -> bool:
    """Returns whether two symbolic tensors are the same, or made in the same way of the same."""
    if a is b:
        return True
    if not (hasattr(a, "_keras_history") and hasattr(b, "_keras_history")):
        return type(a) is type(b) and not hasattr(a, "shape") and bool(a == b)
    one, two = (t._keras_history.operation._inbound_nodes[t._keras_history.node_index] for t in (a, b))
    if type(one.operation) is not type(two.operation) or one.is_input or hasattr(one.operation, "weights"):
        return False
    values = [[*node.arguments.args, *node.arguments.kwargs.values()] for node in (one, two)]
    return len(values[0]) == len(values[1]) and all(_same(x, y) for x, y in zip(*values, strict=True))


def _operate(operation: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    kind = type(operation).__name__
    values = [*args, *kwargs.values()]
    if kind in _MERGES and _rank(values[0]) is not None and _rank(values[0]) == _rank(values[1]):
        return getattr(tf_keras.layers, kind)(name=operation.name)(values)  # tfmot knows layers, not bare ops
    if not type(operation).__module__.startswith("keras.src.ops.") or kind not in _OPERATIONS:
        raise _NoTwinError("an operation that Edgeline does not know how to write in TensorFlow")
    return _OPERATIONS[kind](operation, *values)


def _rank(value: Any) -> Any:
    return len(value.shape) if hasattr(value, "_keras_history") else None


# configs --------------------------------------------------------------------------------------------------------------


def _make(kind: type, config: dict[str, Any]) -> Any:
    twin = _twin_class(kind)
    options = _options(kind, twin, config)
    if twin is tf_keras.layers.MultiHeadAttention:  # its from_config asks for shapes that are found at the first call
        return twin(**options)
    try:
        return twin.from_config(options)
    except (TypeError, ValueError, KeyError) as error:
        raise _NoTwinError(f"tf-keras refuses its config: {str(error).splitlines()[0]}") from error


def _twin_class(kind: type) -> Any:
    if kind.__name__ == "Lambda":
        raise _NoTwinError("holds Python code of its own; use layers or keras.ops in its place")
    if not kind.__module__.startswith("keras.src.layers."):
        own = tf_keras.utils.get_custom_objects().get(kind.__name__)
        if isinstance(own, type) and issubclass(own, tf_keras.layers.Layer):
            return own
        raise _NoTwinError("a class of its own, not one of Keras' layers")
    twin = getattr(tf_keras.layers, kind.__name__, None)
    if twin is None:
        raise _NoTwinError("Keras 2 has no such layer")
    return twin


def _signature(kind: type) -> dict[str, Any]:
    """Returns the options that a class and its bases take by name, with their defaults."""
    options: dict[str, Any] = {}
    for base in kind.__mro__:
        if base.__name__ == "Layer" or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
                options.setdefault(p.name, p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options


def _options(kind: type, twin: type, config: dict[str, Any]) -> dict[str, Any]:
    """Translates a config; what tf-keras has no option for must be at its default in Keras 3."""
    known, defaults = set(_signature(twin)), _signature(kind)
    known |= _LAYER_OPTIONS if issubclass(twin, tf_keras.layers.Layer) else set()
    known |= _RNN_OPTIONS if issubclass(twin, tf_keras.layers.RNN) else set()
    translated = {}
    for name, value in config.items():
        target = _RENAMED.get((kind.__name__, name), name)
        if target in known:
            translated[target] = _translate(name, value)
        elif name not in _HARMLESS and value not in (None, False, "channels_last") and value != defaults.get(name):
            raise _NoTwinError(f"tf-keras has no option {name}={value!r}")
    return translated


def _translate(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_translate(name, item) for item in value)
    if name.endswith("activation") and isinstance(value, str):
        if value in _FOLLOWING or not hasattr(tf_keras.activations, _ACTIVATIONS.get(value, value)):
            raise _NoTwinError(f"tf-keras has no activation {value!r} that means the same inside this layer")
        return _ACTIVATIONS.get(value, value)
    if not (isinstance(value, dict) and "class_name" in value):
        return value
    kind = value["class_name"]
    config: dict[str, Any] = value.get("config") or {}
    if kind in ("DTypePolicy", "FloatDTypePolicy"):
        return config["name"]
    for package in _PACKAGES:
        if value.get("module") == f"keras.{package}":
            return _translate_object(package, name, kind, config)
    raise _NoTwinError(f"its {name} is {value.get('registered_name') or kind}, a thing of its own")


def _translate_object(package: str, name: str, kind: str, config: dict[str, Any]) -> Any:
    import keras

    source, twin = (_member(root, package, kind) for root in (keras, tf_keras))
    if package == "layers":
        twin = _twin_class(source)
    if twin is None and package == "initializers":
        return "zeros"  # the weights are copied anyway
    if twin is None or source is None:
        raise _NoTwinError(f"tf-keras has no {name} {kind}")
    options = _options(source, twin, config)
    if not isinstance(options.get("seed", 0), int):
        options["seed"] = None
    return {"module": f"keras.{package}", "class_name": kind, "config": options, "registered_name": None}


def _member(root: Any, package: str, name: str) -> Any:
    for part in package.split("."):
        root = getattr(root, part)
    return getattr(root, name, None)


# compiling ------------------------------------------------------------------------------------------------------------


def compile_arguments(value: Any) -> Any:
    """Returns what `tf_keras.Model.compile` takes in place of Keras 3's optimizers, losses, metrics and schedules.

    Args:
      value: an argument of `compile`, lists and dicts included; what is not of Keras 3 comes back as it is.

    Raises:
      UserError: tf-keras has no such thing, or not with these options.
    """
    if isinstance(value, list | tuple):
        return type(value)(compile_arguments(item) for item in value)
    if isinstance(value, dict):
        return {key: compile_arguments(item) for key, item in value.items()}
    if inspect.isfunction(value) and value.__module__.split(".")[0] == "keras":
        return value.__name__
    if not is_keras3(value):
        return value
    import keras

    for package, base in (
        ("optimizers", keras.optimizers.Optimizer),
        ("losses", keras.losses.Loss),
        ("metrics", keras.metrics.Metric),
    ):
        if isinstance(value, base) and type(value).__module__.split(".")[0] == "keras":
            try:
                translated = _translate_object(package, package, type(value).__name__, value.get_config())
            except _NoTwinError as error:
                raise UserError(f"compile_model: {type(value).__name__} of Keras 3: {error}; use tf_keras'") from None
            return _member(tf_keras, package, translated["class_name"]).from_config(translated["config"])
    raise UserError(
        f"compile_model: {type(value).__name__} is a class of its own made for Keras 3; derive it from tf_keras' class"
    )


# weights and proof ----------------------------------------------------------------------------------------------------


def _copy_weights(original: Any, twin: Any) -> None:
    """Copies a layer's weights by their names; where a name comes twice (a Bidirectional's kernels), in their order."""
    mine = [(weight.path.split("/")[-1], weight) for weight in original.weights]
    theirs = [(weight.name.split("/")[-1].split(":")[0], weight) for weight in twin.weights]
    if sorted(name for name, _ in mine) == sorted(name for name, _ in theirs):
        # else Keras 3 has another name for one, such as a DepthwiseConv2D's kernel, and the order is the same
        mine.sort(key=lambda pair: pair[0])
        theirs.sort(key=lambda pair: pair[0])
    shapes = [[(name, tuple(weight.shape)) for name, weight in weights] for weights in (mine, theirs)]
    if [shape for _, shape in shapes[0]] != [shape for _, shape in shapes[1]]:
        raise UserError(
            f"layer {original.name} ({type(original).__name__}) has the weights {dict(shapes[0])} in Keras 3 and "
            f"{dict(shapes[1])} in tf-keras; build the model with tf_keras"
        )
    for (_, source), (_, target) in zip(mine, theirs, strict=True):
        target.assign(source.numpy())
    if hasattr(twin, "finalize_state"):
        twin.finalize_state()  # a Normalization keeps constants made of its weights


def _check(graph: Any, twin: tf_keras.Model, rebuilder: _Rebuilder, what: str) -> None:
    """Raises UserError unless both models return the same for the same random inputs.

    The inputs of the last layers are compared too: a softmax can saturate, and then hides what differs before it.
    """
    import keras

    last = [t for output in graph.outputs for t in [*_made_from(output), output]]
    copies = {id(original): (name, copy) for name, original, copy in rebuilder.pairs}
    probes = [(copies[id(t)][0], t, copies[id(t)][1]) for t in {id(t): t for t in last}.values() if id(t) in copies]
    mine = keras.Model(graph.inputs, [original for _, original, _ in probes])
    theirs = tf_keras.Model(twin.inputs, [copy for _, _, copy in probes])
    proven = False
    for scale in (1.0, 255.0):  # what networks take: normalized values, and bytes
        samples = _random_inputs(graph, scale)
        expected = [np.asarray(t) for t in keras.tree.flatten(mine(samples, training=False))]
        if not all(np.isfinite(values).all() for values in expected if values.dtype.kind == "f"):
            continue
        proven = True
        received = [np.asarray(t) for t in tf.nest.flatten(theirs(samples, training=False))]
        for (name, _, _), want, got in zip(probes, expected, received, strict=True):
            if (difference := _difference(want, got)) > TOLERANCE:
                raise UserError(
                    f"{what} cannot be rebuilt in tf-keras: what comes out of {name} differs by {difference:.2g} of "
                    f"its largest value (allowed: {TOLERANCE:g}){_first_difference(graph, twin, rebuilder, samples)}"
                )
    if not proven:
        raise UserError(
            f"{what} returns NaN or infinity for random inputs: no proof that its twin in tf-keras is right"
        )


def _made_from(tensor: Any) -> list[Any]:
    history = tensor._keras_history
    return list(history.operation._inbound_nodes[history.node_index].arguments.keras_tensors)


def _difference(want: np.ndarray, got: np.ndarray) -> float:
    if want.shape != got.shape:
        return float("inf")
    if want.size == 0:
        return 0.0
    scale = max(float(np.abs(want.astype(np.float64)).max()), 1e-12)
    return float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max()) / scale


def _first_difference(graph: Any, twin: tf_keras.Model, rebuilder: _Rebuilder, samples: list[Any]) -> str:
    """Returns, for the message, where the outputs begin to differ."""
    import keras

    pairs = [pair for pair in rebuilder.pairs if pair[1].dtype.startswith("float")]
    mine = keras.Model(graph.inputs, [original for _, original, _ in pairs])(samples, training=False)
    theirs = tf_keras.Model(twin.inputs, [copy for _, _, copy in pairs])(samples, training=False)
    for (name, _, _), want, got in zip(pairs, keras.tree.flatten(mine), tf.nest.flatten(theirs), strict=True):
        if _difference(np.asarray(want), np.asarray(got)) > TOLERANCE:
            return f"; it begins at {name}"
    return ""


def _random_inputs(graph: Any, scale: float) -> list[Any]:
    """Returns two random samples per input: for integers and what an Embedding looks up, small whole numbers."""
    draw = np.random.default_rng(0)
    samples = []
    for _, tensor in _inputs(graph):
        varying = 64 if len(tensor.shape) == 4 else 16
        shape = [2, *(varying if n is None else n for n in tensor.shape[1:])]
        readers = [n.operation for n in _nodes(graph) if any(a is tensor for a in n.arguments.keras_tensors)]
        limits = [getattr(r, "input_dim", None) or getattr(r, "num_tokens", None) for r in readers]
        whole = [limit for limit in limits if limit]
        values: np.ndarray
        if tensor.dtype == "bool":
            values = draw.random(shape) < 0.5
        elif whole or not tensor.dtype.startswith(("float", "bfloat")):
            # 0 is often the padding, which hides what comes after it
            values = draw.integers(1, min([*whole, 10]), shape) if min([*whole, 10]) > 1 else np.zeros(shape)
        else:
            values = draw.normal(size=shape) if scale == 1.0 else draw.random(shape) * scale
        samples.append(tf.constant(np.asarray(values).astype(tensor.dtype)))
    return samples
