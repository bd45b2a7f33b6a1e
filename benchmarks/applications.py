"""Every model of `tf_keras.applications` that phones run, through pruning, clustering and quantization to TFLite.

One cell is a model and a technique: `prune` (50% zeros), `cluster` (16 values), `qat8` (trained for quantization) or
`int8` (quantized after training). The models have random weights, batch normalizations that know their data, and logits
that differ between inputs. Each is trained for a few steps on small images, and exported by the TFLiteExporter's own
function with all its checks: promises kept in the file, and outputs close to those of the Keras model. What is shown is
that it works, and what the file is like; not accuracy.

A deep network of random weights is chaotic: it amplifies rounding from layer to layer as no trained one does, so that
of MobileNetV2 quantized after training a cosine of 0.39 is left. The normalizations are therefore given a scale of 0.5
and an offset of 1, with which most activations are open and the networks nearly linear. Those that end the branch of a
residual block are given 0.1 and 0: as in trained networks each block then adds a little to what it is given, and
rounding adds up instead of multiplying (EfficientNetB4 keeps a cosine of 0.95 through int8, where it had 0.83).

Each cell runs in a process of its own and leaves one file, `OUT/<model>.<technique>.json`, an error too: a run that is
stopped goes on where it was. Two models keep their `.tflite` files beside it, those of `float32` too, whose inferences
are timed in turn once all cells are there.

    python benchmarks/applications.py --out DIR [--models MobileNetV2 ResNet50] [--techniques qat8 int8]
    python benchmarks/applications.py --out DIR --time      # once more, when nothing else runs
    python benchmarks/applications.py --out DIR --table
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

MODELS = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "DenseNet121", "ResNet50",
    "ResNet50V2", "EfficientNetV2B0", "EfficientNetB1", "EfficientNetV2B1", "EfficientNetB2", "EfficientNetV2B2",
    "EfficientNetB3", "EfficientNetV2S", "ResNet101", "DenseNet169", "EfficientNetB4", "DenseNet201", "ResNet152",
    "EfficientNetB5", "EfficientNetV2M", "EfficientNetB6", "EfficientNetV2L", "EfficientNetB7",
)  # fmt: skip
#: By the name in files; how the tables call them.
TECHNIQUES = {"qat8": "qat8", "int8": "int8", "prune": "prune 50%", "cluster": "cluster 16"}
#: Of these the time of an inference is measured too, and of the file of no technique.
TIMED = ("MobileNetV2", "ResNet50")
_REFERENCE = "float32"
_ALL = (_REFERENCE, *TECHNIQUES)
CLASSES = 10
TRAIN, VALIDATION, BATCH = 24, 16, 8

_MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    image = tf.io.FixedLenFeature([{size} * {size} * 3], tf.float32)
    return {{"image": image, "label": tf.io.FixedLenFeature([], tf.int64)}}


def preprocess(features):
    return tf.reshape(features["image"], [-1, {size}, {size}, 3]), features["label"]


def build_model():
    raise NotImplementedError("the model is given")


def compile_model(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
"""


def images(count: int, size: int, seed: int, *, of_bytes: bool) -> tuple[Any, Any]:
    """Returns images of smooth random patterns, one per class and each with some of its own, and their labels.

    Args:
      count: how many.
      size: height and width.
      seed: of those that share the classes' patterns.
      of_bytes: whether values are in [0, 255]; else in [-1, 1].

    Returns:
      Images, float32, shape [count, size, size, 3], and labels, int64.
    """
    import numpy as np
    import tensorflow as tf

    labels = np.arange(count) % CLASSES
    patterns = np.random.default_rng(0).uniform(-1, 1, [CLASSES, 4, 4, 3])[labels]
    own = np.random.default_rng(seed).uniform(-1, 1, [count, 8, 8, 3])
    mixed = 0.7 * tf.image.resize(patterns, [size, size]) + 0.3 * tf.image.resize(own, [size, size])
    values = mixed.numpy().astype(np.float32)
    return (values + 1) * 127.5 if of_bytes else values, labels


def takes_bytes(name: str) -> bool:
    """Returns whether an application scales its input itself."""
    return name.startswith(("EfficientNet", "MobileNetV3"))


def ends_branch(norm: Any) -> bool:
    """Returns whether all that a layer's output is for is to be added to another's, perhaps after some dropout."""
    import tf_keras

    after = [node.outbound_layer for node in norm.outbound_nodes]
    if len(after) != 1:
        return False
    if isinstance(after[0], tf_keras.layers.Dropout | tf_keras.layers.Activation):
        return ends_branch(after[0])
    return isinstance(after[0], tf_keras.layers.Add)


def build(name: str, size: int, samples: Any) -> Any:
    """Returns an application with random weights whose outputs have a mean of 0 and a deviation of 1 on the samples.

    Args:
      name: in `tf_keras.applications`.
      size: height and width of its input.
      samples: shape [samples, size, size, 3]; its batch normalizations get their statistics.
    """
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    model = getattr(tf_keras.applications, name)(
        input_shape=(size, size, 3), weights=None, classes=CLASSES, classifier_activation=None
    )
    norms = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        scale, offset = (0.1, 0.0) if ends_branch(norm) else (0.5, 1.0)
        if norm.scale:
            norm.gamma.assign(scale * tf.ones_like(norm.gamma))
        norm.beta.assign(offset * tf.ones_like(norm.beta))
    model(samples, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    last = [layer for layer in model.layers if getattr(layer, "kernel", None) is not None][-1]
    outputs = model(samples, training=False).numpy()
    spread = outputs.std(0).mean()
    last.kernel.assign(last.kernel / spread)
    last.bias.assign((last.bias - outputs.mean(0)) / spread)
    differs = model(samples, training=False).numpy().std(0).min()
    if differs <= 0.1:
        raise AssertionError(f"the outputs of {name} hardly differ between inputs: {differs}")
    return model


def run_cell(name: str, technique: str, size: int, folder: Path, keep: Path) -> dict[str, Any]:
    """Compresses and exports one application.

    Args:
      name: in `tf_keras.applications`.
      technique: of TECHNIQUES, or none: `float32`.
      size: height and width of its input.
      folder: for the files, exists.
      keep: where the file of a TIMED model is copied to.

    Returns:
      left_float (layers by name, and why), float_ops (operators by name), parity (see `conversion.export`), cosine,
      bytes, zlib_bytes, ops, and seconds of each part.
    """
    import numpy as np
    import tensorflow as tf

    from edgeline import layout
    from edgeline.clusterer import clustering
    from edgeline.clusterer.config import Cluster
    from edgeline.data import calibration_set
    from edgeline.model_io import keras_file
    from edgeline.model_module import hooks
    from edgeline.passport import Passport
    from edgeline.pruner import pruning
    from edgeline.pruner.config import Prune
    from edgeline.quantizer import quantization
    from edgeline.quantizer.config import Quantize
    from edgeline.tflite_exporter import conversion
    from edgeline.tflite_exporter.config import Export
    from edgeline.training import loop

    began = time.perf_counter()
    seconds: dict[str, float] = {}

    def tick(part: str) -> None:
        seconds[part] = round(time.perf_counter() - began - sum(seconds.values()), 1)

    path = folder / "application.py"
    path.write_text(_MODULE.format(size=size))
    module = hooks.load(str(path))
    for seed, (split, count) in enumerate((("train", TRAIN), ("validation", VALIDATION)), 1):
        values, labels = images(count, size, seed, of_bytes=takes_bytes(name))
        (folder / f"Split-{split}").mkdir()
        with tf.io.TFRecordWriter(str(folder / f"Split-{split}" / "data.gz"), "GZIP") as writer:
            for image, label in zip(values, labels, strict=True):
                features = {
                    "image": tf.train.Feature(float_list=tf.train.FloatList(value=image.ravel())),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    common = {"epochs": 1, "batch_size": BATCH}
    loop.start(0, deterministic=False)
    samples, _ = images(32, size, 3, of_bytes=takes_bytes(name))
    model = build(name, size, samples)
    io = keras_file.describe_io(model, module)
    calibration_set.write(str(folder / "calibration"), {io["inputs"][0]["name"]: samples}, {})
    tick("build")

    scheme: dict[str, Any] = {"scheme": "float32", "io_type": "float32"}
    asked: Any = None
    source, log_dir = str(folder / "model"), str(folder / "logs")
    outcome = None
    if technique in (_REFERENCE, "int8"):
        scheme["scheme"] = technique
        keras_file.save(model, source)
    elif technique == "qat8":
        asked = Quantize("qat8", **common)
        keras_file.save(model, source)
        splits = loop.open_splits(str(folder), module, asked)
        outcome, plan = quantization.train_aware(model, module, splits, asked, (), log_dir)
        keras_file.save_qat(outcome.model, source)
        scheme |= {"scheme": "qat8", "qat": plan}
    else:
        asked, step = (Prune(0.5, **common), pruning.prune) if technique == "prune" else (
            Cluster(16, **common), clustering.cluster)  # fmt: skip
        splits = loop.open_splits(str(folder), module, asked)
        outcome = step(model, module, splits, asked, (), log_dir)
        keras_file.save(outcome.model, source)
    promises = outcome.promises if outcome is not None else ()
    passport = Passport(io, ({"step": technique, "config": {}, "model": ""},), promises, scheme)
    tick(technique)
    (folder / "serving").mkdir()
    metadata = conversion.export(
        Export(parity_samples=16, batch_size=8, timeout_seconds=3600), module, passport, toolchain="", model_uri=source,
        calibration_uri=str(folder / "calibration"), serving=folder / "serving",
    )  # fmt: skip
    tick("export")
    if name in TIMED:
        shutil.copyfile(folder / "serving" / layout.TFLITE_FILE, keep)
    return {
        "left_float": scheme.get("qat", {}).get("left_float", {}),
        "parity": metadata["parity"],
        "cosine": next(iter(metadata["parity"].values()))["cosine"],
        "promises": len(promises),
        **{key: metadata[key] for key in ("bytes", "zlib_bytes", "sparsity", "ops", "float_ops")},
        "parameters": int(sum(np.prod(weight.shape) for weight in model.weights)),
        "seconds": seconds,
    }


def one(name: str, technique: str, size: int, output: Path) -> None:
    """Runs a cell in this process and writes its file; a failing one's has the error."""
    result: dict[str, Any] = {"model": name, "technique": technique, "input_size": size}
    with tempfile.TemporaryDirectory(prefix="edgeline-") as folder:
        try:
            result |= {"works": True, **run_cell(name, technique, size, Path(folder), output.with_suffix(".tflite"))}
        except Exception as error:
            result |= {"works": False, "error": f"{type(error).__name__}: {error}"}
    _write(output, result)


def _write(path: Path, content: Any) -> None:
    # never half a file, which would pass for a finished cell
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def _cells(models: list[str], techniques: list[str]) -> list[tuple[str, str]]:
    return [(m, t) for m in models for t in techniques if m in TIMED or t != _REFERENCE]


def run(models: list[str], techniques: list[str], size: int, out: Path, *, retry: bool) -> None:
    """Runs all cells that are not finished, one after the other; with `retry` those that failed too."""
    out.mkdir(parents=True, exist_ok=True)
    cells = _cells(models, techniques)
    for number, (model, technique) in enumerate(cells, 1):
        path = out / f"{model}.{technique}.json"
        if path.exists() and not (retry and not json.loads(path.read_text())["works"]):
            continue
        path.unlink(missing_ok=True)
        began = time.perf_counter()
        command = [sys.executable, __file__, "--cell", model, technique, "--input-size", str(size), "--out", str(out)]
        child = subprocess.run(command, capture_output=True, check=False)
        if not path.exists():  # it was killed, or crashed
            last = (child.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            error = f"exit code {child.returncode}: {last}"
            _write(path, {"model": model, "technique": technique, "input_size": size, "works": False, "error": error})
        result = json.loads(path.read_text())
        shown = f"cosine {result['cosine']:.4f}" if result["works"] else result["error"][:200]
        took = time.perf_counter() - began
        print(f"{number}/{len(cells)} {model} {technique}: {shown} ({took:.0f} s)", file=sys.stderr, flush=True)


def measure_times(files: list[Path], rounds: int = 3, seconds: float = 3.0) -> None:
    """Times files of finished cells, all in turn in each round, and writes `latency_ms`, the median, into the cells."""
    from edgeline.tflite import device_cost

    found: dict[Path, list[float]] = {file: [] for file in files}
    for number in range(rounds):
        for file in files:
            latency = device_cost.measure(file, seconds=seconds, timeout=600)["one_thread"]["p50"]
            found[file].append(latency)
            print(f"round {number + 1}/{rounds} {file.stem}: {latency:.2f} ms", file=sys.stderr, flush=True)
    for file, latencies in found.items():
        cell = file.with_suffix(".json")
        _write(cell, json.loads(cell.read_text()) | {"latency_ms": statistics.median(latencies)})


def read(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the finished cells by model and technique, in the order of both."""
    found = [json.loads(path.read_text()) for path in out.glob("*.*.json")]
    by_key = {(cell["model"], cell["technique"]): cell for cell in found}
    order = _cells(list(MODELS), list(_ALL))
    return {key: by_key[key] for key in order if key in by_key}


def result_text(cell: dict[str, Any] | None) -> str:
    """Returns what the table says of a cell; None is one that has not been run."""
    if cell is None:
        return "not run"
    if not cell["works"]:
        cosine = re.search(r"cosine is ([0-9.]+)", cell["error"])
        if cosine:
            return f"refused: {float(cosine[1]):.2f}"
        return f"no: {' '.join(cell['error'].split())[:120].replace('|', '/')}"
    operators = sum(cell["float_ops"].values()) if cell["technique"] == "int8" else 0
    left = len(cell["left_float"]) or operators
    return f"{cell['cosine']:.4f}, {cell['zlib_bytes'] / 1e6:.1f} MB" + (f", {left} float" if left else "")


def table(cells: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Returns a markdown table of cosines and zlib bytes, a row per model, and another of the TIMED models' files."""
    models = [model for model in MODELS if any(key[0] == model for key in cells)]
    lines = ["| model | " + " | ".join(TECHNIQUES.values()) + " |", "|---|" + "---|" * len(TECHNIQUES)]
    for model in models:
        lines.append(f"| {model} | " + " | ".join(result_text(cells.get((model, t))) for t in TECHNIQUES) + " |")
    bases = {model: cells.get((model, _REFERENCE), {}) for model in TIMED}
    timed = [c for c in cells.values() if "latency_ms" in c and "latency_ms" in bases[c["model"]]]
    if timed:
        lines += ["", "| model | technique | bytes | zlib bytes | of float32 | p50 ms | of float32 |"]
        lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for cell in timed:
        size, latency = (cell[key] / bases[cell["model"]][key] for key in ("zlib_bytes", "latency_ms"))
        name = TECHNIQUES.get(cell["technique"], cell["technique"])
        lines.append(
            f"| {cell['model']} | {name} | {cell['bytes']:,} | {cell['zlib_bytes']:,} | {size:.3f}"
            f" | {cell['latency_ms']:.2f} | {latency:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--techniques", nargs="+", choices=_ALL, default=list(_ALL), metavar="TECHNIQUE")
    parser.add_argument("--input-size", type=int, default=64, help="height and width of the images (default: 64)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--retry", action="store_true", help="run the cells that failed once more")
    parser.add_argument("--time", action="store_true", help="only time the kept files, and print the tables")
    parser.add_argument("--table", action="store_true", help="only print the tables of the finished cells")
    parser.add_argument("--cell", nargs=2, metavar=("MODEL", "TECHNIQUE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        one(*args.cell, args.input_size, args.out / f"{args.cell[0]}.{args.cell[1]}.json")
        return
    if not (args.table or args.time):
        run(args.models, args.techniques, args.input_size, args.out, retry=args.retry)
    cells = read(args.out)
    kept = {args.out / f"{model}.{technique}.tflite": cell for (model, technique), cell in cells.items()}
    kept = {file: cell for file, cell in kept.items() if file.exists()}
    if args.time or (not args.table and any("latency_ms" not in cell for cell in kept.values())):
        measure_times(list(kept))
        cells = read(args.out)
    _write(args.out / "applications.json", list(cells.values()))
    print(table(cells))


if __name__ == "__main__":
    main()
