"""Loads a model that was trained elsewhere: as a tf-keras model where its layers are known, else as a graph."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import tensorflow as tf
import tf_keras
from google.protobuf.message import DecodeError
from tf_keras.protobuf import saved_metadata_pb2

from edgeline import layout
from edgeline.conversion import float_tflite
from edgeline.errors import UserError
from edgeline.keras_models import keras3_bridge
from edgeline.model_importer.config import GRAPHS, Import, digest_of
from edgeline.model_io import keras_file
from edgeline.model_io.graph_model import GraphModel, TFLiteGraph
from edgeline.model_module.hooks import ModelModule
from edgeline.tflite import litert

_MANY = 20


def located(config: Import, trained: str | None) -> Import:
    """Returns what is asked with the model's place filled in, where it is another step's artifact.

    Args:
      config: as asked.
      trained: folder of a Model artifact with a SavedModel as TFX's own Trainer writes it; None: the config names one.

    Raises:
      UserError: neither names a model, or both do, or the artifact holds none.
    """
    if (config.source is None) == (trained is None):
        raise UserError(
            "the ModelImporter takes one model: a path (`source`) or another step's Model (`trained`), received "
            + ("both" if trained is not None else "neither")
        )
    if trained is None:
        return config
    folder = Path(trained, layout.SERVING_FOLDER)
    if not folder.is_dir():
        raise UserError(f"the trained model in {trained} has no {layout.SERVING_FOLDER}: no SavedModel was written")
    return dataclasses.replace(config, source=str(folder), digest=digest_of(folder))


def load(config: Import, module: ModelModule) -> tuple[tf_keras.Model | GraphModel, dict[str, Any]]:
    """Loads a model.

    Args:
      config: which one.
      module: for custom objects, and the names of outputs and classes.

    Returns:
      The model, uncompiled, and the passport's `io`.

    Raises:
      UserError: it cannot be loaded, is not what it was when the run began, or holds code that was not allowed.
    """
    path = config.path
    kind = config.kind
    if config.digest and digest_of(path) != config.digest:
        raise UserError(f"model {path} was changed since this run began; start the run again")
    if kind in GRAPHS:
        graph = _GRAPH_LOADERS[kind](path, config)
        _describe(graph, module)
        return graph, graph.io
    model = _keras(path, kind, module, allow_lambda=config.allow_lambda)
    return model, keras_file.describe_io(model, module)


# models with layers ---------------------------------------------------------------------------------------------------


def _keras(path: Path, kind: str, module: ModelModule, *, allow_lambda: bool) -> tf_keras.Model:
    version, config = _stored_config(path, kind)
    is_keras3 = version.startswith("3")
    found = sorted(set(_lambdas(config)))
    if found and (is_keras3 or not allow_lambda):
        raise UserError(
            f"model {path} holds Lambda layers ({', '.join(found)}): Python code that runs when the file is loaded. "
            + (
                "Replace them by layers or keras.ops and save it anew"
                if is_keras3
                else "Replace them by layers and save it anew, or allow it with --allow-lambda if you trust its author"
            )
        )
    tf_keras.backend.clear_session()
    try:
        if is_keras3:
            model = keras3_bridge.load(str(path))
        else:
            model = tf_keras.models.load_model(
                path, custom_objects=module.custom_objects(), compile=False, safe_mode=not allow_lambda
            )
    except Exception as error:  # each format and each custom layer has its own ways to fail
        raise UserError(
            f"model {path} cannot be loaded by {'Keras 3' if is_keras3 else 'tf-keras'} (written by Keras {version}): "
            f"{_first_line(error)}. Custom layers must be returned by custom_objects() of {module.source.reference}"
        ) from error
    if is_keras3:
        return keras3_bridge.convert(model, f"the Keras 3 model {path}")
    if getattr(model, "inputs", None) is None or not hasattr(model, "_network_nodes"):
        raise UserError(
            f"model {path} is a subclassed {type(model).__name__}, of which only Python knows the layers' order; only "
            f"Sequential and functional models can be compressed. Export it as a SavedModel without Keras metadata "
            f"(tf.saved_model.save) for the schemes that need no training"
        )
    return _without_lambdas(model) if found else model


def _stored_config(path: Path, kind: str) -> tuple[str, Any]:
    """Returns the version of the Keras that wrote a model, and its config, without loading it.

    Raises:
      UserError: the file is damaged, or holds weights alone.
    """
    try:
        if kind == "keras":
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
                if broken:
                    raise ValueError(f"{broken} in it is damaged")
                return (
                    str(json.loads(archive.read("metadata.json"))["keras_version"]),
                    json.loads(archive.read("config.json")),
                )
        if kind == "h5":
            with h5py.File(path) as file:
                if "model_config" not in file.attrs:
                    raise UserError(
                        f"model {path} holds weights alone; save the whole model: model.save(...), not save_weights"
                    )
                return str(file.attrs.get("keras_version", "2")), json.loads(file.attrs["model_config"])
        metadata = saved_metadata_pb2.SavedMetadata.FromString((path / "keras_metadata.pb").read_bytes())
        return "2", [json.loads(node.metadata) for node in metadata.nodes]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {path} is damaged or incomplete: {_first_line(error)}") from error


def _lambdas(config: Any) -> Iterator[str]:
    """Yields the names of all Lambda layers in a config, and of whatever else holds marshalled Python code."""
    if isinstance(config, dict):
        if config.get("class_name") in ("Lambda", "__lambda__"):
            inner = config.get("config")
            yield str(inner.get("name", "a function") if isinstance(inner, dict) else "a function")
            return
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _lambdas(item)


def _without_lambdas(model: tf_keras.Model) -> tf_keras.Model:
    """Replaces each Lambda by the TensorFlow ops that its code calls, so that later steps load it in safe mode."""
    feeds = [
        tf_keras.Input(batch_shape=t.shape, dtype=t.dtype, name=name)
        for t, name in zip(model.inputs, model.input_names, strict=True)
    ]
    made = {id(tensor): feed for tensor, feed in zip(model.inputs, feeds, strict=True)}

    def remade(value: Any) -> Any:
        return made.get(id(value), value)

    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = tf.nest.map_structure(remade, (node.call_args, node.call_kwargs))
            outputs = tf.nest.flatten(_called(node.layer, args, kwargs))
            made.update({id(t): output for t, output in zip(tf.nest.flatten(node.outputs), outputs, strict=True)})
    results = [made[id(tensor)] for tensor in model.outputs]
    return tf_keras.Model(feeds, results if len(results) > 1 else results[0], name=model.name)


def _called(layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(layer, tf_keras.layers.Lambda):
        return layer(*args, **kwargs)
    try:
        return layer.function(*args, **layer.arguments)
    except Exception as error:  # whatever the code in the file does
        raise UserError(
            f"Lambda layer {layer.name} does more than call TensorFlow ops on its input ({_first_line(error)}); "
            f"replace it by layers"
        ) from error


# models of which only the graph is known ------------------------------------------------------------------------------


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


def _saved_model(path: Path, config: Import) -> GraphModel:
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise UserError(f"model {path} is a damaged or incomplete SavedModel: {_first_line(error)}") from error
    signatures = dict(loaded.signatures)
    if not signatures:
        raise UserError(
            f"model {path} is a SavedModel without signatures, so its inputs and outputs are unknown; save it with "
            f"tf.saved_model.save(model, folder, signatures=model.call.get_concrete_function(...))"
        )
    if config.signature and config.signature not in signatures:
        raise UserError(
            f"model {path} has no signature {config.signature!r}; its signatures are {', '.join(sorted(signatures))}"
        )
    try:
        name = config.signature or litert.default_signature(sorted(signatures))
    except ValueError as error:
        raise UserError(f"model {path} cannot be used: {error}; choose one with --signature") from None
    function = signatures[name]
    inputs = {key: spec for key, spec in function.structured_input_signature[1].items()}
    io = {"inputs": _ports(path, inputs), "outputs": _ports(path, dict(function.structured_outputs))}
    return GraphModel(function, io, loaded)


def _ports(path: Path, specs: dict[str, Any]) -> list[dict[str, Any]]:
    for name, spec in specs.items():
        if spec.shape.rank is None:
            raise UserError(f"model {path}: the shape of {name!r} is unknown; its number of dimensions must be known")
    return [
        {"name": name, "shape": spec.shape.as_list(), "dtype": spec.dtype.name} for name, spec in sorted(specs.items())
    ]


def _graph_def(path: Path, config: Import) -> GraphModel:
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except DecodeError:
        definition.Clear()
    if not definition.node:
        raise UserError(f"model {path} is no frozen GraphDef: truncated, or another kind of .pb file")
    if any(node.op in ("VariableV2", "VarHandleOp") for node in definition.node):
        raise UserError(f"model {path} holds variables without their values: freeze the graph first")
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
    for entry in config.inputs or placeholders:
        given, _, shape = entry.partition("=")
        name = check(given, "placeholders", placeholders)
        node = nodes[name.split(":")[0]]
        stored = tf.TensorShape(node.attr["shape"].shape) if "shape" in node.attr else tf.TensorShape(None)
        known = tf.TensorShape(_shape(shape, entry)) if shape else stored
        if known.rank is None:
            raise UserError(f"model {path} does not say the shape of {name}; give it: --input {name}=?,96,96,3")
        specs[name] = tf.TensorSpec(known, node.attr["dtype"].type or tf.float32)
    outputs = [check(name, "last nodes", ends) for name in (config.outputs or ends)]
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
        raise UserError(f"model {path} cannot be used with these inputs and outputs: {_first_line(error)}") from error
    io = {
        "inputs": [{"name": names[n], "shape": s.shape.as_list(), "dtype": s.dtype.name} for n, s in specs.items()],
        "outputs": _ports(path, dict(made.structured_outputs)),
    }
    order = [names[name] for name in outputs]
    io["outputs"].sort(key=lambda port: order.index(port["name"]))
    return GraphModel(call, io)


def _tflite(path: Path, config: Import) -> GraphModel:
    return TFLiteGraph(*float_tflite.read(path, config.signature))


_GRAPH_LOADERS = {"saved_model": _saved_model, "graph_def": _graph_def, "tflite": _tflite}


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
