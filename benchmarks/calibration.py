"""Throughput and peak memory of the RepresentativeDatasetGen's Beam passes beside a plain tf.data reservoir.

Both sides draw the same number of samples from the same GZIP TFRecord shards, with the same preprocessing. Each is
measured with a few examples and with many: the first is the start-up (building the pipeline, tracing), the difference
gives the steady throughput.

- RepresentativeDatasetGen: `edgeline.representative_dataset.transforms.DrawSamples` on the FnApiRunner, with everything
  it does: an eval split of a fifth of the examples read and filtered out, NaN and labels checked, duplicates and strata
  counted, samples and manifest written.
- plain reservoir: tf.data (a batch parsed at a time, in parallel, prefetched) and algorithm R on its batches by NumPy.
  It checks nothing, its samples depend on the order of the shards, and it writes nothing.

Peak memory is that of a fresh process that draws from the same split, and from one that is ten times as large: every
example ten times, each time with another serial number in it, so that no two are equal.

    python benchmarks/calibration.py --data DIR     # made by: edgeline data fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import apache_beam as beam
import numpy as np
import record
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from edgeline.data import calibration_set, reading
from edgeline.data.data_folder import SHARD_SUFFIX
from edgeline.model_module import hooks
from edgeline.pipelines.datasets import mnist
from edgeline.representative_dataset import transforms
from edgeline.representative_dataset.config import STRATEGIES, Sample

MODULE = "edgeline.pipelines.examples.fashion_mnist.model"
INPUT = "image"
CLASSES = 10
SHARDS = 8
FEW = 512
LARGER = 10
BEAM = ["--runner=FnApiRunner"]

#: The files of a training and of an eval split, by these names.
Splits = dict[str, list[str]]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder of Fashion-MNIST (default: made in a temporary place)")
    parser.add_argument("--examples", type=int, default=50_000, help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=Sample().samples, help="(default: %(default)s)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    # a measurement of memory runs this file again: what to draw from, and how
    parser.add_argument("--peak", nargs=2, metavar=("SPLITS", "STRATEGY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peak:
            print(peak(json.loads(arguments.peak[0]), arguments.peak[1], arguments.samples, folder))
        else:
            benchmark(arguments, Path(folder))


def benchmark(arguments: argparse.Namespace, folder: Path) -> None:
    """Prepares the shards in a folder, and measures."""
    if arguments.data is None:
        arguments.data = mnist.write_fashion_mnist(folder / "data").path
    module = hooks.load(MODULE)
    many = arguments.examples
    few_splits, splits, larger = (
        write_splits(arguments.data, folder / f"{count}-{copies}", count, copies)
        for count, copies in ((FEW, 1), (many, 1), (many, LARGER))
    )
    out = str(folder / "out")

    def ours(strategy: str) -> tuple[float, float]:
        return seconds(lambda chosen: draw(chosen, strategy, arguments.samples, out), few_splits, splits)

    def plain() -> tuple[float, float]:
        return seconds(lambda chosen: reservoir(chosen["train"], module, arguments.samples), few_splits, splits)

    sides: dict[str, Callable[[], tuple[float, float]]] = {"plain reservoir": plain}
    sides |= {strategy: lambda strategy=strategy: ours(strategy) for strategy in arguments.strategies}
    # also warms everything up
    for strategy in arguments.strategies:
        draw(splits, strategy, arguments.samples, out)
        check(out, reservoir(splits["train"], module, arguments.samples), many)
    times = record.in_turn(sides, arguments.repeats)
    rates = {side: [(many - FEW) / (all_ - few) for few, all_ in runs] for side, runs in times.items()}

    memory = {
        strategy: record.in_turn(
            {
                f"memory, {strategy}, {size}x": lambda chosen=chosen, strategy=strategy: peak_of(
                    chosen, strategy, arguments.samples
                )
                for size, chosen in ((1, splits), (LARGER, larger))
            },
            arguments.repeats,
        )
        for strategy in arguments.strategies
    }
    ratios = []
    for strategy in arguments.strategies:
        target = ">= 0.5" if strategy == "uniform" else ""
        ratios.append(
            record.Ratio(f"throughput, {strategy}", rates[strategy], rates["plain reservoir"], "ex/s", target)
        )
    for strategy in arguments.strategies:
        few_each = ([few for few, _ in times[side]] for side in (strategy, "plain reservoir"))
        ratios.append(record.Ratio(f"start-up ({FEW} examples), {strategy}", *few_each, "s"))
    for strategy in arguments.strategies:
        small, large = memory[strategy].values()
        ratios.append(
            record.Ratio(f"peak memory, {LARGER}x beside 1x the data, {strategy}", large, small, "MB", "<= 1.1")
        )
    record.report(
        "calibration",
        ratios,
        settings={
            "examples": many,
            "few": FEW,
            "samples": arguments.samples,
            "shards": SHARDS,
            "eval_examples": many // 5,
            "beam": BEAM,
            "repeats": arguments.repeats,
            "in the time": "pipeline built, eval split read, data read, parsed and checked, samples written",
            "in the memory": "peak resident set of a fresh process, TensorFlow and Beam loaded",
        },
        seconds={
            side: {"few": [few for few, _ in runs], "all": [all_ for _, all_ in runs]} for side, runs in times.items()
        },
        output=arguments.output,
    )


def seconds(run: Callable[[Splits], object], few: Splits, many: Splits) -> tuple[float, float]:
    """Returns the seconds of a run on few and of one on many examples."""
    times = []
    for chosen in (few, many):
        start = time.perf_counter()
        run(chosen)
        times.append(time.perf_counter() - start)
    return times[0], times[1]


def write_splits(folder: Path, out: Path, examples: int, copies: int) -> Splits:
    """Writes the first examples of the train split, and of the eval split a fifth as many, to GZIP TFRecord files."""
    splits = {}
    for split, count, shards in (("train", examples, SHARDS), ("eval", examples // 5, 2)):
        files = sorted(str(path) for path in (folder / split).glob(f"*{SHARD_SUFFIX}"))
        splits[split] = [str(out / f"{split}-{shard:05d}.gz") for shard in range(shards)]
        out.mkdir(exist_ok=True)
        for shard, path in enumerate(splits[split]):
            with tf.io.TFRecordWriter(path, "GZIP") as writer:
                for copy in range(copies):
                    # protocol buffers that follow each other are one message: this adds a feature
                    features = {"serial": tf.train.Feature(int64_list=tf.train.Int64List(value=[copy]))}
                    serial = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
                    records = reading.read_serialized(files).take(count).shard(shards, shard)
                    for content in records.as_numpy_iterator():
                        writer.write(content + serial)
    return splits


def draw(splits: Splits, strategy: str, samples: int, folder: str) -> None:
    """Draws samples as the RepresentativeDatasetGen's executor does."""
    asked = Sample(samples=samples, strategy=strategy)
    plan = transforms.Plan(MODULE, (INPUT,), asked, CLASSES, "", folder)
    with beam.Pipeline(options=PipelineOptions(BEAM)) as pipeline:
        shards = {split: pipeline | split >> beam.Create(files) for split, files in splits.items()}
        shards | transforms.DrawSamples(plan)


def reservoir(files: list[str], module: hooks.ModelModule, samples: int) -> np.ndarray:
    """Draws samples as a script would (algorithm R), with nothing of Edgeline but the module's hooks."""

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return module.preprocess(tf.io.parse_example(serialized, module.feature_spec()))

    # with autotuning, closing the iterator sometimes waits for the tuner's next period: up to as long as the whole pass
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = tf.data.TFRecordDataset(files, "GZIP").batch(512).map(parse, os.cpu_count()).prefetch(4)
    random = np.random.default_rng(0)
    kept: np.ndarray | None = None
    seen = 0
    for images, _ in batches.with_options(options).as_numpy_iterator():
        if kept is None:
            kept = np.zeros([samples, *images.shape[1:]], images.dtype)
        numbers = np.arange(seen, seen + len(images))
        # the first ones fill it; after that the i-th replaces one with probability samples / (i + 1)
        places = np.where(numbers < samples, numbers, random.integers(0, numbers + 1))
        for row in np.flatnonzero(places < samples):
            kept[places[row]] = images[row]
        seen += len(images)
    if kept is None:
        raise SystemExit("no examples")
    return kept


def check(folder: str, others: np.ndarray, examples: int) -> None:
    """Checks that both sides have drawn as many samples of the same kind from all examples."""
    samples, manifest = calibration_set.read(folder)
    if samples[INPUT].shape != others.shape or manifest["examples"] != examples:
        raise SystemExit(f"{samples[INPUT].shape} samples of {manifest['examples']} examples, expected {others.shape}")
    if abs(float(samples[INPUT].mean()) - float(others.mean())) > 0.1:
        raise SystemExit("the samples' means differ")


def peak_of(splits: Splits, strategy: str, samples: int) -> float:
    """Returns the peak memory in MB of a process of its own that draws samples."""
    command = [sys.executable, __file__, "--samples", str(samples), "--peak", json.dumps(splits), strategy]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(child.stderr)
    return float(child.stdout.split()[-1])


def peak(splits: Splits, strategy: str, samples: int, folder: str) -> float:
    """Draws samples in this process, and returns its peak memory in MB."""
    draw(splits, strategy, samples, str(Path(folder, "out")))
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    main()
