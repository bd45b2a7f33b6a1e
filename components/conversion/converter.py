"""TensorFlow's converter, set up by a passport's scheme, and its quantizer, which can leave single ops float.

Calibrating runs the model on all samples; quantizing what was calibrated takes a fraction of that, so that many
variants of one model are cheap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema_fb
from tensorflow.lite.python.convert import ConverterError as ConverterError
from tensorflow.lite.python.convert import mlir_quantize

from edgeline.conversion import float_tflite
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel, TFLiteGraph
from edgeline.schemes import SCHEMES
from edgeline.tflite import inspection

_OPERATORS = {value: name for name, value in vars(schema_fb.BuiltinOperator).items() if isinstance(value, int)}
#: Of the calibrator, and what carries numbers over unchanged or from one type to another.
_GLUE = ("QUANTIZE", "DEQUANTIZE", "PSEUDO_CONST")

#: What `quantize` makes of a model, and what it can make of all but some of its operators.
_BY_OPERATOR = "int8"
#: Number types of weights that the standard converters make.
_WEIGHTS = ("float32", "float16", "int8")
#: Sets of operators that compute on integers, by the number type of the activations.
_INTEGER_OPERATORS = {
    "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    "int16": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
}


@dataclasses.dataclass(frozen=True)
class Node:
    """An op of a converted model.

    Attributes:
      name: of its first output, by which the quantizer knows it.
      op: its kind as TFLite names it, e.g. `CONV_2D`.
      layers: names of the layers that it computes, the one with the kernel first; where the tensors' names do not tell,
        the layer whose output it reads, or its own name.
      parameters: values in its constant inputs of two and more dimensions, 0 where it has none.
      inputs: names of the outputs of other nodes that it reads.
    """

    name: str
    op: str
    layers: tuple[str, ...]
    parameters: int
    inputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float model of which the range of every tensor is known.

    Attributes:
      content: of the `.tflite` file; its kernels are float.
      nodes: its ops in the order in which they run, those of subgraphs after the main graph's.
    """

    content: bytes
    nodes: tuple[Node, ...]

    @property
    def layers(self) -> list[str]:
        """Returns the names of the layers that have ops, in the order in which they run."""
        return list(dict.fromkeys(layer for node in self.nodes for layer in node.layers))

    def of(self, layers: Collection[str] = (), ops: Collection[str] = ()) -> list[str]:
        """Returns the names of the nodes that compute one of these layers or are of one of these kinds."""
        return [node.name for node in self.nodes if node.op in ops or set(node.layers) & set(layers)]


def convert(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], scheme: dict[str, Any], calibration: dict[str, np.ndarray]
) -> bytes:
    """Converts a model, with fixed input and output names.

    Args:
      model: plain or, for a trained scheme, wrapped.
      io: the passport's: names, shapes and dtypes of inputs and outputs.
      scheme: the passport's: scheme, io_type, sparse, under keep_float the layers and kinds of ops that stay float; and
        allow_select_tf_ops and allow_custom_ops, which models with layers kept float do without.
      calibration: samples by input name, shape [samples, ...].

    Returns:
      The content of the `.tflite` file, whose signature `serving_default` has the passport's names.
    """
    return CONVERTERS[SCHEMES[scheme["scheme"]].converter](model, io, scheme, calibration)


def _by_number_types(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], scheme: dict[str, Any], calibration: dict[str, np.ndarray]
) -> bytes:
    """Converts a model by what its scheme's entry says of weights and activations; see `convert`."""
    entry = SCHEMES[scheme["scheme"]]
    if entry.weights not in _WEIGHTS or entry.activations not in ("float32", *_INTEGER_OPERATORS):
        raise ValueError(
            f"scheme {scheme['scheme']} has {entry.weights} weights and {entry.activations} activations, which neither "
            f"TensorFlow's converter nor the AI Edge quantizer is set up for; name a converter of its own in its entry"
        )
    # what a trained scheme keeps float was left unwrapped
    kept = not entry.trained and scheme.get("keep_float")
    if isinstance(model, TFLiteGraph) and not kept:
        return float_tflite.convert(_content(model, io), scheme, batches(calibration, graph_model.fixed_batch(io) or 1))
    if kept:
        calibrated = calibrate(model, io, calibration)
        return quantize(calibrated, calibrated.of(kept["layers"], kept["ops"]), scheme["io_type"])
    content: bytes = set_up(model, io, scheme, calibration).convert()
    return content


#: What makes the file of a scheme, by the `converter` of its entry in SCHEMES; arguments and result as of `convert`.
CONVERTERS: dict[
    str, Callable[[tf_keras.Model | GraphModel, dict[str, Any], dict[str, Any], dict[str, np.ndarray]], bytes]
] = {"standard": _by_number_types}


def set_up(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], scheme: dict[str, Any], calibration: dict[str, np.ndarray]
) -> tf.lite.TFLiteConverter:
    """Returns the converter that does what a scheme says of a whole model; see `convert`."""
    batch = graph_model.fixed_batch(io)
    infer = keras_file.inference_function(model, io).get_concrete_function(**keras_file.input_signature(io, batch))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer], _variables(infer, model))
    entry = SCHEMES[scheme["scheme"]]
    if entry.weights != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme.get("sparse"):
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if entry.weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if entry.calibrated:
        _refuse_loops(infer, model, scheme["scheme"])
        # by input name: the order of inputs can never matter
        converter.representative_dataset = lambda: batches(calibration, batch or 1)
        converter.target_spec.supported_ops = [_INTEGER_OPERATORS[str(entry.activations)]]
    if entry.integer_io:
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(scheme["io_type"])
    if scheme.get("allow_select_tf_ops"):
        converter.target_spec.supported_ops = [*converter.target_spec.supported_ops, tf.lite.OpsSet.SELECT_TF_OPS]
    converter.allow_custom_ops = bool(scheme.get("allow_custom_ops"))
    return converter


def _variables(infer: Any, model: tf_keras.Model | GraphModel) -> Any:
    """Returns what keeps a function's variables: a Keras model itself would be saved with a trace of every layer."""
    if isinstance(model, GraphModel):
        return model
    holder = tf.Module()
    holder.kept = list(infer.graph.variables)
    return holder


def _refuse_loops(infer: Any, model: tf_keras.Model | GraphModel, kind: str) -> None:
    """Raises ValueError for a model in which loops stay loops: the calibrator crashes on them, and this process too."""
    graph = infer.graph.as_graph_def()
    nodes_of_all = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    if not any(node.op in ("While", "StatelessWhile") for node in nodes_of_all):
        return
    # an LSTM's becomes one operator
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer], _variables(infer, model))
    plain = inspection.structure(converter.convert())
    loops = sorted({op["layer"] or op["tensor"] for op in plain["float_ops"] if op["op"] == "WHILE"})
    if loops:
        raise ValueError(
            f"{kind} cannot be calibrated: TensorFlow's calibrator crashes on loops, and {', '.join(loops)} is one in "
            f"TFLite. Choose dynamic_range or float16, or an LSTM, which is a single operator"
        )


def for_one_example(io: dict[str, Any]) -> dict[str, Any]:
    """Returns a passport's `io` with a batch of 1: with all sizes known, GRU and LSTM convert."""
    return {**io, "inputs": [{**port, "shape": [1, *port["shape"][1:]]} for port in io["inputs"]]}


def _content(model: TFLiteGraph, io: dict[str, Any]) -> bytes:
    """Returns the file for the batch size that is asked for: its own, or 1."""
    same = graph_model.fixed_batch(io) == graph_model.fixed_batch(model.io)
    return model.content if same else float_tflite.for_one_example(model.content)


def batches(samples: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the samples in batches of exactly this size; the last one begins again with the first samples."""
    count = len(next(iter(samples.values())))
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        yield {name: values[rows] for name, values in samples.items()}


def calibrate(model: tf_keras.Model | GraphModel, io: dict[str, Any], calibration: dict[str, np.ndarray]) -> Calibrated:
    """Runs the samples through a model and notes the range of every tensor, once for any number of `quantize`."""
    if isinstance(model, TFLiteGraph):
        content = float_tflite.calibrate(_content(model, io), batches(calibration, graph_model.fixed_batch(io) or 1))
    else:
        converter = set_up(model, io, {"scheme": _BY_OPERATOR, "io_type": "float32"}, calibration)
        converter._experimental_calibrate_only = True
        content = converter.convert()
    names = None if isinstance(model, GraphModel) else layer_names(model)
    return Calibrated(content, tuple(nodes(content, names)))


def quantize(
    calibrated: Calibrated, keep_float: Iterable[str] = (), io_type: str = "float32", *, verify: bool = False
) -> bytes:
    """Quantizes weights and activations to int8.

    The same quantizer makes int16 activations with zero points that LiteRT refuses, so int16x8 is not made here.

    Args:
      calibrated: the model.
      keep_float: names of nodes that stay as they are.
      io_type: number type of the model's inputs and outputs.
      verify: whether each quantized op is to be compared with its float twin, on the same inputs, by a NumericVerify.

    Returns:
      The content of the `.tflite` file.
    """
    dtype = tf.as_dtype(io_type)
    content: bytes = mlir_quantize(
        calibrated.content,
        input_data_type=dtype,
        output_data_type=dtype,
        enable_numeric_verify=verify,
        denylisted_nodes=list(keep_float),
    )
    return content


def layer_names(model: tf_keras.Model) -> list[str]:
    """Returns the names of all layers, those of models within the model too."""
    names = []
    for layer in model.layers:
        names += [layer.name, *(layer_names(layer) if isinstance(layer, tf_keras.Model) else [])]
    return names


def nodes(content: bytes, layers: Collection[str] | None) -> list[Node]:
    """Lists the ops of a model that compute something.

    Args:
      content: of the `.tflite` file, as the converter made it from Keras: its tensors are called by paths of layers.
      layers: names of the layers to be found in them; None: each node's own name is its layer.
    """
    model = schema_fb.ModelT.InitFromPackedBuf(content, 0)
    nodes_in_order: list[Node] = []
    for graph in model.subgraphs:
        producers: dict[int, Node] = {}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            # files of old versions keep the code in the other field
            op = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if op in _GLUE:
                continue
            name = graph.tensors[operator.outputs[0]].name.decode()
            read = [index for index in operator.inputs if index >= 0]
            sources = [producers[index] for index in read if index in producers]
            constants = [graph.tensors[index] for index in read if _is_kernel(model, graph.tensors[index])]
            if layers is None:
                computed = [name]
            else:
                computed = [layer for tensor in constants for layer in _layers_in(tensor.name.decode(), layers)]
                # a bias is of no help: equal ones are one tensor, called after one of the layers
                computed += _layers_in(name, layers)
            # the last op of a model is called after the model's output; a fused LSTM after nothing in the model
            computed = computed or [layer for node in sources[:1] for layer in node.layers[:1]] or [name]
            node = Node(
                name=name,
                op=op,
                layers=tuple(dict.fromkeys(computed)),
                parameters=sum(int(np.prod(tensor.shape)) for tensor in constants),
                inputs=tuple(source.name for source in sources),
            )
            producers |= dict.fromkeys(operator.outputs, node)
            nodes_in_order.append(node)
    return nodes_in_order


def _is_kernel(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0 and tensor.shape is not None and len(tensor.shape) >= 2


def _layers_in(tensor: str, layers: Collection[str]) -> list[str]:
    """Returns the innermost layer in each of the paths that a tensor's name is made of."""
    names = []
    for path in tensor.split(";"):
        scope = f"/{path.rpartition('/')[0]}/"  # the last part names the op
        within = [layer for layer in layers if f"/{layer}/" in scope]
        if within:
            names.append(max(within, key=lambda layer: (scope.rfind(f"/{layer}/") + len(layer), len(layer))))
    return names
