"""`edgeline verify`: an exported folder is what it was, and every change to it is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline import files
from edgeline.data import calibration_set
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport, Promise
from edgeline.pipelines.cli import main
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 model of the exporter's, whose kernel was pruned to half."""
    root = tmp_path_factory.mktemp("exported")
    code = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"x": tf.io.FixedLenFeature([8], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["y"]


def build_model():
    return keras.Sequential([keras.Input([8], name="x"), keras.layers.Dense(4, name="logits")])


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])


def class_names():
    return ["a", "b", "c", "d"]
"""
    (root / "m.py").write_text(code)
    module = hooks.load(str(root / "m.py"))
    tf_keras.utils.set_random_seed(1)
    model = module.build_model()
    kernel, bias = model.get_weights()
    kernel[::2] = 0
    model.set_weights([kernel, bias])
    keras_file.save(model, str(root / "model"))
    samples = np.random.default_rng(0).normal(size=[12, 8]).astype(np.float32)
    calibration_set.write(str(root / "calibration"), {"x": samples}, {})
    serving = root / "1790000000"
    serving.mkdir()
    passport = Passport(
        keras_file.describe_io(model, module),
        steps=({"step": "Trainer", "config": {}, "model": ""},),
        promises=(Promise("sparsity", "logits", (8, 4), 0.5),),
        scheme={"scheme": "int8", "io_type": "float32"},
    )
    conversion.export(
        Export(timeout_seconds=60), module, passport, toolchain="tools",
        model_uri=str(root / "model"), calibration_uri=str(root / "calibration"), serving=serving,
    )  # fmt: skip
    return serving


Verify = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Verify:
    def run(path: Path) -> tuple[int, dict[str, Any]]:
        code = main.main(["verify", str(path), "--output", "json"])
        [line] = capfd.readouterr().out.splitlines()
        found = json.loads(line)
        assert found["exit_code"] == code == (2 if found["differences"] else 0)
        return code, found

    return run


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_bundle(bundle: Path, verify: Verify, capfd: pytest.CaptureFixture[str]) -> None:
    code, found = verify(bundle)
    assert (code, found["differences"]) == (0, [])
    assert list(found["checks"]) == ["file", "passport", "ports", "labels", "promises", "golden"]
    assert all(check["checked"] for check in found["checks"].values())
    assert found["checks"]["golden"]["found"] == "8 examples, equal"
    assert found["checks"]["promises"]["found"] == "1 kept"
    assert verify(bundle / "model.tflite") == (0, found)
    assert main.main(["verify", str(bundle)]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"{bundle / 'model.tflite'} is what was exported"
    assert "✓ labels: 4 classes" in out
    assert err == ""


def test_a_changed_byte(bundle: Path, verify: Verify) -> None:
    content = bytearray((bundle / "model.tflite").read_bytes())
    content[content.index(b"serving_default")] ^= 1
    (bundle / "model.tflite").write_bytes(content)
    _, found = verify(bundle)
    [file, passport, *_] = found["differences"]
    assert file.startswith("file: SHA-256 ")
    assert passport.startswith("passport: SHA-256 ")


def test_a_cut_file_is_not_run(bundle: Path, verify: Verify) -> None:
    content = (bundle / "model.tflite").read_bytes()
    (bundle / "model.tflite").write_bytes(content[:500])
    _, found = verify(bundle)
    assert f"file: 500 bytes, expected {len(content):,}" in found["differences"]
    assert "not a sound TFLite model" in found["differences"][-1]
    assert list(found["checks"]) == ["file", "passport", "model"]


def test_other_ports(bundle: Path, verify: Verify) -> None:
    edit(bundle / "metadata.json", lambda m: m["inputs"][0].update(shape=[-1, 9], dtype="int8"))
    edit(bundle / "metadata.json", lambda m: m["outputs"][0].update(name="y"))
    assert verify(bundle)[1]["differences"] == [
        "ports: input x has shape [-1, 8], expected [-1, 9]",
        "ports: input x has dtype float32, expected int8",
        "ports: outputs logits, expected y",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a\nb\nc\nd\ne\n",
            ["labels.txt has 5 lines, passport.json 4 labels",
             "labels.txt has 5 lines, but no output has so many values: 4"],
        ),
        ("a\nc\nb\nd\n", ["labels.txt has 4 lines, passport.json 4 labels; line 2 is 'c', expected 'b'"]),
        (None, ["labels.txt is missing, expected 4 classes"]),
    ],
)  # fmt: skip
def test_other_labels(text: str | None, expected: list[str], bundle: Path, verify: Verify) -> None:
    (bundle / "labels.txt").unlink() if text is None else (bundle / "labels.txt").write_text(text)
    assert verify(bundle)[1]["differences"] == [f"labels: {line}" for line in expected]


def test_a_promise_that_does_not_hold(bundle: Path, verify: Verify) -> None:
    edit(bundle / "passport.json", lambda p: p["promises"][0].update(value=0.9))
    [difference] = verify(bundle)[1]["differences"]
    assert difference.startswith("promises: the conversion broke what was promised for 1 layers: logits (sparsity 0.9")


@pytest.mark.slow
def test_a_memory_limit(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["verify", str(bundle), "--memory-limit", "4"]) == 0
    assert main.main(["verify", str(bundle), "--memory-limit", "0.5"]) == 2
    assert "the memory limit must be at least 4 GiB, received 0.5" in capfd.readouterr().err


def test_golden_outputs(bundle: Path, verify: Verify) -> None:
    golden = files.read_arrays(bundle / "golden.npz")
    step = 0.05  # of the output's own quantization, at least
    files.write_arrays(bundle / "golden.npz", golden | {"outputs/logits": golden["outputs/logits"] + step * 0.01})
    _, found = verify(bundle)
    assert (found["differences"], found["checks"]["golden"]["found"]) == ([], "8 examples, equal within rounding")
    files.write_arrays(bundle / "golden.npz", golden | {"outputs/logits": golden["outputs/logits"] + 1})
    [difference] = verify(bundle)[1]["differences"]
    assert difference.startswith("golden: output logits differs by 1 on 8 examples, ")
    files.write_arrays(bundle / "golden.npz", golden | {"outputs/logits": golden["outputs/logits"] * np.nan})
    assert "golden: output logits differs by nan" in verify(bundle)[1]["differences"][0]
    files.write_arrays(bundle / "golden.npz", {"inputs/y": golden["inputs/x"]})
    assert "golden.npz has inputs/y, the model inputs/x, outputs/logits" in verify(bundle)[1]["differences"][0]
    (bundle / "golden.npz").write_bytes(b"PK no zip")
    assert "golden.npz cannot be read" in verify(bundle)[1]["differences"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metadata.json", "passport.json", "golden.npz"])
def test_a_missing_file(name: str, bundle: Path, verify: Verify) -> None:
    (bundle / name).unlink()
    assert [line.partition(": ")[2] for line in verify(bundle)[1]["differences"]] == [f"{name} is missing"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{", "[1]", '{"schema_version": 1, "promises": [], "steps": [], "io": 7}'])
def test_files_that_are_none(text: str, bundle: Path, verify: Verify) -> None:
    for name in ("metadata.json", "passport.json"):
        (bundle / name).write_text(text)
    assert [line.partition(" (")[0] for line in verify(bundle)[1]["differences"]] == [
        "file: metadata.json cannot be read",
        "passport: passport.json cannot be read",
    ]


def test_files_that_would_take_too_much(bundle: Path, verify: Verify) -> None:
    (bundle / "metadata.json").write_text("[" * 10**5)
    with (bundle / "labels.txt").open("wb") as file:
        file.truncate(2**36)  # takes no room on the disk, and 64 GiB where it is read
    golden = (bundle / "golden.npz").read_bytes()
    (bundle / "golden.npz").unlink()  # nothing has to be run
    assert verify(bundle)[1]["differences"] == [
        "file: metadata.json cannot be read (ValueError: it is nested too deep)",
        "labels: labels.txt cannot be read (ValueError: it has 68,719,476,736 bytes, allowed are 16,777,216)",
        "golden: golden.npz is missing",
    ]
    (bundle / "golden.npz").write_bytes(golden[:-10])
    (bundle / "passport.json").unlink()
    os.mkfifo(bundle / "passport.json")
    differences = verify(bundle)[1]["differences"]
    assert differences[1] == "passport: passport.json cannot be read (ValueError: it is no plain file)"


def test_what_is_no_bundle(exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path, message in (
        (tmp_path / "nowhere", "does not exist; give a .tflite file or the folder"),
        (tmp_path, "give the folder that a model was exported to"),
        (exported.parent, f"give {exported}"),
    ):
        assert main.main(["verify", str(path)]) == 2
        assert message in capfd.readouterr().err
