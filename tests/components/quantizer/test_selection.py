from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.conversion import converter
from edgeline.conversion.nodes import nodes
from edgeline.errors import UserError
from edgeline.passport import Passport
from edgeline.quantizer import quantization, selection, sensitivity
from edgeline.quantizer.config import Quantize


def quantize(collapsing: Any, config: Quantize, folder: Path) -> Passport:
    quantization.quantize(
        config,
        collapsing.module,
        collapsing.passport,
        toolchain="tools",
        examples_uri=collapsing.examples,
        model_uri=collapsing.folder,
        calibration_uri=collapsing.calibration,
        compressed_uri=str(folder / "compressed"),
        run_uri=str(folder / "run"),
    )
    return Passport.read(folder / "compressed")


def notes(passport: Passport) -> dict[str, str]:
    return {layer["name"]: layer["note"] for layer in passport.steps[-1]["layers"]}


def test_layers_are_kept_by_pattern(collapsing: Any, tmp_path: Path) -> None:
    passport = quantize(collapsing, Quantize("int8", keep_float=["n*", "wide"]), tmp_path)
    assert passport.scheme is not None
    assert passport.scheme["keep_float"] == {"layers": ["wide", "narrow"], "ops": []}
    assert passport.scheme["calibration"]["samples"] == 64
    floats = "left float (keep_float)"
    assert notes(passport) == {"first": "int8", "wide": floats, "narrow": floats, "logits": "int8"}
    assert "sensitivity" not in passport.steps[-1]
    assert "examples" not in passport.steps[-1]["inputs"]
    content = converter.convert(collapsing.load(), passport.io, passport.scheme, collapsing.samples())
    assert len([node for node in nodes(content, None) if node.op == "FULLY_CONNECTED"]) == 4


def test_auto_ends_in_a_scheme_that_the_exporter_knows(collapsing: Any, tmp_path: Path) -> None:
    passport = quantize(collapsing, Quantize("auto", auto_max_drop=0.02), tmp_path)
    assert passport.scheme is not None
    assert passport.scheme["scheme"] == "int8"
    assert set(passport.scheme["keep_float"]["layers"]) == {"wide", "narrow"}
    entry = passport.steps[-1]
    assert entry["config"]["scheme"] == "auto"
    assert [rung["held"] for rung in entry["ladder_walked"]] == [False, False, True]
    assert entry["ladder_walked"][0].keys() == {
        "rung", "scheme", "keep_float", "drop", "bytes", "zlib_bytes", "held", "error",
    }  # fmt: skip
    assert entry["sensitivity"] == json.loads((tmp_path / "run" / "sensitivity.json").read_text())
    assert notes(passport)["wide"] == "left float (auto)"
    assert entry["inputs"].keys() == {"model", "module", "examples"}


def test_int8_can_be_looked_into(collapsing: Any, tmp_path: Path) -> None:
    passport = quantize(collapsing, Quantize("int8", sensitivity_layers=2), tmp_path)
    assert passport.scheme is not None
    assert "keep_float" not in passport.scheme
    assert [entry["drop"] is None for entry in passport.steps[-1]["sensitivity"]] == [False, False, True, True]
    assert set(notes(passport).values()) == {"int8"}


@pytest.mark.slow
def test_a_model_that_converts_for_no_open_batch_is_calibrated_for_one() -> None:
    layers = [tf_keras.Input([3, 2], name="x"), tf_keras.layers.LSTM(4, name="memory"), tf_keras.layers.Dense(3)]
    model = tf_keras.Sequential(layers)
    io = {"inputs": [{"name": "x", "shape": [None, 3, 2], "dtype": "float32"}], "outputs": [{"name": "y"}]}
    found, calibrated = selection._calibrate(model, io, {"x": np.random.default_rng(0).random((4, 3, 2), np.float32)})
    assert found["inputs"][0]["shape"] == [1, 3, 2]
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in {node.op for node in calibrated.nodes}
    [compared] = [
        d for d in sensitivity.compare(calibrated, {"x": np.ones([2, 3, 2], np.float32)}) if "dense" in d.layer
    ]
    assert compared.cosine > 0.9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Quantize(keep_float=["conv*"]),
            r"keep_float: 'conv\*' matches no layer; those that the TFLite model computes are first, wide, narrow, log",
        ),
        (Quantize(keep_float_ops=["SOFTMAX"]), "keep_float_ops: the TFLite model has no op 'SOFTMAX'; it has FULLY"),
        (Quantize(keep_float=["*"]), "leave nothing to quantize; use scheme float32"),
        (Quantize(keep_float_ops=["FULLY_CONNECTED"]), "leave nothing to quantize; use scheme float32"),
    ],
)
def test_what_matches_nothing_or_everything_is_refused(collapsing: Any, config: Quantize, message: str) -> None:
    with pytest.raises(UserError, match=message):
        selection.kept_float(config, collapsing.calibrated())


# the request ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "int88"}, "Quantize.scheme must be one of .*received 'int88'; did you mean int8?"),
        ({"scheme": "automatic"}, "did you mean auto?"),
        ({"scheme": "float32", "keep_float": ["a"]}, "keep_float needs scheme int8 or qat8, received scheme"),
        ({"scheme": "int16x8", "keep_float_ops": ["ADD"]}, "keep_float_ops needs scheme int8, received scheme"),
        ({"scheme": "auto", "keep_float": ["a"]}, "received scheme 'auto': auto chooses them itself"),
        ({"scheme": "auto", "io_type": "int8"}, "io_type 'int8' needs scheme int8 or qat8"),
        ({"keep_float": "a"}, r"Quantize.keep_float must be a list of strings, received 'a'; write keep_float=\['a'\]"),
        ({"keep_float": {"a": 1}}, "Quantize.keep_float must be a list of strings"),
        ({"keep_float_ops": [1]}, "Quantize.keep_float_ops must be a list of strings"),
        ({"keep_float": [""]}, "Quantize.keep_float must be a list of names such as"),
        ({"sensitivity_layers": -1}, "Quantize.sensitivity_layers must be at least 1, or None, received -1"),
        ({"scheme": "float16", "sensitivity_layers": 3}, "needs scheme int8 or auto, received scheme 'float16'"),
        ({"auto_max_drop": -0.1}, "Quantize.auto_max_drop must be at least 0, received -0.1"),
    ],
)
def test_a_bad_request_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**values)


def test_the_same_request_has_one_spelling() -> None:
    first, second = Quantize(keep_float=["b", "a", "b"]), Quantize(keep_float=("a", "b"))
    assert first == second
    assert first.token == second.token
    assert first.token.startswith("int8_x")
    assert first.token != Quantize(keep_float_ops=["a", "b"]).token
    assert Quantize("auto").token == "auto"
    assert Quantize("auto", auto_max_drop=0.02).token.startswith("auto_x")
