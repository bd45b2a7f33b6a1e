"""One Beam pass over the training split: draws the calibration samples and finds what would spoil a training."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from edgeline import calibration_set, data, model_module
from edgeline.data import ExampleParser
from edgeline.errors import UserError

_BATCH = 512


@dataclasses.dataclass
class Summary:
    """What is known of some of the examples; two of them add up.

    Attributes:
      examples: how many.
      labels: examples by label, for scalar integer labels; empty for others.
      not_finite: examples by the name of the input that holds NaN or infinite values.
      drawn: the examples of the smallest keys, as (key, content digest, inputs by name), sorted.
    """

    examples: int = 0
    labels: Counter[int] = dataclasses.field(default_factory=Counter)
    not_finite: Counter[str] = dataclasses.field(default_factory=Counter)
    drawn: list[tuple[bytes, str, dict[str, np.ndarray]]] = dataclasses.field(default_factory=list)


def sampling_key(serialized: bytes, seed: int) -> bytes:
    """Returns the random-looking 8 bytes that decide whether an example is drawn.

    The examples of the smallest keys are a uniform sample without replacement that depends on their content and the
    seed alone: not on order, shards or workers.
    """
    return hashlib.blake2b(serialized, digest_size=8, key=seed.to_bytes(8, "big")).digest()


class SummarizeShard(beam.DoFn):
    """Reads one shard in batches and yields its Summary.

    Args:
      module: reference of the model module.
      input_names: of the model, in its order.
      samples: how many examples to draw at most.
      seed: which ones.
    """

    def __init__(self, module: str, input_names: list[str], samples: int, seed: int):
        self._reference = module
        self._names = input_names
        self._samples = samples
        self._seed = seed

    def setup(self) -> None:
        self._module = model_module.load(self._reference)
        self._parser = ExampleParser(self._module)

    def process(self, shard: str) -> Iterator[Summary]:
        summary = Summary()
        try:
            for serialized in data.read_serialized([shard]).batch(_BATCH).prefetch(2):
                inputs, label, _ = self._parser.compiled(serialized)
                self._add(summary, serialized.numpy(), data.named_inputs(inputs, self._names), label)
        except tf.errors.OpError as error:
            raise data.explain(error, [shard], self._module) from error
        yield summary

    def _add(self, summary: Summary, serialized: np.ndarray, inputs: dict[str, np.ndarray], label: Any) -> None:
        summary.examples += len(serialized)
        for name, values in inputs.items():
            if values.dtype.kind == "f":
                finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
                if not finite.all():
                    summary.not_finite[name] += int((~finite).sum())
        # one integer per example: a class index, unlike the columns of a one-hot label
        if isinstance(label, tf.Tensor) and label.dtype.is_integer and label.shape.num_elements() == len(serialized):
            values, counts = np.unique(label.numpy(), return_counts=True)
            summary.labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        limit = summary.drawn[-1][0] if len(summary.drawn) >= self._samples else None
        fresh = []
        for row, content in enumerate(serialized):
            key = sampling_key(content, self._seed)
            if limit is None or key < limit:
                own = {name: values[row].copy() for name, values in inputs.items()}
                fresh.append((key, hashlib.sha256(content).hexdigest(), own))
        if fresh:
            summary.drawn = _smallest(self._samples, [summary.drawn, fresh])


class MergeSummaries(beam.CombineFn):
    """Adds Summaries up, keeping the examples of the smallest keys.

    Args:
      samples: how many to keep.
    """

    def __init__(self, samples: int):
        self._samples = samples

    def create_accumulator(self) -> Summary:
        return Summary()

    def add_input(self, mutable_accumulator: Summary, element: Summary) -> Summary:
        return self.merge_accumulators([mutable_accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Summary]) -> Summary:
        parts = list(accumulators)
        return Summary(
            sum(part.examples for part in parts),
            sum((part.labels for part in parts), Counter()),
            sum((part.not_finite for part in parts), Counter()),
            _smallest(self._samples, [part.drawn for part in parts]),
        )

    def extract_output(self, accumulator: Summary) -> Summary:
        return accumulator


def _smallest(count: int, drawn: list[list[tuple[bytes, str, Any]]]) -> list[tuple[bytes, str, Any]]:
    # key and content digest decide: equal examples are interchangeable, and arrays cannot be compared
    return heapq.nsmallest(count, (item for part in drawn for item in part), key=lambda item: item[:2])


class Summarize(beam.PTransform):
    """From paths of shards (str) to one Summary of them all.

    Args:
      module: reference of the model module.
      input_names: of the model, in its order.
      samples: how many examples to draw at most.
      seed: which ones.
    """

    def __init__(self, module: str, input_names: list[str], samples: int, seed: int):
        super().__init__()
        self._arguments = (module, input_names, samples, seed)
        self._samples = samples

    def expand(self, shards: beam.PCollection[str]) -> beam.PCollection[Summary]:
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "SummarizeShard" >> beam.ParDo(SummarizeShard(*self._arguments))
            | "Merge" >> beam.CombineGlobally(MergeSummaries(self._samples))
        )


def check(summary: Summary, classes: int | None, reference: str) -> None:
    """Checks what the pass found, before any training.

    Args:
      summary: of the whole split.
      classes: how many the model tells apart; None where labels are no class indices.
      reference: of the model module, for the message.

    Raises:
      UserError: no examples, NaN or infinite inputs, or labels outside [0, classes).
    """
    if summary.examples == 0:
        raise UserError("the training split is empty: 0 examples")
    if summary.not_finite:
        found = ", ".join(f"{count:,} in input {name!r}" for name, count in sorted(summary.not_finite.items()))
        raise UserError(
            f"examples with NaN or infinite values after preprocess of {reference}: {found} (of {summary.examples:,} "
            f"training examples); clean the data, or handle them in preprocess"
        )
    if classes is not None and summary.labels:
        outside = sorted(label for label in summary.labels if not 0 <= label < classes)
        if outside:
            count = sum(summary.labels[label] for label in outside)
            raise UserError(
                f"{count:,} training examples have labels outside [0, {classes}), the classes of the model of "
                f"{reference}: {', '.join(map(str, outside[:10]))}; correct the data, or the model's number of outputs"
            )


def manifest(summary: Summary, samples: dict[str, np.ndarray], *, seed: int, source: str) -> dict[str, Any]:
    """Returns what is to be known about the samples.

    Args:
      summary: of the whole split.
      samples: by input name, shape [samples, ...].
      seed: which ones were drawn.
      source: digest of the examples.
    """
    digests = [digest for _, digest, _ in summary.drawn]
    return {
        "schema_version": 1,
        "strategy": "uniform",
        "seed": seed,
        "samples": len(digests),
        "examples": summary.examples,
        "source": source,
        "digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "digests": digests,
        "label_histogram": {str(label): count for label, count in sorted(summary.labels.items())},
        "inputs": {n: {"shape": list(v.shape[1:]), "dtype": v.dtype.name} for n, v in samples.items()},
        "ranges": {n: [float(v.min()), float(v.max())] for n, v in samples.items() if v.dtype.kind in "fiu"},
    }


def stack(summary: Summary) -> dict[str, np.ndarray]:
    """Returns the drawn examples by input name, shape [samples, ...], in the order of their keys.

    Raises:
      UserError: they do not all have the same shape.
    """
    try:
        return {name: np.stack([own[name] for _, _, own in summary.drawn]) for name in summary.drawn[0][2]}
    except ValueError as error:
        raise UserError(f"preprocess returns examples of different shapes in one batch position: {error}") from None


def class_count(module: model_module.ModelModule, model: Any) -> int | None:
    """Returns how many classes the labels may name: the module's class names, else the width of a sparse classifier.

    Args:
      module: the user's hooks.
      model: built by it.

    Returns:
      None where labels are no class indices: several outputs, or a loss that is not a sparse cross-entropy.
    """
    if module.class_names():
        return len(module.class_names())
    module.compile_model(model)
    # a name, a function or an object
    loss = model.loss if isinstance(model.loss, str) else getattr(model.loss, "__name__", type(model.loss).__name__)
    sparse = loss.lower().replace("_", "") == "sparsecategoricalcrossentropy"
    return int(model.outputs[0].shape[-1]) if sparse and len(model.outputs) == 1 else None


class CheckAndWrite(beam.DoFn):
    """Checks the Summary of a whole split and writes the RepresentativeDataset.

    Args:
      folder: of the artifact.
      source: digest of the examples.
      classes: as for `check`.
      seed: which samples were drawn.
      reference: of the model module, for messages.
    """

    def __init__(self, folder: str, source: str, classes: int | None, seed: int, reference: str):
        self._folder = folder
        self._source = source
        self._classes = classes
        self._seed = seed
        self._reference = reference

    def process(self, summary: Summary) -> None:
        check(summary, self._classes, self._reference)
        samples = stack(summary)
        calibration_set.write(self._folder, samples, manifest(summary, samples, seed=self._seed, source=self._source))
