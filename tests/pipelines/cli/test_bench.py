"""`edgeline bench`: what the user gives, gets and reads."""

from __future__ import annotations

import argparse
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import bench as bench_command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kernel = np.ones([4, 8], np.float32)
    function = tf.function(lambda x: {"y": tf.matmul(x, kernel)})
    concrete = function.get_concrete_function(tf.TensorSpec([None, 4], tf.float32, name="x"))
    path = tmp_path_factory.mktemp("bench") / "model[" / "b].tflite"  # rich would take it for markup
    path.parent.mkdir()
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert())
    return path


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def bench(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true")
    bench_command.add_commands(parser.add_subparsers(required=True), common)
    arguments = parser.parse_args(["bench", *map(str, argv)])
    return arguments.command(arguments)


def binary(path: Path, rows: str) -> Path:
    header = "\t[Node type]\t[count]\t[avg ms]\t[avg %]\t[cdf %]\t[mem KB]\t[times called]"
    lines = f"=== Summary by node type ===\n{header}\n{rows}"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
    path.chmod(0o755)
    return path


def test_the_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(model, "--seconds", "0.05") == 0
    out, err = capsys.readouterr()
    assert err == ""
    [row] = [line.split() for line in out.splitlines() if str(model) in line]
    content = model.read_bytes()
    assert row[:3] == [str(model), f"{len(content):,}", f"{len(zlib.compress(content, 9)):,}"]
    *times, memory, unit, noise = row[3:]
    in_ms = [
        float(value.replace(",", "")) / (1000 if unit == "µs" else 1)
        for value, unit in zip(times[::2], times[1::2], strict=True)
    ]
    assert set(times[1::2]) <= {"µs", "ms"}
    assert in_ms[0] <= in_ms[1] <= in_ms[2]
    assert float(memory) > 0
    assert unit == "MB"
    assert noise.endswith("%")
    assert "no XNNPACK" in out


def test_a_narrow_terminal_gets_a_table_per_file(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "FILE_WIDTH", 60)
    assert bench(model, model, "--seconds", "0.02") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("peak memory" in line for line in lines) == 2
    assert all(len(line) <= 60 for line in lines if "times of one example" not in line)


def test_json_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiler = binary(tmp_path / "benchmark_model", "\tADD\t1\t0.250\t100.000%\t100.000%\t0.000\t1")
    assert bench(model, "--seconds", "0.05", "--output", "json", "--benchmark-model", profiler) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result["exit_code"] == 0
    [entry] = result["files"]
    assert entry.keys() == {"file", "bytes", "zlib_bytes", "device", "profile", "error"}
    assert (entry["file"], entry["bytes"], entry["error"]) == (str(model), model.stat().st_size, None)
    assert entry["device"]["one_thread"]["runs"] > 0
    assert entry["profile"] == [{"op": "ADD", "ms": 0.25, "percent": 100.0, "count": 1}]


def test_the_operations_are_shown(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "\tCONV_2D\t2\t0.750\t75.000%\t75.000%\t0.000\t2\n\tADD\t1\t0.250\t25.000%\t100.000%\t0.000\t1"
    assert bench(model, "--seconds", "0.02", "--benchmark-model", binary(tmp_path / "profiler", rows)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["CONV_2D", "0.750", "75.0", "2"] in lines
    assert ["ADD", "0.250", "25.0", "1"] in lines


def test_a_bad_file_is_named_and_the_others_are_measured(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise, short = tmp_path / "noise.tflite", tmp_path / "short.tflite"
    noise.write_bytes(np.random.default_rng(0).bytes(1000))
    short.write_bytes(model.read_bytes()[:300])
    missing = tmp_path / "missing[" / "b].tflite"
    files = (noise, missing, model, tmp_path, short)
    assert bench(*files, "--seconds", "0.02") == 2
    out, err = capsys.readouterr()
    assert str(model) in out
    assert err.splitlines() == [
        f"edgeline: {noise}: LiteRT cannot run the model: The model is not a valid Flatbuffer buffer",
        f"edgeline: {missing}: cannot be read: No such file or directory",
        f"edgeline: {tmp_path}: cannot be read: Is a directory",
        f"edgeline: {short}: LiteRT cannot run the model: The model is not a valid Flatbuffer buffer",
    ]
    assert bench(missing, model, "--seconds", "0.02", "--output", "json") == 2
    result = json.loads(capsys.readouterr().out)
    assert result["exit_code"] == 2
    assert [bool(entry["error"]) for entry in result["files"]] == [True, False]
    assert [entry["device"] is None for entry in result["files"]] == [True, False]


def test_a_profile_that_fails_leaves_the_times(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(model, "--seconds", "0.02", "--benchmark-model", binary(tmp_path / "other", "")) == 2
    out, err = capsys.readouterr()
    assert str(model) in out
    assert f"{model}: benchmark binary {tmp_path}/other printed no table" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seconds", "0"), "--seconds must be above 0 and at most 3600, received 0"),
        (("--seconds", "nan"), "--seconds must be above 0 and at most 3600, received nan"),
        (("--seconds", "1e9"), "received 1e"),
        (("--benchmark-model", "no/such"), "benchmark binary no/such does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    options: tuple[str, str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        bench(model, *options)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("cores", "load", "busy"), [(4, 3.0, False), (4, 3.1, True), (1, 0.4, False), (1, 0.6, True)])
def test_a_busy_machine_is_warned_of(
    cores: int, load: float, busy: bool,
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert bench(model, "--seconds", "0.02", "--output", "json") == 0
    warned = f"edgeline: the machine is busy (load {load} on {cores} cores): the times are noise\n"
    assert capsys.readouterr().err == (warned if busy else "")
