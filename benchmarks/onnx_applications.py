"""Published networks of tf_keras.applications as ONNX files: do they convert, how large are they, how close.

Weights are random; the statistics of each BatchNormalization are those of a batch of the samples, since those it begins
with (0 and 1) would hide an error in it. Each network runs 8 samples in TensorFlow and in onnxruntime.

    python benchmarks/onnx_applications.py          # needs the extra: pip install edgeline[onnx]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import record
import tf_keras
from rich.console import Console
from rich.table import Table

from edgeline.conversion import checks, onnx
from edgeline.toolchain import versions

NAMES = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "DenseNet121", "ResNet50V2")
SIZE, CLASSES, SAMPLES = 96, 10, 8


def main() -> None:
    """Measures all networks, prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opset", type=int, choices=onnx.OPSETS, default=onnx.DEFAULT_OPSET)
    parser.add_argument("--output", type=Path, default=record.RESULTS / "onnx_applications.json")
    arguments = parser.parse_args()
    results = []
    for name in NAMES:
        print(name, file=sys.stderr, flush=True)
        results.append({"network": name, **measure(name, arguments.opset)})
    table = Table("network", "converts", "bytes", "largest difference", "without Pad_Fusion", "cosine")
    for result in results:
        numbers = (f"{result['max_abs']:.2g}", f"{result['max_abs_without_pad_fusion']:.2g}", f"{result['cosine']:.6f}")
        shown = (f"{result['bytes']:,}", *numbers) if result["converts"] else (result["error"], "", "", "")
        table.add_row(result["network"], "yes" if result["converts"] else "no", *shown)
    Console().print(table)
    content = {
        "benchmark": "onnx_applications",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions() | {name: metadata.version(name) for name in ("tf2onnx", "onnx", "onnxruntime")},
        "settings": {"opset": arguments.opset, "input": [SIZE, SIZE, 3], "classes": CLASSES, "samples": SAMPLES},
        "networks": results,
    }
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")


def measure(name: str, opset: int) -> dict[str, Any]:
    """Returns converts, and either bytes, max_abs, relative and cosine of the probabilities, or the error."""
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
    model = getattr(tf_keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)
    samples = np.random.default_rng(0).uniform(0, 255, [SAMPLES, SIZE, SIZE, 3]).astype(np.float32)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(samples, training=True)
    io = {
        "inputs": [{"name": "image", "shape": [None, SIZE, SIZE, 3], "dtype": "float32"}],
        "outputs": [{"name": "probabilities", "shape": [None, CLASSES], "dtype": "float32"}],
    }
    try:
        content = onnx.convert(model, io, opset)
        received = onnx.run(content, {"image": samples})
    except Exception as error:  # what fails is a result
        return {"converts": False, "error": str(error).splitlines()[0][:200]}
    expected = checks.reference(model, io, {"image": samples})
    closeness = checks.parity(expected, received)["probabilities"]
    kept = {key: closeness[key] for key in ("max_abs", "relative", "cosine")}
    # an optimizer of onnxruntime's that is wrong of zeros before a max pooling
    without = checks.parity(expected, onnx.run(content, {"image": samples}, pad_fusion=False))
    unfused = without["probabilities"]["max_abs"]
    return {"converts": True, "bytes": len(content), **kept, "max_abs_without_pad_fusion": unfused}


if __name__ == "__main__":
    main()
