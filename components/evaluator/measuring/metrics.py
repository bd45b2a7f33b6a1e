"""The module's compiled metrics as states that add up: exact for any number of shards, workers and bundles."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.engine import compile_utils
from tf_keras.src.utils import losses_utils, metrics_utils

from edgeline.evaluator.measuring import directions, undefined
from edgeline.evaluator.measuring.chance import MOST_NUMBERS, Chance, CommonestClass, Mean
from edgeline.evaluator.measuring.classification import Kind
from edgeline.model_module.hooks import ModelModule


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the loss and those metrics that are means say of each example.

    Attributes:
      names: of the columns. The first is `loss`, unless that is no mean over examples: then there is a column for each
        output's part of it, such as `loss of boxes`.
      values: float64, shape [examples, columns], times the example's weight where the metric is weighted.
      weights: float64, same shape: what each example counts in the column's mean; under a mask, how many valid
        elements it has.
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


@dataclasses.dataclass(frozen=True)
class _LossPart:
    """One output's part of the loss.

    Attributes:
      place: of the output.
      name: of the column, where it has one of its own.
      loss: Keras' own.
      share: what it is multiplied by in the whole.
      is_sum: whether it is a sum over all elements, and no mean.
      is_masked: whether some elements do not count.
    """

    place: int
    name: str
    loss: Any
    share: float
    is_sum: bool
    is_masked: bool


#: The accuracies of one label per example, by the function that scores it or by class.
_ACCURACIES: dict[Any, Kind] = {
    tf_keras.metrics.sparse_categorical_accuracy: "sparse",
    metrics_utils.sparse_categorical_matches: "sparse",
    tf_keras.metrics.categorical_accuracy: "categorical",
    tf_keras.metrics.CategoricalAccuracy: "categorical",
    tf_keras.metrics.binary_accuracy: "binary",
    metrics_utils.binary_matches: "binary",
}

#: The errors of which the mean of the labels is the plainest guess, and whether they are squared.
_ERRORS = {tf_keras.losses.mean_squared_error: True, tf_keras.losses.mean_absolute_error: False}

_OF_TAGS = (tf_keras.losses.binary_crossentropy, tf_keras.losses.binary_focal_crossentropy)


@dataclasses.dataclass(frozen=True)
class _Guess:
    """How a metric is compared with what needs no model.

    Attributes:
      place: of the output.
      labels: how an accuracy's labels are written; None of an error.
      squared: whether an error is squared.
      classes: how many there are, of an accuracy.
    """

    place: int
    labels: Kind | None = None
    squared: bool = False
    classes: int = 0


class CompiledMetrics:
    """Computes the loss and the metrics that a module compiles, from outputs of any runtime.

    Most metrics are means over examples. Their values are taken one by one and added in float64, so that slices,
    paired comparisons and any bundling come out of the same numbers; Keras' own float32 sums drift with the bundling,
    and stop counting at 2**24. Metrics that are no means (AUC, precision) keep sums too, and merge by adding them up
    (`Metric.merge_state`): a batch's own state is read off and added in float64.

    All is as if Keras had evaluated the examples as one batch. Keras' own mean of a loss under a mask is a mean of
    batches, whatever number of valid elements each has. What Keras adds to a loss for the weights' sake is left out.

    Args:
      module: whose `compile_model` says the loss and the metrics.
    """

    def __init__(self, module: ModelModule):
        self.model = module.build_model()
        module.compile_model(self.model)
        self._means: dict[str, Any] = {}
        self._others: list[tf_keras.metrics.Metric] = []
        self._order: list[str] = []
        self._parts: list[_LossPart] = []
        self._guesses: dict[str, _Guess] = {}
        self._shapes: list[tuple[tf.TensorShape, tf.TensorShape]] = []
        self._score: Any = None
        self._update: Any = None
        self._masks = _mask_model(self.model)

    @property
    def has_others(self) -> bool:
        """Whether some metrics are no means; known once a batch was seen."""
        return bool(self._others)

    @property
    def directions(self) -> dict[str, str | None]:
        """The loss and the metrics by name: `max`, `min`, or None where the class does not say what is better.

        Known once a batch was seen, or `prepare` was called.
        """
        metrics = {name: metric for name, (_, _, metric) in self._means.items()}
        metrics |= {metric.name: metric for metric in self._others}
        return {"loss": "min", **{name: directions.of_metric(metrics[name]) for name in self._order}}

    def masks(self, inputs: Any) -> list[tf.Tensor | None]:
        """Returns which elements of each output count, as Keras' layers (Embedding, Masking) pass it on.

        Args:
          inputs: of a batch, as `preprocess` returns them.

        Returns:
          By output, bool, shape [batch, ...]; None where all elements count.
        """
        if self._masks is None:
            return [None] * len(tf.nest.flatten(self.model.output))
        known = iter(tf.nest.flatten(self._masks(inputs)))
        return [
            None if losses_utils.get_mask(output) is None else next(known)
            for output in tf.nest.flatten(self.model.output)
        ]

    def scores(self, label: Any, outputs: list[np.ndarray], weight: Any = None, masks: Any = None) -> Scores:
        """Returns what each example of a batch scores.

        Args:
          label: as `preprocess` returns it, batched.
          outputs: in the model's order of outputs, shape [batch, ...].
          weight: of each example, shape [batch], or of its elements, [batch, ...], or None.
          masks: what the method `masks` returns for the batch; None: all elements count.
        """
        predicted = self._pack(outputs)
        masks = masks or [None] * len(outputs)
        if self._score is None:
            self._build(label, predicted, weight, masks)
        values, weights = self._score(label, predicted, weight, masks)
        return Scores(self._column_names(), values.numpy(), weights.numpy())

    def others(self, label: Any, outputs: list[np.ndarray], weight: Any = None, masks: Any = None) -> list[np.ndarray]:
        """Returns the states of the metrics that are no means, on a batch; see `scores`."""
        if not self._others:
            return []
        states = self._update(label, self._pack(outputs), weight, masks or [None] * len(outputs))
        return [np.asarray(v, np.float64) for v in states]

    def chance(
        self, label: Any, outputs: list[np.ndarray], scores: Scores, digests: np.ndarray, masked: bool = False
    ) -> dict[str, Chance]:
        """Returns what a model that ignores its inputs would have of a batch, by metric.

        Args:
          label: as `preprocess` returns it, batched.
          outputs: in the model's order of outputs.
          scores: of the batch.
          digests: of the batch's records, int64.
          masked: whether some elements do not count.

        Returns:
          Of the accuracies of one label per example, and of the mean squared and absolute errors that neither masks nor
          weights play a part in; nothing of other metrics.
        """
        states: dict[str, Chance] = {}
        columns = self._columns(label, self._pack(outputs), None) if self._guesses else []
        for name, guess in self._guesses.items():
            y = np.asarray(columns[guess.place][0])
            values, weights = (table[:, scores.names.index(name)] for table in (scores.values, scores.weights))
            if guess.labels is not None:
                states[name] = CommonestClass.of(_class_numbers(y, guess), weights, guess.classes)
            elif not masked and (weights == 1).all():
                states[name] = Mean.of(guess.squared, digests, y.reshape(len(y), -1).astype(np.float64), values)
        return states

    def labels(self, label: Any, outputs: list[np.ndarray]) -> list[np.ndarray | None]:
        """Returns the labels of each output, as Keras matches them; None where an output has none; see `scores`."""
        columns = self._columns(label, self._pack(outputs), None)
        return [None if y is None else np.asarray(y) for y, _, _ in columns]

    def compiled_outputs(self) -> list[tuple[int, Any, tf.TensorShape, tf.TensorShape]]:
        """Returns place, loss, and shapes of label and prediction of each output with a loss; known once built."""
        return [(part.place, part.loss, *self._shapes[part.place]) for part in self._parts]

    def batch(self, label: Any, outputs: list[np.ndarray], weight: Any = None, masks: Any = None) -> State:
        """Returns the state of one batch; see `scores`."""
        scores = self.scores(label, outputs, weight, masks)
        others = self.others(label, outputs, weight, masks)
        return State(len(outputs[0]), scores.values.sum(axis=0), scores.weights.sum(axis=0), others)

    def result(self, state: State) -> dict[str, float]:
        """Returns the loss and the metrics by name, see `read`."""
        return self.read(state)[0]

    def undefined(self, state: State) -> dict[str, str]:
        """Returns why metrics have no value, by name, see `read`."""
        return self.read(state)[1]

    def read(self, state: State) -> tuple[dict[str, float], dict[str, str]]:
        """Reads a state as numbers.

        Returns:
          By name, the loss and the metrics of all batches that went into it, NaN what is undefined; and why those are.

        Raises:
          ValueError: no batch went into it.
        """
        if state.sums is None or state.totals is None:
            raise ValueError("no examples were evaluated")
        with np.errstate(invalid="ignore", divide="ignore"):  # all weights of a slice may be 0
            means = dict(zip(self._column_names(), map(float, state.sums / state.totals), strict=True))
        if "loss" not in means:
            whole = zip(self._parts, state.sums.tolist(), strict=False)
            means["loss"] = sum(part.share * (total if part.is_sum else means[part.name]) for part, total in whole)
        results = {name: means[name] for name in ("loss", *self._means)}
        reasons = {name: undefined.NOTHING_COUNTS for name, value in results.items() if math.isnan(value)}
        values = iter(state.others)
        for metric in self._others:
            for variable in metric.variables:
                variable.assign(tf.cast(next(values), variable.dtype))
            results[metric.name] = float(metric.result())
            if (reason := undefined.reason(metric)) is not None:
                results[metric.name], reasons[metric.name] = math.nan, reason
        return {name: results[name] for name in ("loss", *self._order)}, reasons

    def prepare(self, label: Any, outputs: list[np.ndarray]) -> None:
        """Builds the metrics from one batch, for a process that only calls `result`."""
        self._build(label, self._pack(outputs), None, [None] * len(outputs))

    def _pack(self, outputs: list[np.ndarray]) -> Any:
        tensors = [tf.convert_to_tensor(output) for output in outputs]
        if len(tensors) == 1 and not isinstance(self.model.output, dict):
            return tensors[0]
        return tf.nest.pack_sequence_as(self.model.output, tensors)

    def _column_names(self) -> tuple[str, ...]:
        parts = [part.name for part in self._parts] if self._is_composite() else ["loss"]
        return (*parts, *self._means)

    def _is_composite(self) -> bool:
        """Whether the loss is no mean over examples: a sum, or means over numbers of elements that differ."""
        return any(part.is_sum for part in self._parts) or (
            len(self._parts) > 1 and any(part.is_masked for part in self._parts)
        )

    def _build(self, label: Any, predicted: Any, weight: Any, masks: list[tf.Tensor | None]) -> None:
        # names such as "accuracy" become metrics only when Keras sees the shapes
        metrics, losses = self.model.compiled_metrics, self.model.compiled_loss
        metrics.build(predicted, metrics._conform_to_outputs(predicted, label))  # labels may go by outputs' names
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
        columns = self._columns(label, predicted, weight)
        wide = {
            metric.name: _in_float64(metric, *columns[place], masks[place])
            for place, _, metric in placed
            if not _is_mean(metric)
        }
        self._others = [wide[name] for name in self._order if name in wide]
        self._parts = [
            _LossPart(
                place,
                f"loss of {self.model.output_names[place]}",
                loss,
                1.0 if share is None else float(share),
                loss.reduction == losses_utils.ReductionV2.SUM,
                _joined_mask(masks[place], _loss_values(loss, y, p)) is not None,
            )
            for place, ((y, p, _), loss, share) in enumerate(
                zip(columns, losses._losses, losses._loss_weights, strict=True)
            )
            if y is not None and loss is not None
        ]
        self._shapes = [(tf.TensorShape([]) if y is None else y.shape, p.shape) for y, p, _ in columns]
        self._guesses = self._find_guesses(columns, placed)
        self._score = self._make_score()
        self._update = self._make_update([(place, w, wide[m.name]) for place, w, m in placed if m.name in wide])

    def _find_guesses(
        self, columns: list[tuple[Any, Any, Any]], placed: list[tuple[int, bool, Any]]
    ) -> dict[str, _Guess]:
        """Returns which metrics are compared with what needs no model, by name, `loss` among them."""
        scored = [
            (m.name, type(m) if type(m) in _ACCURACIES else m._fn, place, m._fn_kwargs)
            for place, _, m in placed
            if m.name in self._means
        ]
        if len(self._parts) == 1 and not self._is_composite():
            [part] = self._parts
            scored.append(("loss", getattr(part.loss, "fn", None) if part.share == 1 else None, part.place, {}))
        tagged = [part.place for part in self._parts if getattr(part.loss, "fn", None) in _OF_TAGS]
        guesses = {}
        for name, function, place, settings in scored:
            y, p, _ = columns[place]
            kind, squared = _lookup(_ACCURACIES, function), _lookup(_ERRORS, function)
            if kind == "categorical" and place in tagged:
                continue  # what Keras takes "accuracy" for where each example may have several tags
            wide = p.shape.rank == 2 and (p.shape[1] == 1) == (kind == "binary")
            if kind is not None and wide and settings.get("threshold", 0.5) == 0.5:
                guesses[name] = _Guess(place, labels=kind, classes=2 if kind == "binary" else int(p.shape[1]))
            elif squared is not None and y.shape == p.shape and math.prod(p.shape[1:]) <= MOST_NUMBERS:
                guesses[name] = _Guess(place, squared=squared)
        return guesses

    def _columns(self, label: Any, predicted: Any, weight: Any) -> list[tuple[Any, Any, Any]]:
        """Returns (label, prediction, weight) of every output, as Keras matches them."""
        labels = tf.nest.flatten(self.model.compiled_metrics._conform_to_outputs(predicted, label))
        outputs = tf.nest.flatten(predicted)
        weights = tf.nest.flatten(weight) if tf.nest.is_nested(weight) else [weight] * len(outputs)
        return [
            (y, p, w) if y is None else compile_utils.match_dtype_and_rank(y, p, w)
            for y, p, w in zip(labels, outputs, weights, strict=True)
        ]

    def _make_score(self) -> Any:
        @tf.function(reduce_retracing=True)
        def score(label: Any, predicted: Any, weight: Any, masks: Any) -> tuple[tf.Tensor, tf.Tensor]:
            columns = self._columns(label, predicted, weight)
            parts, values, weights = [], [], []
            for part in self._parts:
                y, p, w = columns[part.place]
                parts.append(_loss_of(part, _loss_values(part.loss, y, p), w, masks[part.place]))
            if self._is_composite() or len(parts) == 1:
                scale = 1.0 if self._is_composite() else self._parts[0].share
                values += [scale * value for value, _ in parts]
                weights += [counted for _, counted in parts]
            else:
                rows = tf.shape(tf.nest.flatten(predicted)[0])[:1]
                shares = [part.share for part in self._parts]
                whole = (share * value for share, (value, _) in zip(shares, parts, strict=True))
                values.append(sum(whole, tf.zeros(rows, tf.float64)))
                weights.append(tf.ones(rows, tf.float64))
            for place, weighted, metric in self._means.values():
                y, p, w = columns[place]
                value, counted = _mean_of(_metric_values(metric, y, p), w if weighted else None, masks[place])
                values.append(value)
                weights.append(counted)
            return tf.stack(values, axis=1), tf.stack(weights, axis=1)

        return score

    def _make_update(self, placed: list[tuple[int, bool, tf_keras.metrics.Metric]]) -> Any:
        @tf.function(reduce_retracing=True)
        def update(label: Any, predicted: Any, weight: Any, masks: Any) -> list[tf.Tensor]:
            columns = self._columns(label, predicted, weight)
            for place, weighted, metric in placed:
                metric.reset_state()
                y, p, w = columns[place]
                w = losses_utils.apply_mask(p, w if weighted else None, masks[place])
                w = None if w is None else tf.cast(w, metric.dtype)
                metric.update_state(_as_wide(y, metric), _as_wide(p, metric), sample_weight=w)
            return [variable.read_value() for metric in self._others for variable in metric.variables]

        return update


def _lookup(table: dict[Any, Any], function: Any) -> Any:
    return next((value for known, value in table.items() if known is function), None)


def _class_numbers(labels: np.ndarray, guess: _Guess) -> np.ndarray:
    """Returns the labels of an accuracy as numbers of classes, int64, shape [examples]."""
    if guess.labels == "categorical":
        return labels.argmax(axis=1)
    values = labels.reshape(len(labels), -1)[:, 0]
    # an accuracy takes labels that are no class, and counts them as wrong
    return np.clip(values > 0.5 if guess.labels == "binary" else values, 0, guess.classes - 1).astype(np.int64)


def _mask_model(model: tf_keras.Model) -> Any:
    """Returns what makes the masks of a model's outputs from its inputs; None where no output has one."""

    def masks(outputs: Any) -> list[Any]:
        of_outputs = map(losses_utils.get_mask, tf.nest.flatten(outputs))
        return [mask for mask in of_outputs if mask is not None]

    if not masks(model.output):
        return None
    # masks are made of the inputs, and a graph runs nothing else for them
    return tf.function(lambda inputs: masks(model(inputs, training=False)), reduce_retracing=True)


def _joined_mask(mask: tf.Tensor | None, values: tf.Tensor) -> tf.Tensor | None:
    """Returns which values count: by the output's mask, and by that of the function (`ignore_class`)."""
    own = losses_utils.get_mask(values)
    if own is None or mask is None:
        return mask if own is None else own
    return tf.logical_and(tf.cast(mask, tf.bool), tf.cast(own, tf.bool))


def _loss_of(part: _LossPart, values: tf.Tensor, weight: Any, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what each example adds to an output's loss, and what it counts: float64, shape [batch].

    As `Loss.__call__` has it, a weight counts in the sum and not in what it is divided by, and a mask in both.
    """
    joined = _joined_mask(mask, values)
    values = tf.cast(values, tf.float64)
    weight = losses_utils.apply_mask(values, weight, joined)
    if weight is not None:
        values, _, weight = losses_utils.squeeze_or_expand_dimensions(values, None, tf.cast(weight, tf.float64))
        values *= weight
    rows = _rows_of(values)
    if part.is_sum:
        return tf.reduce_sum(rows, axis=1), tf.ones(tf.shape(rows)[:1], tf.float64)
    if joined is None:
        return tf.reduce_mean(rows, axis=1), tf.ones(tf.shape(rows)[:1], tf.float64)
    valid = _rows_of(joined)
    elements = tf.shape(rows)[1] / tf.shape(valid)[1]  # of the loss for each of the mask
    return tf.reduce_sum(rows, axis=1), tf.reduce_sum(valid, axis=1) * elements


def _mean_of(values: tf.Tensor, weight: Any, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what each example adds to a metric that is a mean, and what it counts: float64, shape [batch].

    As `MeanMetricWrapper` and `Reduce` have it: masks are weights, and weights count in what the sum is divided by too.
    """
    is_masked = _joined_mask(mask, values) is not None
    weight = losses_utils.apply_mask(
        values, losses_utils.apply_mask(values, weight, mask), losses_utils.get_mask(values)
    )
    values = tf.cast(values, tf.float64)
    if weight is None:
        return tf.reduce_mean(_rows_of(values), axis=1), tf.ones(tf.shape(values)[:1], tf.float64)
    values, _, weight = losses_utils.squeeze_or_expand_dimensions(values, None, tf.cast(weight, tf.float64))
    try:
        weight = tf.__internal__.ops.broadcast_weights(weight, values)
    except ValueError:  # weights of examples, and values of their elements
        values = tf.reduce_mean(values, axis=list(range(weight.shape.rank, values.shape.rank)))
    rows, counted = _rows_of(values * weight), _rows_of(weight)
    # under a mask examples of many valid elements count more; a batch without is independent of its padding
    add = tf.reduce_sum if is_masked else tf.reduce_mean
    return add(rows, axis=1), add(counted, axis=1)


def _as_wide(values: tf.Tensor, metric: tf_keras.metrics.Metric) -> tf.Tensor:
    """Returns numbers in the dtype of a metric, since not every one casts them itself; integers stay what they are."""
    return tf.cast(values, metric.dtype) if values.dtype.is_floating else values


def _rows_of(values: tf.Tensor) -> tf.Tensor:
    """Returns all but the first axis as one, float64."""
    return tf.reshape(tf.cast(values, tf.float64), [tf.shape(values)[0], -1])


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


def _in_float64(
    metric: tf_keras.metrics.Metric, label: Any, predicted: tf.Tensor, weight: Any, mask: Any
) -> tf_keras.metrics.Metric:
    """Returns a metric of the same kind that holds sums beyond 2**24 without rounding, and has all its variables.

    Some make their variables at the first update, which a graph must not do; some take float32 alone, and a module's
    own may lack in its get_config what its constructor asks for: these are returned as they are.

    Args:
      metric: of the module.
      label: of its output, of some examples.
      predicted: likewise.
      weight: likewise, or None.
      mask: likewise, or None.
    """
    weight = losses_utils.apply_mask(predicted, weight, mask)
    try:
        wide = type(metric).from_config({**metric.get_config(), "dtype": "float64"})
        weights = None if weight is None else tf.cast(weight, wide.dtype)  # R2Score casts none itself
        wide.update_state(_as_wide(label, wide), _as_wide(predicted, wide), sample_weight=weights)
        wide.result()
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        metric.update_state(label, predicted, sample_weight=weight)
        metric.reset_state()
        return metric
    wide.reset_state()
    return wide
