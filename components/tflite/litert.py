"""Running and inspecting `.tflite` files with LiteRT; no TensorFlow here, so that a child process starts quickly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

#: The signature that is the model where a file or a SavedModel has several.
DEFAULT_SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a model.

    Attributes:
      name: in the model's signature.
      shape: -1 where any size goes.
      dtype: number type at the interface.
      scale, zero_point: real value = scale * (stored - zero_point); scale is 0 where the port is not quantized.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Returns real values as the port stores them: divided by the scale, rounded to nearest even, clipped."""
        if not self.scale:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        stored = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.clip(stored, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """Returns stored values as real ones (float32) where the port is quantized, else unchanged."""
        if not self.scale:
            return stored
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


def default_signature(names: Iterable[str]) -> str | None:
    """Returns the signature that is the model: `serving_default`, or the only one; None where there is none.

    Raises:
      ValueError: there are several, and none is called so.
    """
    signatures = list(names)
    if len(signatures) > 1 and DEFAULT_SIGNATURE not in signatures:
        raise ValueError(
            f"it has {len(signatures)} signatures ({', '.join(signatures)}), none of them {DEFAULT_SIGNATURE}"
        )
    return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else next(iter(signatures), None)


class TFLiteModel:
    """A TFLite model that runs on whole batches, by input and output name.

    Of a model with several signatures it is `serving_default`.

    Args:
      model: path of the file, or its content.
      threads: LiteRT threads, at least 1.
      xnnpack: whether to use XNNPACK; False runs LiteRT's built-in kernels.
      reference: run the reference kernels, which are slow and simple, whatever `xnnpack` says.

    Raises:
      ValueError: not a TFLite model, or not one this runtime can run, in LiteRT's own words; or it has several
        signatures, and none of them is the default.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int = 1, xnnpack: bool = True, reference: bool = False):
        content = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        resolver = OpResolverType.BUILTIN_REF if reference else resolver
        self._interpreter = Interpreter(num_threads=threads, experimental_op_resolver_type=resolver, **content)
        # what it wraps can run every subgraph, and it itself the first one alone
        self._runner = self._interpreter._interpreter
        signatures = self._interpreter._get_full_signature_list()
        key = default_signature(signatures)
        self._subgraph = self._runner.GetSubgraphIndexFromSignature(key) if key else 0
        if self._subgraph:
            ends = [list(signatures[key][side].values()) for side in ("inputs", "outputs")]
        else:
            ends = [list(self._runner.InputIndices()), list(self._runner.OutputIndices())]
        self.inputs = self._ports(ends[0], signatures[key]["inputs"] if key else {})
        self.outputs = self._ports(ends[1], signatures[key]["outputs"] if key else {})
        self._shapes: list[list[int]] | None = None

    def _ports(self, indices: list[int], names: dict[str, int]) -> tuple[Port, ...]:
        by_index = {index: name for name, index in names.items()}
        ports = []
        for detail in [self._interpreter._get_tensor_details(index, self._subgraph) for index in indices]:
            scale, zero_point = detail["quantization"]
            name = by_index.get(detail["index"], detail["name"])
            shape = tuple(int(n) for n in detail["shape_signature"])
            dtype = np.dtype(detail["dtype"])
            quantized = dtype.kind in "iu" and scale != 0
            ports.append(Port(name, detail["index"], shape, dtype, float(scale) if quantized else 0.0, int(zero_point)))
        return tuple(ports)

    @property
    def any_batch(self) -> bool:
        """Whether the model takes batches of any size, or only of the one it was converted for."""
        return all(port.shape[:1] == (-1,) for port in self.inputs)

    def resize(self, batch: int, sizes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Prepares the model for inputs of these shapes; costs nothing if it already is.

        Args:
          batch: examples per run; a model of fixed batch size ignores it.
          sizes: shape of one example by input name, for dimensions of any size; by default they are 1.
        """
        shapes = [_full_shape(port.shape, batch, (sizes or {}).get(port.name)) for port in self.inputs]
        if self._shapes == shapes:
            return
        for port, shape in zip(self.inputs, shapes, strict=True):
            if -1 in port.shape:
                self._runner.ResizeInputTensor(port.index, np.asarray(shape, np.int32), False, self._subgraph)
        self._runner.AllocateTensors(self._subgraph or -1)
        self._shapes = shapes

    def invoke(self) -> None:
        """Runs the model on what its inputs hold: what a latency measurement times."""
        self._runner.Invoke(self._subgraph)

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Quantizes and sets the inputs: by name, real values, shape [batch, ...] of the prepared batch size."""
        for port in self.inputs:
            self._runner.SetTensor(port.index, port.quantize(inputs[port.name]), self._subgraph)

    def run(self, inputs: dict[str, np.ndarray], batch: int | None = None) -> dict[str, np.ndarray]:
        """Returns the outputs by name, real values, shape [n, ...].

        Args:
          inputs: by input name, shape [n, ...], real values.
          batch: batch size to run with (default: n). A smaller last batch is padded, since a resize of the input
            allocates all tensors anew. A model of fixed batch size ignores it.

        Raises:
          KeyError: an input is missing.
        """
        total = len(next(iter(inputs.values())))
        step = (batch or total) if self.any_batch else max(self.inputs[0].shape[0], 1)
        self.resize(step, {name: values.shape[1:] for name, values in inputs.items()})
        pieces: list[list[np.ndarray]] = []
        for start in range(0, total, step):
            rows = min(step, total - start)
            part = {name: _padded(values[start : start + rows], step) for name, values in inputs.items()}
            self.set_inputs(part)
            self._interpreter.reset_all_variables()  # a fused LSTM keeps its state between runs
            self.invoke()
            pieces.append([p.dequantize(self._runner.GetTensor(p.index, self._subgraph))[:rows] for p in self.outputs])
        joined = pieces[0] if len(pieces) == 1 else [np.concatenate(column) for column in zip(*pieces, strict=True)]
        return {port.name: values for port, values in zip(self.outputs, joined, strict=True)}


def _full_shape(shape: tuple[int, ...], batch: int, example: tuple[int, ...] | None) -> list[int]:
    """Returns an input's shape with sizes for its open dimensions (-1)."""
    known = (batch, *example) if example is not None and len(example) == len(shape) - 1 else (batch,)
    wanted = (*known, *[1] * len(shape))
    return [n if n != -1 else wanted[axis] for axis, n in enumerate(shape)]


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    if len(values) == rows:
        return values
    return np.concatenate([values, np.repeat(values[-1:], rows - len(values), axis=0)])


def densify(sparsity: Any, shape: Sequence[int], values: np.ndarray) -> np.ndarray:
    """Returns all values of a tensor that is stored in TFLite's sparse format.

    The format is that of the Tensor Algebra Compiler: a tree of the values with a level for each dimension, and one
    more for each that is cut into blocks. A dense level has all `denseSize` children of each node; a sparse (CSR) one
    those whose positions `arrayIndices` lists, those of node i from `arraySegments[i]` to `arraySegments[i + 1]`.

    Args:
      sparsity: the tensor's SparsityParametersT. `traversalOrder` says for each level which dimension it is; from the
        rank on, those within blocks, of which `blockMap` says the dimension.
      shape: of the tensor.
      values: those that are stored, in the order of the tree's leaves.

    Returns:
      An array of this shape, 0 where nothing is stored.

    Raises:
      ValueError: the parts do not fit each other.
    """
    order, blocks = _numbers(sparsity.traversalOrder), _numbers(sparsity.blockMap)
    levels = list(sparsity.dimMetadata or [])
    rank = len(shape)
    if sorted(order) != list(range(rank + len(blocks))) or len(levels) != len(order):
        raise ValueError(f"a sparse tensor of {rank} dimensions has {len(order)} of {len(blocks)} blocks to go through")
    nodes = 1
    places: dict[int, np.ndarray] = {}
    for dimension, level in zip(order.tolist(), levels, strict=True):
        if level.format == schema.DimensionType.SPARSE_CSR:
            segments, indices = _numbers(level.arraySegments.values), _numbers(level.arrayIndices.values)
            if len(segments) != nodes + 1 or segments[-1] != len(indices):
                raise ValueError(f"a sparse tensor has {len(segments)} segments for {nodes} nodes")
            parents = np.repeat(np.arange(nodes), np.diff(segments))
        else:
            parents, indices = np.repeat(np.arange(nodes), level.denseSize), np.tile(np.arange(level.denseSize), nodes)
        places = {known: at[parents] for known, at in places.items()} | {dimension: indices}
        nodes = len(indices)
    if nodes != len(values):
        raise ValueError(f"a sparse tensor has {nodes} places for {len(values)} values")
    for block, dimension in enumerate(blocks.tolist(), rank):
        size = levels[order.tolist().index(block)].denseSize
        places[dimension] = places[dimension] * size + places[block]
    dense = np.zeros(shape, values.dtype)
    # it also refuses places outside of the shape
    dense.flat[np.ravel_multi_index([places[dimension] for dimension in range(rank)], tuple(shape))] = values
    return dense


def _numbers(found: Any) -> np.ndarray:
    return np.asarray([] if found is None else found, np.int64)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant tensor of a flatbuffer.

    Attributes:
      name: the tensor's name in the file.
      stored: the values as stored, those that a sparse format leaves out too.
      zero_point: what stands for zero, 0 for floats.
    """

    name: str
    stored: np.ndarray
    zero_point: int

    @property
    def zeros(self) -> np.ndarray:
        """Which values are zero, a boolean array of the tensor's shape."""
        return self.stored == self.zero_point


_NUMPY_TYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT8: np.int8,
}


def weights(content: bytes) -> Iterator[Weight]:
    """Yields the constant tensors of all subgraphs whose number type NumPy has; a buffer used twice comes once."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    seen: set[int] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            dtype = _NUMPY_TYPES.get(tensor.type)
            if dtype is None or data is None or len(data) == 0 or tensor.buffer in seen:
                continue
            seen.add(tensor.buffer)
            stored, shape = np.frombuffer(bytes(data), dtype), tensor.shape if tensor.shape is not None else ()
            if tensor.sparsity is None:
                stored = stored.reshape(shape)
            else:
                stored = densify(tensor.sparsity, [int(n) for n in shape], stored)
            points = tensor.quantization.zeroPoint if tensor.quantization is not None else None
            zero_point = int(points[0]) if points is not None and len(points) else 0
            yield Weight(tensor.name.decode(), stored, zero_point)


def kernels(content: bytes, at_least: int = 32) -> list[Weight]:
    """Returns the weights proper: matrices and filters of `at_least` values, no biases, shapes or lookup constants."""
    return [w for w in weights(content) if w.stored.ndim >= 2 and w.stored.size >= at_least]


def sparsity(content: bytes) -> float:
    """Returns the fraction of zeros among the kernels' values, 0-1; 0.0 for a model without kernels."""
    all_kernels = kernels(content)
    total = sum(w.stored.size for w in all_kernels)
    return float(sum(int(w.zeros.sum()) for w in all_kernels) / total) if total else 0.0
