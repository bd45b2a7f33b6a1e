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
    A batch itself is computed in float32, as in Keras: not every metric can do otherwise (top-k accuracy cannot).

    Args:
      module: whose `compile_model` says the loss and the metrics.
    """

    def __init__(self, module: ModelModule):
        self._model = module.build_model()
        module.compile_model(self._model)
        self._results: list[tf_keras.metrics.Metric] = []
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
        for metric in self._results:
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
        metrics = self._model.compiled_metrics.metrics
        self._results = [_in_float64(metric) for metric in metrics]
        self._step = self._make_step(metrics)

    def _make_step(self, metrics: list[tf_keras.metrics.Metric]) -> Any:
        model = self._model

        @tf.function(reduce_retracing=True)
        def step(label: Any, predicted: Any, weight: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
            for metric in metrics:
                metric.reset_state()
            loss = model.compiled_loss(label, predicted, weight)
            model.compiled_metrics.update_state(label, predicted, weight)
            return loss, [variable.read_value() for metric in metrics for variable in metric.variables]

        return step


def _in_float64(metric: tf_keras.metrics.Metric) -> tf_keras.metrics.Metric:
    """Returns a metric of the same kind that can hold sums beyond 2**24 without rounding."""
    try:
        return type(metric).from_config({**metric.get_config(), "dtype": "float64"})
    except TypeError:
        # a module's own metric whose get_config lacks what its constructor asks for
        return metric
