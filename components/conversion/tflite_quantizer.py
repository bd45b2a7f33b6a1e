"""Quantizes a float `.tflite` file, whoever made it: no TensorFlow graph is needed.

ai-edge-quantizer does the work. Its int8 does not know every operator that LiteRT has in int8 (PReLU is one it lacks);
TensorFlow's quantizer, which reads flatbuffers too, is asked where something stayed float. All of it runs in the child
process of `worker`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.utils import qsv_utils

from edgeline.conversion import finite, tensorflow_converter
from edgeline.conversion.failures import ConversionError
from edgeline.errors import first_line
from edgeline.isolation import child_process
from edgeline.schemes import Scheme
from edgeline.tflite import inspection

_OPS = qtyping.TFLOperationName
_PER_TENSOR = qtyping.QuantGranularity.TENSORWISE


def quantized(
    content: bytes, entry: Scheme, scheme: dict[str, Any], samples: list[dict[str, np.ndarray]]
) -> list[bytes]:
    """Quantizes a model by a post-training scheme, in the child process of `worker`.

    Args:
      content: of the file, which has one signature.
      entry: of the scheme.
      scheme: the passport's: scheme and io_type.
      samples: for calibration, by input name, in batches that the model takes.

    Returns:
      The content of the quantized file; of float32 the same that went in.

    Raises:
      ConversionError: the quantizers cannot make it; says why.
    """
    kind, io_type = scheme["scheme"], scheme["io_type"]
    if entry.weights == "float32":
        return [content]
    if entry.calibrated:
        _refuse_loops(content, kind)
    manager = recipe_manager.RecipeManager()
    if entry.weights == "float16":
        # its way to say that weights are stored so and computed on in float32
        manager.add_weight_only_config(
            ".*", _OPS.ALL_SUPPORTED, 16, _PER_TENSOR, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
    elif not entry.integers_only:
        manager.add_dynamic_config(".*", _OPS.ALL_SUPPORTED, 8)
    else:
        manager.add_static_config(".*", _OPS.ALL_SUPPORTED, {"int8": 8, "int16": 16}[str(entry.activations)], 8)
        for end in (_OPS.INPUT, _OPS.OUTPUT):
            _set_end(manager, end, io_type)
    try:
        result = _quantize(content, manager, samples, kind)
    except ConversionError:
        raise
    except Exception as error:  # each operator has its own ways to fail
        raise ConversionError(f"ai-edge-quantizer cannot make {kind} of the model: {first_line(error)}") from error
    _refuse_unchanged(content, result, kind)
    # of int8 there is another quantizer, which may know more operators
    if entry.activations != "int8" or not inspection.structure(result)["float_ops"]:
        return [result]
    with contextlib.suppress(ConversionError):
        [calibrated] = tensorflow_converter.calibrate(content, samples)
        [other] = tensorflow_converter.quantize(calibrated, [[]], io_type, verify=False)
        if len(inspection.structure(other)["float_ops"]) < len(inspection.structure(result)["float_ops"]):
            return [other]
    return [result]


def _refuse_loops(content: bytes, kind: str) -> None:
    if inspection.structure(content)["ops"]["builtin"].get("WHILE"):
        raise ConversionError(
            f"{kind} cannot be made of a TFLite model with loops (WHILE): the quantizers do not see into them. Choose "
            f"dynamic_range or float16"
        )


def _refuse_unchanged(content: bytes, result: bytes, kind: str) -> None:
    """Refuses a file all of whose weights are as they were, which the quantizer makes without a word."""
    before, after = _weight_types(content), _weight_types(result)
    if before["float32"] and after["float32"] >= before["float32"]:
        operators = ", ".join(sorted(inspection.structure(content)["ops"]["builtin"]))
        raise ConversionError(
            f"{kind} changed none of the {before['float32']} weights: ai-edge-quantizer has no {kind} of the operators "
            f"that use them (the model's: {operators}). Choose another scheme, or make the model a float32 TFLite "
            f"file anew with a converter of today"
        )


def _weight_types(content: bytes) -> Counter[str]:
    """Returns of how many constants of two axes or more the numbers have which type."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    return Counter(
        inspection.NUMBER_TYPES.get(tensor.type, "")
        for graph in model.subgraphs
        for tensor in graph.tensors
        if len(tensor.shape if tensor.shape is not None else ()) > 1
        and (data := model.buffers[tensor.buffer].data) is not None
        and len(data)
    )


def _set_end(manager: recipe_manager.RecipeManager, end: qtyping.TFLOperationName, io_type: str) -> None:
    """Sets the number type of the model's inputs or outputs; int8 is what the scheme makes of them anyway."""
    if io_type == "float32":
        manager.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    elif io_type == "uint8":
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(
                8, False, _PER_TENSOR, qtyping.TensorDataType.UINT
            ),
            weight_tensor_config=qtyping.TensorQuantizationConfig(8, True, _PER_TENSOR),
            compute_precision=qtyping.ComputePrecision.INTEGER,
        )
        manager.add_quantization_config(".*", end, config)


def _quantize(
    content: bytes, manager: recipe_manager.RecipeManager, samples: list[dict[str, np.ndarray]], kind: str
) -> bytes:
    ranges = None
    # progress bars go to the terminal, whoever else shows something there
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors", UserWarning)
        if samples:
            child_process.say(f"calibrating for {kind} on {len(samples)} batches")
            watched = calibrator.Calibrator(
                content, 1, calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
                # as TensorFlow's calibrator does; the default is a moving average, which depends on the order
                qsv_utils.min_max_update,
            )  # fmt: skip
            [signature] = watched.get_signature_list()
            for sample in samples:  # one by one: variables, an LSTM's state, are reset after each call
                watched.calibrate({signature: [sample]}, manager)
            ranges = watched.get_model_qsvs()
            finite.check_ranges(content, lambda: iter(samples), kind, ranges)
        child_process.say(f"quantizing to {kind}")
        quantized = quantizer.Quantizer(bytearray(content), manager.get_quantization_recipe())
        result = quantized.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)
