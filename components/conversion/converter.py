"""Makes `.tflite` files of Keras models and graphs by a passport's scheme, and of one calibration many variants.

Calibrating runs the model on all samples; quantizing what was calibrated takes a fraction of that, so that many
variants of one model are cheap. All of it is done in the child processes of `worker`, where a crash ends nothing else;
what came from a stranger has one of its own for each call, and is not even loaded in this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.conversion import finite, float_tflite, tensorflow_converter, tflite_quantizer, worker
from edgeline.conversion.nodes import Node, nodes
from edgeline.data.calibration_set import batches
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel, StoredGraph, TFLiteGraph
from edgeline.schemes import SCHEMES, Scheme
from edgeline.tflite.litert import DEFAULT_SIGNATURE

#: What `quantize` makes of a model, and what it can make of all but some of its operators.
_BY_OPERATOR = "int8"
#: Number types of weights that the standard converters make.
_WEIGHTS = ("float32", "float16", "int8")


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float model of which the range of every tensor is known.

    Attributes:
      content: of the `.tflite` file; its kernels are float.
      nodes: its ops in the order in which they run, those of subgraphs after the main graph's.
      strangers: whether it was made of a stranger's graph.
    """

    content: bytes
    nodes: tuple[Node, ...]
    strangers: bool = False

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

    Raises:
      ConversionError: it cannot be converted, or the process that converts it crashed; says why in one line.
    """
    return CONVERTERS[SCHEMES[scheme["scheme"]].converter](model, io, scheme, calibration)


def _by_number_types(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], scheme: dict[str, Any], calibration: dict[str, np.ndarray]
) -> bytes:
    """Converts a model by what its scheme's entry says of weights and activations; see `convert`."""
    entry = SCHEMES[scheme["scheme"]]
    if entry.weights not in _WEIGHTS or entry.activations not in ("float32", *tensorflow_converter.INTEGER_OPERATORS):
        raise ValueError(
            f"scheme {scheme['scheme']} has {entry.weights} weights and {entry.activations} activations, which neither "
            f"TensorFlow's converter nor the AI Edge quantizer is set up for; name a converter of its own in its entry"
        )
    # what a trained scheme keeps float was left unwrapped
    kept = not entry.trained and scheme.get("keep_float")
    if kept:
        calibrated = calibrate(model, io, calibration)
        return quantize(calibrated, calibrated.of(kept["layers"], kept["ops"]), scheme["io_type"])
    samples = calibration if entry.calibrated else {}
    if isinstance(model, TFLiteGraph):
        [content] = worker.call_apart(
            tflite_quantizer.quantized, _content(model, io), entry, scheme, _in_batches(samples, io)
        )
        return content
    return _converted(model, io, entry, scheme, samples)


#: What makes the file of a scheme, by the `converter` of its entry in SCHEMES; arguments and result as of `convert`.
CONVERTERS: dict[
    str, Callable[[tf_keras.Model | GraphModel, dict[str, Any], dict[str, Any], dict[str, np.ndarray]], bytes]
] = {"standard": _by_number_types}


def _converted(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], entry: Scheme, scheme: dict[str, Any],
    samples: dict[str, np.ndarray], *, calibrate_only: bool = False,
) -> bytes:  # fmt: skip
    """Has a model converted in a child process; see `convert`."""
    settings = (io, entry, scheme, samples, calibrate_only)
    if isinstance(model, StoredGraph):
        [content] = worker.call_apart(convert_stored, str(Path(model.folder).absolute()), model.io, *settings)
        return content
    with _saved(model, io, entry, scheme) as folder:
        [content] = worker.call(tensorflow_converter.convert, folder, *_arguments(_layers(model), *settings))
    return content


def convert_stored(folder: str, own_io: dict[str, Any], *settings: Any) -> list[bytes]:
    """Loads a stranger's graph and converts it: in a process of its own.

    Args:
      folder: the artifact's where the graph lies.
      own_io: the passport's, with the shapes that the graph has.
      *settings: the passport's `io` with those that are asked for, the scheme's entry, the scheme, the samples, and
        whether to calibrate only.

    Returns:
      The content of the `.tflite` file.

    Raises:
      ConversionError: it cannot be converted.
    """
    io, entry, scheme, *_ = settings
    with _saved(graph_model.opened(folder, own_io), io, entry, scheme) as saved:
        return tensorflow_converter.convert(saved, *_arguments(None, *settings))


def _arguments(
    layers: list[str] | None, io: dict[str, Any], entry: Scheme, scheme: dict[str, Any],
    samples: dict[str, np.ndarray], calibrate_only: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Returns those of `tensorflow_converter.convert` behind the folder."""
    return entry, scheme, samples, graph_model.fixed_batch(io) or 1, layers, calibrate_only


@contextlib.contextmanager
def _saved(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], entry: Scheme, scheme: dict[str, Any]
) -> Iterator[str]:
    """Yields the folder of a SavedModel, whose signature `serving_default` is a model's inference; see `convert`."""
    signature = keras_file.input_signature(io, graph_model.fixed_batch(io))
    infer = keras_file.inference_function(model, io).get_concrete_function(**signature)
    # a float file may hold an infinite constant: it only computes with it
    finite.check_weights(infer.graph.variables, scheme["scheme"], infinite=entry.weights == "float32")
    options = tf.saved_model.SaveOptions(save_debug_info=True)  # by which errors name layers
    signatures = {DEFAULT_SIGNATURE: infer}
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        try:
            tf.saved_model.save(_holder(infer, model), folder, signatures, options)
        except AssertionError:  # it has more than variables, such as a table
            tf.saved_model.save(model, folder, signatures, options)
        yield folder


def _holder(infer: Any, model: tf_keras.Model | GraphModel) -> Any:
    """Returns what keeps a function's variables: a Keras model itself would be saved with a trace of every layer."""
    if isinstance(model, GraphModel):
        return model
    holder = tf.Module()
    holder.kept = list(infer.graph.variables)
    return holder


def _layers(model: tf_keras.Model | GraphModel) -> list[str] | None:
    return None if isinstance(model, GraphModel) else layer_names(model)


def _in_batches(samples: dict[str, np.ndarray], io: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    return list(batches(samples, graph_model.fixed_batch(io) or 1)) if samples else []


def for_one_example(io: dict[str, Any]) -> dict[str, Any]:
    """Returns a passport's `io` with a batch of 1: with all sizes known, GRU and LSTM convert."""
    return {**io, "inputs": [{**port, "shape": [1, *port["shape"][1:]]} for port in io["inputs"]]}


def _content(model: TFLiteGraph, io: dict[str, Any]) -> bytes:
    """Returns the file for the batch size that is asked for: its own, or 1."""
    same = graph_model.fixed_batch(io) == graph_model.fixed_batch(model.io)
    return model.content if same else float_tflite.for_one_example(model.content)


def calibrate(model: tf_keras.Model | GraphModel, io: dict[str, Any], calibration: dict[str, np.ndarray]) -> Calibrated:
    """Runs the samples through a model and notes the range of every tensor, once for any number of `quantize`.

    Raises:
      ConversionError: it cannot be converted or calibrated, or a range is not finite; names layers.
    """
    if isinstance(model, TFLiteGraph):
        [content] = worker.call_apart(tensorflow_converter.calibrate, _content(model, io), _in_batches(calibration, io))
    else:
        scheme = {"scheme": _BY_OPERATOR, "io_type": "float32"}
        content = _converted(model, io, SCHEMES[_BY_OPERATOR], scheme, calibration, calibrate_only=True)
    strangers = isinstance(model, StoredGraph | TFLiteGraph)
    return Calibrated(content, tuple(nodes(content, _layers(model))), strangers)


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

    Raises:
      ConversionError: the quantizer cannot; says why.
    """
    [content] = _quantized(calibrated, [list(keep_float)], io_type, verify)
    return content


def quantize_each(calibrated: Calibrated, keep_float: Iterable[Collection[str]]) -> list[bytes]:
    """Quantizes as `quantize` does, once for each collection of nodes that stay float."""
    return _quantized(calibrated, [list(names) for names in keep_float], "float32", False)


def _quantized(calibrated: Calibrated, kept: list[list[str]], io_type: str, verify: bool) -> list[bytes]:
    call = worker.call_apart if calibrated.strangers else worker.call
    return call(tensorflow_converter.quantize, calibrated.content, kept, io_type, verify)


def layer_names(model: tf_keras.Model) -> list[str]:
    """Returns the names of all layers, those of models within the model too."""
    names = []
    for layer in model.layers:
        names += [layer.name, *(layer_names(layer) if isinstance(layer, tf_keras.Model) else [])]
    return names
