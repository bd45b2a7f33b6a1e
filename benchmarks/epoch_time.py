"""Time of an epoch of Edgeline's training loop beside Keras' own `fit` on arrays in memory.

Both sides train the same model module on Fashion-MNIST's 60,000 training images, in batches of the same size, and
evaluate the 10,000 test images after every epoch. Measured is every epoch from the second one on, from its begin to the
begin of the next: training, validation, callbacks. What is read, parsed and preprocessed once before the first epoch
is not in, on either side.

- Edgeline: `edgeline.training.loop.fit` on splits opened by `open_splits` from an Examples folder of GZIP TFRecords,
  with all that it does in a pipeline: shuffling by (seed, epoch), TensorBoard logs, progress reports, the check for
  NaN, and deterministic operations; then again without the last, to tell what they cost.
- Keras: `model.fit` on NumPy arrays, `verbose=0`, no callbacks but the clock; it shuffles, too.

    python benchmarks/epoch_time.py --data DIR     # made by: edgeline data fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import record
import tf_keras

from edgeline.config import FineTuning
from edgeline.data import reading
from edgeline.data.data_folder import SHARD_SUFFIX
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.pipelines.datasets import mnist
from edgeline.training import loop

MODULE = "edgeline.pipelines.examples.fashion_mnist.model"


class Clock(tf_keras.callbacks.Callback):
    """Notes when each epoch begins, and when the training ends."""

    # else Keras turns the logs into numbers after every batch, on one side only
    _supports_tf_logs = True

    def __init__(self) -> None:
        super().__init__()
        self.stamps: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Notes the time."""
        self.stamps.append(time.perf_counter())

    def on_train_end(self, logs: object = None) -> None:
        """Notes the time."""
        self.stamps.append(time.perf_counter())

    def epochs(self) -> list[float]:
        """Returns the seconds of each epoch but the first, which traces and warms up."""
        return [end - begin for begin, end in zip(self.stamps[1:], self.stamps[2:], strict=False)]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder of Fashion-MNIST (default: made in a temporary place)")
    parser.add_argument("--epochs", type=int, default=4, help="in each training, at least 2 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=FineTuning().batch_size, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each side (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not measured")
    with tempfile.TemporaryDirectory() as folder:
        benchmark(arguments, Path(folder))


def benchmark(arguments: argparse.Namespace, folder: Path) -> None:
    """Prepares the data in a folder, and measures."""
    if arguments.data is None:
        arguments.data = mnist.write_fashion_mnist(folder / "data").path
    module = hooks.load(MODULE)
    config = FineTuning(epochs=arguments.epochs, batch_size=arguments.batch_size)
    examples = link_examples(arguments.data, folder / "examples")
    arrays = {split: read_arrays(examples, split, module) for split in ("train", "validation")}

    def ours(*, deterministic: bool = True) -> list[float]:
        loop.start(config.seed, deterministic=deterministic)
        clock = Clock()
        splits = loop.open_splits(str(examples), module, config)
        logs = tempfile.mkdtemp(dir=folder)
        loop.fit(
            module.build_model(),
            module,
            splits,
            config,
            step="Trainer",
            technique="edgeline.trainer.phases",
            log_dir=logs,
            callbacks=[clock],
        )
        return clock.epochs()

    def keras() -> list[float]:
        loop.start(config.seed, deterministic=False)
        clock = Clock()
        model = module.build_model()
        module.compile_model(model)
        model.fit(
            *arrays["train"],
            batch_size=config.batch_size,
            epochs=config.epochs,
            validation_data=arrays["validation"],
            validation_batch_size=max(config.batch_size, 512),  # as open_splits has it
            callbacks=[clock],
            verbose=0,
        )
        return clock.epochs()

    sides = {"Edgeline": ours, "Edgeline, in any order": lambda: ours(deterministic=False), "Keras": keras}
    times = record.in_turn(sides, arguments.repeats)
    flat = {side: [seconds for run in runs for seconds in run] for side, runs in times.items()}
    record.report(
        "epoch_time",
        [
            record.Ratio("epoch, from the second one on", flat["Edgeline"], flat["Keras"], "s", "<= 1.15"),
            record.Ratio("deterministic operations", flat["Edgeline"], flat["Edgeline, in any order"], "s"),
        ],
        settings={
            "training examples": len(arrays["train"][1]),
            "validation examples": len(arrays["validation"][1]),
            "batch_size": config.batch_size,
            "epochs": config.epochs,
            "repeats": arguments.repeats,
            "in the time": "training, validation, callbacks; Edgeline's also TensorBoard logs and progress",
        },
        seconds=times,
        output=arguments.output,
    )


def link_examples(folder: Path, out: Path) -> Path:
    """Lays out an Examples artifact of links to a data folder: all 60,000 for training, the test set for validation."""
    for split, sources in {"train": ("train", "validation"), "validation": ("eval",)}.items():
        (out / f"Split-{split}").mkdir(parents=True)
        for source in sources:
            for path in (folder / source).glob(f"*{SHARD_SUFFIX}"):
                (out / f"Split-{split}" / f"{source}-{path.name}").symlink_to(path.resolve())
    return out


def read_arrays(examples: Path, split: str, module: ModelModule) -> tuple[np.ndarray, np.ndarray]:
    """Returns the preprocessed images, float32 [n, 28, 28], and the labels, int64 [n], of a split."""
    batches = reading.parsed_batches(reading.split_files(str(examples), split), reading.ExampleParser(module), 1024)
    parts = [(images.numpy(), labels.numpy()) for images, labels, _ in batches]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return images, labels


if __name__ == "__main__":
    main()
