"""`edgeline inspect`: what the user gives, gets and reads."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgeline import passport as passports
from edgeline.errors import UserError
from edgeline.passport import Passport
from edgeline.pipelines.cli import inspect_file


@pytest.fixture(scope="module")
def content() -> bytes:
    kernel = np.eye(4, 16, dtype=np.float32)  # 60 of 64 are zero

    @tf.function
    def double(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.name_scope("net/double/"):
            return {"y": tf.matmul(x, kernel)}

    concrete = double.get_concrete_function(tf.TensorSpec([None, 4], tf.float32, name="x"))
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()


@pytest.fixture
def model(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "m[b].tflite"
    path.write_bytes(content)
    return path


def inspect(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    inspect_file.add_commands(parser.add_subparsers(required=True), argparse.ArgumentParser(add_help=False))
    arguments = parser.parse_args(["inspect", *map(str, argv)])
    return arguments.command(arguments)


def test_the_tables(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(model) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith(f"{model}: {model.stat().st_size:,} bytes, ")
    assert ["input", "x", "[any,", "4]", "float32"] in lines
    assert ["output", "y", "[any,", "16]", "float32"] in lines
    assert ["FULLY_CONNECTED", "1", "1"] in lines
    [row] = [line for line in lines if "[16," in line]
    # 1 x 16 rows of zeros, 4 with a one in it
    assert row[2:6] == ["float32", "[16,", "4]", "256"]
    assert row[7:] == ["93.8%", "2", "2"]


def test_json_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(model, "--output", "json") == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    facts = json.loads(out)
    assert facts["exit_code"] == 0
    assert facts["file"] == str(model)
    assert facts["ops"]["builtin"] == {"FULLY_CONNECTED": 1}
    assert facts["passport"] is None


def test_a_target(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(model, "--target", "gpu") == 0
    assert capsys.readouterr().out.endswith("fits target gpu\n")
    assert inspect(model, "--target", "micro") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("target micro: inputs and outputs must be int8, uint8, int16 or int32, x is float32")
    assert lines[-2].startswith("target micro: all sizes must be fixed, x is [any, 4], y is [any, 16]")
    assert lines[-1] == (
        "target micro: it computes on integers only, but on floats compute FULLY_CONNECTED; quantize them, or replace "
        "their layers"
    )
    assert inspect(model, "--target", "micro", "--output", "json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["exit_code"], facts["target"]) == (1, {"name": "micro", "misfits": lines[-3:]})
    assert inspect(model, "--output", "json") == 0
    assert "target" not in json.loads(capsys.readouterr().out)


def test_the_passport_beside_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passport = Passport({}, scheme={"scheme": "int8"}).with_step("Pruner", {"sparsity": 0.8}, inputs={}, toolchain="t")
    passport.failed("TFLiteExporter", ValueError("no [such] op")).write(model.parent)
    assert inspect(model) == 0
    out, _ = capsys.readouterr()
    assert "Pruner: sparsity=0.8\n" in out
    assert "failed: TFLiteExporter: ValueError: no [such] op\n" in out
    assert inspect(model, "--output", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passport"]["steps"] == [{"step": "Pruner", "config": {"sparsity": 0.8}}]


def test_a_passport_that_cannot_be_read(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "passport.json").write_text("{")
    assert inspect(model) == 0
    assert f"{model.parent / 'passport.json'} cannot be read: JSONDecodeError: " in capsys.readouterr().out


def test_no_damaged_file_gets_through(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(0)
    for kind in range(6):
        damaged = bytearray(content)
        for _ in range(8):
            damaged[dice.randrange(8, len(damaged))] = dice.randrange(256)
        path = tmp_path / f"{kind}.tflite"
        path.write_bytes(damaged[: dice.randrange(100, len(damaged))] if kind % 2 else damaged)
        try:
            assert inspect(path) == 0
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
    capsys.readouterr()
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        inspect(tmp_path / "nowhere.tflite")
    with pytest.raises(UserError, match=r"is a folder without saved_model\.pb, so no SavedModel"):
        inspect(tmp_path)


# signatures -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel and a file, `m.tflite`, with the signatures `encode` and `decode`."""
    folder = tmp_path_factory.mktemp("two")
    specs = {"encode": tf.TensorSpec([None, 4], name="x"), "decode": tf.TensorSpec([2, 3], tf.int32, name="code")}
    holder = tf.Module()
    holder.functions = {
        "encode": tf.function(lambda x: {"encoded": x + 1}, input_signature=[specs["encode"]]),
        "decode": tf.function(lambda code: {"decoded": code + 1}, input_signature=[specs["decode"]]),
    }
    signatures = {name: holder.functions[name].get_concrete_function() for name in specs}
    tf.saved_model.save(holder, str(folder / "sm"), signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "sm"), signature_keys=list(specs))
    (folder / "m.tflite").write_bytes(converter.convert())
    return folder


@pytest.mark.parametrize("name", ["sm", "m.tflite"])
def test_all_signatures_are_listed(two: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert inspect(two / name) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = [lines.index(["signature", signature]) for signature in ("decode", "encode")]
    assert at == sorted(at)
    assert ["input", "code", "[2,", "3]", "int32"] in lines[at[0] : at[1]]
    assert ["output", "decoded", "[2,", "3]", "int32"] in lines[at[0] : at[1]]
    assert ["input", "x", "[any,", "4]", "float32"] in lines[at[1] :]
    assert inspect(two / name, "--output", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    ports = {
        found["name"]: [port["name"] for port in (*found["inputs"], *found["outputs"])] for found in facts["signatures"]
    }
    assert ports == {"decode": ["code", "decoded"], "encode": ["x", "encoded"]}


def test_a_saved_model_that_cannot_be_read(two: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--target is for \.tflite files, but .* is a folder"):
        inspect(two / "sm", "--target", "cpu")
    whole = (two / "sm" / "saved_model.pb").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        (tmp_path / "saved_model.pb").write_bytes(damaged)
        with pytest.raises(UserError, match="is truncated, or no SavedModel"):
            inspect(tmp_path)


# the passport's reader ------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
_STEP = st.fixed_dictionaries(
    {"step": _JSON, "config": st.dictionaries(st.text(max_size=5), _JSON, max_size=2) | _JSON}
)
_PASSPORT = st.fixed_dictionaries(
    {"schema_version": st.just(passports.SCHEMA_VERSION) | _JSON, "promises": st.lists(_JSON, max_size=2) | _JSON},
    optional={
        "io": _JSON, "steps": st.lists(_STEP, max_size=2) | _JSON, "scheme": _JSON, "failure": _JSON, "more": _JSON
    },
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(_PASSPORT | _JSON)
@example({"schema_version": 1, "promises": [], "steps": [], "io": {}, "failure": "text"})
def test_any_json_in_a_passports_place(tmp_path: Path, found: Any) -> None:
    (tmp_path / "passport.json").write_text(json.dumps(found))
    said = inspect_file._passport(tmp_path)
    assert said is not None
    assert said.keys() in ({"error"}, {"steps", "scheme", "failure"})
    inspect_file._print_passport(inspect_file.Console(quiet=True), said)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(st.binary(max_size=200))
def test_any_bytes_in_a_passports_place(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "passport.json").write_bytes(found)
    said = inspect_file._passport(tmp_path)
    assert said is not None
    inspect_file._print_passport(inspect_file.Console(quiet=True), said)
