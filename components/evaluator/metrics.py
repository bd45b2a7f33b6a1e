"""The module's compiled metrics as states that add up: exact for any number of shards, workers and bundles."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.model_module import ModelModule


@dataclasses.dataclass
class State:
    """What one model did on some examples.

    Attributes:
      examples: how many.
      loss: sum of the examples' losses, float64.
      metrics: one float64 array per state variable of the compiled metrics, each a sum over batches; None before any.
    """

    examples: int = 0
    loss: float = 0.0
    metrics: list[np.ndarray] | None = None

    def __add__(self, other: State) -> State:
        if self.metrics is None or other.metrics is None:
            metrics = other.metrics if self.metrics is None else self.metrics
        else:
            metrics = [mine + theirs for mine, theirs in zip(self.metrics, other.metrics, strict=True)]
        return State(self.examples + other.examples, self.loss + other.loss, metrics)


class CompiledMetrics:
    """Computes the loss and the metrics that a module compiles, batch by batch, from outputs of any runtime.

    tf-keras metrics keep sums, and merge by adding them up (`Metric.merge_state`); so a batch's own state is read off
    and added in float64. Kept in float32 over a whole split, sums drift with the bundling, and stop counting at 2**24.

    Args:
      module: whose `compile_model` says the loss and the metrics.
    """

    def __init__(self, module: ModelModule):
        self._model = module.build_model()
        module.compile_model(self._model)
        self._metrics: list[tf_keras.metrics.Metric] | None = None
        self._step: Any = None

    def batch(self, label: Any, outputs: list[np.ndarray], weight: Any = None) -> State:
        """Returns the state of one batch.

        Args:
          label: as `preprocess` returns it, batched.
          outputs: in the model's order of outputs, shape [batch, ...].
          weight: of each example, shape [batch], or None.
        """
        predicted = self._pack(outputs)
        if self._step is None:
            self._build(label, predicted, weight)
        rows = len(outputs[0])
        loss, values = self._step(label, predicted, weight)
        return State(rows, float(loss) * rows, [np.asarray(value, np.float64) for value in values])

    def result(self, state: State) -> dict[str, float]:
        """Returns the loss and the metrics by name, of all batches that went into a state.

        Raises:
          ValueError: no batch went into it.
        """
        if state.metrics is None:
            raise ValueError("no examples were evaluated")
        values = iter(state.metrics)
        results = {"loss": state.loss / state.examples}
        for metric in self._metrics or []:
            for variable in metric.variables:
                variable.assign(tf.cast(next(values), variable.dtype))
            results[metric.name] = float(metric.result())
        return results

    def prepare(self, label: Any, outputs: list[np.ndarray], weight: Any = None) -> None:
        """Builds the metrics from one batch, for a process that only calls `result`."""
        self._build(label, self._pack(outputs), weight)

    def _pack(self, outputs: list[np.ndarray]) -> Any:
        tensors = [tf.convert_to_tensor(output) for output in outputs]
        if len(tensors) == 1 and not isinstance(self._model.output, dict):
            return tensors[0]
        return tf.nest.pack_sequence_as(self._model.output, tensors)

    def _build(self, label: Any, predicted: Any, weight: Any) -> None:
        # names such as "accuracy" become metrics only when Keras sees the shapes
        self._model.compiled_metrics.build(predicted, label)
        containers = self._model.compiled_metrics
        nested = containers._metrics
        self._metrics = _in_float64(containers.metrics)
        doubles = dict(zip(map(id, containers.metrics), self._metrics, strict=True))
        containers._metrics = tf.nest.map_structure(lambda metric: doubles.get(id(metric), metric), nested)
        containers._weighted_metrics = tf.nest.map_structure(
            lambda metric: doubles.get(id(metric), metric), containers._weighted_metrics
        )
        self._step = self._make_step()

    def _make_step(self) -> Any:
        model, metrics = self._model, self._metrics or []

        @tf.function(reduce_retracing=True)
        def step(label: Any, predicted: Any, weight: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
            for metric in metrics:
                metric.reset_state()
            loss = model.compiled_loss(label, predicted, weight)
            model.compiled_metrics.update_state(label, predicted, weight)
            return loss, [variable.read_value() for metric in metrics for variable in metric.variables]

        return step


def _in_float64(metrics: list[tf_keras.metrics.Metric]) -> list[tf_keras.metrics.Metric]:
    return [type(metric).from_config({**metric.get_config(), "dtype": "float64"}) for metric in metrics]
