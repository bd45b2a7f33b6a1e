"""Opens `.keras` and `.h5` files and Keras' SavedModels of unknown authors.

Keras never reads the stranger's file itself, but one that is put together of what was checked.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import tensorflow as tf
import tf_keras
from tf_keras.protobuf import saved_metadata_pb2

from edgeline.errors import UserError, first_line
from edgeline.keras_models import keras3_bridge
from edgeline.untrusted import keras_objects, reading
from edgeline.untrusted.keras_config import Checker, RefusedError

_WEIGHTS = "model.weights.h5"
_ASSETS = "assets/"
#: Where a SavedModel's checkpoint is, and the metadata of its root.
_CHECKPOINT, _ROOT = ("variables", "variables"), "root"
#: Where tf-keras has the models that a SavedModel's metadata call by the class alone.
_MODULES = {"Functional": "tf_keras.src.engine.functional", "Model": "tf_keras", "Sequential": "tf_keras"}


def load(
    path: Path, kind: str, custom_objects: Mapping[str, Any], *, where: str, allow_lambda: bool = False
) -> tf_keras.Model:
    """Loads a model whose config holds nothing but what is on the lists of `keras_objects` and `functions`.

    Args:
      path: of the file or folder.
      kind: `keras`, `h5` or `keras_saved_model`.
      custom_objects: the model module's, by name.
      where: how messages call the module.
      allow_lambda: whether to run the Python code of Lambda layers, and trust the author in all that is called.

    Returns:
      The uncompiled model, Sequential or functional, without Lambda layers; one of Keras 3 is rebuilt in tf-keras.

    Raises:
      UserError: the file is damaged, holds what is refused, weights alone, or a model of another kind.
    """
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        version, config, weights = _READERS[kind](path, Path(folder))
        is_keras3 = version.startswith("3")
        checked, lambdas = _check(path, config, is_keras3, {} if is_keras3 else custom_objects, where, allow_lambda)
        try:
            if is_keras3:
                model = keras3_bridge.load(str(_put_together(kind, version, checked, weights, Path(folder))))
            else:
                model = _load_keras2(kind, version, checked, weights, Path(folder), custom_objects, allow_lambda)
        except Exception as error:  # each format and each custom layer has its own ways to fail
            raise UserError(
                f"model {path} cannot be loaded by {'Keras 3' if is_keras3 else 'tf-keras'} (written by Keras "
                f"{version}): {first_line(error)}. Custom layers must be returned by custom_objects() of {where}"
            ) from error
    if is_keras3:
        return keras3_bridge.convert(model, f"the Keras 3 model {path}")
    if getattr(model, "inputs", None) is None or not hasattr(model, "_network_nodes"):
        raise UserError(_subclassed(path, type(model).__name__))
    return _without_lambdas(model) if lambdas else model


def _check(
    path: Path, config: Any, is_keras3: bool, custom_objects: Mapping[str, Any], where: str, allow_lambda: bool
) -> tuple[Any, list[str]]:
    """Returns the checked config and the names of the layers with code in it, which are allowed then."""
    package = "keras" if is_keras3 else "tf_keras"
    try:
        checker = Checker(keras_objects.objects_of(package), custom_objects, code=allow_lambda and not is_keras3)
        checked = checker.checked(config)
    except RefusedError as error:
        raise UserError(
            f"model {path} is refused: {error}. Custom layers and functions must be returned by custom_objects() of "
            f"{where}, for models of tf-keras"
        ) from None
    except RecursionError:
        raise UserError(f"model {path} is refused: its config is nested too deep") from None
    lambdas = sorted(set(checker.lambdas))
    if lambdas and (is_keras3 or not allow_lambda):
        raise UserError(
            f"model {path} holds Lambda layers ({', '.join(lambdas)}): Python code that runs when the file is loaded. "
            + (
                "Replace them by layers or keras.ops and save it anew"
                if is_keras3
                else "Replace them by layers and save it anew, or allow it with --allow-lambda if you trust its author"
            )
        )
    return checked, lambdas


def _subclassed(path: Path, name: str) -> str:
    return (
        f"model {path} is a subclassed {name}, of which only Python knows the layers' order; only Sequential and "
        f"functional models can be compressed. Export it as a SavedModel without Keras metadata (tf.saved_model.save) "
        f"for the schemes that need no training"
    )


# reading: each returns the version of the Keras that wrote a file, its config, and where its weights are --------------


def _read_keras(path: Path, folder: Path) -> tuple[str, Any, Path]:
    archive = reading.Archive(path)
    metadata = archive.json("metadata.json")
    config = archive.json("config.json")
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not isinstance(config, dict):
        raise UserError(f"model {path} is damaged or incomplete: its metadata.json or config.json is none of Keras'")
    content = folder / "content"
    for name in archive.names():
        if name == _WEIGHTS or name.startswith(_ASSETS):
            target = content / name
            target.parent.mkdir(parents=True, exist_ok=True)
            archive.extract(name, target)
    if not (content / _WEIGHTS).is_file():
        raise UserError(f"model {path} is damaged or incomplete: it has no {_WEIGHTS}")
    reading.check_hdf5(content / _WEIGHTS)
    return version, config, content


def _read_h5(path: Path, folder: Path) -> tuple[str, Any, Path]:
    reading.check_hdf5(path)
    try:
        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise UserError(
                    f"model {path} holds weights alone; save the whole model: model.save(...), not save_weights"
                )
            version, text = file.attrs.get("keras_version", "2"), file.attrs["model_config"]
            complete = "model_weights" in file
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {path} is damaged or incomplete: {first_line(error)}") from error
    if isinstance(version, bytes):
        version = version.decode(errors="replace")
    if not isinstance(version, str) or not isinstance(text, str | bytes) or not complete:
        raise UserError(
            f"model {path} is damaged or incomplete: its attributes are none of Keras', or its weights miss"
        )
    return version, reading.json_of(text, f"the model_config of {path}"), path


def _read_saved_model(path: Path, folder: Path) -> tuple[str, Any, Path]:
    reading.check_folder(path)
    file = path / "keras_metadata.pb"
    if file.stat().st_size > reading.MAX_CONFIG_BYTES:
        raise UserError(f"{file} is {file.stat().st_size:,} bytes, allowed are {reading.MAX_CONFIG_BYTES:,}")
    try:
        nodes = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes()).nodes
    except Exception as error:
        raise UserError(f"model {path} is damaged or incomplete: {first_line(error)}") from error
    text = next((node.metadata for node in nodes if node.node_path == _ROOT), None)
    if text is None:
        raise UserError(f"model {path} is damaged or incomplete: {file.name} does not tell of the model")
    root = reading.json_of(text, f"the metadata of {path}")
    if not isinstance(root, dict) or not isinstance(root.get("class_name"), str):
        raise UserError(f"model {path} is damaged or incomplete: {file.name} names no class")
    config = root.get("config")
    if not isinstance(config, dict) or "layers" not in config:
        raise UserError(_subclassed(path, str(root["class_name"])[:100]))
    # what else is there is for tracing and training
    name = root["class_name"]
    return "2", {"class_name": name, "config": config, "module": _MODULES.get(name), "registered_name": None}, path


_READERS = {"keras": _read_keras, "h5": _read_h5, "keras_saved_model": _read_saved_model}


# loading --------------------------------------------------------------------------------------------------------------


def _put_together(kind: str, version: str, config: Any, weights: Path, folder: Path) -> Path:
    """Writes a file of the checked config and weights, which Keras can read."""
    if kind == "h5":
        path = folder / "checked.h5"
        with h5py.File(path, "w") as target, h5py.File(weights, "r") as source:
            target.attrs["keras_version"], target.attrs["backend"] = version, "tensorflow"
            target.attrs["model_config"] = json.dumps(config).encode()
            source.copy("model_weights", target)
        return path
    path = folder / "checked.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config))
        for file in sorted(each for each in weights.rglob("*") if each.is_file()):
            archive.write(file, file.relative_to(weights))
    return path


def _load_keras2(
    kind: str,
    version: str,
    config: Any,
    weights: Path,
    folder: Path,
    custom_objects: Mapping[str, Any],
    allow_lambda: bool,
) -> tf_keras.Model:
    if kind != "keras_saved_model":
        return tf_keras.models.load_model(
            _put_together(kind, version, config, weights, folder),
            custom_objects=dict(custom_objects),
            compile=False,
            safe_mode=not allow_lambda,
        )
    # of the layers' config and the checkpoint alone: nothing of its graph is needed
    config = _decoded(config)
    model = tf_keras.saving.deserialize_keras_object(config, dict(custom_objects), safe_mode=not allow_lambda)
    status = model.load_weights(str(weights.joinpath(*_CHECKPOINT)))
    status.assert_existing_objects_matched().expect_partial()
    return model


def _decoded(value: Any) -> Any:
    """Returns a checked config with the values of Python that its markers stand for."""
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    marker = value.get("class_name")
    if marker == "__tuple__":
        return tuple(_decoded(each) for each in value["items"])
    if marker == "TensorShape":
        return _decoded(value["items"])
    if marker == "__ellipsis__":
        return ...
    return {key: _decoded(each) for key, each in value.items()}


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
            f"Lambda layer {layer.name} does more than call TensorFlow ops on its input ({first_line(error)}); "
            f"replace it by layers"
        ) from error
