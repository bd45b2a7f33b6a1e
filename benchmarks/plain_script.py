"""What people do today, as one script: train, prune, cluster and quantize by hand, convert, evaluate.

The peer of `benchmarks/pipeline.py`: it makes the models of Edgeline's 13 named recipes with the same data, model,
epochs and batch size, without artifacts, cache, lineage, checks, latencies or a report. Written as the guides of the
TensorFlow Model Optimization Toolkit do it; nothing of Edgeline but the example module's model and preprocessing.

    python benchmarks/plain_script.py DATA digits out.json
    python benchmarks/plain_script.py DATA fashion_mnist.large out.json --sparsity 0.9 --recipes int8 prune90_int8
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import time
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

_MODULES = {
    "digits": "edgeline.pipelines.examples.digits.model",
    "fashion_mnist": "edgeline.pipelines.examples.fashion_mnist.model",
    "fashion_mnist.large": "edgeline.pipelines.examples.fashion_mnist.large",
}
EVALUATION_BATCH = 256
CALIBRATION_SAMPLES = 256

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path, help="data folder with train, validation and eval")
parser.add_argument("example", choices=_MODULES, help="whose model and preprocessing are used")
parser.add_argument("output", type=Path, help="JSON file for the accuracies, sizes and times")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--finetune-epochs", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--sparsity", type=float, default=0.8, help="of the pruned models (default: %(default)s)")
parser.add_argument("--clusters", type=int, default=16, help="values per layer (default: %(default)s)")
parser.add_argument("--recipes", nargs="+", metavar="NAME", help="make only these and the float32 baseline")
arguments = parser.parse_args()
module = importlib.import_module(_MODULES[arguments.example])
seconds: dict[str, float] = {}
keras.utils.set_random_seed(arguments.seed)


class timed:  # noqa: N801 -- reads as a statement
    """Adds the time of a with block to `seconds`."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds[self.name] = seconds.get(self.name, 0.0) + time.perf_counter() - self.start


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the preprocessed images and the labels of a split."""
    files = sorted(str(path) for path in (arguments.data / split).glob("*.tfrecord.gz"))
    serialized = tf.stack(list(tf.data.TFRecordDataset(files, "GZIP")))
    images, labels = module.preprocess(tf.io.parse_example(serialized, module.feature_spec()))
    return images.numpy(), labels.numpy()


def fit(model: keras.Model, epochs: int, callbacks: list[keras.callbacks.Callback] | None = None) -> keras.Model:
    """Compiles and trains a model."""
    module.compile_model(model)
    model.fit(
        *train,
        batch_size=arguments.batch_size,
        epochs=epochs,
        validation_data=validation,
        validation_batch_size=512,
        callbacks=callbacks,
        verbose=0,
    )
    return model


def copy(model: keras.Model) -> keras.Model:
    """Returns a copy to fine-tune: tfmot's wrappers share their layers' weights with the model they are given."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    return other


def prune(model: keras.Model) -> keras.Model:
    """Sets the given share of the weights to zero."""
    steps = -(-len(train[0]) // arguments.batch_size) * arguments.finetune_epochs
    end = max(int(steps * 0.75), 1)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, arguments.sparsity, 0, end, frequency=max(end // 50, 1))
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(copy(model), pruning_schedule=schedule)
    fit(wrapped, arguments.finetune_epochs, [tfmot.sparsity.keras.UpdatePruningStep()])
    return tfmot.sparsity.keras.strip_pruning(wrapped)


def cluster(model: keras.Model, preserve_sparsity: bool) -> keras.Model:
    """Lets the weights of each layer share the given number of values."""
    from tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster import cluster_weights

    initialization = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    wrapped = cluster_weights(copy(model), arguments.clusters, initialization, preserve_sparsity=preserve_sparsity)
    return tfmot.clustering.keras.strip_clustering(fit(wrapped, arguments.finetune_epochs))


def convert(model: keras.Model, scheme: str) -> bytes:
    """Returns the content of the `.tflite` file."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in ("int8", "int8_io", "int16x8"):
        converter.representative_dataset = lambda: ([train[0][i : i + 1]] for i in range(CALIBRATION_SAMPLES))
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            if scheme == "int16x8"
            else tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
    if scheme == "int8_io":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def evaluate(content: bytes) -> float:
    """Returns the accuracy of a `.tflite` file on the eval split."""
    interpreter = Interpreter(model_content=content)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    images, labels = test
    correct = 0
    for start in range(0, len(images), EVALUATION_BATCH):
        batch = images[start : start + EVALUATION_BATCH]
        if source["dtype"] == np.int8:
            scale, zero_point = source["quantization"]
            batch = np.clip(np.rint(batch / scale) + zero_point, -128, 127).astype(np.int8)
        if tuple(source["shape"]) != batch.shape:
            interpreter.resize_tensor_input(source["index"], batch.shape)
            interpreter.allocate_tensors()
            source = {**source, "shape": batch.shape}
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        predicted = interpreter.get_tensor(target["index"]).argmax(axis=1)
        correct += int((predicted == labels[start : start + len(batch)]).sum())
    return correct / len(images)


with timed("data"):
    train, validation, test = (read(split) for split in ("train", "validation", "eval"))


@functools.cache
def base() -> keras.Model:
    """Returns the trained model."""
    with timed("train"):
        return fit(module.build_model(), arguments.epochs)


@functools.cache
def pruned() -> keras.Model:
    """Returns it pruned."""
    model = base()
    with timed("prune"):
        return prune(model)


@functools.cache
def clustered() -> keras.Model:
    """Returns it clustered."""
    model = base()
    with timed("cluster"):
        return cluster(model, preserve_sparsity=False)


@functools.cache
def pruned_clustered() -> keras.Model:
    """Returns the pruned model clustered."""
    model = pruned()
    with timed("cluster"):
        return cluster(model, preserve_sparsity=True)


@functools.cache
def aware() -> keras.Model:
    """Returns the model trained for quantization."""
    model = base()
    with timed("quantization-aware training"):
        return fit(tfmot.quantization.keras.quantize_model(copy(model)), arguments.finetune_epochs)


zeros, values = f"prune{100 * arguments.sparsity:.0f}", f"cluster{arguments.clusters}"
plans = {
    "float32": (base, "float32"),
    "float16": (base, "float16"),
    "dynamic_range": (base, "dynamic_range"),
    "int8": (base, "int8"),
    "int8_io": (base, "int8_io"),
    "int16x8": (base, "int16x8"),
    "qat8": (aware, "qat8"),
    f"{zeros}_float32": (pruned, "float32"),
    f"{zeros}_dynamic_range": (pruned, "dynamic_range"),
    f"{zeros}_int8": (pruned, "int8"),
    f"{values}_float32": (clustered, "float32"),
    f"{values}_dynamic_range": (clustered, "dynamic_range"),
    f"{zeros}_{values}_int8": (pruned_clustered, "int8"),
}
if arguments.recipes:
    if unknown := set(arguments.recipes) - set(plans):
        parser.error(f"unknown recipes {sorted(unknown)}; known are: {', '.join(plans)}")
    plans = {name: plan for name, plan in plans.items() if name in ("float32", *arguments.recipes)}
results = {}
for name, (make, scheme) in plans.items():
    model = make()
    with timed("convert"):
        content = convert(model, scheme)
    with timed("evaluate"):
        results[name] = {"accuracy": evaluate(content), "bytes": len(content)}
        results[name]["zlib_bytes"] = len(zlib.compress(content, 9))
arguments.output.write_text(json.dumps({"seconds": seconds, "results": results}, indent=1) + "\n", encoding="utf-8")
