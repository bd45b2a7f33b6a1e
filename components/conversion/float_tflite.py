"""Reads a float `.tflite` file, whoever made it, as a model to quantize after training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
      The content, of that signature alone and normalised (below), and the passport's `io` without labels: its names are
      the signature's, or where the file has none the tensors'. Normalised is what quantizers would read otherwise than
      the runtime does: operators have their number where converters before TensorFlow 2.4 did not write it, weights
      that are stored as float16 are the same numbers as float32, and no two tensors have one name.

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
    content = _normalised(path.read_bytes())
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


def _normalised(content: bytes) -> bytes:
    """Returns a model as quantizers expect it (see `read`); the same bytes where there is nothing to mend."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    mended = [_number_operators(model), _fold_float16(model), _rename_duplicates(model)]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)) if any(mended) else content


def _number_operators(model: Any) -> bool:
    """Gives operators the number that only the older field has, of one byte; else each is read as ADD, number 0."""
    old = [code for code in model.operatorCodes or [] if code.builtinCode < code.deprecatedBuiltinCode]
    for code in old:
        code.builtinCode = code.deprecatedBuiltinCode
    return bool(old)


def _fold_float16(model: Any) -> bool:
    """Makes constants float32 that are stored as float16 for a DEQUANTIZE, which is then none: exact."""
    float32_buffers: dict[int, int] = {}
    for index, graph in enumerate(model.subgraphs):
        readers: dict[int, list[Any]] = {}
        for operator in graph.operators or []:
            for number in operator.inputs if operator.inputs is not None else ():
                readers.setdefault(int(number), []).append(operator)
        constants = [
            number for number, tensor in enumerate(graph.tensors)
            if _is_float16_constant(model, tensor)
            and all(_is_dequantize(model, operator) for operator in readers.get(number, [None]))
        ]  # fmt: skip
        folded = {int(operator.outputs[0]): number for number in constants for operator in readers[number]}
        for number in constants:
            constant = graph.tensors[number]
            if constant.buffer not in float32_buffers:
                half = np.asarray(model.buffers[constant.buffer].data, np.uint8).view("<f2")
                buffer = schema.BufferT()
                buffer.data = half.astype("<f4").view(np.uint8)
                float32_buffers[constant.buffer] = len(model.buffers)
                model.buffers.append(buffer)
            constant.type, constant.buffer = schema.TensorType.FLOAT32, float32_buffers[constant.buffer]
        gone = {id(operator) for number in constants for operator in readers[number]}
        graph.operators = [operator for operator in graph.operators or [] if id(operator) not in gone]
        _drop(model, index, folded)
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for number in float32_buffers.keys() - used:
        model.buffers[number].data = None
    return bool(float32_buffers)


def _is_float16_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return tensor.type == schema.TensorType.FLOAT16 and data is not None and len(data) > 0 and tensor.sparsity is None


def _is_dequantize(model: Any, operator: Any) -> bool:
    dequantize = schema.BuiltinOperator.DEQUANTIZE
    return operator is not None and model.operatorCodes[operator.opcodeIndex].builtinCode == dequantize


def _drop(model: Any, index: int, same_as: dict[int, int]) -> None:
    """Takes tensors out of a graph.

    Args:
      model: changed in place.
      index: of the graph.
      same_as: by the number of a tensor that goes, that of the one which is read in its place.
    """
    graph = model.subgraphs[index]
    left = [number for number in range(len(graph.tensors)) if number not in same_as]
    place = {number: new for new, number in enumerate(left)} | {-1: -1}
    place |= {number: place[other] for number, other in same_as.items()}
    graph.tensors = [graph.tensors[number] for number in left]
    owners: list[tuple[Any, tuple[str, ...]]] = [(graph, ("inputs", "outputs"))]
    owners += [(operator, ("inputs", "outputs", "intermediates")) for operator in graph.operators]
    for owner, fields in owners:
        for field in fields:
            numbers = getattr(owner, field)
            if numbers is not None:
                setattr(owner, field, np.array([place[int(number)] for number in numbers], np.int32))
    for signature in model.signatureDefs or []:
        if signature.subgraphIndex == index:
            for entry in (*(signature.inputs or []), *(signature.outputs or [])):
                entry.tensorIndex = place[entry.tensorIndex]


def _rename_duplicates(model: Any) -> bool:
    """Gives tensors of all graphs different names: quantizers know them by name alone. Ports keep theirs."""
    main = model.subgraphs[0]
    ports = [main.tensors[int(number)] for number in (*main.inputs, *main.outputs)]
    tensors = [*ports, *(tensor for graph in model.subgraphs for tensor in graph.tensors)]
    taken: set[bytes] = set()
    renamed = False
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        name = tensor.name or b""
        numbers = itertools.count(1)
        while tensor.name in taken:
            tensor.name = name + b"_%d" % next(numbers)
            renamed = True
        taken.add(tensor.name)
    return renamed


def _port(port: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": port["name"],
        "shape": [None if n == -1 else n for n in port["shape"]],
        "dtype": port["dtype"],
    }


def _quantized(content: bytes) -> list[str]:
    """Returns the tensors whose numbers stand for real ones, in words."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    quantized = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            is_float = tensor.type in (schema.TensorType.FLOAT32, schema.TensorType.FLOAT64)
            if tensor.type == schema.TensorType.FLOAT16 or (scales is not None and len(scales) and not is_float):
                number_type = inspection.NUMBER_TYPES.get(tensor.type, tensor.type)
                quantized.append(f"{tensor.name.decode(errors='replace')} ({number_type})")
    return quantized


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
