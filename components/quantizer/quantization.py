"""Quantization: which number types the TFLite model will have, and the training for it where the scheme needs one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from edgeline import calibration_set, data, graph_model, keras_io, layers, training
from edgeline.model_module import ModelModule
from edgeline.passport import Passport, Promise
from edgeline.quantizer import selection
from edgeline.quantizer.config import CALIBRATED, Quantize


def plan(config: Quantize, passport: Passport, manifest: dict[str, Any]) -> dict[str, Any]:
    """Decides how the model will be converted: the passport's `scheme`.

    Args:
      config: what is asked.
      passport: of the model, whose inputs the calibration samples must fit.
      manifest: of the calibration samples.

    Returns:
      scheme, io_type, and for a calibrated scheme what it is calibrated on: digest, number of samples and their ranges.

    Raises:
      UserError: the samples are those of another model's inputs.
    """
    scheme: dict[str, Any] = {"scheme": config.scheme, "io_type": config.io_type}
    if config.scheme in CALIBRATED:
        calibration_set.check_fits(manifest, passport.io["inputs"])
        scheme["calibration"] = {key: manifest[key] for key in ("digest", "samples", "ranges")}
    return scheme


def train_aware(
    model: tf_keras.Model,
    module: ModelModule,
    splits: training.Splits,
    config: Quantize,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> tuple[training.Outcome, dict[str, Any]]:
    """Fine-tunes a model with 8-bit quantization simulated, keeping zeros and shared values of earlier steps.

    Args:
      model: trained; not to be used afterwards, since its layers go into the result.
      module: sets optimizer, loss and metrics.
      splits: opened for this config.
      config: what is asked.
      promises: of earlier steps, to be kept.
      log_dir: for TensorBoard logs.

    Returns:
      The wrapped model, and the plan by which `keras_io.load_qat` wraps it anew.

    Raises:
      ValueError: no layer can be quantized.
      BrokenPromiseError: zeros or shared values were lost.
    """
    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    quantizable = [layer for layer in model.layers if not isinstance(layer, tf_keras.layers.InputLayer)]
    chosen = [layer.name for layer in quantizable if registry.supports(layer) or _folds(layer)]
    notes = {
        layer.name: "quantized to 8 bits" if layer.name in chosen else f"left float: {type(layer).__name__}"
        for layer in quantizable
    }
    if not chosen:
        raise ValueError(f"Quantizer: tfmot can quantize none of the layers {', '.join(notes)}")
    kinds = {promise.kind for promise in promises}
    scheme = {
        frozenset(): "default",
        frozenset({"sparsity"}): "keep_zeros",
        frozenset({"clusters"}): "keep_clusters",
        frozenset({"sparsity", "clusters"}): "keep_clusters_and_zeros",
    }[frozenset(kinds)]
    how = {"layers": chosen, "scheme": scheme}
    wrapped = keras_io.quantization_aware(model, how)
    history = training.fit(wrapped, module, splits, config, step="Quantizer", log_dir=log_dir)
    layers.check_promises(wrapped, promises, "Quantizer")
    facts = layers.facts(wrapped, {f"quant_{name}": note for name, note in notes.items()} | notes)
    return training.Outcome(wrapped, history, training.evaluate(wrapped, module, splits), facts), how


def _folds(layer: tf_keras.layers.Layer) -> bool:
    """Returns whether a BatchNormalization will be folded into the layer before it, as the converter does.

    tfmot's registry knows none, but its layout transforms do, and only where it is annotated like the layer before it;
    else that one's output is rounded before the normalization, which stays float in the converted model.
    """
    if not isinstance(layer, tf_keras.layers.BatchNormalization):
        return False
    before = tf.nest.flatten([node.inbound_layers for node in layer.inbound_nodes])
    return len(before) == 1 and (
        type(before[0]) in (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D, tf_keras.layers.Dense)
        and before[0].activation is tf_keras.activations.linear
        and len(before[0].outbound_nodes) == 1
    )


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
        training.start(config.seed, deterministic=bool(config.deterministic))
        splits = training.open_splits(examples_uri, module, config)
        base = keras_io.load(model_uri, module)
        keras_io.save(base, compressed_uri)
        outcome, scheme["qat"] = train_aware(base, module, splits, config, passport.promises, run_uri)
        keras_io.save_qat(outcome.model, compressed_uri)
        training.write_history("Quantizer", outcome.history, run_uri)
        inputs["examples"] = data.fingerprint(examples_uri)
        facts: dict[str, Any] = {"metrics": outcome.metrics, "layers": outcome.layers}
        facts |= {"model": keras_io.digest(outcome.model), "history": outcome.history}
    elif graph_model.is_one(model_uri):
        graph_model.copy(model_uri, compressed_uri)
        facts = {"model": passport.steps[-1]["model"]}
    else:
        Path(compressed_uri, keras_io.KERAS_FOLDER).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(model_uri, keras_io.MODEL_FILE), Path(compressed_uri, keras_io.MODEL_FILE))
        facts = {"model": passport.steps[-1]["model"]}
    if selection.needs_model(config):
        chosen, found = selection.select(
            config, module, passport, examples_uri=examples_uri, model_uri=model_uri, calibration_uri=calibration_uri,
            run_uri=run_uri,
        )  # fmt: skip
        scheme |= chosen
        facts |= found
        inputs |= selection.examples_digest(config, examples_uri)
    passport = passport.with_step("Quantizer", config.parameters(), inputs=inputs, toolchain=toolchain, **facts)
    dataclasses.replace(passport, scheme=scheme).write(compressed_uri)
