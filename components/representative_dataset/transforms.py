"""The Beam passes that draw the calibration samples and find what would spoil a training.

First the eval split is read, into a filter. One pass over the training split then checks every example and, for the
strategies `uniform` and `stratified`, keeps the samples. For `diverse` it keeps the extremes of a uniform pool of the
examples; the samples are chosen among these and read in a second pass, which parses nothing else. A worker holds twice
the samples and a batch at most, of the pool four numbers per example, and of the eval split 8 bytes per example.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from edgeline.data import calibration_set, reading
from edgeline.data.reading import ExampleParser
from edgeline.errors import UserError
from edgeline.model_module import hooks
from edgeline.representative_dataset import findings, selection
from edgeline.representative_dataset.config import LABEL, Sample
from edgeline.representative_dataset.findings import EvalFilter, Summary
from edgeline.representative_dataset.selection import Choice, Drawn, Pool

#: Most examples in a batch.
_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is drawn, and from what.

    Attributes:
      module: reference of the model module.
      inputs: names of the model's inputs, in its order.
      config: what is asked.
      classes: as for `findings.check`.
      source: digest of the examples.
      folder: of the artifact.
    """

    module: str
    inputs: tuple[str, ...]
    config: Sample
    classes: int | None
    source: str
    folder: str


def _fingerprints(serialized: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(serialized, selection.KEYS)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Some parsed examples, as arrays whose first dimension is the example."""

    serialized: np.ndarray
    fingerprints: np.ndarray
    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    values: np.ndarray | None
    finite: dict[str, np.ndarray]
    lows: np.ndarray
    highs: np.ndarray

    def drawn(self, row: int, key: int, digest: str, stratum: str, copies: int = 1) -> Drawn:
        """Returns one example, apart from the batch: with a view of it, all of the batch would stay in memory."""
        label = None if self.labels is None else int(self.labels[row])
        inputs = {name: np.array(values[row]) for name, values in self.inputs.items()}
        return Drawn(key, digest, stratum, label, inputs, copies, self.serialized[row])


class _Reader:
    """Parses examples for one module, with what the draw must know of each, in the threads of tf.data."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self.module = hooks.load(plan.module)
        self._parser = ExampleParser(self.module)
        config = plan.config
        self._features = [config.by] if config.strategy == "stratified" and config.by != LABEL else []
        self._extremes = config.strategy == "diverse"
        self._parse = tf.function(self._examine, input_signature=[tf.TensorSpec([None], tf.string)])
        self.batch_size = reading.fitting_batch(self._parse.get_concrete_function().structured_outputs[2], _BATCH)

    def _examine(self, serialized: tf.Tensor) -> tuple[Any, ...]:
        inputs, label, _, features = self._parser.with_features(serialized, self._features)
        finite = tf.nest.map_structure(_finite, inputs)
        ends = tf.nest.map_structure(_ends, inputs) if self._extremes else ()
        label = label if isinstance(label, tf.Tensor) else ()
        return serialized, _fingerprints(serialized), inputs, label, features, finite, ends

    def batches(self, shards: list[str]) -> Iterator[_Batch]:
        """Yields the examples of some shards.

        Raises:
          UserError: they cannot be read, or do not fit the module.
        """
        try:
            for batch in reading.mapped_batches(shards, self._parse, self.batch_size).as_numpy_iterator():
                yield self._batch(*batch)
        except tf.errors.OpError as error:
            raise reading.explain(error, shards, self.module) from error

    def parse(self, serialized: list[bytes]) -> _Batch:
        """Returns some examples, parsed."""
        parsed = self._parse(tf.constant(serialized))
        return self._batch(*tf.nest.map_structure(lambda tensor: tensor.numpy(), parsed))

    def _batch(
        self, serialized: Any, fingerprints: Any, inputs: Any, label: Any, features: Any, finite: Any, ends: Any
    ) -> _Batch:
        rows, names = len(serialized), list(self._plan.inputs)
        # one integer per example: a class index, unlike the columns of a one-hot label
        scalar = isinstance(label, np.ndarray) and label.dtype.kind in "iu" and label.size == rows
        named = reading.named_inputs(inputs, names)
        lows, highs = np.zeros([2, rows, 0])
        if self._extremes:
            own = reading.named_inputs(ends, names)
            numeric = [own[name] for name, column in named.items() if column.dtype.kind in "fiu"]
            lows, highs = np.stack(numeric, axis=-1) if numeric else (lows, highs)
        return _Batch(
            serialized=serialized,
            fingerprints=fingerprints,
            inputs=named,
            labels=label.reshape(rows) if scalar else None,
            values=features[self._features[0]].reshape(rows) if self._features else None,
            finite=reading.named_inputs(finite, names),
            lows=lows,
            highs=highs,
        )

    def stratum(self, batch: _Batch) -> tuple[list[str], np.ndarray]:
        """Returns the strata of a batch, and the number of each example's among them, shape [examples]."""
        values = batch.values if self._features else batch.labels
        if values is None or self._plan.config.strategy != "stratified":
            return [""], np.zeros(len(batch.fingerprints), np.int64)
        distinct, numbers = np.unique(values, return_inverse=True)
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in distinct.tolist()], numbers


def _finite(tensor: tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(tensor, [tf.shape(tensor)[0], -1])
    if not tensor.dtype.is_floating:
        return tf.ones(tf.shape(flat)[:1], tf.bool)
    return tf.reduce_all(tf.math.is_finite(flat), axis=1)


def _ends(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the smallest and the largest value of each example, shape [2, examples]; of no use if not numeric."""
    if np.dtype(tensor.dtype.as_numpy_dtype).kind not in "fiu":
        return tf.zeros([2, tf.shape(tensor)[0]], tf.float64)
    flat = tf.reshape(tensor, [tf.shape(tensor)[0], -1])
    return tf.cast(tf.stack([tf.reduce_min(flat, axis=1), tf.reduce_max(flat, axis=1)]), tf.float64)


class _OverShards(beam.DoFn):
    """Goes over all shards of a bundle in one pass: to open a tf.data pipeline costs as much as thousands of examples.

    A subclass says with `over` what the pass yields; `known` is what `process` was given beside the shards.
    """

    def start_bundle(self) -> None:
        self._shards: list[str] = []
        self._known: Any = None

    def process(self, shard: str, known: Any = None) -> None:
        self._shards.append(shard)
        self._known = known

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._shards:
            yield GlobalWindows.windowed_value_at_end_of_window(self.over(self._shards, self._known))

    def over(self, shards: list[str], known: Any) -> Any:
        raise NotImplementedError


class FilterShards(_OverShards):
    """From shards of the eval split to their EvalFilter.

    Args:
      module: reference of the model module, for messages.
    """

    def __init__(self, module: str):
        self._reference = module

    def over(self, shards: list[str], known: Any) -> EvalFilter:
        try:
            fingerprints = list(reading.mapped_batches(shards, _fingerprints, 4 * _BATCH).as_numpy_iterator())
        except tf.errors.OpError as error:
            raise reading.explain(error, shards, hooks.load(self._reference)) from error
        return EvalFilter(np.unique(np.concatenate(fingerprints or [_NONE])), sum(map(len, fingerprints)))


_NONE = np.zeros([0], np.int64)


class MergeFilters(beam.CombineFn):
    """Joins the EvalFilters of bundles."""

    def create_accumulator(self) -> EvalFilter:
        return EvalFilter(_NONE, 0)

    def add_input(self, mutable_accumulator: EvalFilter, element: EvalFilter) -> EvalFilter:
        return self.merge_accumulators([mutable_accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[EvalFilter]) -> EvalFilter:
        parts = list(accumulators)
        together = np.concatenate([_NONE, *(part.fingerprints for part in parts)])
        return EvalFilter(np.unique(together), sum(part.examples for part in parts))

    def extract_output(self, accumulator: EvalFilter) -> EvalFilter:
        return accumulator


class _OverTraining(_OverShards):
    """Goes over shards of the training split.

    Args:
      plan: what is drawn, and from what.
    """

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        self._reader = _Reader(self._plan)


class SummarizeShards(_OverTraining):
    """From shards of the training split and the EvalFilter to their Summary."""

    def over(self, shards: list[str], known: EvalFilter) -> Summary:
        config = self._plan.config
        summary = Summary()
        lowest, pool = _Lowest(config.samples), _Pooled(config.samples)
        for batch in self._reader.batches(shards):
            summary.examples += len(batch.fingerprints)
            finite = np.ones(len(batch.fingerprints), bool)
            for name, column in batch.finite.items():
                if not column.all():
                    summary.not_finite[name] += int((~column).sum())
                    finite &= column
            in_eval = finite & known.holds(batch.fingerprints)
            summary.rejected += int((~finite).sum())
            summary.in_eval += int(in_eval.sum())
            if batch.labels is not None:
                values, counts = np.unique(batch.labels, return_counts=True)
                summary.labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            strata, numbers = self._reader.stratum(batch)
            if config.strategy == "stratified":
                summary.strata.update(dict(zip(strata, np.bincount(numbers).tolist(), strict=True)))
                if len(summary.strata) > findings.MOST_STRATA:
                    raise findings.too_many_strata(config.by)
            keys = selection.keys(batch.fingerprints, config.seed)
            allowed = finite & ~in_eval
            if config.strategy == "diverse":
                pool.offer(batch, keys, allowed)
            else:
                lowest.offer(batch, keys, allowed, strata, numbers)
        summary.drawn, summary.pool = lowest.result(), pool.result()
        return summary


class _Lowest:
    """Keeps what `selection.lowest` keeps, and looks at an example's content only where its key may let it in."""

    def __init__(self, samples: int):
        self._samples = samples
        self._kept: dict[tuple[int, str], Drawn] = {}
        self._limits: tuple[dict[str, int], int] = ({}, selection.KEYS)

    def offer(
        self, batch: _Batch, keys: np.ndarray, allowed: np.ndarray, strata: list[str], numbers: np.ndarray
    ) -> None:
        by_stratum, other = self._limits
        limits = np.array([by_stratum.get(stratum, other) for stratum in strata])
        # an equal key is one more copy of what is kept
        for row in np.flatnonzero(allowed & (keys <= limits[numbers])).tolist():
            identity = int(keys[row]), hashlib.sha256(batch.serialized[row]).hexdigest()
            same = self._kept.get(identity)
            if same is None:
                self._kept[identity] = batch.drawn(row, *identity, strata[numbers[row]])
            else:
                self._kept[identity] = dataclasses.replace(same, copies=same.copies + 1)
        if len(self._kept) > self._samples + _BATCH:
            kept = self.result()
            self._kept = {(item.key, item.digest): item for item in kept}
            self._limits = selection.limits(kept, self._samples)

    def result(self) -> list[Drawn]:
        return selection.lowest(self._samples, self._kept.values())


class _Pooled:
    """Keeps what `selection.pooled` keeps."""

    def __init__(self, samples: int):
        self._size = selection.pool_size(samples)
        self._parts: list[Pool] = []
        self._rows = 0
        self._limit = selection.KEYS

    def offer(self, batch: _Batch, keys: np.ndarray, allowed: np.ndarray) -> None:
        rows = np.flatnonzero(allowed & (keys < self._limit))
        labels = np.zeros(len(keys), np.int64) if batch.labels is None else batch.labels.astype(np.int64)
        self._parts.append(Pool(keys[rows], labels[rows], batch.lows[rows], batch.highs[rows]))
        self._rows += len(rows)
        if self._rows > 2 * self._size:
            pool = selection.pooled(self._parts, self._size)
            self._parts, self._rows = [pool], len(pool.keys)
            if self._rows == self._size:
                self._limit = int(pool.keys[-1])

    def result(self) -> Pool | None:
        return selection.pooled(self._parts, self._size) if self._parts else None


class MergeSummaries(beam.CombineFn):
    """Adds Summaries up.

    Args:
      samples: how many examples to keep.
    """

    def __init__(self, samples: int):
        self._samples = samples

    def create_accumulator(self) -> Summary:
        return Summary()

    def add_input(self, mutable_accumulator: Summary, element: Summary) -> Summary:
        return self.merge_accumulators([mutable_accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Summary]) -> Summary:
        return findings.add_up(list(accumulators), self._samples)

    def extract_output(self, accumulator: Summary) -> Summary:
        return accumulator


class FetchShards(_OverTraining):
    """From shards of the training split and a Choice to a Summary that has the chosen examples drawn."""

    def over(self, shards: list[str], known: Choice) -> Summary:
        drawn: dict[tuple[int, str], Drawn] = {}
        try:
            records = reading.mapped_batches(shards, lambda s: (s, _fingerprints(s)), self._reader.batch_size)
            for serialized, fingerprints in records.as_numpy_iterator():
                keys = selection.keys(fingerprints, self._plan.config.seed)
                rows = np.flatnonzero(np.isin(keys, known.keys))
                if not len(rows):
                    continue
                batch = self._reader.parse(serialized[rows])
                for row, key in enumerate(keys[rows].tolist()):
                    identity = key, hashlib.sha256(batch.serialized[row]).hexdigest()
                    same = drawn.get(identity) or batch.drawn(row, *identity, "", copies=0)
                    drawn[identity] = dataclasses.replace(same, copies=same.copies + 1)
        except tf.errors.OpError as error:
            raise reading.explain(error, shards, self._reader.module) from error
        return Summary(drawn=list(drawn.values()))


class DrawSamples(beam.PTransform):
    """From paths of shards (str) of `train` and of `eval`, by these names, to the written RepresentativeDataset.

    Args:
      plan: what is drawn, and from what.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def expand(self, splits: dict[str, beam.PCollection[str]]) -> beam.PCollection[None]:
        plan, as_one = self._plan, beam.pvalue.AsSingleton
        known = (
            splits["eval"]
            | "SpreadEval" >> beam.Reshuffle()
            | "FilterShards" >> beam.ParDo(FilterShards(plan.module))
            | "MergeFilters" >> beam.CombineGlobally(MergeFilters())
        )
        train = splits["train"] | "SpreadTrain" >> beam.Reshuffle()
        summary = (
            train
            | "SummarizeShards" >> beam.ParDo(SummarizeShards(plan), as_one(known))
            | "Merge" >> beam.CombineGlobally(MergeSummaries(plan.config.samples))
            | "Check" >> beam.Map(checked, plan)
        )
        if plan.config.strategy != "diverse":
            return summary | "Write" >> beam.Map(write, as_one(known), None, plan)
        choice = summary | "Choose" >> beam.Map(choose, plan)
        return (
            train
            | "FetchShards" >> beam.ParDo(FetchShards(plan), as_one(choice))
            | "MergeFetched" >> beam.CombineGlobally(MergeSummaries(plan.config.samples))
            | "Complete" >> beam.Map(lambda draw, whole: dataclasses.replace(whole, drawn=draw.drawn), as_one(summary))
            | "Write" >> beam.Map(write, as_one(known), as_one(choice), plan)
        )


def checked(summary: Summary, plan: Plan) -> Summary:
    """Returns the Summary of a whole split if `findings.check` finds nothing wrong with it."""
    findings.check(summary, plan.classes, plan.module, plan.config.max_bad_fraction)
    return summary


def choose(summary: Summary, plan: Plan) -> Choice:
    """Returns what `selection.diverse` chooses of a whole split.

    Raises:
      UserError: every example is an outlier in some input.
    """
    if summary.pool is None:
        raise UserError("the training split is empty: 0 examples")
    choice = selection.diverse(summary.pool, plan.config.samples, plan.config.winsor_percent)
    if not len(choice.keys):
        raise UserError(
            f"no training example is within the ranges of all inputs of {plan.module} at a winsor percentile of "
            f"{plan.config.winsor_percent:g}; lower it"
        )
    return choice


def write(summary: Summary, known: EvalFilter, choice: Choice | None, plan: Plan) -> None:
    """Writes the RepresentativeDataset of a whole split's Summary."""
    # in the order of the keys, so that any first ones of them are a random choice
    summary.drawn.sort(key=lambda item: (item.key, item.digest))
    samples = findings.stack(summary.drawn)
    about = findings.about(plan.config, summary, samples, known, choice, plan.source)
    calibration_set.write(plan.folder, samples, about, [item.serialized for item in summary.drawn])
