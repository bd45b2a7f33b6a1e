"""TensorFlow's converter, calibrator and quantizer: what the child process of `worker` runs."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.lite.python import lite
from tensorflow.lite.python.convert import ConverterError, mlir_quantize
from tensorflow.lite.python.optimize.calibrator import Calibrator

from edgeline.conversion import finite
from edgeline.conversion.failures import ConversionError, RefusedGraphError
from edgeline.conversion.nodes import nodes
from edgeline.data.calibration_set import batches
from edgeline.errors import in_one_line
from edgeline.isolation import child_process
from edgeline.schemes import Scheme
from edgeline.tflite import inspection
from edgeline.tflite.litert import DEFAULT_SIGNATURE

#: Sets of operators that compute on integers, by the number type of the activations.
INTEGER_OPERATORS = {
    "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    "int16": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
}
#: The converter's codes ERROR_NEEDS_FLEX_OPS and ERROR_NEEDS_CUSTOM_OPS.
_OPTIONS = {1: "allow_select_tf_ops", 2: "allow_custom_ops"}
#: Quantizers that run at the same time.
_THREADS = 2


def convert(
    folder: str, entry: Scheme, scheme: dict[str, Any], samples: dict[str, np.ndarray], batch: int,
    layers: Collection[str] | None, calibrate_only: bool = False,
) -> list[bytes]:  # fmt: skip
    """Converts a SavedModel.

    Args:
      folder: of the SavedModel, whose signature `serving_default` is the model.
      entry: of the scheme.
      scheme: the passport's.
      samples: for calibration, by input name, shape [samples, ...].
      batch: of the samples that run together.
      layers: names of the model's layers; None: not known.
      calibrate_only: whether to leave it at the float model with the range of each tensor.

    Returns:
      The content of the `.tflite` file.

    Raises:
      ConversionError: it cannot be converted; names operators and layers.
    """
    if entry.calibrated:
        _refuse_loops(folder, scheme["scheme"])
    converter = _set_up(folder, entry, scheme)
    if entry.calibrated:
        # by input name: the order of inputs can never matter
        converter.representative_dataset = lambda: batches(samples, batch)
    converter._experimental_calibrate_only = calibrate_only
    child_process.say(f"converting to {scheme['scheme']}")
    with _checked_calibration(samples, batch, layers, scheme["scheme"]) as calibrated:
        try:
            return [bytes(converter.convert())]
        except ConverterError as error:
            raise _explained(error) from error
        except RuntimeError as error:
            raise _unquantizable(error, calibrated, layers, scheme["scheme"]) from error


def _saved_model_converter(folder: str) -> lite.TFLiteSavedModelConverterV2:
    return lite.TFLiteSavedModelConverterV2(folder, {tf.saved_model.SERVING}, [DEFAULT_SIGNATURE])


def _set_up(folder: str, entry: Scheme, scheme: dict[str, Any]) -> lite.TFLiteSavedModelConverterV2:
    converter = _saved_model_converter(folder)
    if entry.weights != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme.get("sparse"):
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if entry.weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if entry.calibrated:
        converter.target_spec.supported_ops = [INTEGER_OPERATORS[str(entry.activations)]]
    if entry.integer_io:
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(scheme["io_type"])
    if scheme.get("allow_select_tf_ops"):
        converter.target_spec.supported_ops = [*converter.target_spec.supported_ops, tf.lite.OpsSet.SELECT_TF_OPS]
    converter.allow_custom_ops = bool(scheme.get("allow_custom_ops"))
    return converter


def _refuse_loops(folder: str, kind: str) -> None:
    """Raises ConversionError for a model in which loops stay loops, on which the calibrator crashes."""
    saved = saved_model_pb2.SavedModel.FromString(Path(folder, "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes_of_all = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    if not any(node.op in ("While", "StatelessWhile") for node in nodes_of_all):
        return
    # an LSTM's becomes one operator
    try:
        plain = inspection.structure(_saved_model_converter(folder).convert())
    except ConverterError as error:
        raise _explained(error) from error
    loops = sorted({op["layer"] or op["tensor"] for op in plain["float_ops"] if op["op"] == "WHILE"})
    if loops:
        raise ConversionError(
            f"{kind} cannot be calibrated: TensorFlow's calibrator crashes on loops, and {', '.join(loops)} is one in "
            f"TFLite. Choose dynamic_range or float16, or an LSTM, which is a single operator"
        )


@contextlib.contextmanager
def _checked_calibration(
    samples: dict[str, np.ndarray], batch: int, layers: Collection[str] | None, scheme: str
) -> Iterator[list[bytes]]:
    """Has the converter's calibrator check what it found, before the quantizer crashes on it; yields what it found."""
    calibrated: list[bytes] = []

    class Checked(Calibrator):
        def calibrate(self, dataset_gen: Any) -> bytes:
            child_process.say(f"calibrating for {scheme} on {len(next(iter(samples.values())))} samples")
            content: bytes = super().calibrate(dataset_gen)
            finite.check_calibrated(content, lambda: batches(samples, batch), layers, scheme)
            calibrated[:] = [content]
            child_process.say(f"quantizing to {scheme}")
            return content

    # the converter does both in one go and offers no place in between
    lite._calibrator.Calibrator = Checked
    try:
        yield calibrated
    finally:
        lite._calibrator.Calibrator = Calibrator


def _explained(error: ConverterError) -> RefusedGraphError:
    """Returns what the converter's pages of text come down to."""
    # also of faults that no option mends: without its lists of tensors a recurrent layer is tried with all sizes known
    missing = tuple(sorted({fault.operator.name for fault in error.errors if fault.operator.name}))
    reasons: dict[str, None] = {}
    for fault in error.errors:
        places = [inspection.layer_of(call.name.partition("@")[0]) for call in fault.location.call]
        layer = next((place for place in places if place), "unknown")
        if fault.error_code in _OPTIONS:
            reasons[f"{fault.operator.name} (layer {layer}, {_OPTIONS[fault.error_code]})"] = None
    if not reasons:
        lines = [fault.error_message for fault in error.errors] or [str(error)]
        return RefusedGraphError(f"the converter failed: {in_one_line(lines[0])}", missing)
    return RefusedGraphError(
        f"the model needs operators that are not LiteRT's own: {', '.join(reasons)}. Replace those layers, or allow "
        f"the operators by the option named with each, where the app brings them",
        missing,
    )


def _unquantizable(
    error: RuntimeError, calibrated: list[bytes], layers: Collection[str] | None, scheme: str
) -> ConversionError:
    """Returns what the quantizer's error says, with the layers of the operators that it names."""
    kinds = list(dict.fromkeys(re.findall(r"not yet supported for op: '(\w+)'", str(error))))
    if not kinds or not calibrated:
        return ConversionError(f"the converter failed: {in_one_line(str(error))}")
    computed = nodes(calibrated[0], layers)
    places = {kind: dict.fromkeys(node.layers[0] for node in computed if node.op == kind) for kind in kinds}
    words = [f"{kind} (layer {', '.join(layers) or 'unknown'})" for kind, layers in places.items()]
    return ConversionError(
        f"TFLite has no {scheme} of the operators {', '.join(words)}. Replace those layers, or choose "
        f"dynamic_range or float16"
    )


def calibrate(
    content: bytes, samples: list[dict[str, np.ndarray]], layers: Collection[str] | None = None
) -> list[bytes]:
    """Returns a float `.tflite` model in which TensorFlow's calibrator has noted the range of every tensor.

    Args:
      content: of the file.
      samples: by input name, in batches that the model takes.
      layers: names of the model's layers; None: not known.

    Raises:
      ConversionError: the calibrator does not know an operator, or a range is not finite.
    """
    child_process.say(f"calibrating on {len(samples)} batches")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
            calibrated: bytes = Calibrator(content).calibrate(lambda: iter(samples))
    except RuntimeError as error:
        raise ConversionError(f"TensorFlow cannot calibrate the model: {in_one_line(str(error))}") from error
    finite.check_calibrated(calibrated, lambda: iter(samples), layers, "int8")
    return [calibrated]


def quantize(calibrated: bytes, kept: list[list[str]], io_type: str, verify: bool) -> list[bytes]:
    """Quantizes weights and activations to int8, once for each list of names of operators that stay float.

    Args:
      calibrated: the content of a float `.tflite` model with the range of every tensor.
      kept: names of the operators' first outputs.
      io_type: number type of the model's inputs and outputs.
      verify: whether each quantized operator is to be compared with its float twin by a NumericVerify.
    """
    child_process.say("quantizing to int8")
    dtype = tf.as_dtype(io_type)

    def quantized(names: list[str]) -> bytes:
        content: bytes = mlir_quantize(
            calibrated,
            input_data_type=dtype,
            output_data_type=dtype,
            enable_numeric_verify=verify,
            denylisted_nodes=names,
        )
        return content

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(quantized, kept))
    except ConverterError as error:
        raise _explained(error) from error
    except RuntimeError as error:
        raise ConversionError(f"the quantizer failed: {in_one_line(str(error))}") from error
