"""Reads a float `.tflite` file, whoever made it, as a model to quantize after training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgeline.errors import UserError, in_one_line
from edgeline.tflite import inspection
from edgeline.tflite.litert import DEFAULT_SIGNATURE, TFLiteModel, default_signature

#: So many of a list are named in a message.
_MOST_NAMED = 8


def read(path: Path, signature: str | None = None) -> tuple[bytes, dict[str, Any]]:
    """Reads a model that is to be quantized.

    Args:
      path: of the `.tflite` file, which may be damaged.
      signature: the one that is the model; None: `serving_default`, or the only one.

    Returns:
      The content, of that signature alone, and the passport's `io` without labels: its names are the signature's, or
      where the file has none the tensors'.

    Raises:
      UserError: it is damaged, LiteRT cannot run it, it has no such signature, or it is quantized already.
    """
    summary = inspection.read(path, weights=False)  # in a child process, which a damaged file may crash
    names = [structure["name"] for structure in summary["signatures"]]
    if signature and signature not in names:
        raise UserError(f"model {path} has no signature {signature!r}; its signatures are {', '.join(names) or 'none'}")
    try:
        chosen = signature or default_signature(names)
    except ValueError as error:
        raise UserError(f"model {path} cannot be used: {error}; choose one with --signature") from None
    content = path.read_bytes()
    quantized = _quantized(content)
    if quantized:
        more = f" and {len(quantized) - _MOST_NAMED} more" if len(quantized) > _MOST_NAMED else ""
        raise UserError(
            f"model {path} is quantized already: {', '.join(quantized[:_MOST_NAMED])}{more}. Only a float32 model can "
            f"be quantized: give the one that it was made of"
        )
    if len(names) != 1:
        content = _only(content, chosen)
    try:
        runner = TFLiteModel(content)
        # where only the batch is open: some operators cannot be prepared for sizes of 1
        if all(-1 not in port.shape[1:] for port in runner.inputs):
            runner.resize(1)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model {path} cannot be run by LiteRT: {in_one_line(str(error))}") from error
    structure = inspection.structure(content)
    ports = {side: [_port(port) for port in structure[side]] for side in ("inputs", "outputs")}
    for port in ports["inputs"]:
        if not port["shape"]:
            raise UserError(f"model {path}: input {port['name']!r} is a single number; a batch must be its first axis")
    return content, ports


def _port(port: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": port["name"],
        "shape": [None if n == -1 else n for n in port["shape"]],
        "dtype": port["dtype"],
    }


def _quantized(content: bytes) -> list[str]:
    """Returns the tensors whose numbers stand for real ones, in words."""
    types = {number: name.lower() for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    operators = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            is_float = tensor.type in (schema.TensorType.FLOAT32, schema.TensorType.FLOAT64)
            if tensor.type == schema.TensorType.FLOAT16 or (scales is not None and len(scales) and not is_float):
                operators.append(f"{tensor.name.decode(errors='replace')} ({types.get(tensor.type, tensor.type)})")
    return operators


def _only(content: bytes, signature: str | None) -> bytes:
    """Returns a model of one signature and what it needs; without any it gets one that has the tensors' names."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if signature is None:
        graph, chosen = model.subgraphs[0], schema.SignatureDefT()
        chosen.signatureKey, chosen.subgraphIndex = DEFAULT_SIGNATURE.encode(), 0
        chosen.inputs, chosen.outputs = _named(graph, graph.inputs), _named(graph, graph.outputs)
    else:
        chosen = next(found for found in model.signatureDefs if found.signatureKey.decode() == signature)
    kept = [chosen.subgraphIndex]
    for index in kept:  # grows while it is read
        kept += [n for options, field in _links(model.subgraphs[index]) if (n := getattr(options, field)) not in kept]
    for index in kept:
        for options, field in _links(model.subgraphs[index]):
            setattr(options, field, kept.index(getattr(options, field)))
    model.subgraphs = [model.subgraphs[index] for index in kept]
    chosen.subgraphIndex = 0
    model.signatureDefs = [chosen]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def for_one_example(content: bytes) -> bytes:
    """Returns a model that takes one example, of one that says it takes any number; 1 is the size it was made in."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    for tensor in (graph.tensors[index] for index in (*graph.inputs, *graph.outputs)):
        sizes = tensor.shapeSignature
        if sizes is not None and len(sizes) and sizes[0] == -1:
            tensor.shapeSignature = [1, *sizes[1:]]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _named(graph: Any, indices: Iterable[int]) -> list[Any]:
    entries = []
    for index in indices:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = graph.tensors[index].name, int(index)
        entries.append(entry)
    return entries


def _links(graph: Any) -> Iterator[tuple[Any, str]]:
    """Yields where the operators of a graph name other graphs: branches and bodies of loops."""
    for operator in graph.operators or []:
        for options in (operator.builtinOptions, operator.builtinOptions2):
            for field in vars(options) if options is not None else ():
                if field.lower().endswith("subgraphindex") and getattr(options, field) >= 0:
                    yield options, field
