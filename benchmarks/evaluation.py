"""Throughput of the Evaluator's Beam pass beside TFMA's own TFLite evaluation and a plain loop in one process.

All sides run the same `.tflite` files: the float32 reference and one or four candidates. Each is measured with a few
examples and with many: the first is the start-up and the merging (building the pipeline, tracing, loading), the
difference gives the steady throughput.

- Evaluator: `edgeline.evaluator.measuring.transforms.Evaluate` on the FnApiRunner, from raw records in GZIP TFRecords
  in 8 shards to the merged states of the loss and all compiled metrics, overall and by label, confusion matrix,
  calibration, and each candidate's outputs, flips and paired differences beside the reference.
- plain loop: tf.data (a batch parsed at a time, in parallel, prefetched), LiteRT on the same batches, accuracy by
  NumPy. It knows no loss, no slices, no comparison, no shards that are merged, no failing model.
- TFMA: `tfma.run_model_analysis` with `model_type: "tf_lite"` on the FnApiRunner; accuracy only. Its TFLite path takes
  features as the model's inputs and has no preprocessing, so it reads preprocessed floats, and fewer of them, since it
  is slow. It switches XNNPACK off itself (extractors/tflite_predict_extractor.py), the other two sides have it on.

The small CNN of the Fashion-MNIST example, and MobileNetV2 at 96x96 on jpeg images (plain loop only). At the end, the
peak memory of a process that evaluates the reference and one candidate on a tenth of the examples, and on all.

    python benchmarks/evaluation.py --data DIR     # made by: edgeline data fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import apache_beam as beam
import numpy as np
import record
import tensorflow as tf
import tensorflow_model_analysis as tfma
from absl import logging as absl_logging
from ai_edge_litert.interpreter import Interpreter
from apache_beam.options.pipeline_options import PipelineOptions
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2

from edgeline.budget import Budget
from edgeline.config import FineTuning
from edgeline.data import reading
from edgeline.data.data_folder import SHARD_SUFFIX
from edgeline.evaluator.measuring import transforms
from edgeline.evaluator.measuring.measurements import Plan, Results
from edgeline.evaluator.measuring.metrics import CompiledMetrics
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.pipelines.datasets import mnist
from edgeline.tflite_exporter import conversion
from edgeline.training import loop

MODULE = "edgeline.pipelines.examples.fashion_mnist.model"
INPUT, OUTPUT = "image", "logits"
#: The one candidate is the fastest on a desktop processor, so that everything beside LiteRT shows the most; the fourth
#: is a second float32 file, as a pruned model is.
CANDIDATES = ("dynamic_range", "float16", "int8", "float32")
FEW = 256


@dataclasses.dataclass(frozen=True)
class Case:
    """What is evaluated: a module, its records by number of examples, and the models by name."""

    module: str
    shards: dict[int, list[str]]
    models: dict[str, Path]

    def chosen(self, candidates: int) -> dict[str, Path]:
        """The reference and the first candidates."""
        return {name: self.models[name] for name in ("reference", *CANDIDATES[:candidates])}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder of Fashion-MNIST (default: made in a temporary place)")
    parser.add_argument("--examples", type=int, default=50_000, help="(default: %(default)s)")
    parser.add_argument("--tfma-examples", type=int, default=5_000, help="0: without TFMA (default: %(default)s)")
    parser.add_argument(
        "--images", type=int, default=2_000, help="for MobileNetV2; 0: without it (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=transforms.BATCH_SIZE, help="ours and the plain loop's")
    parser.add_argument("--beam-arg", action="append", default=[], help="more arguments for the Evaluator's runner")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--peak-memory", nargs="+", metavar="MODULE MODELS SHARD", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _silence()
    transforms.BATCH_SIZE = arguments.batch_size
    if arguments.peak_memory:
        module, models, *shards = arguments.peak_memory
        run_evaluator(shards, {name: Path(path) for name, path in json.loads(models).items()}, module, [])
        status = Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
        return
    with tempfile.TemporaryDirectory() as folder:
        benchmark(arguments, Path(folder))


def benchmark(arguments: argparse.Namespace, folder: Path) -> None:
    """Prepares data and models in a folder, and measures."""
    if arguments.data is None:
        arguments.data = mnist.write_fashion_mnist(folder / "data").path
    module = hooks.load(MODULE)
    many, few, tenth = arguments.examples, FEW, arguments.examples // 10
    counts = {many: 8, few: 1, tenth: 8}
    shards = {n: write_shards(arguments.data, folder / f"raw-{n}", n, count) for n, count in counts.items()}
    floats = {n: write_floats(shards, module, folder / f"floats-{n}", n) for n in (arguments.tfma_examples, few) if n}
    small = Case(MODULE, shards, make_models(arguments.data, module, folder / "models"))

    ratios: list[record.Ratio] = []
    seconds: dict[str, Any] = {}
    accuracies: dict[str, Any] = {}
    for count, beside_loop, beside_tfma in ((1, ">= 0.8", ">= 12"), (4, ">= 0.95", "")):
        measure(
            small, count, many, f"small CNN, {count} candidate{'s' if count > 1 else ''}", arguments,
            ratios, seconds, accuracies, floats=floats, targets={"plain loop": beside_loop, "TFMA": beside_tfma},
        )  # fmt: skip
    if arguments.images:
        large = make_large(folder / "large", arguments.images, few)
        for count in (1, 4):
            measure(large, count, arguments.images, f"MobileNetV2, {count}", arguments, ratios, seconds, accuracies)
    memory = {n: peak_memory(small.chosen(1), shards[n]) for n in (tenth, many)}
    ratios.append(
        record.Ratio("peak memory, all examples beside a tenth", [memory[many]], [memory[tenth]], "B", "<= 1.1")
    )
    record.report(
        "evaluation",
        ratios,
        settings={
            "examples": many,
            "tfma_examples": arguments.tfma_examples,
            "images": arguments.images,
            "few": few,
            "batch_size": arguments.batch_size,
            "beam": ["--runner=FnApiRunner", *arguments.beam_arg],
            "repeats": arguments.repeats,
            "models": {name: path.stat().st_size for name, path in small.models.items()},
            "accuracy": accuracies,
            "in the time": "pipeline built, models loaded, data read, parsed and preprocessed, all models run, metrics",
        },
        seconds=seconds,
        output=arguments.output,
    )


def measure(
    case: Case,
    count: int,
    many: int,
    label: str,
    arguments: argparse.Namespace,
    ratios: list[record.Ratio],
    seconds: dict[str, Any],
    accuracies: dict[str, Any],
    *,
    floats: dict[int, str] | None = None,
    targets: dict[str, str] | None = None,
) -> None:
    """Measures all sides on a case, checks that they agree, and adds what was found to the last three arguments.

    TFMA is a side where there are `floats`, files of preprocessed examples by their number.
    """
    module, chosen, few = hooks.load(case.module), case.chosen(count), FEW

    def ours(n: int) -> Results:
        return run_evaluator(case.shards[n], chosen, case.module, ["--runner=FnApiRunner", *arguments.beam_arg])

    def plain(n: int) -> dict[str, float]:
        return run_plain_loop(case.shards[n], chosen, module, arguments.batch_size)

    sides: dict[str, Callable[[], tuple[float, float]]] = {
        "Evaluator": lambda: twice(ours, few, many),
        "plain loop": lambda: twice(plain, few, many),
    }
    # also warms everything up
    accuracies[label] = {"Evaluator": accuracy(ours(many), module), "plain loop": plain(many)}
    if floats:
        sides["TFMA"] = lambda: twice(lambda n: run_tfma(floats[n], chosen), few, arguments.tfma_examples)
        accuracies[label]["TFMA"] = run_tfma(floats[few], chosen)
        check_equal(accuracies[label]["TFMA"], plain(few), f"TFMA, {label}")
    check_equal(accuracies[label]["Evaluator"], accuracies[label]["plain loop"], f"Evaluator, {label}")

    times = record.in_turn(sides, arguments.repeats)
    seconds[label] = {side: {"few": [t[0] for t in ts], "all": [t[1] for t in ts]} for side, ts in times.items()}
    rates = {}
    for side, runs in seconds[label].items():
        start_up = statistics.median(runs["few"])
        total = arguments.tfma_examples if side == "TFMA" else many
        rates[side] = [(total - few) / (run - start_up) for run in runs["all"]]
    for side in sides:
        if side != "Evaluator":
            target = (targets or {}).get(side, "")
            ratios.append(
                record.Ratio(f"throughput, {label}, beside {side}", rates["Evaluator"], rates[side], "ex/s", target)
            )
            start_ups = (seconds[label][s]["few"] for s in ("Evaluator", side))
            ratios.append(record.Ratio(f"start-up ({few} examples), {label}, beside {side}", *start_ups, "s"))


def peak_memory(models: dict[str, Path], shards: list[str]) -> int:
    """Returns the most memory that a process of its own took to evaluate models on shards, in bytes."""
    named = json.dumps({name: str(path) for name, path in models.items()})
    command = [sys.executable, __file__, "--peak-memory", MODULE, named, *shards]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def twice(run: Callable[[int], object], few: int, many: int) -> tuple[float, float]:
    """Returns the seconds of a run on few and of one on many examples."""
    times = []
    for n in (few, many):
        start = time.perf_counter()
        run(n)
        times.append(time.perf_counter() - start)
    return times[0], times[1]


def check_equal(ours: dict[str, float], theirs: dict[str, float], what: str) -> None:
    """Checks that two sides have really done the same: equal accuracies.

    The kernels without XNNPACK round differently, which may turn a few predictions of integer models.
    """
    for name, value in ours.items():
        if abs(value - theirs[name]) > 0.01:
            raise SystemExit(f"{what}: accuracy of {name} is {value}, by the plain loop {theirs[name]}")


def write_shards(folder: Path, out: Path, examples: int, count: int) -> list[str]:
    """Writes the first examples of the train split to `count` GZIP TFRecord files, and returns their paths."""
    files = sorted(str(path) for path in (folder / "train").glob(f"*{SHARD_SUFFIX}"))
    serialized = list(reading.read_serialized(files).take(examples).as_numpy_iterator())
    if len(serialized) < examples:
        raise SystemExit(f"{folder} has {len(serialized)} training examples, {examples} are asked for")
    out.mkdir()
    return [_write(out / f"data-{i:05d}.tfrecord.gz", serialized[i::count]) for i in range(count)]


def write_floats(shards: dict[int, list[str]], module: hooks.ModelModule, out: Path, examples: int) -> str:
    """Writes the first examples, preprocessed, as TFMA's TFLite path wants them, and returns the file's path."""
    # the small file has the small shard's examples, so that accuracies can be compared
    files = shards.get(examples, shards[max(shards)])
    batches = reading.parsed_batches(files, reading.ExampleParser(module), 1024)
    content = []
    for images, labels, _ in batches:
        for image, label in zip(images.numpy(), labels.numpy(), strict=True):
            features = {
                INPUT: tf.train.Feature(float_list=tf.train.FloatList(value=image.ravel())),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            content.append(example.SerializeToString(deterministic=True))
        if len(content) >= examples:
            break
    out.mkdir()
    return _write(out / "data.tfrecord.gz", content[:examples])


def _write(path: Path, serialized: list[bytes]) -> str:
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for content in serialized:
            writer.write(content)
    return str(path)


def make_models(folder: Path, module: hooks.ModelModule, out: Path) -> dict[str, Path]:
    """Trains the module's model for one epoch and converts it; returns each file's path by name."""
    config = FineTuning(epochs=1)
    loop.start(config.seed)
    model = module.build_model()
    module.compile_model(model)
    files = sorted(str(path) for path in (folder / "train").glob(f"*{SHARD_SUFFIX}"))
    split = reading.training_data(files, module, batch_size=config.batch_size, epochs=1, seed=config.seed)
    model.fit(split.dataset, steps_per_epoch=split.steps_per_epoch, verbose=0)
    return convert(model, module, files, out)


def make_large(folder: Path, images: int, few: int) -> Case:
    """Writes noisy jpeg images and converts an untrained MobileNetV2, whose costs are those of a trained one."""
    folder.mkdir()
    reference = str(Path(__file__).with_name("mobilenet_96.py"))
    random = np.random.default_rng(0)
    serialized = []
    for index in range(images):
        coarse = tf.image.resize(random.uniform(0, 255, [6, 6, 3]), [96, 96]).numpy().astype(np.uint8)
        features = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.encode_jpeg(coarse).numpy()])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[index % 10])),
        }
        serialized.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    many = [_write(folder / f"data-{i:05d}.tfrecord.gz", serialized[i::8]) for i in range(8)]
    shards = {images: many, few: [_write(folder / "few.tfrecord.gz", serialized[:few])]}
    module = hooks.load(reference)
    return Case(reference, shards, convert(module.build_model(), module, many, folder / "models"))


def convert(model: Any, module: hooks.ModelModule, files: list[str], out: Path) -> dict[str, Path]:
    """Converts a model to all schemes that are measured; returns each file's path by name.

    Each lies in a folder of its own under the name `tflite`, by which TFMA knows such a model.
    """
    images = next(iter(reading.parsed_batches(files, reading.ExampleParser(module), 128)))[0].numpy()
    io = keras_file.describe_io(model, module)
    paths = {}
    for name in ("reference", *CANDIDATES):
        scheme = {"scheme": name.replace("reference", "float32"), "io_type": "float32"}
        content = conversion.convert(model, Passport(io=io, scheme=scheme), {INPUT: images})
        paths[name] = out / name / "tflite"
        paths[name].parent.mkdir(parents=True)
        paths[name].write_bytes(content)
    return paths


def run_evaluator(files: list[str], models: dict[str, Path], module: str, beam_args: list[str]) -> Results:
    """Runs the Evaluator's Beam transform as its executor does, and returns the merged results."""
    paths = {name: str(path) for name, path in models.items()}
    plan = Plan(module, (INPUT,), (OUTPUT,), paths, "reference", budget=Budget(metric="accuracy"))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "results"))
        with beam.Pipeline(options=PipelineOptions(beam_args or ["--runner=FnApiRunner"])) as pipeline:
            results = pipeline | beam.Create(files) | transforms.Evaluate(plan)
            results | beam.Map(transforms.write_results, path)
        return transforms.read_results(path)


def accuracy(results: Results, module: hooks.ModelModule) -> dict[str, float]:
    """Returns the accuracies that merged results stand for."""
    metrics = CompiledMetrics(module)
    metrics.prepare(tf.zeros([1], tf.int64), [np.zeros([1, 10], np.float32)])
    found = {}
    for name, result in results.models.items():
        if isinstance(result, str):
            raise SystemExit(f"Evaluator: {name} failed: {result}")
        found[name] = metrics.result(result.overall)["accuracy"]
    return found


def run_plain_loop(
    files: list[str], models: dict[str, Path], module: hooks.ModelModule, batch_size: int
) -> dict[str, float]:
    """Runs the models as a script would, with nothing of Edgeline but the module's hooks; returns the accuracies."""
    interpreters = {name: Interpreter(str(path), num_threads=1) for name, path in models.items()}
    shape = [batch_size, *interpreters["reference"].get_input_details()[0]["shape"][1:]]
    for interpreter in interpreters.values():
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], shape)
        interpreter.allocate_tensors()
    ports = {
        name: (interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"])
        for name, interpreter in interpreters.items()
    }

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return module.preprocess(tf.io.parse_example(serialized, module.feature_spec()))

    # with autotuning, closing the iterator sometimes waits for the tuner's next period: up to as long as the whole pass
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = tf.data.TFRecordDataset(files, "GZIP").batch(batch_size).map(parse, os.cpu_count()).prefetch(4)
    batches = batches.with_options(options)
    correct = dict.fromkeys(models, 0)
    total = 0
    for images, labels in batches.as_numpy_iterator():
        rows = len(labels)
        total += rows
        if rows < batch_size:
            images = np.concatenate([images, np.zeros([batch_size - rows, *shape[1:]], np.float32)])
        for name, interpreter in interpreters.items():
            source, target = ports[name]
            interpreter.set_tensor(source, images)
            interpreter.invoke()
            predicted = interpreter.get_tensor(target)[:rows].argmax(axis=1)
            correct[name] += int((predicted == labels).sum())
    return {name: count / total for name, count in correct.items()}


def run_tfma(file: str, models: dict[str, Path]) -> dict[str, float]:
    """Runs TFMA on a file of preprocessed examples, and returns the accuracies."""
    # tfma 0.52 does not export EvalConfig, so it comes from the proto's own module
    specs = "".join(f'model_specs {{ name: "{n}" model_type: "tf_lite" label_key: "label" }}\n' for n in models)
    config = text_format.Parse(
        specs + 'metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } } slicing_specs {}',
        config_pb2.EvalConfig(),
    )
    shared = [
        tfma.default_eval_shared_model(eval_saved_model_path=str(path.parent), eval_config=config, model_name=name)
        for name, path in models.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        results = tfma.run_model_analysis(
            eval_shared_model=shared,
            eval_config=config,
            data_location=file,
            output_path=folder,
            pipeline_options=PipelineOptions(["--runner=FnApiRunner"]),
        )
    found = {result.model_location: result.get_metrics_for_slice() for result in results.get_results()}
    return {
        name: found[str(path.parent)]["sparse_categorical_accuracy"]["doubleValue"] for name, path in models.items()
    }


def _silence() -> None:
    # TFMA warns in every run that TF 2 is "in beta", that tf.lite.Interpreter and tf_record_iterator are deprecated
    warnings.simplefilter("ignore")
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
