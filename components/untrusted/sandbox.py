"""Opens strangers' models in a process of its own.

Of a Keras model that process leaves the config as JSON and the weights as arrays. The process that asked checks that
config once more, and builds the model from it and the arrays alone: it never opens the stranger's file. Of a graph it
leaves `Format-Serving/` as it lies in an artifact, and the names and shapes of inputs and outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline import files, layout
from edgeline.errors import UserError, first_line
from edgeline.isolation import fork_server
from edgeline.keras_models import rebuilding
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel, TFLiteGraph
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.untrusted import graph_files, graph_operators, keras_files, keras_objects, reading
from edgeline.untrusted.functions import DTYPES
from edgeline.untrusted.graph_files import Given
from edgeline.untrusted.keras_config import Checker, RefusedError

#: Seconds that a model may take.
TIMEOUT = 1800.0
_CONFIG, _WEIGHTS, _IO = "config.json", "weights.npz", "io.json"
#: What the header of an array takes in its file, generously.
_HEADER_BYTES = 1000
#: Of an array of no fixed size: the ranges from which a Discretization makes its bins.
_OPEN_BYTES = 2**20


def load(
    path: Path, kind: str, module: ModelModule, *, allow_lambda: bool = False, timeout: float = TIMEOUT
) -> tf_keras.Model:
    """Loads a model as `keras_files.load`, in a process of its own.

    Args:
      path: of the file or folder.
      kind: `keras`, `h5` or `keras_saved_model`.
      module: whose custom objects the model needs; its code is trusted, and runs in both processes.
      allow_lambda: whether to run the Python code of Lambda layers, in the child.
      timeout: seconds after which the child is killed.

    Raises:
      UserError: as `keras_files.load`; or the child crashed, or took more memory or time than it may.
    """
    with fork_server.answer_folder() as folder:
        arguments = {
            "path": str(path.absolute()), "kind": kind, "module": module.source.reference,
            "digest": module.source.digest, "allow_lambda": allow_lambda,
        }  # fmt: skip
        fork_server.call(
            f"{__name__}:{take_apart.__name__}", arguments, Path(folder), what=f"model {path}", timeout=timeout
        )
        return _built(path, Path(folder), module, allow_lambda)


def _built(path: Path, answer: Path, module: ModelModule, allow_lambda: bool) -> tf_keras.Model:
    """Builds a model from what the child left, which is trusted no more than the file."""
    custom_objects = module.custom_objects()
    try:
        reading.check_folder(answer)
        content = files.read_bounded(answer / _CONFIG, reading.MAX_CONFIG_BYTES)
        # whose author may run code may call any function
        checker = Checker(keras_objects.objects_of("tf_keras"), custom_objects, code=allow_lambda)
        checked = checker.checked(reading.json_of(content, f"the config of {path}"))
    except (RefusedError, RecursionError, ValueError, OSError) as error:
        raise UserError(f"model {path} is refused: {first_line(error)}") from None
    if checker.lambdas:
        raise UserError(f"model {path} is refused: it still holds the Lambda layers {', '.join(checker.lambdas)}")
    try:
        model = tf_keras.saving.deserialize_keras_object(checked, custom_objects)
        _assign(list(_variables(model)), answer / _WEIGHTS)
    except Exception as error:  # whatever a custom layer does
        raise UserError(f"model {path} cannot be built: {first_line(error)}") from error
    for layer in model._flatten_layers():
        rebuilding.follow_weights(layer)
    return model


def _assign(variables: list[tf.Variable], path: Path) -> None:
    """Gives variables the values in a file, one at a time.

    Raises:
      ValueError: the file has other arrays than those, or would take more memory.
    """
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    expected = sum(
        variable.shape.num_elements() * _stored(variable).itemsize if variable.shape.is_fully_defined() else _OPEN_BYTES
        for variable in variables
    )
    if total > expected + _HEADER_BYTES * len(variables):
        raise ValueError(f"its weights are {total:,} bytes, the model's are {expected:,}")
    with path.open("rb") as file, np.load(file) as values:
        if len(values.files) != len(variables):
            raise ValueError(f"it has {len(values.files)} weights, the model has {len(variables)}")
        for index, variable in enumerate(variables):
            value = values[_key(index)]
            if not variable.shape.is_compatible_with(value.shape) or value.dtype != _stored(variable):
                raise ValueError(
                    f"{variable.name} is {value.dtype} {value.shape}, expected {_stored(variable)} "
                    f"{tuple(variable.shape)}"
                )
            variable.assign(tf.cast(value, variable.dtype))


def _variables(model: tf_keras.Model) -> Iterator[tf.Variable]:
    """Yields a model's weights in an order that does not depend on what is trainable."""
    for layer in model._flatten_layers():
        for weight in layer._trainable_weights + layer._non_trainable_weights:
            if isinstance(weight, tf.Variable):
                yield weight


def _stored(variable: tf.Variable) -> np.dtype[Any]:
    """Returns the number type in which a variable's values are kept: its own, or one that NumPy's files know."""
    own = np.dtype(variable.dtype.as_numpy_dtype)
    return np.dtype(np.float32) if own.kind == "V" else own  # bfloat16


def _key(index: int) -> str:
    return f"{index:06d}"


def load_graph(
    path: Path, kind: str, module: ModelModule, given: Given, *, transform_uri: str | None = None,
    timeout: float = TIMEOUT,
) -> GraphModel:  # fmt: skip
    """Loads a graph as `graph_files.load`, in a process of its own.

    Args:
      path: of the file or folder.
      kind: `saved_model`, `graph_def` or `tflite`.
      module: says the order of the outputs, the labels, and how examples are read; its code is trusted.
      given: which part of it is the model.
      transform_uri: of the TransformGraph that made the examples; None: they are as they were.
      timeout: seconds after which the child is killed.

    Returns:
      What lies in a folder that goes with it.

    Raises:
      UserError: as `graph_files.load`; or the child crashed, or took more memory or time than it may.
    """
    arguments = {
        "path": str(path.absolute()), "kind": kind, "module": module.source.reference, "digest": module.source.digest,
        "given": dataclasses.asdict(given), "transform_uri": transform_uri,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(fork_server.answer_folder()))
        function = f"{__name__}:{take_graph.__name__}"
        fork_server.call(function, arguments, folder, what=f"model {path}", timeout=timeout)
        graph = _opened(path, folder, module)
        weakref.finalize(graph, stack.pop_all().close)
    return graph


def _opened(path: Path, answer: Path, module: ModelModule) -> GraphModel:
    """Opens the graph that the child left, which is trusted no more than the file."""
    try:
        reading.check_folder(answer)
        content = files.read_bounded(answer / _IO, reading.MAX_CONFIG_BYTES)
        io = _checked_io(reading.json_of(content, f"the inputs and outputs of {path}"), module)
        graph = graph_model.load(str(answer), io)
        if not isinstance(graph, TFLiteGraph):
            # it may go back to one of TensorFlow 1
            graph_operators.check_saved_model(
                answer / layout.SERVING_FOLDER, graph_model.RAW_SIGNATURE, allowed=graph_operators.LOADED
            )
    except (ValueError, OSError) as error:
        raise UserError(f"model {path} is refused: {first_line(error)}") from None
    return graph


def _checked_io(value: Any, module: ModelModule) -> dict[str, Any]:
    """Returns a passport's `io` that a child left; raises ValueError where it is none."""
    io: dict[str, Any] = {"inputs": [], "outputs": []}
    for side, ports in io.items():
        for port in value[side] if isinstance(value, dict) and isinstance(value.get(side), list) else ():
            name, shape, dtype = (
                port.get(key) if isinstance(port, dict) else None for key in ("name", "shape", "dtype")
            )
            if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
                raise ValueError(f"its {side} are none")
            if dtype not in DTYPES | {"string"}:
                raise ValueError(f"its {side} are of {dtype[:100]!r}")
            if not all(size is None or (type(size) is int and 0 <= size < 2**31) for size in shape):
                raise ValueError(f"its {side} have a shape that is none")
            ports.append({"name": name, "shape": shape, "dtype": dtype})
        if not ports:
            raise ValueError(f"it has no {side}")
    return {**io, "labels": module.class_names()}


# the child ------------------------------------------------------------------------------------------------------------


def take_apart(folder: Path, *, path: str, kind: str, module: str, digest: str, allow_lambda: bool) -> None:
    """Loads a model and leaves what it is made of: in a process of its own."""
    code = hooks.load(module, digest)
    model = keras_files.load(
        Path(path), kind, code.custom_objects(), where=code.source.reference, allow_lambda=allow_lambda
    )
    keras_file.functions_of(model)  # whether all of them have names
    _keep_vocabularies(model)
    config = json.dumps(tf_keras.saving.serialize_keras_object(model))
    values = {
        _key(index): np.asarray(variable).astype(_stored(variable), copy=False)
        for index, variable in enumerate(_variables(model))
    }
    files.write_arrays(folder / _WEIGHTS, values)
    (folder / _CONFIG).write_text(config)


def take_graph(
    folder: Path, *, path: str, kind: str, module: str, digest: str, given: dict[str, Any], transform_uri: str | None
) -> None:
    """Loads a graph and leaves it as it lies in an artifact: in a process of its own."""
    code = hooks.load(module, digest)
    graph = graph_files.load(Path(path), kind, code, Given(**given))
    transformed = None
    if transform_uri is not None:
        from edgeline.data import transformation  # imports Beam

        transformed = transformation.opened(transform_uri, code)
    graph_model.save(graph, code, graph.io, str(folder), transformed)
    (folder / _IO).write_text(json.dumps(graph.io))


def _keep_vocabularies(model: tf_keras.Model) -> None:
    """Puts the vocabulary that a lookup layer read from the file's assets into its config."""
    for layer in model._flatten_layers():
        if hasattr(layer, "input_vocabulary") and layer.input_vocabulary is None and layer.vocabulary_size() > 0:
            words = layer.get_vocabulary(include_special_tokens=False)
            layer.input_vocabulary = list(words) or None
