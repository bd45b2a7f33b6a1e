"""One Beam pass over the eval split for the reference and all candidates."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from edgeline import data, model_module
from edgeline.data import ExampleParser
from edgeline.evaluator.metrics import CompiledMetrics, State
from edgeline.litert import TFLiteModel

#: Large enough that Python's part per batch vanishes, small enough for any model's activations.
BATCH_SIZE = 256

#: The metrics are computed on this many batches at once: one call costs a third of what a small model costs per batch.
BATCHES_PER_STATE = 8

#: State of each model by name, or the text of the error at which it was given up.
States = dict[str, State | str]


class EvaluateShards(beam.DoFn):
    """Runs all models on the shards of a bundle in one pass, batch by batch, and yields their States.

    One pass, since to open a tf.data pipeline costs as much as to evaluate thousands of examples. A model that fails on
    the way is given up with the error's text; the others go on.

    Args:
      module: reference of the model module.
      input_names: of the models, in the Keras model's order.
      output_names: likewise.
      models: paths of `.tflite` files by name.
    """

    def __init__(self, module: str, input_names: list[str], output_names: list[str], models: dict[str, str]):
        self._reference = module
        self._inputs = input_names
        self._outputs = output_names
        self._paths = models

    def setup(self) -> None:
        self._module = model_module.load(self._reference)
        self._parser = ExampleParser(self._module)
        self._metrics = CompiledMetrics(self._module)
        self._models = {name: TFLiteModel(path) for name, path in self._paths.items()}

    def start_bundle(self) -> None:
        self._shards: list[str] = []

    def process(self, shard: str) -> None:
        self._shards.append(shard)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._shards:
            yield GlobalWindows.windowed_value_at_end_of_window(self._evaluate(self._shards))

    def _evaluate(self, shards: list[str]) -> States:
        states: States = {name: State() for name in self._models}
        # parsing runs ahead in tf.data's threads while LiteRT works in this one
        batches = iter(data.parsed_batches(shards, self._parser, BATCH_SIZE))
        try:
            while group := list(itertools.islice(batches, BATCHES_PER_STATE)):
                batched, labels, weights = zip(*group, strict=True)
                inputs = [data.named_inputs(batch, self._inputs) for batch in batched]
                label, weight = (tf.nest.map_structure(_joined, *parts) for parts in (labels, weights))
                for name, model in self._models.items():
                    state = states[name]
                    if isinstance(state, State):
                        states[name] = self._add(state, model, inputs, label, weight)
        except tf.errors.OpError as error:
            raise data.explain(error, shards, self._module) from error
        return states

    def _add(
        self, state: State, model: TFLiteModel, inputs: list[dict[str, np.ndarray]], label: object, weight: object
    ) -> State | str:
        try:
            outputs = [model.run(batch, BATCH_SIZE) for batch in inputs]
            joined = {name: np.concatenate([batch[name] for batch in outputs]) for name in self._outputs}
            broken = [name for name, values in joined.items() if not np.isfinite(values).all()]
            if broken:
                return f"outputs {', '.join(broken)} hold NaN or infinite values"
            return state + self._metrics.batch(label, list(joined.values()), weight)
        except (KeyError, ValueError, RuntimeError, tf.errors.InvalidArgumentError) as error:
            return f"{type(error).__name__}: {error}"


def _joined(*parts: tf.Tensor | None) -> tf.Tensor | None:
    return None if parts[0] is None else tf.concat(parts, 0)


class MergeStates(beam.CombineFn):
    """Adds the States of each model up; an error anywhere is an error of the whole."""

    def create_accumulator(self) -> States:
        return {}

    def add_input(self, mutable_accumulator: States, element: States) -> States:
        return self.merge_accumulators([mutable_accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[States]) -> States:
        merged: States = {}
        for states in accumulators:
            for name, state in states.items():
                before = merged.get(name, State())
                if isinstance(before, State):
                    merged[name] = before + state if isinstance(state, State) else state
        return merged

    def extract_output(self, accumulator: States) -> States:
        return accumulator


class Evaluate(beam.PTransform):
    """From paths of shards (str) to the States of all models.

    Args:
      module: reference of the model module.
      input_names: of the models, in the Keras model's order.
      output_names: likewise.
      models: paths of `.tflite` files by name.
    """

    def __init__(self, module: str, input_names: list[str], output_names: list[str], models: dict[str, str]):
        super().__init__()
        self._arguments = (module, input_names, output_names, models)

    def expand(self, shards: beam.PCollection[str]) -> beam.PCollection[States]:
        return (
            shards
            | "Spread" >> beam.Reshuffle()
            | "EvaluateShards" >> beam.ParDo(EvaluateShards(*self._arguments))
            | "Merge" >> beam.CombineGlobally(MergeStates())
        )


def write_states(states: States, path: str) -> None:
    """Writes merged States where the process that started the pipeline reads them."""
    Path(path).write_bytes(pickle.dumps(states))


def read_states(path: str) -> States:
    """Returns what `write_states` wrote."""
    states: States = pickle.loads(Path(path).read_bytes())
    return states
