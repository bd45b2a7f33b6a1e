from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline import files
from edgeline.conversion import trial
from edgeline.conversion.failures import BatchError, ExportError
from edgeline.errors import UserError
from edgeline.isolation import limits
from edgeline.tflite import device_cost, inspection


def convert(function: Any, spec: tf.TensorSpec) -> bytes:
    concrete = tf.function(function).get_concrete_function(spec)
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()


@pytest.fixture(scope="module")
def doubling() -> bytes:
    return convert(lambda x: {"y": tf.reduce_sum(x, -1) * 2.0}, tf.TensorSpec([None, 2], tf.float32, name="x"))


@pytest.fixture(scope="module")
def one_only() -> bytes:
    """Says that it takes any batch, and can only take one: the broadcast of a shape that was known too early."""
    ones = tf.ones([1, 2])
    return convert(
        lambda x: {"y": tf.raw_ops.BatchMatMulV2(x=tf.expand_dims(x, 1), y=tf.reshape(x + ones, [1, 2, 1]))},
        tf.TensorSpec([None, 2], tf.float32, name="x"),
    )


def samples(count: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(count * 2, dtype=np.float32).reshape(count, 2)}


def test_what_a_trial_brings(doubling: bytes) -> None:
    found = trial.run(doubling, samples(20), batch=64, timeout_seconds=60)
    # 0 + 1, 2 + 3, 4 + 5, ... twice
    expected = np.float32([2 * (4 * row + 1) for row in range(20)])
    np.testing.assert_array_equal(found.together["y"], expected)
    np.testing.assert_array_equal(found.alone["y"], expected[:8])
    np.testing.assert_array_equal(found.reference["y"], expected[:16])
    assert found.peak_rss_bytes is not None
    assert 0 < found.peak_rss_bytes < 20_000_000


def test_fewer_samples_than_it_would_take(doubling: bytes) -> None:
    found = trial.run(doubling, samples(3), batch=2, timeout_seconds=60)
    for part in (found.together, found.alone, found.reference):
        assert part["y"].tolist() == [2.0, 10.0, 18.0]


def test_the_reference_kernels_stop_in_time(doubling: bytes, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("m.tflite", "in.npz", "out.npz")]
    Path(paths[0]).write_bytes(doubling)
    files.write_arrays(paths[1], samples(20))
    trial.main(*paths, "1", "0")  # no time at all
    found = files.read_arrays(paths[2])
    assert found["reference/y"].tolist() == [2.0]
    assert len(found["together/y"]) == 20


def test_a_model_that_runs_single_examples_only(one_only: bytes) -> None:
    assert trial.run(one_only, samples(2), batch=1, timeout_seconds=60).together["y"].shape == (2, 1, 1)
    with pytest.raises(BatchError, match=r"^LiteRT cannot run the model: RuntimeError: .* \(XNNPACK, batch 16\)$"):
        trial.run(one_only, samples(2), batch=16, timeout_seconds=60)


def test_a_model_that_the_runtime_refuses() -> None:
    message = r"^LiteRT cannot run the model: ValueError: The model is not a valid Flat.* \(XNNPACK, one by one\)$"
    with pytest.raises(ExportError, match=message) as caught:
        trial.run(b"not a model", samples(1), batch=16, timeout_seconds=60)
    assert not isinstance(caught.value, BatchError)


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
        trial.run(b"", samples(1), batch=1, timeout_seconds=60)


@pytest.mark.parametrize(
    ("said", "kind"), [("XNNPACK, batch 16", BatchError), ("reference kernels, one by one", ExportError)]
)
def test_a_crash_says_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type) -> None:
    child(tmp_path, monkeypatch, f"echo 'XNNPACK, one by one'; echo '{said}'; kill -SEGV $$")
    with pytest.raises(kind, match=rf"^LiteRT crashed on the model with SIGSEGV \({said}\)$") as caught:
        trial.run(b"", samples(1), batch=16, timeout_seconds=60)
    assert type(caught.value) is kind


def test_hunger_is_the_candidates_error() -> None:
    # 8 GB, where 5 are allowed
    hungry = convert(
        lambda x: {"y": tf.reduce_sum(tf.fill([1, tf.cast(x[0, 0], tf.int32)], x[0, 1]), -1)},
        tf.TensorSpec([1, 2], tf.float32, name="x"),
    )
    with limits.memory(5):
        trial.run(hungry, {"x": np.float32([[1e3, 1]])}, batch=1, timeout_seconds=60)
        with pytest.raises(ExportError, match=r"LiteRT (cannot run the model|crashed)"):
            trial.run(hungry, {"x": np.float32([[2e9, 1]])}, batch=1, timeout_seconds=60)


def test_a_hang_is_the_candidates_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(tmp_path, monkeypatch, "echo 'XNNPACK, batch 16'; exec sleep 60")
    with pytest.raises(ExportError, match=r"^LiteRT did not finish 7 samples in 1 s \(XNNPACK, batch 16\)$"):
        trial.run(b"", samples(7), batch=16, timeout_seconds=1)


def test_a_death_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(ExportError, match=r"^LiteRT cannot run the model: no message$"):
        trial.run(b"", samples(1), batch=1, timeout_seconds=60)


def test_the_process_does_without_tensorflow() -> None:
    code = "import sys, edgeline.conversion.trial, edgeline.tflite.inspection; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_no_child_imports_what_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resource", "edgeline", "zlib", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="LiteRT cannot run the model: ValueError"):
        trial.run(b"", samples(1), batch=1, timeout_seconds=60)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        inspection.read("none.tflite")
    with pytest.raises(ValueError, match="LiteRT cannot run the model"):
        device_cost.measure("none.tflite", seconds=0.01)
    assert not (tmp_path / "ran").exists()
