"""A model of which only the graph is known, such as a SavedModel without Keras metadata: converted, never trained.

In an artifact's folder it lies as `Format-Serving/` alone; its signature `serving_raw` is the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from edgeline import keras_io
from edgeline.model_module import ModelModule


class GraphModel(tf.Module):
    """Calls a graph as a Keras model is called.

    Attributes:
      io: the passport's.

    Args:
      function: from tensors by input name to tensors by output name.
      io: the passport's: names, shapes and dtypes of both.
      keep: what holds the graph's variables.
    """

    io: dict[str, Any]

    def __init__(self, function: Callable[..., Any], io: dict[str, Any], keep: Any = None):
        super().__init__()
        self._function = function
        self._keep = keep
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


def fixed_batch(io: dict[str, Any]) -> int | None:
    """Returns the batch size that a model was made for; None: any."""
    size: int | None = io["inputs"][0]["shape"][0]
    return size


def is_one(folder: str) -> bool:
    """Returns whether an artifact's folder holds a graph alone, and no Keras model."""
    return not Path(folder, keras_io.MODEL_FILE).exists() and Path(folder, keras_io.SERVING_FOLDER).exists()


def save(model: GraphModel, module: ModelModule, io: dict[str, Any], folder: str) -> None:
    """Writes `Format-Serving/`; a model of a fixed batch size gets no signature for serialized examples."""
    if fixed_batch(io) is None:
        keras_io.save_serving(model, module, io, folder)
        return
    holder = tf.Module()
    holder.model = model
    signature = keras_io.input_signature(io, fixed_batch(io))
    raw = keras_io.inference_function(model, io).get_concrete_function(**signature)
    tf.saved_model.save(holder, str(Path(folder, keras_io.SERVING_FOLDER)), signatures={"serving_raw": raw})


def load(folder: str, io: dict[str, Any]) -> GraphModel:
    """Returns the model that `save` wrote."""
    loaded = tf.saved_model.load(str(Path(folder, keras_io.SERVING_FOLDER)))
    return GraphModel(loaded.signatures["serving_raw"], io, loaded)


def copy(source: str, target: str) -> None:
    """Copies the model from one artifact's folder to another's."""
    shutil.copytree(Path(source, keras_io.SERVING_FOLDER), Path(target, keras_io.SERVING_FOLDER), dirs_exist_ok=True)
