"""Loads a model that was trained elsewhere: as a tf-keras model where its layers are known, else as a graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tf_keras

from edgeline import layout
from edgeline.errors import UserError
from edgeline.model_importer.config import GRAPHS, Import, digest_of
from edgeline.model_io import keras_file
from edgeline.model_io.graph_model import GraphModel
from edgeline.model_module.hooks import ModelModule
from edgeline.untrusted import sandbox
from edgeline.untrusted.graph_files import Given


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


def load(
    config: Import, module: ModelModule, transform_uri: str | None = None
) -> tuple[tf_keras.Model | GraphModel, dict[str, Any]]:
    """Loads a model, in a process of its own; of a graph nothing is loaded in this one before it is called.

    Args:
      config: which one.
      module: for custom objects, and the names of outputs and classes.
      transform_uri: of a graph, the TransformGraph that made the examples; None: they are as they were.

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
        given = Given(config.signature, tuple(config.inputs), tuple(config.outputs))
        graph = sandbox.load_graph(path, kind, module, given, transform_uri=transform_uri)
        return graph, graph.io
    tf_keras.backend.clear_session()
    model = sandbox.load(path, kind, module, allow_lambda=config.allow_lambda)
    return model, keras_file.describe_io(model, module)
