"""One Beam pass over the eval split for the reference and all candidates."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from edgeline.data import reading
from edgeline.data.reading import ExampleParser
from edgeline.errors import UserError
from edgeline.evaluator.measuring import slices
from edgeline.evaluator.measuring.classification import Classification, Task
from edgeline.evaluator.measuring.comparison import GROUPS, Comparison, OutputError, Paired
from edgeline.evaluator.measuring.measurements import FLIPS, Evaluated, Flip, Plan, Results
from edgeline.evaluator.measuring.metrics import CompiledMetrics, Scores, State
from edgeline.evaluator.measuring.outputs import Output, Part
from edgeline.evaluator.measuring.outputs import find as find_outputs
from edgeline.evaluator.measuring.slices import Key, Slicer
from edgeline.model_module import hooks
from edgeline.tflite.model_processes import ModelProcesses, RunError, SharedBatches

#: Most examples in a batch: enough that Python's part per batch vanishes.
BATCH_SIZE = 256

#: The metrics are computed on this many batches at once: one call costs a third of what a small model costs per batch.
BATCHES_PER_STATE = 8

#: Longer side of a flipped example's image, in pixels.
_THUMBNAIL = 64


#: A batch: inputs, label, weight, features to slice by, digest of each record.
_Batch = tuple[Any, Any, Any, dict[str, tf.Tensor], tf.Tensor]


@dataclasses.dataclass
class _Group:
    """Some batches, joined but for the inputs, and what they say of each example."""

    inputs: list[dict[str, np.ndarray]]
    label: Any
    weight: Any
    masks: list[Any]
    digests: np.ndarray
    slices: list[tuple[np.ndarray, list[Key]]]


@dataclasses.dataclass
class _Ran:
    """What a model made of a group."""

    outputs: list[np.ndarray]
    scores: Scores
    labels: np.ndarray | None = None
    predicted: np.ndarray | None = None


class EvaluateShards(beam.DoFn):
    """Runs all models on the shards of a bundle in one pass, and yields their Results.

    One pass, since to open a tf.data pipeline costs as much as to evaluate thousands of examples. A model that fails on
    the way is given up with the error's text; the others go on. They run in child processes: LiteRT may crash on one.

    Args:
      plan: what is evaluated, and how.
    """

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        plan = self._plan
        # others are compared with these two as they go
        first = [name for name in (plan.deployed, plan.baseline) if name in plan.models]
        self._names = list(dict.fromkeys([*first, *plan.models]))
        # candidates were proven on the calibration's samples alone, and the deployed model by another runtime perhaps
        self._models = ModelProcesses({name: plan.models[name] for name in self._names})
        self._module = hooks.load(plan.module, form=plan.form)
        self._parser = ExampleParser(self._module)
        self._metrics = CompiledMetrics(self._module)
        self._task = Task.of(self._metrics.model, list(plan.outputs))
        self._slicer = Slicer(self._module, self._task.classes if self._task else None)
        # known once the metrics have seen a batch
        self._judged: list[str] = []
        self._outputs: dict[str, Output] | None = None
        self._parse = tf.function(self._parse_batch, input_signature=[tf.TensorSpec([None], tf.string)])
        self._batch = reading.fitting_batch(self._parse.get_concrete_function().structured_outputs[0], BATCH_SIZE)
        # threads that only wait for the processes
        self._pool = ThreadPoolExecutor(len(plan.models))

    def teardown(self) -> None:
        self._pool.shutdown()
        self._models.close()

    def start_bundle(self) -> None:
        self._shards: list[str] = []

    def process(self, shard: str) -> None:
        self._shards.append(shard)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._shards:
            yield GlobalWindows.windowed_value_at_end_of_window(self._evaluate(self._shards))

    def _parse_batch(self, serialized: tf.Tensor) -> _Batch:
        inputs, label, weight, features = self._parser.with_features(serialized, self._slicer.features)
        return inputs, label, weight, features, tf.strings.to_hash_bucket_fast(serialized, 2**62)

    def _evaluate(self, shards: list[str]) -> Results:
        # parsing runs ahead in tf.data's threads while LiteRT works in ours
        batches = reading.mapped_batches(shards, self._parse, self._batch)
        try:
            return self._add_up(iter(batches))
        except tf.errors.OpError as error:
            if not self._plan.max_bad_records:
                raise reading.explain(error, shards, self._module) from error
        bad: dict[str, int] = {}
        results = self._add_up(self._readable(shards, bad))
        return Results(results.models, bad)

    def _readable(self, shards: list[str], bad: dict[str, int]) -> Iterator[_Batch]:
        """Yields the batches of what can be read and parsed, slowly, and counts the rest."""

        def count(shard: str, error: tf.errors.OpError) -> None:
            bad[shard] = bad.get(shard, 0) + 1
            if sum(bad.values()) > self._plan.max_bad_records:
                raise UserError(
                    f"more than {self._plan.max_bad_records} bad records (--max-bad-records): "
                    f"{reading.explain(error, [shard], self._module)}"
                ) from error

        for shard in shards:
            records = reading.records_until_damage(shard, functools.partial(count, shard))
            while serialized := list(itertools.islice(records, self._batch)):
                try:
                    yield self._parse(tf.constant(serialized))
                    continue
                except tf.errors.OpError:
                    sound = []
                for record in serialized:
                    try:
                        self._parse(tf.constant([record]))
                        sound.append(record)
                    except tf.errors.OpError as error:
                        count(shard, error)
                if sound:
                    yield self._parse(tf.constant(sound))

    def _add_up(self, batches: Iterator[_Batch]) -> Results:
        models: dict[str, Evaluated | str] = {name: Evaluated() for name in self._names}
        while group := list(itertools.islice(batches, BATCHES_PER_STATE)):
            self._add(models, self._group(group))
        return Results(models)

    def _group(self, batches: list[_Batch]) -> _Group:
        inputs, labels, weights, features, digests = zip(*batches, strict=True)
        label, weight, kept, digest = (
            tf.nest.map_structure(_joined, *parts) for parts in (labels, weights, features, digests)
        )
        if all(part is None for part in tf.nest.flatten(label)):
            raise UserError(
                f"preprocess of {self._module.source.reference} returns no label for the eval split: there is nothing "
                f"to evaluate against"
            )
        try:
            numbers = self._task.labels(label, len(digest)) if self._task else None
            masks = [_joined(*parts) for parts in zip(*map(self._metrics.masks, inputs), strict=True)]
        except ValueError as error:
            raise UserError(f"the eval split does not fit the model: {error}") from error
        return _Group(
            [reading.named_inputs(batch, list(self._plan.inputs)) for batch in inputs],
            label,
            weight,
            masks,
            digest.numpy(),
            self._slicer.of({name: values.numpy() for name, values in kept.items()}, numbers),
        )

    def _add(self, models: dict[str, Evaluated | str], group: _Group) -> None:
        live = [name for name, so_far in models.items() if not isinstance(so_far, str)]
        ran: dict[str, _Ran] = {}
        with SharedBatches(group.inputs) as inputs:
            outcomes = self._pool.map(functools.partial(self._run, inputs), live)
            for name, outputs in zip(live, outcomes, strict=True):
                evaluated: Evaluated | str
                try:
                    evaluated = outputs if isinstance(outputs, str) else self._judge(name, outputs, group, ran)
                except (ValueError, tf.errors.InvalidArgumentError) as error:
                    evaluated = f"{type(error).__name__}: {error}"
                before = models[name]
                models[name] = (
                    evaluated if isinstance(evaluated, str) or isinstance(before, str) else before + evaluated
                )
                check_slices(models[name])

    def _run(self, inputs: SharedBatches, name: str) -> list[np.ndarray] | str:
        try:
            outputs = self._models.run(name, inputs, self._batch, self._plan.outputs)
        except RunError as error:
            return str(error)
        broken = [n for n, values in zip(self._plan.outputs, outputs, strict=True) if not np.isfinite(values).all()]
        return f"outputs {', '.join(broken)} hold NaN or infinite values" if broken else outputs

    def _judge(self, name: str, outputs: list[np.ndarray], group: _Group, ran: dict[str, _Ran]) -> Evaluated:
        """Returns what a model did on a group, and notes it in `ran` for those that are compared with it."""
        scores = self._metrics.scores(group.label, outputs, group.weight, group.masks)
        own = _Ran(outputs, scores)
        self._judged = self._judged or [metric.name for metric in self._plan.budget.judged(self._metrics.directions)]
        others = self._metrics.others(group.label, outputs, group.weight, group.masks)
        evaluated = Evaluated(State(len(scores.values), scores.values.sum(0), scores.weights.sum(0), others))
        masked = any(mask is not None for mask in group.masks)
        evaluated.chance = self._metrics.chance(group.label, outputs, scores, group.digests, masked)
        evaluated.parts = self._measure_outputs(name, outputs, group, ran)
        if self._task is not None:
            own.labels, probabilities, own.predicted = self._task.read(group.label, outputs[0])
            evaluated.classes = Classification.of(self._task, own.labels, probabilities, own.predicted)
        if name in (self._plan.baseline, self._plan.deployed):
            ran[name] = own
        for numbers, keys in group.slices:
            evaluated.slices.update(self._parts(numbers, keys, own, group))
        means = [name for name in self._judged if name in scores.names]
        if means != self._judged:
            dealt = (group.digests % GROUPS).astype(np.int64)
            evaluated.groups = self._parts(dealt, list(range(GROUPS)), own, group)
        for other in (self._plan.baseline, self._plan.deployed):
            if other is not None and other != name and other in ran:
                for metric in means:
                    column = scores.names.index(metric)
                    evaluated.paired[other, metric] = Paired.of(
                        scores.values[:, column], ran[other].scores.values[:, column], scores.weights[:, column]
                    )
        if name != self._plan.baseline and self._plan.baseline in ran:
            evaluated.comparison, evaluated.flips = self._compare(own, ran[self._plan.baseline], group)
        return evaluated

    def _measure_outputs(
        self, name: str, outputs: list[np.ndarray], group: _Group, ran: dict[str, _Ran]
    ) -> dict[str, Part]:
        """Returns what a model did at each output of which more is measured than the metrics."""
        if self._outputs is None:
            self._outputs = find_outputs(self._metrics, list(self._plan.outputs))
        labels = self._metrics.labels(group.label, outputs) if self._outputs else []
        parts: dict[str, Part] = {}
        for output in self._outputs.values():
            label, scores, mask = labels[output.place], outputs[output.place], group.masks[output.place]
            if label is None:
                continue
            part = output.measure(label, scores, group.digests, None if mask is None else np.asarray(mask))
            if name != self._plan.baseline and self._plan.baseline in ran:
                reference = ran[self._plan.baseline].outputs[output.place]
                image = functools.partial(_thumbnail, group.inputs)
                part = output.with_masks(part, label, scores, reference, group.digests, image)
            parts[output.name] = part
        return parts

    def _parts(self, numbers: np.ndarray, keys: list[Any], own: _Ran, group: _Group) -> dict[Any, State]:
        """Returns the State of each part of a group; `numbers` says which key each example belongs to."""
        counts = np.bincount(numbers, minlength=len(keys))
        values, weights = (
            np.stack([np.bincount(numbers, column, len(keys)) for column in columns.T], axis=1)
            for columns in (own.scores.values, own.scores.weights)
        )
        parts = {}
        for number, key in enumerate(keys):
            if not counts[number]:
                continue
            others = []
            if self._metrics.has_others:
                rows = np.flatnonzero(numbers == number)
                label, weight, masks = (
                    tf.nest.map_structure(functools.partial(_rows, rows), tree)
                    for tree in (group.label, group.weight, group.masks)
                )
                others = self._metrics.others(label, [output[rows] for output in own.outputs], weight, masks)
            parts[key] = State(int(counts[number]), values[number], weights[number], others)
        return parts

    def _compare(self, own: _Ran, reference: _Ran, group: _Group) -> tuple[Comparison, list[Flip]]:
        pairs = zip(self._plan.outputs, own.outputs, reference.outputs, strict=True)
        errors = {name: OutputError.of(a, b) for name, a, b in pairs if a.shape == b.shape}
        comparison = Comparison(len(own.scores.values), errors)
        if own.predicted is None or own.labels is None or reference.predicted is None:
            return comparison, []
        right, was_right = own.predicted == own.labels, reference.predicted == own.labels
        flipped = {"right_to_wrong": was_right & ~right, "wrong_to_right": ~was_right & right}
        comparison.classified = True
        comparison.agreed = int((own.predicted == reference.predicted).sum())
        comparison.broken, comparison.mended = (int(rows.sum()) for rows in flipped.values())
        flips = []
        for kind, mask in flipped.items():
            rows = np.flatnonzero(mask)
            for row in rows[np.argsort(group.digests[rows], kind="stable")][:FLIPS]:
                features = dict(pair for numbers, keys in group.slices for pair in keys[numbers[row]])
                classes = (int(own.labels[row]), int(reference.predicted[row]), int(own.predicted[row]))
                flips.append(Flip(int(group.digests[row]), kind, *classes, _thumbnail(group.inputs, row), features))
        return comparison, flips


def _joined(*parts: tf.Tensor | None) -> tf.Tensor | None:
    return None if parts[0] is None else tf.concat(parts, 0)


def _rows(rows: np.ndarray, tensor: tf.Tensor | None) -> tf.Tensor | None:
    return None if tensor is None else tf.gather(tensor, rows)


def _thumbnail(batches: list[dict[str, np.ndarray]], row: int) -> np.ndarray | None:
    """Returns the first input that looks like an image, from black (its least value) to white, or None."""
    for name, first in batches[0].items():
        shape = first.shape[1:]
        if len(shape) in (2, 3) and min(shape[:2]) >= 8 and (len(shape) == 2 or shape[2] in (1, 3)):
            values = next(itertools.islice(itertools.chain.from_iterable(b[name] for b in batches), row, None))
            step = -(-max(shape[:2]) // _THUMBNAIL)
            image = values[::step, ::step].astype(np.float32)
            if image.ndim == 3 and image.shape[2] == 1:
                image = image[..., 0]
            low, high = float(image.min()), float(image.max())
            return np.rint((image - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)
    return None


def check_slices(evaluated: Evaluated | str) -> None:
    """Checks that a feature does not have too many values to slice by.

    Raises:
      UserError: it has; says which.
    """
    if isinstance(evaluated, Evaluated) and len(evaluated.slices) > slices.MOST_SLICES:
        counts = collections.Counter(tuple(name for name, _ in key) for key in evaluated.slices)
        names, count = counts.most_common(1)[0]
        if count > slices.MOST_SLICES:
            raise slices.too_many(names)


class MergeResults(beam.CombineFn):
    """Adds the Results of bundles up."""

    def create_accumulator(self) -> Results:
        return Results()

    def add_input(self, mutable_accumulator: Results, element: Results) -> Results:
        return mutable_accumulator + element

    def merge_accumulators(self, accumulators: Iterable[Results]) -> Results:
        return sum(accumulators, Results())

    def extract_output(self, accumulator: Results) -> Results:
        return accumulator


class Evaluate(beam.PTransform):
    """From paths of shards (str) to the Results of all models, one element.

    Args:
      plan: what is evaluated, and how.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def expand(self, shards: beam.PCollection[str]) -> beam.PCollection[Results]:
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "EvaluateShards" >> beam.ParDo(EvaluateShards(self._plan))
            | "Merge" >> beam.CombineGlobally(MergeResults())
        )


def write_results(results: Results, path: str) -> None:
    """Writes merged Results where the process that started the pipeline reads them."""
    Path(path).write_bytes(pickle.dumps(results))


def read_results(path: str) -> Results:
    """Returns what `write_results` wrote."""
    results: Results = pickle.loads(Path(path).read_bytes())
    return results
