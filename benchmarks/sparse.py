"""A float32 model with XNNPACK's sparse format beside the same weights dense, and beside int8.

A chain like MobileNet's: a 3x3 convolution of stride 2, then pairs of a 1x1 convolution and a 3x3 depthwise one, all on
one size. The smallest weights of the 1x1 convolutions are zero. The weights are random: bytes and times depend on where
zeros are, not on what the others learned. One example, one thread, XNNPACK; the files are timed in turn in one process.

XNNPACK uses its sparse kernels on ARM, on WebAssembly and on x86 without AVX; with AVX it computes densely.

    python benchmarks/sparse.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import record
import tf_keras

from edgeline.conversion import converter
from edgeline.tflite import inspection
from edgeline.tflite.litert import TFLiteModel

SCHEMES = {
    "dense": {"scheme": "float32", "io_type": "float32"},
    "sparse": {"scheme": "float32", "io_type": "float32", "sparse": 1},
    "int8": {"scheme": "int8", "io_type": "float32"},
}


def pruned(width: int, size: int, blocks: int, sparsity: float) -> tf_keras.Model:
    """Returns the chain, with so many of the weights of each 1x1 convolution zero."""
    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential([tf_keras.Input([2 * size, 2 * size, 3], name="image"), layers.ZeroPadding2D(1)])
    model.add(layers.Conv2D(32, 3, strides=2, activation="relu"))
    for number in range(blocks):
        model.add(layers.Conv2D(width, 1, activation="relu", name=f"point{number}"))
        model.add(layers.DepthwiseConv2D(3, padding="same", activation="relu"))
        kernel, bias = model.get_layer(f"point{number}").get_weights()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), sparsity)] = 0
        model.get_layer(f"point{number}").set_weights([kernel, bias])
    for layer in (layers.GlobalAveragePooling2D(keepdims=True), layers.Flatten(), layers.Dense(10, name="logits")):
        model.add(layer)
    return model


def timer(content: bytes, image: np.ndarray, runs: int) -> Callable[[], float]:
    """Returns what measures a file: the median of some runs, in ms."""
    model = TFLiteModel(content)
    model.run({"image": image})

    def measure() -> float:
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            model.invoke()
            times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times)

    return measure


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 256), ("size", 56), ("blocks", 4), ("repeats", 15), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    parser.add_argument("--sparsity", type=float, default=0.85, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    model = pruned(asked.width, asked.size, asked.blocks, asked.sparsity)
    images = np.random.default_rng(0).random((8, *model.input_shape[1:]), np.float32)
    shape = [None, *model.input_shape[1:]]
    io = {
        "inputs": [{"name": "image", "shape": shape, "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [None, 10], "dtype": "float32"}],
    }
    files = {name: converter.convert(model, io, scheme, {"image": images}) for name, scheme in SCHEMES.items()}
    facts = {name: inspection.facts(content) for name, content in files.items()}
    times = record.in_turn({name: timer(c, images[:1], asked.runs) for name, c in files.items()}, asked.repeats)
    ratios = []
    for name in ("sparse", "int8"):
        for key in ("bytes", "zlib_bytes"):
            ratios.append(record.Ratio(f"{key}, {name} beside dense", [facts[name][key]], [facts["dense"][key]], "B"))
        ratios.append(record.Ratio(f"p50, {name} beside dense", times[name], times["dense"], "ms"))
    settings = {name: value for name, value in vars(asked).items() if name != "output"}
    seconds = {name: [ms / 1e3 for ms in found] for name, found in times.items()}
    record.report("sparse", ratios, settings=settings, seconds=seconds, output=asked.output)


if __name__ == "__main__":
    main()
