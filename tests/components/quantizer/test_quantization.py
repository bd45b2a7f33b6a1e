from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.data import calibration_set
from edgeline.errors import UserError
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.model_io import keras_file
from edgeline.passport import Passport, Promise
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.schemes import SCHEMES
from edgeline.training import loop

PASSPORT = Passport(
    io={
        "inputs": [
            {"name": "image", "shape": [None, 8, 8, 1], "dtype": "float32"},
            {"name": "text", "shape": [None, None], "dtype": "int32"},
        ],
        "outputs": [],
        "labels": [],
    }
)
MANIFEST: dict[str, Any] = {
    "digest": "d",
    "samples": 3,
    "ranges": {"image": [0.0, 1.0]},
    "inputs": {"image": {"shape": [8, 8, 1], "dtype": "float32"}, "text": {"shape": [5], "dtype": "int32"}},
    "label_histogram": {"0": 3},
}


# plan -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["float32", "dynamic_range", "float16", "qat8"])
def test_only_what_is_calibrated_depends_on_the_samples(scheme: str) -> None:
    assert quantization.plan(Quantize(scheme), PASSPORT, {}) == {"scheme": scheme, "io_type": "float32"}


def test_a_sparse_file_needs_the_pruning_for_it() -> None:
    config = Quantize("float32", sparse=True)
    trained = PASSPORT.with_step("Trainer", {}, inputs={}, toolchain="")
    dense = trained.with_step("Pruner", {"policy": "none"}, inputs={}, toolchain="")
    with pytest.raises(UserError, match=r"pruned with policy xnnpack, but its steps are Trainer, Pruner without it"):
        quantization.plan(config, dense, {})
    pruned = trained.with_step("Pruner", {"policy": "xnnpack"}, inputs={}, toolchain="")
    plan = quantization.plan(config, pruned, {})
    assert plan == {"scheme": "float32", "io_type": "float32", "sparse": 1}


def test_a_calibrated_scheme_says_on_what() -> None:
    calibration = {"digest": "d", "samples": 3, "ranges": {"image": [0.0, 1.0]}}
    for config in (Quantize("int8", "uint8"), Quantize("int16x8")):
        plan = quantization.plan(config, PASSPORT, MANIFEST)
        assert plan == {"scheme": config.scheme, "io_type": config.io_type, "calibration": calibration}


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"text": MANIFEST["inputs"]["text"]},
        {**MANIFEST["inputs"], "image": {"shape": [8, 8, 3], "dtype": "float32"}},
        {**MANIFEST["inputs"], "image": {"shape": [8, 8], "dtype": "float32"}},
        {**MANIFEST["inputs"], "image": {"shape": [8, 8, 1], "dtype": "uint8"}},
        {"picture": MANIFEST["inputs"]["image"], "text": MANIFEST["inputs"]["text"]},
    ],
)
def test_samples_of_another_model_are_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"the calibration samples do not fit the model: its inputs are .*'image'.*samp"
    ):
        quantization.plan(Quantize("int8"), PASSPORT, {**MANIFEST, "inputs": inputs})


# quantization-aware training ------------------------------------------------------------------------------------------


def kernels(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """The float kernels of a wrapped model by the layer's own name."""
    found = {}
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        for weight in layer.weights:
            if weight.name.split("/")[-1] == "kernel:0":
                found[inner.name] = weight.numpy()
    return found


def train_aware(source: Any, small: Any, log_dir: Path, epochs: int = 1) -> tuple[loop.Outcome, dict[str, Any]]:
    config = Quantize("qat8", epochs=epochs, batch_size=16)
    promises = source.outcome.promises if source is not small else ()
    base = source.load()
    keras_file.save(base, str(log_dir))
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    return quantization.train_aware(base, small.module, splits, config, promises, str(log_dir))


@pytest.mark.slow
def test_zeros_of_a_pruning_survive_the_training(small: Any, pruned: Any, tmp_path: Path) -> None:
    outcome, how = train_aware(pruned, small, tmp_path)
    assert how["scheme"] == "keep_zeros"
    found = kernels(outcome.model)
    for name in ("conv2", "hidden", "logits"):
        was = pruned.load().get_layer(name).kernel.numpy() == 0
        assert (found[name][was] == 0).all(), name
    # and the others were trained
    assert not np.array_equal(found["hidden"], pruned.load().get_layer("hidden").kernel)


def most_values(kernel: np.ndarray) -> int:
    """The distinct values of the output channel that has most."""
    return max(len(np.unique(kernel[..., channel])) for channel in range(kernel.shape[-1]))


def reloaded(outcome: loop.Outcome, how: dict[str, Any], small: Any, folder: Path) -> dict[str, np.ndarray]:
    keras_file.save_qat(outcome.model, str(folder))
    return kernels(keras_file.load_qat(str(folder), small.module, how))


@pytest.mark.slow
def test_shared_values_of_a_clustering_survive_the_training(small: Any, clustered: Any, tmp_path: Path) -> None:
    outcome, how = train_aware(clustered, small, tmp_path)
    assert how["scheme"] == "keep_clusters"
    found = reloaded(outcome, how, small, tmp_path)
    for name in ("conv2", "hidden", "logits"):
        assert most_values(found[name]) <= 8, name


@pytest.mark.slow  # test_keeping.py shows it every time, in the file too
def test_zeros_and_shared_values_survive_together(small: Any, pruned_and_clustered: Any, tmp_path: Path) -> None:
    outcome, how = train_aware(pruned_and_clustered, small, tmp_path)
    assert how["scheme"] == "keep_clusters_and_zeros"
    found = reloaded(outcome, how, small, tmp_path)
    for name in ("conv2", "hidden", "logits"):
        assert most_values(found[name]) <= 8, name
        was = pruned_and_clustered.load().get_layer(name).kernel.numpy() == 0
        assert (found[name][was] == 0).all(), name


@pytest.mark.slow
def test_a_broken_promise_names_the_layer(small: Any, tmp_path: Path) -> None:
    config = Quantize("qat8", epochs=1, batch_size=64)
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    promises = (Promise("sparsity", "hidden", (128, 16), 0.5),)  # it never was
    with pytest.raises(
        BrokenPromiseError, match=r"Quantizer broke what was promised for 1 layers: hidden \(sparsity 0.5"
    ):
        quantization.train_aware(small.load(), small.module, splits, config, promises, str(tmp_path))


def test_nothing_to_quantize(small: Any, tmp_path: Path) -> None:
    class Own(tf_keras.layers.Layer):
        pass

    model = tf_keras.Sequential([tf_keras.Input([2]), Own(name="own")])
    config = Quantize("qat8")
    splits = loop.open_splits(small.examples, small.module, config)
    with pytest.raises(ValueError, match=r"none of the layers can be quantized: own: Own$"):
        quantization.train_aware(model, small.module, splits, config, (), str(tmp_path))


# from folder to folder ------------------------------------------------------------------------------------------------


def quantize(small: Any, calibration: str, config: Quantize, folder: Path) -> Passport:
    quantization.quantize(
        config,
        small.module,
        Passport.read(small.folder),
        toolchain="tools",
        examples_uri=small.examples,
        model_uri=small.folder,
        calibration_uri=calibration,
        compressed_uri=str(folder / "compressed"),
        run_uri=str(folder / "run"),
    )
    return Passport.read(folder / "compressed")


def test_a_post_training_scheme_hands_the_model_on(small: Any, calibration: str, tmp_path: Path) -> None:
    passport = quantize(small, calibration, Quantize("int8", "int8"), tmp_path)
    assert passport.scheme is not None
    manifest = calibration_set.read_manifest(calibration)
    assert passport.scheme["calibration"]["digest"] == manifest["digest"]
    assert passport.steps[-1]["step"] == "Quantizer"
    assert passport.steps[-1]["config"]["scheme"] == "int8"
    assert passport.steps[-1]["model"] == passport.steps[0]["model"]
    assert passport.steps[-1]["inputs"]["model"] == passport.steps[0]["model"]
    model = keras_file.load(str(tmp_path / "compressed"), small.module)
    assert keras_file.digest(model) == passport.steps[0]["model"]
    assert not (tmp_path / "run").exists()


def test_a_trained_scheme_writes_what_rebuilds_the_model(small: Any, calibration: str, tmp_path: Path) -> None:
    passport = quantize(small, calibration, Quantize("qat8", epochs=1, batch_size=32), tmp_path)
    assert passport.scheme is not None
    assert passport.scheme["scheme"] == "qat8"
    layers = ["conv1", "norm", "relu", "conv2", "flatten", "hidden", "logits"]
    assert passport.scheme["qat"] == {"layers": layers, "left_float": {}, "scheme": "default"}
    assert (tmp_path / "run" / "history.json").is_file()
    entry = passport.steps[-1]
    assert entry["metrics"]["accuracy"] > 0.8
    notes = {fact["name"]: fact["note"] for fact in entry["layers"]}
    assert notes["quant_conv1"] == notes["quant_logits"] == "quantized to 8 bits"
    assert passport.promises == ()
    assert entry["inputs"].keys() == {"model", "module", "examples"}
    # the float model beside it is the one that went in
    base = keras_file.load(str(tmp_path / "compressed"), small.module)
    assert keras_file.digest(base) == passport.steps[0]["model"]
    assert entry["model"] != passport.steps[0]["model"]
    wrapped = keras_file.load_qat(str(tmp_path / "compressed"), small.module, passport.scheme["qat"])
    assert not np.array_equal(kernels(wrapped)["hidden"], base.get_layer("hidden").kernel)
    outputs = wrapped.predict(small.images(), verbose=0)
    labels = np.arange(32) % 3
    assert np.mean(outputs.argmax(-1) == labels) == pytest.approx(entry["metrics"]["accuracy"])


def test_every_scheme_has_a_plan(calibration: str, small: Any) -> None:
    passport = dataclasses.replace(Passport.read(small.folder))
    manifest = {**MANIFEST, "inputs": {"image": MANIFEST["inputs"]["image"]}}
    for scheme in SCHEMES:
        assert quantization.plan(Quantize(scheme), passport, manifest)["scheme"] == scheme
