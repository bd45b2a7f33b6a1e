"""Files whose pruned kernels are stored sparse: what is in them, what runs them, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.conversion import checks, trial
from edgeline.data import calibration_set
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport, Promise
from edgeline.tflite import inspection, litert
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export

layers = tf_keras.layers


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    """A model that XNNPACK can run sparsely, 85% of its 1x1 kernels zero, and its dense and sparse file."""
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
        [
            tf_keras.Input([16, 16, 3], name="image"),
            layers.ZeroPadding2D(1),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="stem"),
            layers.Conv2D(32, 1, use_bias=False, name="point1"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 1, activation="relu", name="point2"),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Flatten(),
            layers.Dense(4, name="logits"),
        ]
    )
    random, promises = np.random.default_rng(0), []
    for name in ("point1", "point2"):
        kernel, *others = model.get_layer(name).get_weights()
        kernel = random.normal(size=kernel.shape)
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.85)] = 0
        model.get_layer(name).set_weights([kernel, *others])
        promises.append(Promise("sparsity", name, kernel.shape, 0.84))
    io = {
        "inputs": [{"name": "image", "shape": [None, 16, 16, 3], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [None, 4], "dtype": "float32"}],
        "labels": [],
    }
    found: dict[str, Any] = {"model": model, "promises": tuple(promises), "io": io}
    for name, more in (("dense", {}), ("sparse", {"sparse": 1})):
        scheme = {"scheme": "float32", "io_type": "float32", **more}
        found[name] = conversion.convert(model, Passport(io, scheme=scheme), {})
    return found


def kernels(content: bytes) -> list[np.ndarray]:
    """The pointwise kernels, the smaller one first; the files have other names for them."""
    found = [w.stored for w in litert.kernels(content) if w.stored.shape[0] == 32]
    return sorted(found, key=lambda values: values.size)


def test_the_sparse_file_holds_the_weights_of_the_dense_one(files: Any) -> None:
    assert len(files["sparse"]) < 0.7 * len(files["dense"])
    for dense, sparse in zip(kernels(files["dense"]), kernels(files["sparse"]), strict=True):
        np.testing.assert_array_equal(sparse, dense)
    assert litert.sparsity(files["sparse"]) == litert.sparsity(files["dense"])


def test_the_facts_of_a_sparse_file(files: Any) -> None:
    dense, sparse = inspection.facts(files["dense"]), inspection.facts(files["sparse"])
    assert sparse["ops"]["builtin"] == {**dense["ops"]["builtin"], "DENSIFY": 2}
    by_layer = [{w["layer"]: w for w in f["weights"] if len(w["shape"]) == 4} for f in (dense, sparse)]
    for name in ("point1", "point2"):
        before, after = (found[name] for found in by_layer)
        nonzero = round((1 - before["zeros"]) * before["bytes"] / 4)
        # a float and the byte of an index for each, and where the rows of 32 channels begin and end, a byte each
        changed = {"name": after["name"], "sparse": True, "bytes": 5 * nonzero + 33, "zlib_bytes": after["zlib_bytes"]}
        assert after == before | changed
    sizes = checks.techniques(sparse, files["promises"])
    assert sizes["float32 pruned sparse"]["tensors"] == 2
    assert "float32 pruned" not in sizes


def test_promises_are_held_against_the_sparse_kernels(files: Any) -> None:
    checks.check_promises(files["sparse"], files["promises"])
    more = Promise("sparsity", "point2", (1, 1, 32, 32), 0.9)
    with pytest.raises(BrokenPromiseError, match=r"point2 \(sparsity 0\.9, found 0\.8496 zeros"):
        checks.check_promises(files["sparse"], (more,))


def test_all_kernels_run_it_in_any_batch_size(files: Any) -> None:
    inputs = {"image": np.random.default_rng(1).random((9, 16, 16, 3), np.float32)}
    expected = files["model"](inputs["image"]).numpy()
    outcome = trial.run(files["sparse"], inputs, batch=4, timeout_seconds=60)
    for received in (outcome.together, outcome.alone, outcome.reference):
        np.testing.assert_allclose(received["logits"], expected[: len(received["logits"])], rtol=1e-4, atol=1e-6)
    builtin = TFLiteModel(files["sparse"], xnnpack=False).run(inputs, 2)
    np.testing.assert_allclose(builtin["logits"], expected, rtol=1e-4, atol=1e-6)


def test_it_is_exported_by_its_passport(files: Any, tiny_module: Path, tmp_path: Path) -> None:
    keras_file.save(files["model"], str(tmp_path))
    samples = np.random.default_rng(1).random((4, 16, 16, 3), np.float32)
    calibration_set.write(str(tmp_path / "calibration"), {"image": samples}, {})
    scheme = {"scheme": "float32", "io_type": "float32", "sparse": 1}
    steps = ({"step": "Pruner", "config": {"policy": "xnnpack"}, "model": ""},)
    passport = Passport(files["io"], steps, files["promises"], scheme)
    serving = tmp_path / "serving"
    serving.mkdir()
    metadata = conversion.export(
        Export(batch_size=4), hooks.load(str(tiny_module)), passport, toolchain="", model_uri=str(tmp_path),
        calibration_uri=str(tmp_path / "calibration"), serving=serving,
    )  # fmt: skip
    assert metadata["any_batch"]
    assert metadata["not_run"] is None
    assert metadata["ops"]["builtin"]["DENSIFY"] == 2
    assert metadata["sparsity"] == litert.sparsity(files["dense"])
    assert metadata["passport"]["scheme"] == scheme
    assert metadata["parity_reference"]["logits"]["relative"] < 1e-5
