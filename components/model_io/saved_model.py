"""What a SavedModel says of itself in `saved_model.pb`: nothing of it is loaded or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow import dtypes
from tensorflow.core.protobuf import saved_model_pb2

from edgeline import files
from edgeline.errors import UserError

#: A protocol buffer has no more.
_MAX_BYTES = 2**31
#: The tag of the graph that is meant for inference.
SERVING = "serve"


def signatures(folder: Path) -> list[dict[str, Any]]:
    """Returns the signatures of a SavedModel, sorted by name.

    Args:
      folder: of the SavedModel.

    Returns:
      Each with name, inputs and outputs; of each of these name, shape (-1 where any size goes, None where not even the
      number of dimensions is known) and dtype.

    Raises:
      UserError: there is no SavedModel, or a damaged one.
    """
    path = folder / "saved_model.pb"
    if not path.is_file():
        raise UserError(f"{folder} is a folder without saved_model.pb, so no SavedModel")
    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString(files.read_bounded(path, _MAX_BYTES))
    except (DecodeError, ValueError):
        content.Clear()
    if not content.meta_graphs:
        raise UserError(f"{path} is truncated, or no SavedModel")
    # beside the functions it has entries of its own, such as __saved_model_init_op
    named = {
        name: signature
        for graph in used_graphs(content, folder)
        for name, signature in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
    return [
        {"name": name, "inputs": _ports(signature.inputs), "outputs": _ports(signature.outputs)}
        for name, signature in sorted(named.items())
    ]


def tags(folder: Path) -> list[str] | None:
    """Returns what TensorFlow must be told to load the graph of `used_graphs`: its tags where there are several."""
    content = saved_model_pb2.SavedModel.FromString(files.read_bounded(folder / "saved_model.pb", _MAX_BYTES))
    return [SERVING] if len(content.meta_graphs) > 1 else None


def used_graphs(content: saved_model_pb2.SavedModel, folder: Path) -> list[Any]:
    """Returns the graph of a SavedModel that is loaded: of several, as TensorFlow 1 may write them, that for serving.

    Raises:
      UserError: there are several, and none of them is for serving.
    """
    if len(content.meta_graphs) <= 1:
        return list(content.meta_graphs)
    serving = [graph for graph in content.meta_graphs if set(graph.meta_info_def.tags) == {SERVING}]
    if not serving:
        tags = ", ".join("+".join(sorted(graph.meta_info_def.tags)) or "none" for graph in content.meta_graphs)
        raise UserError(
            f"model {folder} holds {len(content.meta_graphs)} graphs (tags {tags}), and none tagged {SERVING} alone"
        )
    return serving


def _ports(tensors: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": None if info.tensor_shape.unknown_rank else [int(dim.size) for dim in info.tensor_shape.dim],
            "dtype": _dtype(info.dtype),
        }
        for name, info in sorted(tensors.items())
    ]


def _dtype(number: int) -> str:
    try:
        return str(dtypes.as_dtype(number).name)
    except TypeError:
        return f"type {number}"
