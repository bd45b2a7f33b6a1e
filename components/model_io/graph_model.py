"""A model of which only the graph is known, such as a SavedModel without Keras metadata: converted, never trained.

In an artifact's folder it lies as `Format-Serving/` alone: a SavedModel, whose signature `serving_raw` is the model, or
`model.tflite`.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from edgeline import layout
from edgeline.model_io import keras_file
from edgeline.model_module.hooks import ModelModule
from edgeline.tflite.litert import TFLiteModel

if TYPE_CHECKING:
    from edgeline.data.transformation import Transformation  # imports Beam

#: The signature that is the model, of preprocessed inputs by name.
RAW_SIGNATURE = "serving_raw"
TFLITE_FILE = f"{layout.SERVING_FOLDER}/{layout.TFLITE_FILE}"


class GraphModel(tf.Module):
    """Calls a graph as a Keras model is called.

    Attributes:
      io: the passport's.
      folder: the artifact's, where it lies in one; empty: in none.

    Args:
      function: from tensors by input name to tensors by output name.
      io: the passport's: names, shapes and dtypes of both.
      keep: what holds the graph's variables.
      folder: likewise.
    """

    io: dict[str, Any]

    def __init__(self, function: Callable[..., Any], io: dict[str, Any], keep: Any = None, folder: str = ""):
        super().__init__()
        self._function = function
        self._keep = keep
        self.folder = folder
        # a module would wrap what is assigned plainly, and JSON knows no wrappers
        object.__setattr__(self, "io", io)

    @property
    def input_names(self) -> list[str]:
        """The inputs' names, in their order."""
        return [port["name"] for port in self.io["inputs"]]

    @property
    def inputs(self) -> list[tf.TensorSpec]:
        """The inputs' shapes and dtypes."""
        return [tf.TensorSpec(port["shape"], port["dtype"]) for port in self.io["inputs"]]

    def __call__(self, inputs: Any, training: bool = False) -> list[tf.Tensor]:
        """Returns the outputs in their order; one input comes as a tensor, several as a list in theirs."""
        tensors = inputs if isinstance(inputs, list | tuple) else [inputs]
        outputs = self._function(**dict(zip(self.input_names, tensors, strict=True)))
        return [outputs[port["name"]] for port in self.io["outputs"]]


class StoredGraph(GraphModel):
    """A graph in an artifact's folder, a stranger's: who loads it runs it. It cannot be called; `opened` can.

    Args:
      folder: the artifact's.
      io: the passport's.
    """

    def __init__(self, folder: str, io: dict[str, Any]):
        super().__init__(self._refuse, io, folder=folder)

    def _refuse(self, **_: tf.Tensor) -> dict[str, tf.Tensor]:
        raise RuntimeError(f"the graph in {self.folder} is a stranger's, and is loaded in a process of its own alone")

    def opened(self) -> GraphModel:
        """Returns the graph, loaded: in a process of its own, that serves nothing else."""
        loaded = tf.saved_model.load(str(Path(self.folder, layout.SERVING_FOLDER)))
        return GraphModel(loaded.signatures[RAW_SIGNATURE], self.io, keep=loaded)


class TFLiteGraph(GraphModel):
    """A float `.tflite` file, called as a Keras model is called; LiteRT runs it.

    Attributes:
      content: of the file, which has one signature.

    Args:
      content: likewise.
      io: the passport's, with the signature's names.
      folder: the artifact's, where it lies in one; empty: in none.
    """

    content: bytes

    def __init__(self, content: bytes, io: dict[str, Any], folder: str = ""):
        super().__init__(self._run, io, folder=folder)
        object.__setattr__(self, "content", content)

    @functools.cached_property
    def _runner(self) -> TFLiteModel:
        return TFLiteModel(self.content)

    def _run(self, **tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        def run(*values: np.ndarray) -> list[np.ndarray]:
            # one by one: not every file takes the batches that it says it takes
            received = self._runner.run(dict(zip(tensors, values, strict=True)), 1)
            return [received[port["name"]] for port in self.io["outputs"]]

        outputs = tf.numpy_function(run, list(tensors.values()), [port["dtype"] for port in self.io["outputs"]])
        # of a single output it makes no list
        tensors_out = tf.nest.flatten(outputs)
        return {port["name"]: tensor for port, tensor in zip(self.io["outputs"], tensors_out, strict=True)}


def fixed_batch(io: dict[str, Any]) -> int | None:
    """Returns the batch size that a model was made for; None: any."""
    size: int | None = io["inputs"][0]["shape"][0]
    return size


def is_one(folder: str) -> bool:
    """Returns whether an artifact's folder holds a graph alone, and no Keras model."""
    return not Path(folder, layout.KERAS_FILE).exists() and Path(folder, layout.SERVING_FOLDER).exists()


def save(
    model: GraphModel,
    module: ModelModule,
    io: dict[str, Any],
    folder: str,
    transformation: Transformation | None = None,
) -> None:
    """Writes `Format-Serving/`; a model of a fixed batch size gets no signature for serialized examples.

    The arguments are those of `keras_io.save_serving`.
    """
    if isinstance(model, TFLiteGraph):
        Path(folder, TFLITE_FILE).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, TFLITE_FILE).write_bytes(model.content)
        return
    if fixed_batch(io) is None:
        keras_file.save_serving(model, module, io, folder, transformation)
        return
    holder = tf.Module()
    holder.model = model
    signature = keras_file.input_signature(io, fixed_batch(io))
    raw = keras_file.inference_function(model, io).get_concrete_function(**signature)
    tf.saved_model.save(holder, str(Path(folder, layout.SERVING_FOLDER)), signatures={RAW_SIGNATURE: raw})


def load(folder: str, io: dict[str, Any]) -> GraphModel:
    """Returns the model that `save` wrote."""
    if Path(folder, TFLITE_FILE).exists():
        return TFLiteGraph(Path(folder, TFLITE_FILE).read_bytes(), io, folder)
    return StoredGraph(folder, io)


def opened(folder: str, io: dict[str, Any]) -> GraphModel:
    """Returns the model that `save` wrote, to be called: in a process of its own, that serves nothing else."""
    model = load(folder, io)
    return model.opened() if isinstance(model, StoredGraph) else model


def copy(source: str, target: str) -> None:
    """Copies the model from one artifact's folder to another's."""
    shutil.copytree(Path(source, layout.SERVING_FOLDER), Path(target, layout.SERVING_FOLDER), dirs_exist_ok=True)
