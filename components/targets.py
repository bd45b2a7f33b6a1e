"""What kinds of hardware can run, as data, and what of a `.tflite` file does not fit. Standard library only.

The lists of operators are what is published, and say nothing of an operator's own limits (strides, ranks, sizes): the
vendor's tool, or a run on the device, has the last word. They come from

- edgetpu: "Supported operations" of the Edge TPU compiler, https://coral.ai/docs/edgetpu/models-intro/. That page also
  asks for 8-bit numbers and for sizes that are constant when the model is compiled. What the compiler does not know it
  leaves to the CPU; here the whole model has to run on the Edge TPU.
- gpu: `CheckGpuDelegateCompatibility` in tensorflow/lite/tools/versioning/gpu_compatibility.cc: what the GPU delegate
  takes over. It computes in float16 or float32 and takes 8-bit models too, but no int16.
- dsp: `IsNodeSupportedByHexagon` in tensorflow/lite/delegates/hexagon/utils.cc: what the Hexagon delegate takes over,
  8-bit operators only.
- micro: `PythonOpsResolver` in python/tflite_micro/python_ops_resolver.cc of tensorflow/tflite-micro, which took over
  from `AllOpsResolver`: all that TFLite Micro has kernels for. They know floats as well, but a microcontroller without
  a floating-point unit does not, so integers are asked for. Memory is planned ahead, so sizes must be fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of hardware.

    Attributes:
      io: number types that inputs and outputs may have.
      numbers: those of weights and activations. Floats apart: of these `integers_only` decides.
      integers_only: whether no operator may compute on floats.
      operators: LiteRT's own ones that it can run.
      custom_operators: the others that it can run.
      fixed_shapes: whether every size of an input or output has to be known, the batch size too.
      advice: what to choose where number types do not fit.
    """

    io: tuple[str, ...]
    numbers: tuple[str, ...]
    integers_only: bool
    operators: frozenset[str]
    custom_operators: frozenset[str]
    fixed_shapes: bool
    advice: str


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: By name; `cpu` is LiteRT itself, which runs whatever could be exported.
TARGETS: dict[str, Target | None] = {
    "cpu": None,
    "gpu": Target(
        io=("float32", "float16", "int8", "uint8", "int32", "bool"),
        numbers=("int8", "uint8", "int32", "bool"),
        integers_only=False,
        operators=_names("""
            ABS ADD ADD_N ATAN2 AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION CONV_2D COS CUMSUM DENSIFY
            DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP FLOOR
            FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL
            LOG LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD
            PADV2 POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR
            RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT
            SQUARE SQUARED_DIFFERENCE STABLEHLO_CLAMP STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV
            """),
        custom_operators=_names("Convolution2DTransposeBias MaxPoolingWithArgmax2D MaxUnpooling2D Resampler"),
        fixed_shapes=False,
        advice="choose float16",
    ),
    "edgetpu": Target(
        io=("int8", "uint8"),
        numbers=("int8", "uint8", "int32"),
        integers_only=True,
        operators=_names("""
            ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED L2_NORMALIZATION
            LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6
            RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SPACE_TO_DEPTH SPLIT
            SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
            """),
        custom_operators=_names("edgetpu-custom-op"),  # what its compiler makes of a model
        fixed_shapes=True,
        advice="choose int8_io",
    ),
    "dsp": Target(
        io=("int8", "uint8"),
        numbers=("int8", "uint8", "int32", "int64"),
        integers_only=True,
        operators=_names("""
            ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE FULLY_CONNECTED
            HARD_SWISH L2_NORMALIZATION LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG PACK PAD QUANTIZE
            RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX SPACE_TO_DEPTH SPLIT STRIDED_SLICE
            SUB TANH TRANSPOSE TRANSPOSE_CONV
            """),
        custom_operators=frozenset(),
        fixed_shapes=False,
        advice="choose int8_io",
    ),
    "micro": Target(
        io=("int8", "uint8", "int16", "int32"),
        numbers=("int8", "uint8", "int16", "int32", "int64", "bool"),
        integers_only=True,
        operators=_names("""
            ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO
            CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU
            EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL
            HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR
            LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU
            QUANTIZE READ_VARIABLE REDUCE_MAX RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND RSQRT
            SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
            SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
            UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
            """),
        custom_operators=_names("CIRCULAR_BUFFER TFLite_Detection_PostProcess ethos-u"),
        fixed_shapes=True,
        advice="choose int8_io",
    ),
}

DEFAULT = "cpu"

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def needs_fixed_shapes(name: str) -> bool:
    """Returns whether a file for the target must be made for one example at a time."""
    target = TARGETS[name]
    return target is not None and target.fixed_shapes


def misfits(name: str, metadata: dict[str, Any]) -> list[str]:
    """Returns why a target cannot run a file, each with what to do about it; empty where it can.

    Args:
      name: of the target.
      metadata: of the file, as the TFLiteExporter's metadata has them: inputs and outputs (name, shape, dtype), ops,
        float_ops (how often each operator computes on floats) and number_types (the operators that use each).
    """
    target = TARGETS[name]
    if target is None:
        return []
    return [f"target {name}: {found}" for found in _misfits(name, target, metadata)]


def _misfits(name: str, target: Target, metadata: dict[str, Any]) -> Iterable[str]:
    wrong = {side: [p for p in metadata[side] if p["dtype"] not in target.io] for side in ("inputs", "outputs")}
    if ports := [port for side in wrong.values() for port in side]:
        sides = " and ".join(side for side, found in wrong.items() if found)
        which = ", ".join(f"{port['name']} is {port['dtype']}" for port in ports)
        yield f"{sides} must be {_either(target.io)}, {which}; {target.advice}"
    if target.fixed_shapes:
        opened = [
            port for side in wrong for port in metadata[side] if any(size in (-1, None) for size in port["shape"])
        ]
        if opened:
            which = ", ".join(f"{port['name']} is {spelled(port['shape'])}" for port in opened)
            yield f"all sizes must be fixed, {which}; export with --target {name}, which makes the file for one example"
    if target.integers_only and metadata["float_ops"]:
        yield (
            f"it computes on integers only, but on floats compute {_counted(metadata['float_ops'])}; quantize them, or "
            "replace their layers"
        )
    # where floats stay, the rules above have said so
    allowed = (*target.numbers, *_FLOATS)
    if foreign := {dtype: used for dtype, used in metadata["number_types"].items() if dtype not in allowed}:
        which = ", ".join(f"{dtype} in {', '.join(used)}" for dtype, used in foreign.items())
        yield f"numbers must be {_either(target.numbers)}, found {which}; {target.advice}"
    # a DEQUANTIZE is a float operator, or belongs to an output that is refused above
    known = target.operators | {"DEQUANTIZE"} if target.integers_only else target.operators
    unknown = [op for op in metadata["ops"]["builtin"] if op not in known]
    unknown += [op for kind in ("custom", "flex") for op in metadata["ops"][kind] if op not in target.custom_operators]
    if unknown:
        yield f"it has no {', '.join(unknown)}; replace the layers that need {'them' if len(unknown) > 1 else 'it'}"


def spelled(shape: Sequence[int | None]) -> str:
    """Returns a shape in words, e.g. `[any, 8, 8, 1]`."""
    return "[" + ", ".join("any" if size in (-1, None) else str(size) for size in shape) + "]"


def _either(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {op}" if count > 1 else op for op, count in counts.items())
