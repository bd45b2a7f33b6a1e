"""The process that converts: its deaths, its memory of earlier models, and what it refuses before it crashes."""

from __future__ import annotations

import ctypes
import importlib
import operator
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline import errors
from edgeline.conversion import converter, tensorflow_converter, worker
from edgeline.conversion.failures import ConversionError, ExportError, RefusedGraphError
from edgeline.errors import UserError
from edgeline.isolation import fork_server
from edgeline.isolation.child_process import DiedError

SAMPLES = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)


def io_of(model: tf_keras.Model) -> dict[str, Any]:
    def ports(names: list[str], tensors: list[Any]) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": [None, *tensor.shape[1:]], "dtype": tensor.dtype.name}
            for name, tensor in zip(names, tensors, strict=True)
        ]

    return {"inputs": ports(model.input_names, model.inputs), "outputs": ports(model.output_names, model.outputs)}


def built(between: Any = lambda x: x, units: int = 3) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input([8], name="x")
    hidden = between(tf_keras.layers.Dense(6, name="first")(x))
    return tf_keras.Model(x, tf_keras.layers.Dense(units, name="logits")(hidden), name="small")


def converted(model: tf_keras.Model, scheme: str, samples: np.ndarray = SAMPLES) -> bytes:
    return converter.convert(model, io_of(model), {"scheme": scheme, "io_type": "float32"}, {"x": samples})


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has a child of the test's own, which imports no TensorFlow."""
    monkeypatch.setattr(worker, "_MODULES", ("json",))
    monkeypatch.setattr(worker, "_children", [])
    yield
    worker.stop()


def pid() -> int:
    worker.prepare()
    return worker._children[0].pid


# what it makes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_is_the_same_whatever_was_converted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_children", [])
    first = converted(built(), "int8")  # by a child that has done nothing else
    for scheme in ("float16", "dynamic_range", "int16x8"):
        converted(built(tf_keras.layers.LayerNormalization(), 5), scheme)
    with pytest.raises(ConversionError):
        converted(built(tf.math.log), "int8")
    assert converted(built(), "int8") == first
    assert worker._children[0].calls == 6
    worker.stop()


def test_it_is_renewed_after_so_many_calls(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST_CALLS", 2)
    before = pid()
    assert worker.call(operator.concat, [b"a"], [b"b"]) == [b"a", b"b"]
    assert pid() == before
    worker.call(operator.concat, [], [])
    assert not worker._children
    assert pid() != before


# its deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the other deaths are made by hand
def test_a_crash_of_the_real_quantizer() -> None:
    # with an infinite range the quantizer crashes: here nobody has looked before
    model = built()
    calibrated = converter.calibrate(model, io_of(model), {"x": SAMPLES})
    broken = _with_ranges(calibrated.content, float("-inf"))
    with pytest.raises(ConversionError, match=r"^TensorFlow's converter crashed with SIG\w+ while quantizing to int8:"):
        worker.call(tensorflow_converter.quantize, broken, [[]], "float32", False)
    assert len(converted(model, "float32")) > 500


def _with_ranges(content: bytes, value: float) -> bytes:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for tensor in model.subgraphs[0].tensors:
        if tensor.quantization is not None and tensor.quantization.min is not None:
            tensor.quantization.min = [value]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-signal.SIGABRT, "crashed with SIGABRT while calibrating for int8 on 256 samples: a fault in its own code"),
        (-signal.SIGKILL, "killed with SIGKILL while calibrating for int8 on 256 samples: most likely memory ran out"),
        (-signal.SIGTERM, "ended with SIGTERM while calibrating for int8 on 256 samples"),
        (3, "ended with status 3 while calibrating for int8 on 256 samples"),
        (None, "did not end within 60 s while calibrating for int8 on 256 samples; give it fewer calibration samples"),
    ],
)
def test_a_death_is_told_with_its_step(status: int | None, words: str) -> None:
    message = worker._obituary(DiedError(status, "calibrating for int8 on 256 samples"), 60.0)
    assert words in message
    assert "\n" not in message


def test_a_death_is_an_error_of_the_candidate_and_the_next_call_has_a_new_child(cheap: None) -> None:
    before = pid()
    with pytest.raises(ExportError, match=r"^TensorFlow's converter crashed with SIGSEGV: a fault .*$") as told:
        worker.call(ctypes.string_at, 1)
    assert not errors.is_environment(told.value)
    assert pid() != before
    with pytest.raises(ConversionError, match="killed with SIGKILL: most likely memory ran out; give the machine"):
        worker.call(signal.raise_signal, signal.SIGKILL)
    assert worker.call(operator.concat, [b"a"], [b"b"]) == [b"a", b"b"]


def test_who_takes_too_long_is_killed(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pid()
    monkeypatch.setenv(worker.TIMEOUT_VARIABLE, "0.5")
    with pytest.raises(
        ConversionError, match=r"^the conversion did not end within 0\.5 s; .* EDGELINE_CONVERSION_TIME"
    ):
        worker.call(time.sleep, 30)
    monkeypatch.setenv(worker.TIMEOUT_VARIABLE, "soon")
    with pytest.raises(
        UserError, match="EDGELINE_CONVERSION_TIMEOUT must be a number of seconds above 0, received 'so"
    ):
        worker.call(time.sleep, 30)


# a stranger's ---------------------------------------------------------------------------------------------------------

APART = """
import ctypes, os, signal
from pathlib import Path
from edgeline.conversion.failures import ConversionError, RefusedGraphError
from edgeline.isolation import child_process

def crash(number):
    child_process.say("quantizing to int8")
    if number == signal.SIGSEGV:
        ctypes.string_at(1)
    os.kill(os.getpid(), number)

def refuse():
    raise RefusedGraphError("it has no Foo", ("Foo",))

def fail():
    raise KeyError("first\\nsecond")

def eat():
    return [bytes(2**40)]

def who():
    return [str(os.getpid()).encode(), b""]

def lie():
    import tempfile
    Path(tempfile.tempdir, "answer.json").write_text('{"parts": 1}')
    Path(tempfile.tempdir, "part-0").symlink_to("/etc/hostname")
    os._exit(0)
"""


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module whose functions are called in processes that import no TensorFlow."""
    (tmp_path / "called_apart.py").write_text(APART)
    monkeypatch.syspath_prepend(tmp_path)
    running: list[Any] = []
    monkeypatch.setattr(fork_server, "_PRELOADED", ())
    monkeypatch.setattr(fork_server, "_running", running)
    yield importlib.import_module("called_apart")
    sys.modules.pop("called_apart")
    for server in running:
        server.stop()


def test_a_strangers_has_a_process_of_its_own(apart: Any) -> None:
    first, nothing = worker.call_apart(apart.who)
    assert nothing == b""
    assert worker.call_apart(apart.who)[0] not in (first, str(os.getpid()).encode())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("crash", (signal.SIGSEGV,), r"crashed with SIGSEGV while quantizing to int8: .*needs more than .*--memory"),
        ("crash", (signal.SIGKILL,), r"^the conversion was killed with SIGKILL while quantizing to int8: most likely"),
        ("fail", (), r"^the converter failed: KeyError: 'first\\nsecond'$"),
        ("eat", (), r"^the imported graph is refused: it takes more than .* GiB \(--memory-limit\)$"),
        ("lie", (), r"^the process that converted the imported graph left no answer: part-0 is a link$"),
    ],
)
def test_what_may_become_of_a_strangers(apart: Any, name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConversionError, match=message) as told:
        worker.call_apart(getattr(apart, name), *arguments)
    assert not errors.is_environment(told.value)


def test_a_refusal_crosses_with_the_operators(apart: Any) -> None:
    with pytest.raises(RefusedGraphError, match=r"^it has no Foo$") as refused:
        worker.call_apart(apart.refuse)
    assert refused.value.missing == ("Foo",)


# what it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize(
    ("between", "place"),
    [
        (lambda x: tf.math.log(tf.nn.relu(x)), r"layer tf\.math\.log\w* \(LOG, tensor .*\) has infinite values"),
        (tf.sqrt, r"layer tf\.math\.sqrt\w* \(SQRT, tensor .*\) has NaN"),
    ],
)
def test_ranges_that_are_not_finite_name_the_layer(scheme: str, between: Any, place: str) -> None:
    before = pid()
    with pytest.raises(ConversionError, match=rf"^{scheme} needs the range of every tensor, but {place} on the cal"):
        converted(built(between), scheme)
    assert pid() == before  # it did not even crash


def test_floats_may_be_infinite_on_the_way() -> None:
    model = built(lambda x: tf.exp(tf.math.log(tf.nn.relu(x))))
    assert len(converted(model, "float32")) > 500
    assert len(converted(model, "dynamic_range")) > 500


def test_samples_that_are_not_finite_are_named() -> None:
    broken = SAMPLES.copy()
    broken[3, 2] = np.inf
    with pytest.raises(ConversionError, match=r"but tensor \w+x:0 has infinite values"):
        converted(built(), "int8", broken)


def test_weights_that_are_not_finite_are_named() -> None:
    model = built()
    kernel, bias = model.get_layer("first").get_weights()
    model.get_layer("first").set_weights([np.full_like(kernel, np.nan), bias])
    for scheme in ("float32", "dynamic_range", "int8"):
        with pytest.raises(
            ConversionError, match=rf"^{scheme} cannot be made of weights .*: first/kernel \(48 of 48\)"
        ):
            converted(model, scheme)
    bias[1] = -np.inf
    model.get_layer("first").set_weights([kernel, bias])
    with pytest.raises(
        ConversionError, match=r"^int8 .* NaN or infinite: first/bias \(1 of 6\)\. The training has div"
    ):
        converted(model, "int8")
    assert len(converted(model, "float32")) > 500


def test_operators_without_16x8_are_named_with_their_layers() -> None:
    def between(x: Any) -> Any:
        return tf.square(x) / (tf.abs(x) + 1.0)

    message = r"^TFLite has no int16x8 of the operators .*SQUARE \(layer tf\.math\.square\w*\).*Replace those layers"
    with pytest.raises(ConversionError, match=message) as told:
        converted(built(between), "int16x8")
    assert "\n" not in str(told.value)
