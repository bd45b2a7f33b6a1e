"""What must hold of a converted model: close to Keras, of allowed operators, quantized by the rules, nothing lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras
from ai_edge_litert import schema_py_generated as schema

from edgeline import files
from edgeline.conversion.failures import ExportError
from edgeline.data.calibration_set import batches
from edgeline.errors import UserError
from edgeline.isolation import fork_server
from edgeline.keras_models import promise_checks
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.keras_models.promise_kinds import KINDS, Kernel, kind_of
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel
from edgeline.passport import Promise
from edgeline.schemes import SCHEMES
from edgeline.tflite import litert

#: So many of a list are named in a message.
_MOST_NAMED = 8
#: Of a graph that is run in a process of its own.
_TIMEOUT_SECONDS = 1800.0
_INPUTS, _OUTPUTS = "inputs.npz", "outputs.npz"


def parity(expected: dict[str, np.ndarray], received: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Compares a TFLite model's outputs with the Keras model's.

    Args:
      expected: by output name, shape [samples, ...].
      received: likewise.

    Returns:
      Per output: max_abs (largest difference), relative (that by the largest expected value), cosine (of the flattened
      outputs, -1 to 1), agreement (fraction of samples with the same argmax over the last axis, 0-1).

    Raises:
      ExportError: an output is missing, has another shape, or is not finite in one of them.
    """
    result = {}
    for name, want in expected.items():
        got = received.get(name)
        if got is None or got.shape != want.shape:
            shape = None if got is None else got.shape
            raise ExportError(f"output {name!r} has shape {shape}, expected {want.shape}; outputs: {sorted(received)}")
        for whose, values in (("", got), (" of the source model", want)):
            broken = int((~np.isfinite(values)).sum())
            if broken:
                raise ExportError(f"output {name!r}{whose} has {broken} values that are NaN or infinite")
        want, got = want.astype(np.float64), got.astype(np.float64)
        difference = float(np.abs(want - got).max())
        norms = float(np.linalg.norm(want) * np.linalg.norm(got))
        result[name] = {
            "max_abs": difference,
            "relative": difference / max(float(np.abs(want).max()), 1e-12),
            "cosine": float(np.vdot(want, got)) / norms if norms else float(np.array_equal(want, got)),
            "agreement": float(np.mean(want.argmax(-1) == got.argmax(-1))) if want.ndim > 1 else 1.0,
        }
    return result


def check_parity(scheme: str, closeness: dict[str, dict[str, float]], steps: Mapping[str, float], kernels: str) -> None:
    """Holds what `parity` found against the scheme's tolerance.

    Two steps of an output's quantization are always allowed: probabilities of 0.001, say, are all zeros in int8.

    Args:
      scheme: a key of SCHEMES.
      closeness: facts per output.
      steps: least difference that an output can show, by name; 0 or absent where it is a float.
      kernels: what ran, for the message.

    Raises:
      ExportError: an output is too far off; names it.
    """
    tolerance = SCHEMES[scheme].tolerance
    for name, facts in closeness.items():
        if facts["max_abs"] <= 2 * steps.get(name, 0.0):
            continue
        if tolerance.relative is not None and facts["relative"] > tolerance.relative:
            raise ExportError(
                f"output {name!r} differs from the source model's by {facts['max_abs']:.3g}, {facts['relative']:.2%} "
                f"of its largest value, with {kernels}; {scheme} may differ by {tolerance.relative:.2%}"
            )
        if tolerance.cosine is not None and facts["cosine"] < tolerance.cosine:
            raise ExportError(
                f"output {name!r} has little to do with the source model's, with {kernels}: their cosine is "
                f"{facts['cosine']:.3f}, {scheme} needs at least {tolerance.cosine:g}"
            )


def check_operators(metadata: dict[str, Any], *, allow_select_tf_ops: bool, allow_custom_ops: bool) -> None:
    """Checks that a model has no operators but LiteRT's own and what is allowed.

    Args:
      metadata: of the file, as `inspection.facts` returns them.
      allow_select_tf_ops: whether TensorFlow's may be among them.
      allow_custom_ops: whether others may.

    Raises:
      ExportError: names the operators and their layers.
    """
    for kind, allowed, option in (("flex", allow_select_tf_ops, "select_tf"), ("custom", allow_custom_ops, "custom")):
        if metadata["ops"][kind] and not allowed:
            raise ExportError(
                f"the model needs operators that are not LiteRT's own: {_named(metadata['foreign_ops'], kind)}. "
                "Replace "
                f"those layers, or allow the operators (allow_{option}_ops) where the app brings them"
            )


def check_integers(metadata: dict[str, Any], scheme: dict[str, Any]) -> None:
    """Checks that a model that is to compute on integers does so.

    A calibrated scheme's is; with float inputs and outputs a QUANTIZE and a DEQUANTIZE stand at the model's ends. A
    trained one's is where its inputs and outputs are integers: else layers that the training could not quantize stay
    float, as it said.
    What was asked to stay float (the scheme's keep_float) may.

    Args:
      metadata: of the file, as `inspection.facts` returns them.
      scheme: the passport's.

    Raises:
      ExportError: names the float operators with their layers, or the float inputs and outputs.
    """
    kind, has_integer_ports = scheme["scheme"], scheme["io_type"] != "float32"
    if scheme.get("keep_float") or not SCHEMES[kind].integers_only:
        return
    if SCHEMES[kind].trained and not has_integer_ports:
        return
    float_operators = metadata["float_ops"]
    # the conversions around a float operator only say where it is
    culprits = [op for op in float_operators if op["op"] not in ("QUANTIZE", "DEQUANTIZE")] or float_operators
    if culprits:
        raise ExportError(
            f"{kind} computes on integers alone, but these operators stayed float: {_named(culprits)}. Replace those "
            f"layers, or choose a scheme with float activations (dynamic_range, float16)"
        )
    ports = [port["name"] for port in (*metadata["inputs"], *metadata["outputs"]) if port["dtype"] == "float32"]
    if has_integer_ports and ports:
        raise ExportError(f"inputs and outputs must be {scheme['io_type']}, but {', '.join(ports)} stayed float32")


def _named(ops: list[dict[str, str]], kind: str | None = None) -> str:
    """Returns operators in words: `SIN (layer wave, tensor model/wave/Sin)`, those of one kind in a layer once."""
    chosen = [op for op in ops if kind is None or op["kind"] == kind]
    counts = Counter((op["op"], op["layer"]) for op in chosen)
    first = {(op["op"], op["layer"]): op["tensor"] for op in reversed(chosen)}
    words = [
        f"{f'{count} ' if count > 1 else ''}{op} (layer {layer or 'unknown'}, tensor {first[op, layer]})"
        for (op, layer), count in counts.items()
    ]
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return ", ".join(words[:_MOST_NAMED]) + more


def check_quantization(metadata: dict[str, Any]) -> None:
    """Checks that quantized weights and biases are as the TFLite specification says; see `inspection.facts`.

    Raises:
      ExportError: names the tensors.
    """
    broken = metadata["violations"]
    if broken:
        more = f"; and {len(broken) - _MOST_NAMED} more" if len(broken) > _MOST_NAMED else ""
        raise ExportError(
            f"the file breaks the TFLite quantization specification: {'; '.join(broken[:_MOST_NAMED])}{more}"
        )


def check_promises(content: bytes, promises: tuple[Promise, ...]) -> None:
    """Checks that zeros, their patterns and shared values survived into the flatbuffer.

    The converter transposes kernels and folds BatchNorm into them, which scales each output channel: so shapes are
    compared as multisets of dimensions, and distinct values are counted per output channel (the first axis). Each
    promise needs a tensor of its own: of two kernels of one shape in a layer, one does not answer for the other.

    Args:
      content: of the `.tflite` file.
      promises: of the Keras model's kernels.

    Raises:
      BrokenPromiseError: names the layers.
      UnknownPromiseError: a promise is of an unknown kind.
    """
    found = [*litert.kernels(content, at_least=2), *_recurrent_kernels(content)]
    broken = []
    # no names of weights are left in a flatbuffer
    wanted = Counter(dataclasses.replace(promise, weight="") for promise in dict.fromkeys(promises))
    for promise, count in wanted.items():
        kind = kind_of(promise)
        same = [w for w in found if _has_size(promise, w.stored.shape)]
        named = [w for w in same if f"/{promise.layer}/" in f"/{w.name}/"] or same
        kernels = [Kernel(w.stored, w.zeros, 0) for w in named]
        if sum(kind.in_file(promise, kernel) for kernel in kernels) < count:
            seen = ", ".join(kind.describe(promise, kernel) for kernel in kernels)
            several = f" in {count} weights" if count > 1 else ""
            broken.append(f"{promise_checks.describe(promise)}{several}, found {seen or 'no such tensor'})")
    if broken:
        raise BrokenPromiseError(
            f"the conversion broke what was promised for {len(broken)} layers: {'; '.join(broken)}"
        )


def _recurrent_kernels(content: bytes) -> list[litert.Weight]:
    """Returns the kernels of fused LSTM layers, which have a tensor for each gate, as the one matrix of Keras."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    by_name = {weight.name: weight for weight in litert.weights(content)}
    joined_kernels = []
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            code = model.operatorCodes[operator.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) != _LSTM:
                continue
            names = [graph.tensors[i].name.decode() if i >= 0 else "" for i in operator.inputs]
            # gates in Keras's order: input, forget, cell, output
            for first in (1, 5):
                gates = [by_name[name] for name in names[first : first + 4] if name in by_name]
                if len(gates) == 4:
                    stored = np.concatenate([gate.stored for gate in gates])
                    joined_kernels.append(litert.Weight(gates[0].name, stored, gates[0].zero_point))
    return joined_kernels


_LSTM = schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM


def _has_size(promise: Promise, shape: tuple[int, ...]) -> bool:
    return sorted(n for n in promise.shape if n != 1) == sorted(n for n in shape if n != 1)


def techniques(metadata: dict[str, Any], promises: tuple[Promise, ...]) -> dict[str, dict[str, int]]:
    """Returns what the constants cost by what was done to them.

    Args:
      metadata: of the file, as `inspection.facts` returns them.
      promises: of earlier steps; a constant is a promise's where its name holds the layer's and the size fits.

    Returns:
      tensors, bytes and zlib_bytes (each tensor for itself) by number type and techniques, such as `int8
      pruned clustered` or `float32 pruned sparse` (stored so), the largest first. What the file has beside them is
      graph and names.
    """
    words = dict.fromkeys(kind.technique for kind in KINDS.values())
    sizes: dict[str, dict[str, int]] = {}
    for weight in metadata["weights"]:
        own = {
            kind_of(promise).technique
            for promise in promises
            if f"/{promise.layer}/" in f"/{weight['name']}/" and _has_size(promise, tuple(weight["shape"]))
        }
        label = " ".join([weight["dtype"], *(word for word in words if word in own)])
        label += " sparse" if weight["sparse"] else ""
        entry = sizes.setdefault(label, {"tensors": 0, "bytes": 0, "zlib_bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += weight["bytes"]
        entry["zlib_bytes"] += weight["zlib_bytes"]
    return dict(sorted(sizes.items(), key=lambda item: (-item[1]["bytes"], item[0])))


def reference(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the outputs of the model that is converted, by name, shape [samples, ...].

    A graph that lies in a folder may be a stranger's: it runs in a process of its own.

    Raises:
      ExportError: a graph cannot be run, or that process crashed, or took more memory or time than it may.
    """
    if isinstance(model, GraphModel) and model.folder:
        return _reference_of_graph(model, inputs)
    return _reference(model, io, inputs)


def _reference_of_graph(model: GraphModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    what = "the imported graph"
    with fork_server.answer_folder() as folder:
        files.write_arrays(Path(folder, _INPUTS), inputs)
        function = f"{__name__}:{run_graph.__name__}"
        arguments = {"model": str(Path(model.folder).absolute()), "io": model.io}
        try:
            fork_server.call(function, arguments, Path(folder), what=what, timeout=_TIMEOUT_SECONDS)
            outputs = files.read_strangers_arrays(Path(folder, _OUTPUTS))
        except UserError as error:
            raise ExportError(str(error)) from error
        except Exception as error:  # a damaged archive makes anything of its reader
            raise ExportError(f"the outputs of {what} cannot be read: {error}") from error
    names, count = [port["name"] for port in model.io["outputs"]], len(next(iter(inputs.values())))
    if set(outputs) != set(names) or any(values.shape[:1] != (count,) for values in outputs.values()):
        raise ExportError(f"the outputs of {what} are not {', '.join(names)} of {count} examples")
    return {name: outputs[name] for name in names}


def run_graph(folder: Path, *, model: str, io: dict[str, Any]) -> None:
    """Runs a graph on `inputs.npz` and leaves `outputs.npz`: in a process of its own."""
    inputs = files.read_arrays(folder / _INPUTS)
    files.write_arrays(folder / _OUTPUTS, _reference(graph_model.opened(model, io), io, inputs))


def _reference(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    infer = keras_file.inference_function(model, io)
    count = len(next(iter(inputs.values())))
    parts = [infer(**batch) for batch in batches(inputs, graph_model.fixed_batch(io) or count)]
    return {name: np.concatenate([part[name].numpy() for part in parts])[:count] for name in parts[0]}
