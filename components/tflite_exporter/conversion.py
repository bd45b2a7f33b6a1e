"""Conversion to TFLite and the proof that the result is what was asked: Keras model and passport in, file out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from edgeline import files, layout
from edgeline.conversion import checks, converter, trial
from edgeline.conversion.failures import BatchError, ExportError, RefusedGraphError
from edgeline.conversion.trial import Trial
from edgeline.data import calibration_set
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.tflite import inspection, litert
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter.config import Export


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
      content: of the `.tflite` file.
      facts: what it holds, as `inspection.facts` returns them.
      fixed_batch: why it takes one example at a time; None where it takes the batches that the Keras model takes.
    """

    content: bytes
    facts: dict[str, Any]
    fixed_batch: str | None = None

    @property
    def foreign(self) -> list[dict[str, str]]:
        """Its operators that are not LiteRT's own."""
        return self.facts["foreign_ops"]


def convert(model: tf_keras.Model | GraphModel, passport: Passport, calibration: dict[str, np.ndarray]) -> bytes:
    """Converts a model by its passport, with fixed input and output names.

    Args:
      model: plain or, for a trained scheme, wrapped.
      passport: whose `scheme` says how and whose `io` says the names; the scheme may also hold allow_select_tf_ops and
        allow_custom_ops.
      calibration: samples by input name, shape [samples, ...].

    Returns:
      The content of the `.tflite` file, whose signature `serving_default` has the passport's names.
    """
    return converter.convert(model, passport.io, passport.scheme or {}, calibration)


def convert_for_any_batch(
    model: tf_keras.Model | GraphModel, passport: Passport, calibration: dict[str, np.ndarray]
) -> Converted:
    """Converts a model for any batch size, or where its operators do not allow that, for one example; see `convert`.

    Raises:
      ConversionError: operators are missing, named with their layers, or it cannot be converted.
    """
    try:
        content = convert(model, passport, calibration)
    except RefusedGraphError as error:
        missing = [name for name in error.missing if "TensorList" in name]
        if not missing or graph_model.fixed_batch(passport.io) is not None:
            raise
        # a GRU's or LSTM's loop gathers its outputs in a list; with all sizes known the converter does without
        why = f"LiteRT has no {', '.join(missing)}, which the model needs where the batch size is open"
        return _convert_for_one(model, passport, calibration, why)
    return Converted(content, inspection.facts(content))


def _convert_for_one(
    model: tf_keras.Model | GraphModel, passport: Passport, calibration: dict[str, np.ndarray], why: str
) -> Converted:
    content = convert(model, dataclasses.replace(passport, io=converter.for_one_example(passport.io)), calibration)
    return Converted(content, inspection.facts(content), why)


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
      The metadata: of the file sha256, bytes, zlib_bytes (level 9), sparsity, inputs and outputs; any_batch and
      fixed_batch (why it takes one example only, or null); parity and parity_reference (closeness to Keras with XNNPACK
      and with the reference kernels, by output; null where it was not run); ops, float_ops (by name), number_types,
      layers and techniques (bytes of the constants); peak_rss_bytes; golden (samples in `golden.npz`, the examples of
      which are the lines of `golden.jsonl`); preprocessing (digest of the module); training_examples (of the train
      split, by class number; empty where labels are no classes); passport (a summary); not_run (why it was not run, or
      null).

    Raises:
      ExportError: the result does not run, is not what the Keras model does, or has operators that are not allowed.
      BrokenPromiseError: zeros or shared values were lost.
    """
    tf_keras.backend.clear_session()
    scheme = passport.scheme or {}
    plan = scheme.get("qat")
    if graph_model.is_one(model_uri):
        model: tf_keras.Model | GraphModel = graph_model.load(model_uri, passport.io)
    else:
        model = keras_file.load_qat(model_uri, module, plan) if plan else keras_file.load(model_uri, module)
    calibration, manifest = calibration_set.read(calibration_uri)
    planned = (scheme.get("calibration") or {}).get("digest")
    calibration_set.check_fits(manifest, passport.io["inputs"], planned)
    allowed = {
        "allow_select_tf_ops": config.allow_select_tf_ops, "allow_custom_ops": config.allow_custom_ops
    }  # fmt: skip
    asked = dataclasses.replace(passport, scheme={**scheme, **allowed})
    # where the graph has fixed its batch size, no size is open
    if config.one_example and graph_model.fixed_batch(passport.io) is None:
        converted = _convert_for_one(model, asked, calibration, "it was asked for, as the target needs fixed sizes")
    else:
        converted = convert_for_any_batch(model, asked, calibration)
    checks.check_operators(converted.facts, **allowed)

    tested = {name: values[: config.parity_samples] for name, values in calibration.items()}
    not_run, outcome = None, None
    if any(op["kind"] == "flex" for op in converted.foreign):
        not_run = _unrunnable(converted.foreign)
    else:
        how = {"batch": config.batch_size, "timeout_seconds": config.timeout_seconds}
        try:
            outcome = trial.run(converted.content, tested, **how)
        except BatchError as error:
            if graph_model.fixed_batch(passport.io) is not None:
                raise
            converted = _convert_for_one(model, asked, calibration, str(error))
            outcome = trial.run(converted.content, tested, **how)
        except ExportError as error:
            if not converted.foreign or "unresolved custom op" not in str(error):
                raise
            not_run = _unrunnable(converted.foreign)
    content, facts = converted.content, converted.facts
    checks.check_integers(facts, scheme)
    checks.check_quantization(facts)
    checks.check_promises(content, passport.promises)
    closeness = _closeness(scheme["scheme"], facts, checks.reference(model, passport.io, tested), outcome)

    metadata = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": facts["bytes"],
        "zlib_bytes": facts["zlib_bytes"],
        "sparsity": litert.sparsity(content),
        "any_batch": all(port["shape"][:1] == [-1] for port in facts["inputs"]),
        "fixed_batch": converted.fixed_batch,
        **{
            side: [{k: v for k, v in port.items() if k != "step"} for port in facts[side]]
            for side in ("inputs", "outputs")
        },
        **closeness,
        "ops": facts["ops"],
        "float_ops": dict(Counter(op["op"] for op in facts["float_ops"])),
        "number_types": facts["number_types"],
        "layers": facts["layers"],
        "techniques": checks.techniques(facts, passport.promises),
        "peak_rss_bytes": outcome and outcome.peak_rss_bytes,
        "golden": _write_golden(content, tested, outcome, calibration_uri, serving) if outcome else 0,
        "preprocessing": {"digest": module.source.digest},
        "training_examples": manifest.get("label_histogram", {}),
        "passport": _summary(passport),
        "not_run": not_run,
    }
    (serving / layout.TFLITE_FILE).write_bytes(content)
    (serving / layout.METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n")
    if passport.io["labels"]:
        (serving / layout.LABELS_FILE).write_text("\n".join(passport.io["labels"]) + "\n")
    passport = passport.with_step(
        "TFLiteExporter",
        config.parameters(),
        inputs={"model": passport.steps[-1]["model"]},
        toolchain=toolchain,
        sha256=metadata["sha256"],
    )
    if not_run:
        # converted and listed, and as a failed one never evaluated
        passport = passport.failed("TFLiteExporter", ExportError(not_run))
    passport.write(serving)
    return metadata


def _unrunnable(foreign: list[dict[str, str]]) -> str:
    names = ", ".join(sorted({op["op"] for op in foreign}))
    return f"converted, but neither run nor compared with Keras: LiteRT alone has no {names}; an app may bring them"


def _closeness(
    scheme: str, facts: dict[str, Any], expected: dict[str, np.ndarray], outcome: Trial | None
) -> dict[str, Any]:
    """Returns `parity` and `parity_reference` of the metadata; raises ExportError where one is too far off."""
    if outcome is None:
        return {"parity": None, "parity_reference": None}
    steps = {port["name"]: port["step"] or 0.0 for port in facts["outputs"]}
    closeness = {}
    for key, kernels, received in (
        ("parity", "XNNPACK in a batch", outcome.together),
        ("alone", "XNNPACK one by one", outcome.alone),
        ("parity_reference", "the reference kernels", outcome.reference),
    ):
        count = len(next(iter(received.values())))
        closeness[key] = checks.parity({name: values[:count] for name, values in expected.items()}, received)
        # of a custom operator Keras has a stand-in at most
        if not facts["ops"]["custom"]:
            checks.check_parity(scheme, closeness[key], steps, kernels)
    del closeness["alone"]
    return closeness


def _write_golden(
    content: bytes, tested: dict[str, np.ndarray], outcome: Trial, calibration_uri: str, serving: Path
) -> int:
    """Writes a few examples, and their inputs and outputs as the app sees them (quantized where the port is).

    Returns:
      How many samples.
    """
    runner = TFLiteModel(content)
    count = len(next(iter(outcome.alone.values())))
    inputs = {f"inputs/{port.name}": port.quantize(tested[port.name][:count]) for port in runner.inputs}
    outputs = {f"outputs/{port.name}": port.quantize(outcome.alone[port.name]) for port in runner.outputs}
    files.write_arrays(serving / layout.GOLDEN_FILE, inputs | outputs, compress=True)
    raw = Path(calibration_uri, calibration_set.RAW_FILE)
    if raw.is_file():
        lines = raw.read_text().removesuffix("\n").split("\n")[:count]
        (serving / layout.GOLDEN_RAW_FILE).write_text("".join(f"{line}\n" for line in lines))
    return count


def _summary(passport: Passport) -> dict[str, Any]:
    """Returns what was done to a model, in a few lines; the passport beside it has it all."""
    return {
        "steps": [{"step": step["step"], "config": step["config"]} for step in passport.steps],
        "scheme": {key: (passport.scheme or {}).get(key) for key in ("scheme", "io_type")}
        | ({"sparse": 1} if (passport.scheme or {}).get("sparse") else {}),
        "promises": [dataclasses.asdict(promise) for promise in passport.promises],
        "model": passport.steps[-1]["model"],
    }
