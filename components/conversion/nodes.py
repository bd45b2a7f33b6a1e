"""The operators of a converted model, and which layers they compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema_fb

_OPERATORS = {value: name for name, value in vars(schema_fb.BuiltinOperator).items() if isinstance(value, int)}
#: Of the calibrator, and what carries numbers over unchanged or from one type to another.
_GLUE = ("QUANTIZE", "DEQUANTIZE", "PSEUDO_CONST")


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
