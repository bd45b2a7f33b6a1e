"""Quantization: which number types the TFLite model will have, and the training for it where the scheme needs one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import tf_keras

from edgeline import layout
from edgeline.data import calibration_set
from edgeline.errors import UserError
from edgeline.keras_models import layers, promise_checks, quantization_aware
from edgeline.keras_models.promise_kinds import kind_of
from edgeline.model_io import graph_model, keras_file
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport, Promise
from edgeline.quantizer import keeping, selection
from edgeline.quantizer.config import Quantize
from edgeline.schemes import SCHEMES
from edgeline.training import delivery, distillation, loop


def plan(config: Quantize, passport: Passport, manifest: dict[str, Any]) -> dict[str, Any]:
    """Decides how the model will be converted: the passport's `scheme`.

    Args:
      config: what is asked.
      passport: of the model, whose inputs the calibration samples must fit.
      manifest: of the calibration samples.

    Returns:
      scheme, io_type, sparse (where it is asked for), and for a calibrated scheme what it is calibrated on: digest,
      number of samples and their ranges.

    Raises:
      UserError: the samples are those of another model's inputs, or a sparse file is asked for of a model that was not
        pruned for it.
    """
    scheme: dict[str, Any] = {"scheme": config.scheme, "io_type": config.io_type}
    if config.sparse:
        if not any(step["step"] == "Pruner" and step["config"].get("policy") == "xnnpack" for step in passport.steps):
            raise UserError(
                f"Quantize.sparse needs a model that was pruned with policy xnnpack, but its steps are "
                f"{', '.join(step['step'] for step in passport.steps)} without it; prune it so, or leave sparse at 0"
            )
        scheme["sparse"] = 1
    if SCHEMES[config.scheme].calibrated:
        calibration_set.check_fits(manifest, passport.io["inputs"])
        scheme["calibration"] = {key: manifest[key] for key in ("digest", "samples", "ranges")}
    return scheme


def train_aware(
    model: tf_keras.Model,
    module: ModelModule,
    splits: loop.Splits,
    config: Quantize,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> tuple[loop.Outcome, dict[str, Any]]:
    """Fine-tunes a model with 8-bit quantization simulated, keeping zeros and shared values of earlier steps.

    Layers that have no integer operator, or that `keep_float` names, stay float.

    Args:
      model: trained; it stays as it is.
      module: sets optimizer, loss and metrics.
      splits: opened for this config.
      config: what is asked.
      promises: of earlier steps, to be kept.
      log_dir: for TensorBoard logs.

    Returns:
      The wrapped model, and the plan by which `keras_io.load_qat` wraps it anew: layers (names of the quantized ones),
      left_float (why, by name of the others) and scheme (what was kept of earlier steps).

    Raises:
      UserError: a pattern of keep_float matches no layer.
      ValueError: no layer can be quantized.
      BrokenPromiseError: zeros or shared values were lost.
    """
    base = quantization_aware.prepared(model)
    reasons = quantization_aware.reasons(base, config.keep_float)
    left_float = {name: why for name, why in reasons.items() if why is not None}
    chosen = [name for name, why in reasons.items() if why is None]
    if not chosen:
        raise ValueError(f"Quantizer: none of the layers can be quantized: {_named(left_float)}")
    kept = sorted({"zeros" if kind_of(promise).of_zeros else promise.kind for promise in promises})
    scheme = f"keep_{'_and_'.join(kept)}" if kept else "default"
    how = {"layers": chosen, "left_float": left_float, "scheme": scheme}
    types = {layer.name: type(layer).__name__ for layer in base.layers}
    teacher = distillation.teacher(base, config)
    wrapped = quantization_aware.wrap(base, chosen)
    keep = keeping.Keep(wrapped, promises)
    history = loop.fit(
        wrapped, module, splits, config, step="Quantizer", technique=__name__, log_dir=log_dir, teacher=teacher
    )
    keep.restore()
    promise_checks.check_promises(wrapped, promises, "Quantizer")
    notes = {f"quant_{name}": SCHEMES[config.scheme].note for name in chosen}
    notes |= {name: f"left float: {why}" for name, why in left_float.items()}
    facts = layers.facts(wrapped, notes)
    listed = {fact["name"] for fact in facts}
    facts += [
        {
            "name": name,
            "type": types[name],
            "parameters": 0,
            "sparsity": 0.0,
            "unique_values": None,
            "note": notes[name],
        }
        for name in left_float
        if name not in listed
    ]
    return loop.Outcome(wrapped, history, loop.evaluate(wrapped, module, splits), facts), how


def _named(left_float: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in left_float.items())


def quantize(
    config: Quantize,
    module: ModelModule,
    passport: Passport,
    *,
    toolchain: str,
    examples_uri: str,
    model_uri: str,
    calibration_uri: str,
    compressed_uri: str,
    run_uri: str,
) -> None:
    """Does what the config asks, from artifact folders to artifact folders.

    Args:
      config: what is asked.
      module: the user's hooks.
      passport: of the model that goes in.
      toolchain: the versions it is done with.
      examples_uri: of Examples, for a scheme that trains.
      model_uri: of the Model that goes in.
      calibration_uri: of the RepresentativeDataset.
      compressed_uri: of the Model that comes out.
      run_uri: of the ModelRun.
    """
    scheme = plan(config, passport, calibration_set.read_manifest(calibration_uri))
    inputs = {"model": passport.steps[-1]["model"], "module": module.source.digest}
    if config.trains and graph_model.is_one(model_uri):
        raise ValueError(f"scheme {config.scheme} trains, but of the imported model only the graph is known, no layers")
    if config.trains:
        loop.start(config.seed, deterministic=config.deterministic, threads=config.threads)
        splits = loop.open_splits(examples_uri, module, config)
        base = keras_file.load(model_uri, module)
        keras_file.save(base, compressed_uri)
        outcome, scheme["qat"] = train_aware(base, module, splits, config, passport.promises, run_uri)
        if config.keep_float:
            scheme["keep_float"] = {"layers": list(scheme["qat"]["left_float"]), "ops": []}
        keras_file.save_qat(outcome.model, compressed_uri)
        delivery.write_history("Quantizer", outcome.history, run_uri)
        inputs["examples"] = splits.fingerprint
        facts: dict[str, Any] = {"metrics": outcome.metrics, "layers": outcome.layers}
        facts |= {"model": keras_file.digest(outcome.model), "history": outcome.history}
    elif graph_model.is_one(model_uri):
        graph_model.copy(model_uri, compressed_uri)
        facts = {"model": passport.steps[-1]["model"]}
    else:
        Path(compressed_uri, layout.KERAS_FOLDER).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(model_uri, layout.KERAS_FILE), Path(compressed_uri, layout.KERAS_FILE))
        facts = {"model": passport.steps[-1]["model"]}
    if selection.needs_model(config):
        chosen, selected = selection.select(
            config, module, passport, examples_uri=examples_uri, model_uri=model_uri, calibration_uri=calibration_uri,
            run_uri=run_uri,
        )  # fmt: skip
        scheme |= chosen
        facts |= selected
        inputs |= selection.examples_digest(config, examples_uri)
    passport = passport.with_step("Quantizer", config.parameters(), inputs=inputs, toolchain=toolchain, **facts)
    dataclasses.replace(passport, scheme=scheme).write(compressed_uri)
