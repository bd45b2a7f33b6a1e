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
        for graph in content.meta_graphs
        for name, signature in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
    return [
        {"name": name, "inputs": _ports(signature.inputs), "outputs": _ports(signature.outputs)}
        for name, signature in sorted(named.items())
    ]


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
