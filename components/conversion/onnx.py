"""A float model as an `.onnx` file, proved in onnxruntime. Needs the extra `onnx`; nothing slow is imported early."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from edgeline import files
from edgeline.errors import UserError, first_line

#: What onnxruntime has read since 2022.
DEFAULT_OPSET = 17
OPSETS = range(9, 19)


def check_installed() -> None:
    """Checks that the extra is there.

    Raises:
      UserError: it is not.
    """
    try:
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}, which is not installed: pip install edgeline[onnx]") from error


def export(
    model: Any, io: dict[str, Any], samples: dict[str, np.ndarray], output: Path, opset: int = DEFAULT_OPSET
) -> dict[str, Any]:
    """Writes a model as an ONNX file with the passport's names, after comparing both on samples.

    Args:
      model: a tf_keras.Model or a GraphModel that TensorFlow runs.
      io: the passport's: names, shapes and dtypes of inputs and outputs.
      samples: by input name, shape [samples, ...].
      output: the file to write.
      opset: of ONNX, one of `OPSETS`.

    Returns:
      opset, bytes, and parity: by output how close onnxruntime is to TensorFlow, as `checks.parity` returns it.

    Raises:
      UserError: the extra is missing, the model has operators that ONNX lacks, or the results differ.
    """
    check_installed()
    from edgeline.conversion import checks
    from edgeline.conversion.failures import ExportError

    try:
        content = _converted(model, io, opset)
        expected = checks.reference(model, io, samples)
        closeness = checks.parity(expected, _outputs(model, io, content, samples))
        try:
            checks.check_parity("float32", closeness, {}, "onnxruntime")
        except ExportError as error:
            without = checks.parity(expected, _outputs(model, io, content, samples, pad_fusion=False))
            checks.check_parity("float32", without, {}, "onnxruntime without Pad_Fusion")
            raise ExportError(
                f"{error}. onnxruntime's optimizer Pad_Fusion does it, which takes the zeros that a layer pads with "
                f"before a max pooling for the least of all numbers; give that pooling padding='same', or no padding"
            ) from error
    except (ValueError, ExportError) as error:
        raise UserError(f"the model cannot be made an ONNX file of opset {opset}: {first_line(error)}") from error
    files.write_bytes(output, content)
    return {"opset": opset, "bytes": len(content), "parity": closeness}


def _converted(model: Any, io: dict[str, Any], opset: int) -> bytes:
    """Converts a model as `convert` does, a stranger's graph in a process of its own."""
    from edgeline.conversion import worker
    from edgeline.model_io.graph_model import StoredGraph

    if not isinstance(model, StoredGraph):
        return convert(model, io, opset)
    [content] = worker.call_apart(convert_stored, str(Path(model.folder).absolute()), model.io, io, opset)
    return content


def convert_stored(folder: str, own_io: dict[str, Any], io: dict[str, Any], opset: int) -> list[bytes]:
    """Loads a stranger's graph, which lies in an artifact's folder, and converts it: in a process of its own."""
    from edgeline.model_io import graph_model

    return [convert(graph_model.opened(folder, own_io), io, opset)]


def _outputs(
    model: Any, io: dict[str, Any], content: bytes, samples: dict[str, np.ndarray], *, pad_fusion: bool = True
) -> dict[str, np.ndarray]:
    """Returns what onnxruntime makes of samples, as `run`; what was a stranger's graph runs in a process of its own."""
    from edgeline.conversion import worker
    from edgeline.model_io.graph_model import StoredGraph

    batch = io["inputs"][0]["shape"][0]
    if not isinstance(model, StoredGraph):
        return run(content, samples, batch, pad_fusion=pad_fusion)
    names = [port["name"] for port in io["outputs"]]
    parts = worker.call_apart(run_stored, content, samples, batch, pad_fusion, names)
    outputs = [np.load(BytesIO(part), allow_pickle=False) for part in parts]
    return dict(zip(names, outputs, strict=True))


def run_stored(
    content: bytes, samples: dict[str, np.ndarray], batch: int | None, pad_fusion: bool, names: list[str]
) -> list[bytes]:
    """Returns what `run` returns as contents of `.npy` files, in the order of these names: in a process of its own."""
    outputs = run(content, samples, batch, pad_fusion=pad_fusion)
    parts = []
    for name in names:
        np.save(buffer := BytesIO(), outputs[name])
        parts.append(buffer.getvalue())
    return parts


def convert(model: Any, io: dict[str, Any], opset: int = DEFAULT_OPSET) -> bytes:
    """Returns a model as the content of an ONNX file; arguments as of `export`.

    Raises:
      ValueError: tf2onnx cannot convert it.
    """
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from edgeline.model_io import graph_model, keras_file

    signature = keras_file.input_signature(io, graph_model.fixed_batch(io))
    infer = keras_file.inference_function(model, io).get_concrete_function(**signature)
    with _quiet():
        # frozen first: tf2onnx itself does not find constants that a layer holds, such as EfficientNet's normalization
        frozen = convert_variables_to_constants_v2(infer, lower_control_flow=False)
        # a frozen function has lost the outputs' names, and keeps their order: that of the sorted names
        outputs = dict(zip(sorted(infer.structured_outputs), frozen.outputs, strict=True))
        # passed on with their names as they were, a graph may have its own way with them
        inputs = {tensor.name.partition(":")[0]: tensor.name for tensor in frozen.inputs}
        names = {tensor: name for name, tensor in inputs.items()}
        names |= {outputs[port["name"]].name: port["name"] for port in io["outputs"]}
        try:
            proto, _ = tf2onnx.convert.from_graph_def(
                frozen.graph.as_graph_def(),
                name="edgeline",
                input_names=[inputs[port["name"]] for port in io["inputs"]],
                output_names=[outputs[port["name"]].name for port in io["outputs"]],
                opset=opset,
                tensors_to_rename=names,
            )
        except Exception as error:  # each operator has its own ways to fail
            raise ValueError(f"tf2onnx: {first_line(error)}") from error
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_param:
            sizes[0].dim_param = "batch"
    content: bytes = proto.SerializeToString()
    return content


def run(
    content: bytes, samples: dict[str, np.ndarray], batch: int | None = None, *, pad_fusion: bool = True
) -> dict[str, np.ndarray]:
    """Returns what onnxruntime makes of samples, by output name, shape [samples, ...].

    Args:
      content: of the ONNX file.
      samples: by input name, shape [samples, ...].
      batch: the size that the model was made for; None: any.
      pad_fusion: False turns off onnxruntime's optimizer of that name, which is wrong of zeros before a max pooling.

    Raises:
      ExportError: onnxruntime cannot run it.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    from edgeline.conversion.failures import ExportError
    from edgeline.data.calibration_set import batches

    off = [] if pad_fusion else ["Pad_Fusion"]
    count = len(next(iter(samples.values())))
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"], disabled_optimizers=off)
        names = [value.name for value in session.get_outputs()]
        parts = [session.run(names, feeds) for feeds in batches(samples, batch or count)]
    except (failures.Fail, failures.InvalidGraph, failures.NotImplemented, failures.InvalidArgument) as error:
        raise ExportError(f"it cannot be run by onnxruntime: {first_line(error)}") from error
    return {name: np.concatenate(column)[:count] for name, column in zip(names, zip(*parts, strict=True), strict=True)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what tf2onnx and the functions of TensorFlow that it calls say of each other off the terminal."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
