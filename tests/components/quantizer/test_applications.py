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
    cell = {"model": "MobileNet", "input_size": 64}
    done = {**cell, "technique": "qat8", "works": True, "left_float": {"a": "LSTM"}, "float_ops": {"MUL": 3, "ADD": 1}}
    done |= {"cosine": 0.98765, "bytes": 1234567, "zlib_bytes": 1000, "latency_ms": 1.26}
    (tmp_path / "MobileNet.qat8.json").write_text(json.dumps(done))
    (tmp_path / "MobileNet.int8.json").write_text(
        json.dumps({**cell, "technique": "int8", "works": False, "error": "ValueError: a|b\nc"})
    )
    shown = run(tmp_path, "--models", "MobileNet", "--techniques", "int8", "qat8")
    assert shown.splitlines()[2:] == [
        "| MobileNet | qat8 | yes | 1 | 0.9877 | 1,234,567 | 1,000 | 1.3 |",
        "| MobileNet | int8 | no: ValueError: a/b c | | | | | |",
    ]
    joined = json.loads((tmp_path / "applications.json").read_text())
    assert [found["technique"] for found in joined] == ["qat8", "int8"]
    assert run(tmp_path, "--table") == shown
