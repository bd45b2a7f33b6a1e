"""A crash of LiteRT is an error of the model that it ran, and of no other."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline.tflite import model_processes
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite.model_processes import ModelProcesses, RunError, SharedBatches


@pytest.fixture(autouse=True)
def slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Processes of the test's own."""
    own: list[Any] = []
    monkeypatch.setattr(model_processes, "_slots", own)
    yield own
    model_processes.stop()


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tf.TensorSpec([None, 4], tf.float32, name="x")
    traced = tf.function(lambda x: {"y": x * 2.0}).get_concrete_function(source)
    path = tmp_path_factory.mktemp("models") / "doubled.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([traced], tf.Module()).convert())
    return path


@pytest.fixture(scope="module")
def batches() -> list[dict[str, np.ndarray]]:
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    return [{"x": values[:8]}, {"x": values[8:16]}, {"x": values[16:]}]


def test_outputs_are_those_of_this_process(
    doubled: Path, batches: list[dict[str, np.ndarray]], slots: list[Any]
) -> None:
    here = TFLiteModel(doubled)
    names = [port.name for port in here.outputs]
    expected = np.concatenate([here.run(batch, 8)[names[0]] for batch in batches])
    models = ModelProcesses({"a": str(doubled), "b": str(doubled)})
    with SharedBatches(batches) as inputs:
        assert inputs.sizes == [8, 8, 4]
        for model in ("a", "b", doubled.read_bytes()):
            [received] = models.run(model, inputs, 8, names)
            np.testing.assert_array_equal(received, expected)
        [received] = models.run("a", inputs, 8, names, 2)
        np.testing.assert_array_equal(received, expected[:16])
        with pytest.raises(RunError, match=r"^KeyError: 'other'$"):
            models.run("a", inputs, 8, ["other"])
        with pytest.raises(RunError, match=r"^ValueError: .*"):
            models.run(b"no model", inputs, 8, names)
    models.close()
    assert len([slot for slot in slots if slot._child is not None]) <= 2


def test_a_crash_is_the_models_own(
    doubled: Path, batches: list[dict[str, np.ndarray]], slots: list[Any], crashing: Callable[..., bytes]
) -> None:
    one_process(slots)
    path = doubled.with_name("crashing.tflite")
    path.write_bytes(crashing(tf.TensorSpec([1, 4], tf.float32, name="x"), "y"))
    models = ModelProcesses({"before": str(doubled), "crashing": str(path), "after": str(doubled)})
    with SharedBatches(batches) as inputs:
        for _ in range(2):
            [before] = models.run("before", inputs, 8, ["y"])
            with pytest.raises(RunError, match=r"^LiteRT crashed on the model with SIG(SEGV|BUS)$"):
                models.run("crashing", inputs, 8, ["y"])
            [after] = models.run("after", inputs, 8, ["y"])
            np.testing.assert_array_equal(before, after)
        with pytest.raises(RunError, match=r"^LiteRT crashed on the model with SIGABRT$"):
            model_processes.call(os.abort)
        models.run("after", inputs, 8, ["y"])


def test_models_that_are_done_with_are_let_go_of(
    doubled: Path, batches: list[dict[str, np.ndarray]], slots: list[Any]
) -> None:
    one_process(slots)
    models = ModelProcesses({"a": str(doubled)})
    with SharedBatches(batches) as inputs:
        models.run("a", inputs, 8, ["y"])
        assert model_processes.call(eval, KEPT) == [b"1"]
        models.close()
        assert model_processes.call(eval, KEPT) == [b"0"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        models.run("a", inputs, 8, ["y"])


def test_any_inputs_are_shared(slots: list[Any]) -> None:
    one_process(slots)
    batch = {
        "text": np.array([b"a", b"longer", b""], object), "flag": np.array([True, False, True]),
        "turned": np.arange(12, dtype=np.int16).reshape(4, 3).T, "none": np.zeros([3, 0], np.float32),
    }  # fmt: skip
    with SharedBatches([batch, batch]) as inputs:
        descriptor, places = inputs.described(2)
        memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        for place in places:
            for name, values in batch.items():
                np.testing.assert_array_equal(model_processes._array(memory, *place[name]), values)


def one_process(slots: list[Any]) -> None:
    slots.append(model_processes._Slot())


#: How many models the process keeps, as an expression that it evaluates.
KEPT = "[str(len(__import__('sys').modules['edgeline.tflite.model_processes']._loaded)).encode()]"
