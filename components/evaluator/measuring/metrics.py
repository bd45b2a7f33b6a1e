"""The module's compiled metrics as states that add up: exact for any number of shards, workers and bundles."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.engine import compile_utils

from edgeline.model_module.hooks import ModelModule


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the loss and those metrics that are means say of each example.

    Attributes:
      names: of the columns; the first is `loss`.
      values: float64, shape [examples, columns], times the example's weight where the metric is weighted.
      weights: float64, same shape: what each example counts in the column's mean.
    """

    names: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass
class State:
    """What one model did on some examples.

    Attributes:
      examples: how many.
      sums: float64, shape [columns]: Scores' values added up; None before any.
      totals: float64, shape [columns]: likewise its weights.
      others: one float64 array per state variable of the metrics that are no means (AUC, recall), each a sum.
    """

    examples: int = 0
    sums: np.ndarray | None = None
    totals: np.ndarray | None = None
    others: list[np.ndarray] = dataclasses.field(default_factory=list)

    def __add__(self, other: State) -> State:
        if self.sums is None or self.totals is None:
            return other
        if other.sums is None or other.totals is None:
            return self
        others = [mine + theirs for mine, theirs in zip(self.others, other.others, strict=True)]
        return State(self.examples + other.examples, self.sums + other.sums, self.totals + other.totals, others)


class CompiledMetrics:
    """Computes the loss and the metrics that a module compiles, from outputs of any runtime.

    Most metrics are means over examples. Their values are taken one by one and added in float64, so that slices,
    paired comparisons and any bundling come out of the same numbers; Keras' own float32 sums drift with the bundling,
    and stop counting at 2**24. Metrics that are no means (AUC, precision) keep sums too, and merge by adding them up
    (`Metric.merge_state`): a batch's own state is read off and added in float64.

    Args:
      module: whose `compile_model` says the loss and the metrics.
    """

    def __init__(self, module: ModelModule):
        self.model = module.build_model()
        module.compile_model(self.model)
        self._means: dict[str, Any] = {}
        self._others: list[tf_keras.metrics.Metric] = []
        self._order: list[str] = []
        self._score: Any = None
        self._update: Any = None

    @property
    def has_others(self) -> bool:
        """Whether some metrics are no means; known once a batch was seen."""
        return bool(self._others)

    def scores(self, label: Any, outputs: list[np.ndarray], weight: Any = None) -> Scores:
        """Returns what each example of a batch scores.

        Args:
          label: as `preprocess` returns it, batched.
          outputs: in the model's order of outputs, shape [batch, ...].
          weight: of each example, shape [batch], or None.
        """
        predicted = self._pack(outputs)
        if self._score is None:
            self._build(label, predicted)
        values, weights = self._score(label, predicted, weight)
        return Scores(("loss", *self._means), values.numpy(), weights.numpy())

    def others(self, label: Any, outputs: list[np.ndarray], weight: Any = None) -> list[np.ndarray]:
        """Returns the states of the metrics that are no means, on a batch; see `scores`."""
        if not self._others:
            return []
        return [np.asarray(v, np.float64) for v in self._update(label, self._pack(outputs), weight)]

    def batch(self, label: Any, outputs: list[np.ndarray], weight: Any = None) -> State:
        """Returns the state of one batch; see `scores`."""
        scores = self.scores(label, outputs, weight)
        others = self.others(label, outputs, weight)
        return State(len(outputs[0]), scores.values.sum(axis=0), scores.weights.sum(axis=0), others)

    def result(self, state: State) -> dict[str, float]:
        """Returns the loss and the metrics by name, of all batches that went into a state.

        Raises:
          ValueError: no batch went into it.
        """
        if state.sums is None or state.totals is None:
            raise ValueError("no examples were evaluated")
        with np.errstate(invalid="ignore", divide="ignore"):  # all weights of a slice may be 0
            results = dict(zip(("loss", *self._means), map(float, state.sums / state.totals), strict=True))
        values = iter(state.others)
        for metric in self._others:
            for variable in metric.variables:
                variable.assign(tf.cast(next(values), variable.dtype))
            results[metric.name] = float(metric.result())
        return {name: results[name] for name in ("loss", *self._order)}

    def prepare(self, label: Any, outputs: list[np.ndarray]) -> None:
        """Builds the metrics from one batch, for a process that only calls `result`."""
        self._build(label, self._pack(outputs))

    def _pack(self, outputs: list[np.ndarray]) -> Any:
        tensors = [tf.convert_to_tensor(output) for output in outputs]
        if len(tensors) == 1 and not isinstance(self.model.output, dict):
            return tensors[0]
        return tf.nest.pack_sequence_as(self.model.output, tensors)

    def _build(self, label: Any, predicted: Any) -> None:
        # names such as "accuracy" become metrics only when Keras sees the shapes
        metrics, losses = self.model.compiled_metrics, self.model.compiled_loss
        metrics.build(predicted, label)
        losses.build(predicted)
        self._order = [metric.name for metric in metrics.metrics]
        # the containers know which output a metric belongs to, and say so in private only
        placed = [
            (place, weighted, metric)
            for place, (plain, weighting) in enumerate(zip(metrics._metrics, metrics._weighted_metrics, strict=True))
            for weighted, group in ((False, plain), (True, weighting))
            for metric in group
            if metric is not None
        ]
        self._means = {metric.name: (place, w, metric) for place, w, metric in placed if _is_mean(metric)}
        wide = {metric.name: _in_float64(metric) for _, _, metric in placed if not _is_mean(metric)}
        self._others = [wide[name] for name in self._order if name in wide]
        self._score = self._make_score(losses)
        self._update = self._make_update([(p, w, wide[m.name]) for p, w, m in placed if m.name in wide])

    def _columns(self, label: Any, predicted: Any, weight: Any) -> list[tuple[Any, Any, Any]]:
        """Returns (label, prediction, weight) of every output, as Keras matches them."""
        labels = tf.nest.flatten(self.model.compiled_metrics._conform_to_outputs(predicted, label))
        outputs = tf.nest.flatten(predicted)
        weights = tf.nest.flatten(weight) if tf.nest.is_nested(weight) else [weight] * len(outputs)
        return [
            (y, p, w) if y is None else compile_utils.match_dtype_and_rank(y, p, w)
            for y, p, w in zip(labels, outputs, weights, strict=True)
        ]

    def _make_score(self, losses: Any) -> Any:
        means = self._means

        @tf.function(reduce_retracing=True)
        def score(label: Any, predicted: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
            columns = self._columns(label, predicted, weight)
            rows = tf.shape(tf.nest.flatten(predicted)[0])[:1]
            one = tf.ones(rows, tf.float64)
            total = tf.zeros(rows, tf.float64)
            for (y, p, w), loss, share in zip(columns, losses._losses, losses._loss_weights, strict=True):
                if y is not None and loss is not None:
                    # as Keras' mean over the batch: weights count in the sum, and not in what it is divided by
                    value = _per_example(_loss_values(loss, y, p)) * _per_example_weight(w, one)
                    total += value * (1.0 if share is None else tf.cast(share, tf.float64))
            values, weights = [total], [one]
            for place, weighted, metric in means.values():
                y, p, w = columns[place]
                value = _per_example(_metric_values(metric, y, p))
                counted = _per_example_weight(w, one) if weighted else one
                values.append(value * counted)
                weights.append(counted)
            return tf.stack(values, axis=1), tf.stack(weights, axis=1)

        return score

    def _make_update(self, placed: list[tuple[int, bool, tf_keras.metrics.Metric]]) -> Any:
        others = self._others

        @tf.function(reduce_retracing=True)
        def update(label: Any, predicted: Any, weight: Any) -> list[tf.Tensor]:
            columns = self._columns(label, predicted, weight)
            for place, weighted, metric in placed:
                metric.reset_state()
                y, p, w = columns[place]
                metric.update_state(y, p, sample_weight=w if weighted else None)
            return [variable.read_value() for metric in others for variable in metric.variables]

        return update


def _is_mean(metric: tf_keras.metrics.Metric) -> bool:
    """Whether a metric is the mean of a function of each example, and nothing else."""
    wrapper = tf_keras.metrics.MeanMetricWrapper
    return isinstance(metric, wrapper) and type(metric).update_state is wrapper.update_state


def _metric_values(metric: Any, label: tf.Tensor, predicted: tf.Tensor) -> Any:
    # the wrapper of a loss aligns shapes just as the metric's own update does, and does not add up
    function = compile_utils.losses_mod.LossFunctionWrapper(metric._fn, name=metric.name, **metric._fn_kwargs).call
    try:
        return function(tf.cast(label, tf.float64), tf.cast(predicted, tf.float64))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        # not every function can do that: top-k accuracy takes float32 alone
        return function(tf.cast(label, metric.dtype), tf.cast(predicted, metric.dtype))


def _loss_values(loss: Any, label: tf.Tensor, predicted: tf.Tensor) -> Any:
    try:
        wide = tf.cast(label, tf.float64) if label.dtype.is_floating else label
        return loss.call(wide, tf.cast(predicted, tf.float64))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        return loss.call(label, predicted)


def _per_example(values: Any) -> tf.Tensor:
    """Returns the mean over all but the first axis, float64, shape [batch]."""
    return tf.reduce_mean(tf.reshape(tf.cast(values, tf.float64), [tf.shape(values)[0], -1]), axis=1)


def _per_example_weight(weight: Any, one: tf.Tensor) -> tf.Tensor:
    return one if weight is None else _per_example(weight)


def _in_float64(metric: tf_keras.metrics.Metric) -> tf_keras.metrics.Metric:
    """Returns a metric of the same kind that can hold sums beyond 2**24 without rounding."""
    try:
        return type(metric).from_config({**metric.get_config(), "dtype": "float64"})
    except TypeError:
        # a module's own metric whose get_config lacks what its constructor asks for
        return metric
