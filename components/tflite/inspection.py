"""Facts of a `.tflite` file, read from the flatbuffer alone: nothing is loaded into a runtime, nothing is run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeline.errors import UserError
from edgeline.isolation import interpreter
from edgeline.tflite import litert
from edgeline.tflite.litert import DEFAULT_SIGNATURE

#: Of TensorFlow's own operators in a flatbuffer: custom ones whose names begin so.
FLEX_PREFIX = "Flex"

_OPS = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
#: Names of number types, as NumPy has them, by the schema's number.
NUMBER_TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
#: What the child process of `read` runs.
_CHILD = f"from {__name__} import main; main(*sys.argv[1:])"
_FLOATS = ("float16", "float32", "float64", "bfloat16")
#: They look at a tensor's size, not at its values.
_SIZE_OPS = ("SHAPE", "RANK")

#: Operators with weights, of which the quantization specification says how: the inputs that hold them and the bias, and
#: the weights' axis of output channels.
_WEIGHTED = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}
#: The converter multiplies in float32, and may do so in another order.
_SCALE_TOLERANCE = 1e-4


def facts(content: bytes) -> dict[str, Any]:
    """Returns what a TFLite file holds, as JSON can say it.

    Args:
      content: of the `.tflite` file.

    Returns:
      What `structure` returns, and:
      bytes, zlib_bytes: of the file; zlib at level 9.
      weights: of each constant tensor name, layer, op (that uses it), shape, dtype, bytes, zlib_bytes, sparse (whether
        it is stored in a sparse format; its bytes are those of values and places), zeros (the fraction of zeros, 0-1),
        values (distinct ones), channel_values (at most so many in an output channel), scales (how many), axis (that
        they belong to), min_scale, max_scale and zero_points (distinct ones, at most 8). A buffer that several tensors
        share comes once. zeros and values are None where NumPy lacks the number type.
      layers: bytes and zlib_bytes of the constants by layer, the largest first. A layer is what the converter's names
        of tensors say.

    Raises:
      ValueError: it is not a TFLite file, or a damaged one.
    """
    return _parsed(content, _facts)


def structure(content: bytes) -> dict[str, Any]:
    """Returns what a TFLite file computes, without a look at the sizes and values of its weights.

    These take most of the time of `facts`: zlib needs 0.7 s for a megabyte of float32 half of which is zeros.

    Args:
      content: of the `.tflite` file.

    Returns:
      inputs, outputs: of the signature `serving_default`, without it of the first one, without any of the first
        graph; each with name (the signature's, where there is one), shape (-1 where any size goes), dtype, scale and
        zero_point (0 and 0 where it is not quantized), and step: the least difference it can show, the scale of its own
        or of the operator that quantizes it at the model's end, else 0.
      signatures: each with name, inputs and outputs, as above.
      ops: how often each operator occurs, by `builtin`, `custom` and `flex` (TensorFlow's own) and name.
      foreign_ops: each of the last two kinds: op, kind, tensor (the first output) and layer.
      float_ops: likewise, the operators that compute on floats. QUANTIZE and DEQUANTIZE at the model's ends are not
        among them.
      number_types: of all tensors, each with the names of the operators that use it.
      violations: what breaks the TFLite quantization specification
        (https://ai.google.dev/edge/litert/models/quantization_spec), in words that name the tensor.

    Raises:
      ValueError: it is not a TFLite file, or a damaged one.
    """
    return _parsed(content, lambda content: _structure(*_operators(content)))


def compressed_size(content: bytes) -> int:
    """Returns the size after zlib at level 9, in bytes: what a download transfers."""
    return len(zlib.compress(content, 9))


def compressing() -> ThreadPoolExecutor:
    """Returns the threads for `compressed_size`: zlib computes outside of Python's lock."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 4), thread_name_prefix="zlib")


def read(path: str | Path, *, weights: bool = True, timeout: float | None = None) -> dict[str, Any]:
    """Returns the facts of a file that may be damaged, found in a child process of bounded time and memory.

    Args:
      path: of the file.
      weights: whether to look at them: `facts`, else `structure`.
      timeout: seconds after which the child is killed; None: 2 minutes, and with weights 4 s for each megabyte, which
        is twice what zlib needs for the slowest of weights on one core.

    Raises:
      UserError: there is no such file, or it is not a TFLite file or a damaged one.
    """
    if timeout is None:
        timeout = 120.0
        with contextlib.suppress(OSError):  # of which the child tells
            timeout += 4e-6 * Path(path).stat().st_size if weights else 0.0
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        outcome = Path(folder, "facts.json")
        what = facts if weights else structure
        try:
            child = interpreter.run(_CHILD, [str(path), str(outcome), what.__name__], timeout=timeout)
        except subprocess.TimeoutExpired:
            raise UserError(f"{path} was not read in {timeout:g} s; it must be a damaged TFLite file") from None
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise UserError(f"{path} crashed its reader with {name}; it must be a damaged TFLite file")
        if child.returncode > 0:
            last = (child.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{path} cannot be inspected: {last}")
        result: dict[str, Any] = json.loads(outcome.read_text())
    if "refusal" in result:
        raise UserError(f"{path}: {result['refusal']}")
    return result


def main(path: str, outcome: str, what: str) -> None:
    """Reads a file in this process: the child process of `read`.

    Args:
      path: of the file.
      outcome: `.json` file to write: what is asked for, or `refusal`, why there is none.
      what: `facts` or `structure`.
    """
    try:
        content = Path(path).read_bytes()
        # a count in a damaged file may ask for any amount of memory
        most = 2 * 2**30 + 16 * len(content)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        result = (structure if what == structure.__name__ else facts)(content)
    except OSError as error:
        result = {"refusal": f"cannot be read: {error.strerror or error}"}
    except ValueError as error:
        result = {"refusal": " ".join(str(error).split())}
    Path(outcome).write_text(json.dumps(result))


# reading --------------------------------------------------------------------------------------------------------------


def _text(raw: bytes | None) -> str:
    """Returns a name that can be shown on a terminal, whatever bytes the file has there."""
    text = (raw or b"").decode(errors="replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shape(tensor: Any) -> list[int]:
    signature = tensor.shapeSignature
    sizes = signature if signature is not None and len(signature) else tensor.shape
    return [int(n) for n in sizes] if sizes is not None else []


def _dtype(tensor: Any) -> str:
    return NUMBER_TYPES.get(tensor.type, f"type {tensor.type}")


def _scales(tensor: Any) -> np.ndarray:
    scales = tensor.quantization.scale if tensor.quantization is not None else None
    return np.asarray([] if scales is None else scales, np.float32)


def _zero_points(tensor: Any) -> np.ndarray:
    zero_points = tensor.quantization.zeroPoint if tensor.quantization is not None else None
    return np.asarray([] if zero_points is None else zero_points, np.int64)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class _Op:
    """An operator and its tensors, None where an optional one is absent."""

    def __init__(self, model: Any, graph: Any, operator: Any):
        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        is_custom = number == schema.BuiltinOperator.CUSTOM
        self.name = _text(code.customCode) if is_custom else _OPS.get(number, f"operator {number}")
        self.kind = "builtin" if not is_custom else "flex" if self.name.startswith(FLEX_PREFIX) else "custom"
        self.inputs = self._tensors(graph, operator.inputs)
        self.outputs = self._tensors(graph, operator.outputs)
        self._constants = [t for t in self.inputs if t is not None and _stored(model, t)]

    @staticmethod
    def _tensors(graph: Any, indices: Any) -> list[Any]:
        tensors = [] if indices is None else [int(i) for i in indices]
        return [None if index < 0 else graph.tensors[index] for index in tensors]

    @property
    def tensors(self) -> list[Any]:
        return [tensor for tensor in (*self.inputs, *self.outputs) if tensor is not None]

    def input(self, position: int) -> Any:
        return self.inputs[position] if position < len(self.inputs) else None

    @property
    def layer(self) -> str:
        """The layer that the operator was part of, or `after` another, as its tensors' names say; "" where they do not.

        An operator at the model's end, or one that the converter made, has an output of another name.
        """
        for prefix, tensors in (("", self.outputs), ("", self._constants), ("after ", self.inputs)):
            for tensor in tensors:
                name = layer_of(_text(tensor.name)) if tensor is not None else ""
                if name:
                    return prefix + name
        return ""

    def facts(self) -> dict[str, str]:
        """Returns op, kind, tensor (the first output) and layer."""
        tensor = next((_text(tensor.name) for tensor in self.outputs if tensor is not None), "")
        return {"op": self.name, "kind": self.kind, "tensor": tensor, "layer": self.layer}


def layer_of(name: str) -> str:
    """Returns the Keras layer in a tensor's name, such as `c1` in `model/c1/Conv2D` or in `model/relu/Relu;model/c1/x`.

    Of several the last: the converter appends what it folded another operator into.
    """
    for part in reversed(name.split(";")):
        steps = [
            step for step in part.split("/") if not step.startswith(("StatefulPartitionedCall", "PartitionedCall"))
        ]
        if len(steps) > 2:
            return steps[1]
    return ""


def _parsed(content: bytes, read_parts: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    if content[4:8] != b"TFL3":
        raise ValueError("not a TFLite model: it lacks the file identifier TFL3")
    try:
        return read_parts(content)
    except Exception as error:  # a damaged flatbuffer makes anything of the parser: offsets, counts and types are data
        raise ValueError(f"not a sound TFLite model: {type(error).__name__}: {error}") from error


def _operators(content: bytes) -> tuple[Any, list[_Op]]:
    """Returns the parsed model, and the operators of all its graphs."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    return model, [_Op(model, graph, operator) for graph in model.subgraphs for operator in graph.operators or []]


def _facts(content: bytes) -> dict[str, Any]:
    with compressing() as pool:
        whole = pool.submit(compressed_size, content)
        model, ops = _operators(content)
        weights = list(_weights(model, ops, pool))
        for weight in weights:  # whose compression has begun
            weight["zlib_bytes"] = weight["zlib_bytes"].result()
        return {
            "bytes": len(content),
            "zlib_bytes": whole.result(),
            **_structure(model, ops),
            "weights": weights,
            "layers": _layers(weights),
        }


def _structure(model: Any, ops: list[_Op]) -> dict[str, Any]:
    signatures = [
        {
            "name": _text(signature.signatureKey),
            **_ends(model.subgraphs[signature.subgraphIndex], signature.inputs, signature.outputs, ops),
        }
        for signature in model.signatureDefs or []
    ]
    by_default = next((s for s in signatures if s["name"] == DEFAULT_SIGNATURE), next(iter(signatures), None))
    ends = by_default or _ends(model.subgraphs[0], None, None, ops)
    census: dict[str, Counter[str]] = {"builtin": Counter(), "custom": Counter(), "flex": Counter()}
    for op in ops:
        census[op.kind][op.name] += 1
    return {
        "inputs": ends["inputs"],
        "outputs": ends["outputs"],
        "signatures": signatures,
        "ops": {kind: dict(sorted(counts.items())) for kind, counts in census.items()},
        "foreign_ops": [op.facts() for op in ops if op.kind != "builtin"],
        "float_ops": _float_ops(model, ops),
        "number_types": _number_types(ops),
        "violations": list(_violations(model, ops)),
    }


def _ends(graph: Any, inputs: Any, outputs: Any, ops: list[_Op]) -> dict[str, list[dict[str, Any]]]:
    """Returns the ports of a graph, by the names that a signature has for them."""
    return {
        "inputs": _ports(graph, graph.inputs, inputs, ops),
        "outputs": _ports(graph, graph.outputs, outputs, ops),
    }


def _ports(graph: Any, indices: Any, names: Any, ops: list[_Op]) -> list[dict[str, Any]]:
    by_index = {int(entry.tensorIndex): _text(entry.name) for entry in names or []}
    at_ends = {
        id(end): other
        for op in ops
        if op.name in ("QUANTIZE", "DEQUANTIZE")
        for end, other in (op.tensors, op.tensors[::-1])
    }
    ports = []
    for index in [] if indices is None else indices:
        tensor = graph.tensors[int(index)]
        scales, points, dtype = _scales(tensor), _zero_points(tensor), _dtype(tensor)
        quantized = len(scales) == 1 and dtype not in _FLOATS
        inner = scales if quantized else _scales(at_ends.get(id(tensor), tensor))
        ports.append(
            {
                "name": by_index.get(int(index), _text(tensor.name)),
                "shape": _shape(tensor),
                "dtype": dtype,
                "scale": _finite(scales[0]) if quantized else 0.0,
                "zero_point": int(points[0]) if quantized and len(points) else 0,
                "step": _finite(inner[0]) if len(inner) == 1 else 0.0,
            }
        )
    return ports


def _float_ops(model: Any, ops: list[_Op]) -> list[dict[str, str]]:
    # the graphs inside of loops and branches have ends too, and those are no one's but the loop's
    graphs = [model.subgraphs[i] for i in {0, *(s.subgraphIndex for s in model.signatureDefs or [])}]
    ends = {id(g.tensors[int(i)]) for g in graphs for ports in (g.inputs, g.outputs) for i in ports}
    float_operators = []
    for op in ops:
        if op.name in _SIZE_OPS or not any(_dtype(tensor) in _FLOATS for tensor in op.tensors):
            continue
        if op.name in ("QUANTIZE", "DEQUANTIZE") and any(id(tensor) in ends for tensor in op.tensors):
            continue
        float_operators.append(op.facts())
    return float_operators


def _number_types(ops: list[_Op]) -> dict[str, list[str]]:
    used: dict[str, set[str]] = {}
    for op in ops:
        for tensor in op.tensors:
            used.setdefault(_dtype(tensor), set()).add(op.name)
    return {dtype: sorted(names) for dtype, names in sorted(used.items())}


# weights --------------------------------------------------------------------------------------------------------------


def _weights(model: Any, ops: list[_Op], pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
    """Yields what `facts` says of each weight, but for `zlib_bytes`: the future of what the pool finds."""
    users: dict[int, _Op] = {}
    for op in ops:
        for tensor in op.inputs:
            if tensor is not None:
                users.setdefault(id(tensor), op)
    # float16 weights are made float32 first, sparse ones dense
    for key, op in users.items():
        if op.name in ("DEQUANTIZE", "DENSIFY") and op.outputs:
            users[key] = users.get(id(op.outputs[0]), op)
    seen: set[int] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0 or tensor.buffer in seen:
                continue
            seen.add(tensor.buffer)
            user = users.get(id(tensor))
            name, stored = _text(tensor.name), np.asarray(data, np.uint8).tobytes()
            whole = stored + _places(tensor)
            scales = _scales(tensor)
            axis = int(tensor.quantization.quantizedDimension) if len(scales) > 1 else None
            yield {
                "name": name,
                "layer": layer_of(name) or (user.layer if user else ""),
                "op": user.name if user else None,
                "shape": _shape(tensor),
                "dtype": _dtype(tensor),
                "bytes": len(whole),
                "zlib_bytes": pool.submit(compressed_size, whole),
                "sparse": tensor.sparsity is not None,
                **_counts(_array(tensor, stored), _zero_points(tensor), user.name if user else "", axis),
                "scales": len(scales),
                "axis": axis,
                "min_scale": _finite(scales.min()) if len(scales) else None,
                "max_scale": _finite(scales.max()) if len(scales) else None,
                "zero_points": [int(n) for n in np.unique(_zero_points(tensor))[:8]],
            }


def _places(tensor: Any) -> bytes:
    """Returns where the values of a sparse tensor stand, as it is stored; nothing of a dense one."""
    levels = tensor.sparsity.dimMetadata or [] if tensor.sparsity is not None else []
    vectors = [vector for level in levels for vector in (level.arraySegments, level.arrayIndices) if vector is not None]
    return b"".join(np.asarray([] if v.values is None else v.values).tobytes() for v in vectors)


def _array(tensor: Any, stored: bytes) -> np.ndarray | None:
    """Returns a constant's values, or None where they are not stored one by one in a type of NumPy's."""
    try:
        dtype = np.dtype(_dtype(tensor))
    except TypeError:
        return None
    shape = [int(n) for n in tensor.shape] if tensor.shape is not None else []
    if dtype.kind not in "fiub":
        return None
    if tensor.sparsity is not None:
        return litert.densify(tensor.sparsity, shape, np.frombuffer(stored, dtype))
    if math.prod(shape) * dtype.itemsize != len(stored):
        return None
    return np.frombuffer(stored, dtype).reshape(shape)


def _counts(values: np.ndarray | None, zero_points: np.ndarray, op: str, axis: int | None) -> dict[str, Any]:
    if values is None:
        return {"zeros": None, "values": None, "channel_values": None}
    zero = int(zero_points[0]) if len(zero_points) else 0
    if axis is None:
        axis = _WEIGHTED[op][3] if op in _WEIGHTED else 0
    channels = np.moveaxis(values, axis, 0) if values.ndim > 1 else [values]
    return {
        "zeros": float(np.mean(values == zero)) if values.size else 0.0,
        "values": len(np.unique(values)),
        "channel_values": max((len(np.unique(channel)) for channel in channels), default=0),
    }


def _layers(weights: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    sizes: dict[str, dict[str, int]] = {}
    for weight in weights:
        entry = sizes.setdefault(weight["layer"], {"bytes": 0, "zlib_bytes": 0})
        entry["bytes"] += weight["bytes"]
        entry["zlib_bytes"] += weight["zlib_bytes"]
    return dict(sorted(sizes.items(), key=lambda item: (-item[1]["bytes"], item[0])))


# the quantization specification ---------------------------------------------------------------------------------------


def _violations(model: Any, ops: list[_Op]) -> Iterator[str]:
    checked: set[int] = set()
    for op in ops:
        for tensor in op.tensors:
            if _dtype(tensor) == "int16" and id(tensor) not in checked and _zero_points(tensor).any():
                checked.add(id(tensor))
                yield f"{_text(tensor.name)}: int16 with the zero point {_shifted(tensor)}, must be 0"
        if op.name in _WEIGHTED:
            yield from _violations_of(model, op)


def _violations_of(model: Any, op: _Op) -> Iterator[str]:
    at_input, at_weights, at_bias, axis = _WEIGHTED[op.name]
    source, weights, bias = op.input(at_input), op.input(at_weights), op.input(at_bias)
    if source is None or weights is None or _dtype(weights) != "int8":
        return
    name = f"{_text(weights.name)}: weights of {op.name}"
    scales, shape = _scales(weights), [int(n) for n in weights.shape]
    if not len(scales) or not (np.isfinite(scales) & (scales > 0)).all():
        yield f"{name} have scales that are missing or not above 0"
        return
    if _zero_points(weights).any():
        yield f"{name} have the zero point {_shifted(weights)}, must be 0"
    values = _array(weights, _stored(model, weights))
    if values is not None and (values == -128).any():
        yield f"{name} hold -128, must be in [-127, 127]"
    per_axis = len(scales) == shape[axis] and (len(scales) == 1 or weights.quantization.quantizedDimension == axis)
    # of a fully connected layer one scale is as good
    if not per_axis and not (op.name == "FULLY_CONNECTED" and len(scales) == 1):
        scales_in_words = f"{len(scales)} scales on axis {weights.quantization.quantizedDimension}"
        yield f"{name} have {scales_in_words}, must be one per output channel ({shape[axis]} on axis {axis})"
    inner = _dtype(source)
    if bias is None or inner not in ("int8", "int16"):
        return
    name = f"{_text(bias.name)}: bias of {op.name} on {inner}"
    expected = ("int32",) if inner == "int8" else ("int32", "int64")
    if _dtype(bias) not in expected:
        yield f"{name} is {_dtype(bias)}, must be {' or '.join(expected)}"
        return
    if _zero_points(bias).any():
        yield f"{name} has the zero point {_shifted(bias)}, must be 0"
    # the converter lets operators share a bias of zeros, whose scale says nothing
    if np.frombuffer(_stored(model, bias), np.uint8).any():
        wanted = _scales(source)[:1].astype(np.float64) * scales
        given = _scales(bias)
        if len(given) not in (1, len(wanted)) or not np.allclose(given, wanted, rtol=_SCALE_TOLERANCE, atol=0):
            yield f"{name} has scales that are not those of its input times those of its weights"


def _shifted(tensor: Any) -> int:
    """Returns the first zero point that is not 0."""
    points = _zero_points(tensor)
    return int(points[points != 0][0])


def _stored(model: Any, tensor: Any) -> bytes:
    data = model.buffers[tensor.buffer].data
    return b"" if data is None else np.asarray(data, np.uint8).tobytes()
