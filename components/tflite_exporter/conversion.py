"""Conversion to TFLite and the proof that the result is what was asked: Keras model and passport in, file out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline import arrays, calibration_set, keras_io, layers, litert
from edgeline.layers import BrokenPromiseError
from edgeline.litert import TFLiteModel
from edgeline.model_module import ModelModule
from edgeline.passport import Passport, Promise
from edgeline.tflite_exporter.config import Export

MODEL_FILE = "model.tflite"
METADATA_FILE = "metadata.json"
LABELS_FILE = "labels.txt"

#: How far a scheme's outputs may be from Keras', as a fraction of the largest output; integer schemes are judged by the
#: Evaluator, on the metric that matters.
_PARITY = {"float32": 1e-3, "float16": 2e-2}


class ExportError(Exception):
    """The converted model does not run, or does not do what the Keras model does."""


def convert(model: tf_keras.Model, passport: Passport, calibration: dict[str, np.ndarray]) -> bytes:
    """Converts a model by its passport, with fixed input and output names.

    Args:
      model: plain or, for `qat8`, wrapped.
      passport: whose `scheme` says how and whose `io` says the names.
      calibration: samples by input name, shape [samples, ...].

    Returns:
      The content of the `.tflite` file, whose signature `serving_default` has the passport's names.
    """
    io, scheme = passport.io, passport.scheme or {}
    infer = keras_io.inference_function(model, io).get_concrete_function(**keras_io.input_signature(io))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer], model)
    kind = scheme["scheme"]
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in ("int8", "int16x8"):
        count = len(next(iter(calibration.values())))
        # by input name: the order of inputs can never matter
        converter.representative_dataset = lambda: (
            {name: values[i : i + 1] for name, values in calibration.items()} for i in range(count)
        )
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
            if kind == "int8"
            else tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    if kind in ("int8", "qat8"):
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(scheme["io_type"])
    content: bytes = converter.convert()
    return content


def run_in_child(content: bytes, inputs: dict[str, np.ndarray], timeout_seconds: int) -> dict[str, np.ndarray]:
    """Loads and runs a TFLite model in a process of its own: a crash or hang of the runtime is this candidate's error.

    Args:
      content: of the `.tflite` file.
      inputs: by input name, shape [samples, ...].
      timeout_seconds: after which the process is killed.

    Returns:
      Outputs by name, shape [samples, ...], and under `first/` and the name those of the first sample run alone.

    Raises:
      ExportError: it crashed, hung or refused the model.
    """
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        paths = [str(Path(folder, name)) for name in (MODEL_FILE, "inputs.npz", "outputs.npz")]
        Path(paths[0]).write_bytes(content)
        arrays.write(paths[1], inputs)
        command = [sys.executable, "-m", "edgeline.litert", *paths]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"LiteRT did not finish {len(next(iter(inputs.values())))} samples in {timeout_seconds} s"
            ) from None
        if child.returncode < 0:
            raise ExportError(f"LiteRT crashed on the model with {signal.Signals(-child.returncode).name}")
        if child.returncode > 0:
            last = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"LiteRT cannot run the model: {last}")
        return arrays.read(paths[2])


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
        for whose, values in (("", got), (" of the Keras model", want)):
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


def check_promises(content: bytes, promises: tuple[Promise, ...]) -> None:
    """Checks that zeros and shared values survived into the flatbuffer.

    The converter transposes kernels and folds BatchNorm into them, which scales each output channel: so shapes are
    compared as multisets of dimensions, and distinct values are counted per output channel (the first axis).

    Args:
      content: of the `.tflite` file.
      promises: of the Keras model's kernels.

    Raises:
      BrokenPromiseError: names the layers.
    """
    found = litert.kernels(content, at_least=2)
    broken = []
    for promise in promises:
        size = int(np.prod(promise.shape))
        dimensions = sorted(n for n in promise.shape if n != 1)
        same = [w for w in found if w.stored.size == size and sorted(n for n in w.stored.shape if n != 1) == dimensions]
        named = [w for w in same if f"/{promise.layer}/" in f"/{w.name}/"] or same
        if not any(layers.holds(promise, float(w.zeros.mean()), _most_values(w.stored), size) for w in named):
            seen = ", ".join(f"{w.zeros.mean():.4f} zeros, {_most_values(w.stored)} values" for w in named)
            broken.append(f"{promise.layer} ({promise.kind} {promise.value:g}, found {seen or 'no such tensor'})")
    if broken:
        raise BrokenPromiseError(
            f"the conversion broke what was promised for {len(broken)} layers: {'; '.join(broken)}"
        )


def _most_values(stored: np.ndarray) -> int:
    return max(len(np.unique(channel)) for channel in stored)


def export(
    config: Export, module: ModelModule, passport: Passport, *,
    toolchain: str, model_uri: str, calibration_uri: str, serving: Path,
) -> dict[str, Any]:  # fmt: skip
    """Converts a model, proves the result and writes the folder that is deployed.

    Args:
      config: what is asked.
      module: the user's hooks.
      passport: of the quantized model.
      toolchain: the versions it is done with.
      model_uri: folder of the quantized model.
      calibration_uri: folder of the RepresentativeDataset.
      serving: folder to write; exists.

    Returns:
      The metadata: sha256, bytes, zlib_bytes (level 9), sparsity, inputs, outputs, parity.

    Raises:
      ExportError: the result does not run or does not do what the Keras model does.
      BrokenPromiseError: zeros or shared values were lost.
    """
    tf_keras.backend.clear_session()
    scheme = passport.scheme or {}
    plan = scheme.get("qat")
    model = keras_io.load_qat(model_uri, module, plan) if plan else keras_io.load(model_uri, module)
    calibration, _ = calibration_set.read(calibration_uri)
    content = convert(model, passport, calibration)

    tested = {name: values[: config.parity_samples] for name, values in calibration.items()}
    expected = {
        name: tensor.numpy() for name, tensor in keras_io.inference_function(model, passport.io)(**tested).items()
    }
    received = run_in_child(content, tested, config.timeout_seconds)
    closeness = parity(expected, received)
    limit = _PARITY.get(scheme["scheme"])
    for name, facts in closeness.items():
        if limit is not None and facts["relative"] > limit:
            raise ExportError(
                f"output {name!r} differs from the Keras model's by {facts['max_abs']:.3g}, {facts['relative']:.2%} of "
                f"its largest value; {scheme['scheme']} may differ by {limit:.2%}"
            )
    parity({name: received[name][:1] for name in expected}, {name: received[f"first/{name}"] for name in expected})
    check_promises(content, passport.promises)

    runner = TFLiteModel(content)
    metadata = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "zlib_bytes": len(zlib.compress(content, 9)),
        "sparsity": litert.sparsity(content),
        "any_batch": runner.any_batch,
        "inputs": [_port(port) for port in runner.inputs],
        "outputs": [_port(port) for port in runner.outputs],
        "parity": closeness,
    }
    (serving / MODEL_FILE).write_bytes(content)
    (serving / METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n")
    if passport.io["labels"]:
        (serving / LABELS_FILE).write_text("\n".join(passport.io["labels"]) + "\n")
    passport.with_step(
        "TFLiteExporter",
        config.parameters(),
        inputs={"model": passport.steps[-1]["model"]},
        toolchain=toolchain,
        sha256=metadata["sha256"],
    ).write(serving)
    return metadata


def _port(port: litert.Port) -> dict[str, Any]:
    facts = dataclasses.asdict(port)
    del facts["index"]
    return {**facts, "shape": list(port.shape), "dtype": port.dtype.name}
