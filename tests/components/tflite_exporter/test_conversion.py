from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from ai_edge_litert import schema_py_generated as schema

from edgeline import calibration_set, keras_io, litert, model_module
from edgeline.layers import BrokenPromiseError
from edgeline.litert import TFLiteModel
from edgeline.passport import Passport, Promise
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export
from edgeline.tflite_exporter.conversion import ExportError

QAT_LAYERS = ["conv1", "norm", "relu", "conv2", "flatten", "hidden", "logits"]


def with_scheme(passport: Passport, scheme: str, io_type: str = "float32", **more: Any) -> Passport:
    return dataclasses.replace(passport, scheme={"scheme": scheme, "io_type": io_type, **more})


def operators(content: bytes) -> set[str]:
    """The names of the operators that a `.tflite` file uses; what it lists may be more."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    used = [model.operatorCodes[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators]
    return {names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in used}


# conversion -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(small: Any) -> Any:
    """Converts the small model by scheme and io_type, each once: the file, and the Keras model's outputs."""
    passport = Passport.read(small.folder)
    images = small.images()
    found: dict[tuple[str, str], tuple[bytes, np.ndarray]] = {}

    def convert(scheme: str, io_type: str = "float32") -> tuple[bytes, np.ndarray]:
        if (scheme, io_type) not in found:
            model = small.load()
            if scheme == "qat8":
                model = keras_io.quantization_aware(model, {"layers": QAT_LAYERS, "scheme": "default"})
                model(images, training=True)  # the ranges of the activations
            content = conversion.convert(model, with_scheme(passport, scheme, io_type), {"image": images})
            found[scheme, io_type] = content, model(images).numpy()
        return found[scheme, io_type]

    return convert


#: scheme, io_type, type of the ports, types of the kernels by number of values
SCHEMES = [
    ("float32", "float32", "float32", {18: "float32", 144: "float32", 2048: "float32", 48: "float32"}),
    # the converter leaves kernels of less than 1,024 values as they are
    ("dynamic_range", "float32", "float32", {18: "float32", 144: "float32", 2048: "int8", 48: "float32"}),
    ("float16", "float32", "float32", {18: "float16", 144: "float16", 2048: "float16", 48: "float16"}),
    ("int8", "float32", "float32", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
    ("int8", "int8", "int8", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
    pytest.param("int8", "uint8", "uint8", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}, marks=pytest.mark.slow),
    ("int16x8", "float32", "float32", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
    pytest.param(
        "qat8", "float32", "float32", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}, marks=pytest.mark.slow
    ),
    ("qat8", "int8", "int8", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
]


@pytest.mark.parametrize(("scheme", "io_type", "ports", "kernels"), SCHEMES, ids=lambda v: v if type(v) is str else "")
def test_number_types_names_and_batches(
    converted: Any, small: Any, scheme: str, io_type: str, ports: str, kernels: dict[int, str]
) -> None:
    content, expected = converted(scheme, io_type)
    model = TFLiteModel(content)
    assert [(port.name, port.dtype, port.shape) for port in model.inputs] == [("image", ports, (-1, 8, 8, 1))]
    assert [(port.name, port.dtype, port.shape) for port in model.outputs] == [("logits", ports, (-1, 3))]
    assert all((port.scale > 0) == (ports != "float32") for port in (*model.inputs, *model.outputs))
    assert {w.stored.size: w.stored.dtype.name for w in litert.kernels(content, at_least=2)} == kernels
    assert model.any_batch
    received = model.run({"image": small.images()}, 5)["logits"]
    facts = conversion.parity({"logits": expected}, {"logits": received})["logits"]
    assert facts["relative"] < {"float32": 1e-5, "float16": 1e-2, "int16x8": 2e-2}.get(scheme, 0.1)
    assert facts["agreement"] >= 0.9


@pytest.mark.parametrize(("scheme", "io_type"), [("int8", "int8"), ("qat8", "int8"), ("int16x8", "float32")])
def test_an_integer_model_has_no_float_operators(converted: Any, scheme: str, io_type: str) -> None:
    found = operators(converted(scheme, io_type)[0])
    # the normalization is folded into the convolution: no MUL, no ADD
    assert found - {"QUANTIZE", "DEQUANTIZE", "SHAPE", "STRIDED_SLICE", "PACK"} == {
        "CONV_2D",
        "FULLY_CONNECTED",
        "RESHAPE",
    }
    assert ("QUANTIZE" in found) == (io_type == "float32")


def test_the_same_model_gives_the_same_bytes(converted: Any, small: Any) -> None:
    passport = with_scheme(Passport.read(small.folder), "int8")
    again = conversion.convert(small.load(), passport, {"image": small.images()})
    assert again == converted("int8")[0]


def test_several_inputs_are_calibrated_by_name() -> None:
    # of one shape, and in the order in which the alphabet does not put them
    wide, narrow = tf_keras.Input([4], name="wide"), tf_keras.Input([4], name="narrow")
    model = tf_keras.Model([wide, narrow], tf_keras.layers.Concatenate(name="both")([wide, narrow]))
    ports = [{"name": name, "shape": [None, 4], "dtype": "float32"} for name in ("wide", "narrow")]
    passport = with_scheme(Passport({"inputs": ports, "outputs": [{"name": "joined"}], "labels": []}), "int8", "int8")
    samples = {
        "narrow": np.linspace(0, 1, 40, dtype=np.float32).reshape(10, 4),
        "wide": np.linspace(-100, 100, 40, dtype=np.float32).reshape(10, 4),
    }
    runner = TFLiteModel(conversion.convert(model, passport, samples))
    scales = {port.name: port.scale for port in runner.inputs}
    assert scales["wide"] == pytest.approx(200 / 255, rel=0.01)
    assert scales["narrow"] <= 1.01 * 200 / 255  # a Concatenate gives all its inputs one scale
    assert runner.outputs[0].name == "joined"
    joined = runner.run(samples)["joined"]
    np.testing.assert_allclose(joined, np.concatenate([samples["wide"], samples["narrow"]], 1), atol=0.8)


# parity ---------------------------------------------------------------------------------------------------------------


def test_parity_by_hand() -> None:
    expected = {"y": np.float32([[3, 0], [0, 4], [1, 2]])}
    received = {"y": np.float32([[3, 0], [0.5, 4], [2, 1]]), "other": np.float32([1])}
    facts = conversion.parity(expected, received)
    # dot 9 + 16 + 2 + 2, norms sqrt(9 + 16 + 5) and sqrt(9 + 16.25 + 5)
    assert facts == {
        "y": {
            "max_abs": 1.0,
            "relative": 0.25,
            "cosine": pytest.approx(29 / math.sqrt(30 * 30.25)),
            "agreement": pytest.approx(2 / 3),
        }
    }


@pytest.mark.parametrize(
    ("expected", "received", "facts"),
    [
        ([[0.0], [0.0]], [[0.0], [0.0]], {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "agreement": 1.0}),
        ([[0.0], [0.0]], [[0.0], [0.5]], {"max_abs": 0.5, "relative": 0.5e12, "cosine": 0.0, "agreement": 1.0}),
        ([[1.0], [2.0]], [[-1.0], [-2.0]], {"max_abs": 4.0, "relative": 2.0, "cosine": -1.0, "agreement": 1.0}),
        ([1.0, 2.0], [1.0, 2.0], {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "agreement": 1.0}),
    ],
)
def test_parity_of_zeros_opposites_and_scalars(expected: Any, received: Any, facts: dict[str, float]) -> None:
    found = conversion.parity({"y": np.float32(expected)}, {"y": np.float32(received)})
    assert found["y"] == pytest.approx(facts)


def test_parity_over_positions() -> None:
    # segmentation: the argmax of every position counts
    want = np.float32([[[1, 0], [0, 1]], [[1, 0], [0, 1]]])
    got = np.float32([[[1, 0], [0, 1]], [[1, 0], [1, 0]]])
    assert conversion.parity({"y": want}, {"y": got})["y"]["agreement"] == 0.75


@pytest.mark.parametrize(
    ("expected", "received", "message"),
    [
        ([[1.0]], None, r"output 'y' has shape None, expected \(1, 1\); outputs: \[\]"),
        ([[1.0]], [[1.0, 2.0]], r"output 'y' has shape \(1, 2\), expected \(1, 1\); outputs: \['y'\]"),
        ([[1.0, 2.0]], [[math.nan, math.inf]], "output 'y' has 2 values that are NaN or infinite"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "output 'y' of the Keras model has 1 values that are NaN or infinite"),
    ],
)
def test_outputs_that_cannot_be_compared(expected: Any, received: Any, message: str) -> None:
    got = {} if received is None else {"y": np.float32(received)}
    with pytest.raises(ExportError, match=message):
        conversion.parity({"y": np.float32(expected)}, got)


# the child process ----------------------------------------------------------------------------------------------------


def test_the_child_process_runs_the_model(converted: Any, small: Any) -> None:
    content, expected = converted("float32")
    outputs = conversion.run_in_child(content, {"image": small.images()}, 60)
    assert outputs.keys() == {"logits", "first/logits"}
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(outputs["first/logits"], expected[:1], atol=1e-4)


def test_a_model_that_the_runtime_refuses() -> None:
    with pytest.raises(ExportError, match=r"^LiteRT cannot run the model: ValueError: The model is not a valid Flat"):
        conversion.run_in_child(b"not a model", {"x": np.zeros([1, 1], np.float32)}, 60)


def child(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a shell script in Python's place, to die as a runtime may."""
    program = path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL"])
def test_a_crash_is_the_candidates_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    child(tmp_path, monkeypatch, f"kill -{name} $$")
    with pytest.raises(ExportError, match=f"^LiteRT crashed on the model with SIG{name}$"):
        conversion.run_in_child(b"", {"x": np.zeros([1, 1])}, 60)


def test_a_hang_is_the_candidates_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(ExportError, match=r"^LiteRT did not finish 7 samples in 1 s$"):
        conversion.run_in_child(b"", {"x": np.zeros([7, 1])}, 1)


def test_a_death_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(ExportError, match=r"^LiteRT cannot run the model: no message$"):
        conversion.run_in_child(b"", {"x": np.zeros([1, 1])}, 60)


# promises -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense_pair() -> bytes:
    """Two kernels of one shape: `first` is half zeros, `second` has two values in each output channel."""
    random = np.random.default_rng(0)
    model = tf_keras.Sequential(
        [
            tf_keras.Input([8], name="x"),
            tf_keras.layers.Dense(8, use_bias=False, activation="relu", name="first"),
            tf_keras.layers.Dense(8, use_bias=False, name="second"),
        ]
    )
    half = random.uniform(1, 2, [8, 8]).astype(np.float32)
    half[:4] = 0
    model.set_weights([half, np.repeat(np.float32([[1]] * 4 + [[2]] * 4), 8, axis=1)])
    port = {"name": "x", "shape": [None, 8], "dtype": "float32"}
    io = {"inputs": [port], "outputs": [{"name": "y"}], "labels": []}
    return conversion.convert(model, with_scheme(Passport(io), "float32"), {})


def test_promises_are_checked_in_the_file(dense_pair: bytes) -> None:
    kept = (Promise("sparsity", "first", (8, 8), 0.5), Promise("clusters", "second", (8, 8), 2))
    conversion.check_promises(dense_pair, kept)
    # counted per output channel: of `first`, each has zero and four others
    conversion.check_promises(dense_pair, (Promise("clusters", "first", (8, 8), 5),))


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        (Promise("sparsity", "first", (8, 8), 0.9), r"first \(sparsity 0.9, found 0.5000 zeros, 5 values\)"),
        # another layer of the same shape would keep it
        (Promise("sparsity", "second", (8, 8), 0.5), r"second \(sparsity 0.5, found 0.0000 zeros, 2 values\)"),
        (Promise("clusters", "first", (8, 8), 2), r"first \(clusters 2, found 0.5000 zeros, 5 values\)"),
        (Promise("sparsity", "first", (4, 16), 0.5), r"first \(sparsity 0.5, found no such tensor\)"),
    ],
)
def test_a_broken_promise_names_the_layer(dense_pair: bytes, promise: Promise, message: str) -> None:
    with pytest.raises(BrokenPromiseError, match=f"^the conversion broke what was promised for 1 layers: {message}$"):
        conversion.check_promises(dense_pair, (promise,))


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("float32", marks=pytest.mark.slow),
        "float16",
        pytest.param("dynamic_range", marks=pytest.mark.slow),
        "int8",
    ],
)
def test_zeros_and_shared_values_survive_every_conversion(small: Any, pruned_and_clustered: Any, scheme: str) -> None:
    passport = with_scheme(Passport.read(small.folder), scheme)
    content = conversion.convert(pruned_and_clustered.load(), passport, {"image": small.images()})
    promises = pruned_and_clustered.outcome.promises
    assert len(promises) == 6
    conversion.check_promises(content, promises)
    assert litert.sparsity(content) > 0.75


# export ---------------------------------------------------------------------------------------------------------------


def export(
    small: Any, calibration: str, folder: Path, scheme: str, *, config: Export | None = None, **changes: Any
) -> dict[str, Any]:
    passport = dataclasses.replace(with_scheme(Passport.read(small.folder), scheme), **changes)
    folder.mkdir(exist_ok=True)
    return conversion.export(
        config or Export(parity_samples=8, timeout_seconds=60),
        small.module,
        passport,
        toolchain="tools",
        model_uri=small.folder,
        calibration_uri=calibration,
        serving=folder,
    )


def test_export_writes_the_folder_that_is_deployed(small: Any, calibration: str, tmp_path: Path) -> None:
    metadata = export(small, calibration, tmp_path / "out", "float16")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.tflite",
        "metadata.json",
        "labels.txt",
        "passport.json",
    }
    content = (tmp_path / "out" / "model.tflite").read_bytes()
    assert metadata["sha256"] == hashlib.sha256(content).hexdigest()
    assert metadata["bytes"] == len(content)
    assert metadata["zlib_bytes"] == len(zlib.compress(content, 9))
    assert metadata["any_batch"] is True
    assert metadata["inputs"] == [
        {"name": "image", "shape": [-1, 8, 8, 1], "dtype": "float32", "scale": 0.0, "zero_point": 0}
    ]
    assert [port["name"] for port in metadata["outputs"]] == ["logits"]
    assert metadata["parity"]["logits"]["agreement"] == 1.0
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()) == metadata
    assert (tmp_path / "out" / "labels.txt").read_text() == "top\nmiddle\nbottom\n"
    passport = Passport.read(tmp_path / "out")
    assert [step["step"] for step in passport.steps] == ["Trainer", "TFLiteExporter"]
    assert passport.steps[-1]["sha256"] == metadata["sha256"]
    assert passport.failure is None


@pytest.mark.slow
def test_export_of_a_model_trained_for_quantization(small: Any, calibration: str, tmp_path: Path) -> None:
    plan = {"layers": QAT_LAYERS, "scheme": "default"}
    source = tmp_path / "model"
    base = small.load()
    keras_io.save(base, str(source))
    wrapped = keras_io.quantization_aware(base, plan)
    wrapped(small.images(), training=True)
    keras_io.save_qat(wrapped, str(source))
    passport = with_scheme(Passport.read(small.folder), "qat8", "uint8", qat=plan)
    metadata = conversion.export(
        Export(parity_samples=8), small.module, passport, toolchain="tools", model_uri=str(source),
        calibration_uri=calibration, serving=tmp_path,
    )  # fmt: skip
    assert metadata["inputs"][0]["dtype"] == metadata["outputs"][0]["dtype"] == "uint8"
    assert metadata["inputs"][0]["scale"] == pytest.approx(1 / 255, rel=0.02)
    assert metadata["parity"]["logits"]["cosine"] > 0.99


def test_export_refuses_what_differs_from_keras(
    small: Any, calibration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conversion._PARITY, "float32", -1.0)
    with pytest.raises(
        ExportError, match=r"output 'logits' differs from the Keras model's by .*; float32 may differ by"
    ):
        export(small, calibration, tmp_path / "out", "float32")
    assert not list((tmp_path / "out").iterdir())


def test_export_refuses_a_broken_promise(small: Any, calibration: str, tmp_path: Path) -> None:
    promises = (Promise("sparsity", "hidden", (128, 16), 0.5),)
    with pytest.raises(BrokenPromiseError, match=r"hidden \(sparsity 0.5, found 0.0000 zeros"):
        export(small, calibration, tmp_path / "out", "float32", promises=promises)
    assert not list((tmp_path / "out").iterdir())


def test_export_refuses_outputs_that_are_no_numbers(tiny_module: Path, tmp_path: Path) -> None:
    code = tiny_module.read_text().replace(
        'keras.layers.Dense(8, activation="relu")', "keras.layers.Activation(tf.math.log)"
    )
    tiny_module.write_text(code + "\n\ndef custom_objects():\n    return {'log': tf.math.log}\n")
    module = model_module.load(str(tiny_module))
    model = module.build_model()
    keras_io.save(model, str(tmp_path))
    calibration_set.write(str(tmp_path / "calibration"), {"x": np.float32([[-1, 1, 1, 1]])}, {})
    passport = with_scheme(Passport(keras_io.describe_io(model, module)), "float32")
    with pytest.raises(ExportError, match="NaN or infinite"):
        conversion.export(
            Export(), module, passport, toolchain="", model_uri=str(tmp_path),
            calibration_uri=str(tmp_path / "calibration"), serving=tmp_path,
        )  # fmt: skip
