"""The layers that tfmot refuses, in the models that phones run: a sample of `benchmarks/applications.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "applications.py"


def run(out: Path, *options: str) -> str:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of training on a busy machine
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV2", 32),
        # on images of 32x32 nothing is left for its last squeezes, untrained: no scale holds their biases
        ("MobileNetV3Small", 64),
        ("EfficientNetB0", 32),
        ("DenseNet121", 32),
        ("ResNet50V2", 32),
    ],
)
def test_an_application_is_trained_for_quantization_and_becomes_integer(name: str, size: int, tmp_path: Path) -> None:
    run(tmp_path, "--models", name, "--techniques", "qat8", "--input-size", str(size))
    cell = json.loads((tmp_path / f"{name}.qat8.json").read_text())
    assert cell["works"], cell["error"]
    assert cell["left_float"] == cell["float_ops"] == {}
    assert 0.9 <= cell["cosine"] <= 1
    # a byte per parameter, and the graph
    assert cell["parameters"] * 0.95 < cell["bytes"] < cell["parameters"] * 1.5


def test_finished_cells_are_skipped_and_shown(tmp_path: Path) -> None:
    cell = {"input_size": 64, "works": True, "left_float": {}, "float_ops": {}, "cosine": 0.98765, "bytes": 1234567}
    cells = [
        {**cell, "model": "MobileNet", "technique": "qat8", "left_float": {"a": "LSTM"}, "zlib_bytes": 1_240_000},
        {"model": "MobileNet", "technique": "int8", "works": False, "error": "ValueError: its cosine is 0.8899, but"},
        {"model": "MobileNet", "technique": "prune", "works": False, "error": "ValueError: a|b\nc"},
        {**cell, "model": "ResNet50", "technique": "int8", "float_ops": {"MUL": 3, "ADD": 1}, "zlib_bytes": 600_000},
        {**cell, "model": "ResNet50", "technique": "float32", "zlib_bytes": 2_000_000, "latency_ms": 2.0},
        {**cell, "model": "ResNet50", "technique": "prune", "zlib_bytes": 1_000_000, "latency_ms": 1.9},
    ]
    for found in cells:
        (tmp_path / f"{found['model']}.{found['technique']}.json").write_text(json.dumps(found))
    shown = run(tmp_path, "--models", "MobileNet", "--techniques", "int8", "qat8")
    assert shown.splitlines() == [
        "| model | qat8 | int8 | prune 50% | cluster 16 |",
        "|---|---|---|---|---|",
        "| MobileNet | 0.9877, 1.2 MB, 1 float | refused: 0.89 | no: ValueError: a/b c | not run |",
        "| ResNet50 | not run | 0.9877, 0.6 MB, 4 float | 0.9877, 1.0 MB | not run |",
        "",
        "| model | technique | bytes | zlib bytes | of float32 | p50 ms | of float32 |",
        "|---|---|---:|---:|---:|---:|---:|",
        "| ResNet50 | float32 | 1,234,567 | 2,000,000 | 1.000 | 2.00 | 1.00 |",
        "| ResNet50 | prune 50% | 1,234,567 | 1,000,000 | 0.500 | 1.90 | 0.95 |",
    ]
    joined = json.loads((tmp_path / "applications.json").read_text())
    assert [(found["model"], found["technique"]) for found in joined] == [
        ("MobileNet", "qat8"),
        ("MobileNet", "int8"),
        ("MobileNet", "prune"),
        ("ResNet50", "float32"),
        ("ResNet50", "int8"),
        ("ResNet50", "prune"),
    ]
    assert run(tmp_path, "--table") == shown


@pytest.mark.slow
def test_two_models_are_timed_beside_their_float_files(tmp_path: Path) -> None:
    shown = run(tmp_path, "--models", "MobileNetV2", "--techniques", "float32", "int8", "--input-size", "32")
    rows = [line.strip("| ").split(" | ") for line in shown.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["MobileNetV2", "float32"], ["MobileNetV2", "int8"]]
    assert rows[0][4:7:2] == ["1.000", "1.00"]
    assert 0.2 < float(rows[1][4]) < 0.4
    assert float(rows[1][5]) > 0
