"""Opens SavedModels, frozen graphs and `.tflite` files of unknown authors: in a process of its own, see `sandbox`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from edgeline.conversion import float_tflite
from edgeline.errors import UserError, first_line
from edgeline.model_io import saved_model
from edgeline.model_io.graph_model import GraphModel, TFLiteGraph
from edgeline.model_module.hooks import ModelModule
from edgeline.tflite import litert
from edgeline.untrusted import graph_operators

_MANY = 20
#: Which have no values where the graph is saved anew.
_OLD_VARIABLES = ("Variable", "VariableV2")


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user says of a graph.

    Attributes:
      signature: of a SavedModel or a `.tflite` file, the one that is the model; None: `serving_default`, or the only
        one.
      inputs: of a frozen graph, the names of its inputs, each with its shape where the graph does not say; empty: all
        placeholders.
      outputs: of a frozen graph, the names of its outputs; empty: what nothing else reads.
    """

    signature: str | None = None
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def load(path: Path, kind: str, module: ModelModule, given: Given) -> GraphModel:
    """Loads a graph that holds no operator but those on the list of `graph_operators`.

    Args:
      path: of the file or folder.
      kind: `saved_model`, `graph_def` or `tflite`.
      module: says the order of the outputs, and the labels.
      given: which part of it is the model.

    Raises:
      UserError: it is damaged, holds other operators, or has no such signature, inputs or outputs.
    """
    graph = _LOADERS[kind](path, given)
    _describe(graph, module)
    return graph


def _describe(graph: GraphModel, module: ModelModule) -> None:
    """Adds the module's labels to a graph's `io`; its `output_names` may put the outputs into another order."""
    graph.io["labels"] = module.class_names()
    wanted = module.output_names()
    if wanted:
        by_name = {port["name"]: port for port in graph.io["outputs"]}
        if sorted(wanted) != sorted(by_name):
            raise UserError(
                f"output_names() of {module.source.reference} returns {', '.join(wanted)}, but the model's outputs are "
                f"{', '.join(by_name)}; of a model without layers it can change their order, not the names"
            )
        graph.io["outputs"] = [by_name[name] for name in wanted]


def _saved_model(path: Path, given: Given) -> GraphModel:
    graph_operators.check_saved_model(path, given.signature or _only_signature(path))
    try:
        loaded = tf.saved_model.load(str(path), tags=saved_model.tags(path))
    except Exception as error:
        raise UserError(f"model {path} is a damaged or incomplete SavedModel: {first_line(error)}") from error
    signatures = dict(loaded.signatures)
    if not signatures:
        raise UserError(
            f"model {path} is a SavedModel without signatures, so its inputs and outputs are unknown; save it with "
            f"tf.saved_model.save(model, folder, signatures=model.call.get_concrete_function(...))"
        )
    if given.signature and given.signature not in signatures:
        raise UserError(
            f"model {path} has no signature {given.signature!r}; its signatures are {', '.join(sorted(signatures))}"
        )
    try:
        name = given.signature or litert.default_signature(sorted(signatures))
    except ValueError as error:
        raise UserError(f"model {path} cannot be used: {error}; choose one with --signature") from None
    function = signatures[name]
    # what is going to be called, whatever the file said of it
    definition = function.graph.as_graph_def()
    graph_operators.check_graph(definition, path, allowed=graph_operators.LOADED)
    old = sorted(node.name for node in definition.node if node.op in _OLD_VARIABLES)
    if old:
        raise UserError(
            f"model {path} holds variables of TensorFlow 1 that no SavedModel of TensorFlow 2 can keep: "
            f"{', '.join(old[:_MANY])}. Freeze the graph and give the .pb file, or save it with resource variables "
            f"(tf.compat.v1.enable_resource_variables())"
        )
    inputs = {key: spec for key, spec in function.structured_input_signature[1].items()}
    io = {"inputs": _ports(path, inputs), "outputs": _ports(path, dict(function.structured_outputs))}
    return GraphModel(function, io, loaded)


def _only_signature(path: Path) -> str:
    """Returns the signature that is used where none is asked for; empty: it is not clear yet which."""
    try:
        return litert.default_signature(entry["name"] for entry in saved_model.signatures(path)) or ""
    except (UserError, ValueError):
        return ""


def _ports(path: Path, specs: dict[str, Any]) -> list[dict[str, Any]]:
    for name, spec in specs.items():
        if spec.shape.rank is None:
            raise UserError(f"model {path}: the shape of {name!r} is unknown; its number of dimensions must be known")
    return [
        {"name": name, "shape": spec.shape.as_list(), "dtype": spec.dtype.name} for name, spec in sorted(specs.items())
    ]


def _graph_def(path: Path, given: Given) -> GraphModel:
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except DecodeError:
        definition.Clear()
    if not definition.node:
        raise UserError(f"model {path} is no frozen GraphDef: truncated, or another kind of .pb file")
    if any(node.op in ("VariableV2", "VarHandleOp") for node in definition.node):
        raise UserError(f"model {path} holds variables without their values: freeze the graph first")
    graph_operators.check_graph(definition, path)
    nodes = {node.name: node for node in definition.node}
    read = {name.lstrip("^").split(":")[0] for node in definition.node for name in node.input}
    placeholders = [node.name for node in definition.node if node.op == "Placeholder"]
    ends = [node.name for node in definition.node if node.name not in read and node.op not in ("Placeholder", "NoOp")]

    def check(name: str, what: str, likely: list[str]) -> str:
        if name.split(":")[0] not in nodes:
            shown = ", ".join(likely[:_MANY]) or "none"
            raise UserError(f"model {path} has no node {name!r}; its {what} are {shown}")
        return name if ":" in name else f"{name}:0"

    specs = {}
    for entry in given.inputs or placeholders:
        tensor, _, shape = entry.partition("=")
        name = check(tensor, "placeholders", placeholders)
        node = nodes[name.split(":")[0]]
        stored = tf.TensorShape(node.attr["shape"].shape) if "shape" in node.attr else tf.TensorShape(None)
        known = tf.TensorShape(_shape(shape, entry)) if shape else stored
        if known.rank is None:
            raise UserError(f"model {path} does not say the shape of {name}; give it: --input {name}=?,96,96,3")
        specs[name] = tf.TensorSpec(known, node.attr["dtype"].type or tf.float32)
    outputs = [check(name, "last nodes", ends) for name in (given.outputs or ends)]
    if not specs or not outputs:
        raise UserError(f"model {path} has {len(specs)} inputs and {len(outputs)} outputs; name them")

    names = {name: _port_name(name) for name in [*specs, *outputs]}

    @tf.function(autograph=False)
    def call(**tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        feeds = {name: tensors[names[name]] for name in specs}
        found = tf.graph_util.import_graph_def(definition, input_map=feeds, return_elements=outputs, name="")
        return {names[name]: tensor for name, tensor in zip(outputs, found, strict=True)}

    try:
        made = call.get_concrete_function(
            **{names[n]: tf.TensorSpec(s.shape, s.dtype, names[n]) for n, s in specs.items()}
        )
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(f"model {path} cannot be used with these inputs and outputs: {first_line(error)}") from error
    io = {
        "inputs": [{"name": names[n], "shape": s.shape.as_list(), "dtype": s.dtype.name} for n, s in specs.items()],
        "outputs": _ports(path, dict(made.structured_outputs)),
    }
    order = [names[name] for name in outputs]
    io["outputs"].sort(key=lambda port: order.index(port["name"]))
    return GraphModel(call, io)


def _tflite(path: Path, given: Given) -> GraphModel:
    return TFLiteGraph(*float_tflite.read(path, given.signature))


_LOADERS = {"saved_model": _saved_model, "graph_def": _graph_def, "tflite": _tflite}


def _shape(text: str, entry: str) -> list[int | None]:
    try:
        return [None if part in ("?", "-1", "None") else int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"input {entry!r}: a shape is numbers joined by commas, ? where any goes, e.g. ?,96,96,3"
        ) from None


def _port_name(tensor: str) -> str:
    node, _, index = tensor.partition(":")
    name = re.sub("[^A-Za-z0-9_]", "_", node)
    return name if index in ("", "0") else f"{name}_{index}"
