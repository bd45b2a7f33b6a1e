"""What the model may cost and lose: the budget that candidates are judged by. Standard library only."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

from edgeline import targets
from edgeline.config import NONE, StepConfig, Values
from edgeline.errors import UserError, did_you_mean

DIRECTIONS = ("max", "min")
OBJECTIVES = ("zlib_bytes", "bytes", "latency_ms")
DROP_BOUNDS = ("point", "upper")

#: Evaluation.like where it is the contract of the model that was pushed last.
DEPLOYED = "deployed"


@dataclasses.dataclass(frozen=True)
class Limit:
    """A cost of a candidate that a budget may limit.

    Attributes:
      words: for what is limited.
      unit: of the cost; what is not in `ms` counts whole things.
      cost: of a candidate, given the TFLiteExporter's metadata and the DeviceCost of `report.schema`; None: it was not
        measured.
    """

    words: str
    unit: str
    cost: Callable[[Mapping[str, Any], Any], float | None]

    @property
    def is_whole(self) -> bool:
        """Whether the limit is a whole number."""
        return self.unit != "ms"


def _of_file(key: str) -> Callable[[Mapping[str, Any], Any], float | None]:
    return lambda metadata, device: metadata.get(key)


def _of_device(*path: str) -> Callable[[Mapping[str, Any], Any], float | None]:
    # a setting that was not timed has no percentiles
    return lambda metadata, device: functools.reduce(lambda part, name: getattr(part, name, None), path, device)


#: By the budget's field, in the order in which reasons are listed. One that has no field is asked for in `more_limits`.
LIMITS: dict[str, Limit] = {
    "max_bytes": Limit("file size", "bytes", _of_file("bytes")),
    "max_zlib_bytes": Limit("size after zlib", "bytes", _of_file("zlib_bytes")),
    "max_latency_ms": Limit("median latency", "ms", _of_device("one_thread", "p50")),
    "max_latency_p90_ms": Limit("90th percentile of latency", "ms", _of_device("one_thread", "p90")),
    "max_latency_p99_ms": Limit("99th percentile of latency", "ms", _of_device("one_thread", "p99")),
    "max_latency_all_threads_ms": Limit("median latency on all threads", "ms", _of_device("all_threads", "p50")),
    "max_latency_without_xnnpack_ms": Limit(
        "median latency without XNNPACK", "ms", _of_device("without_xnnpack", "p50")
    ),
    "max_cold_start_ms": Limit("cold start", "ms", _of_device("cold_start_ms")),
    "max_peak_rss_bytes": Limit("peak memory", "bytes", _of_device("peak_rss_bytes")),
}

# Metrics whose better direction is no matter of opinion, by the last word of their names.
_LESS_IS_BETTER = (
    *("loss", "error", "mae", "mse", "rmse", "mape", "msle", "crossentropy"),
    *("hinge", "poisson", "divergence", "logcosh", "cosh"),
)
_MORE_IS_BETTER = ("accuracy", "acc", "auc", "precision", "recall", "f1", "iou", "similarity")

#: Which metric is judged where none is named: the first of these that is compiled, else the first metric that is.
_DEFAULTS = ("accuracy", "acc")


def direction_of(name: str) -> str | None:
    """Returns whether more (`max`) or less (`min`) of a metric is better, by its name; None where that does not say.

    >>> direction_of("boxes_mae"), direction_of("accuracy"), direction_of("score")
    ('min', 'max', None)
    """
    last = name.lower().replace("-", "_").split("_")[-1]
    if last in _LESS_IS_BETTER:
        return "min"
    return "max" if last in _MORE_IS_BETTER else None


def _words_of(direction: str) -> str:
    return "less" if direction == "min" else "more"


@dataclasses.dataclass(frozen=True)
class MetricBudget:
    """What a candidate may lose by one metric.

    Attributes:
      name: of the compiled metric, or `loss`.
      direction: `max` if more of it is better, `min` if less is; None: it is not said.
      max_drop: how much worse than the baseline's it may be, in its own unit, at least 0.
    """

    name: str
    direction: str | None
    max_drop: float

    def drop(self, reference: float, value: float) -> float:
        """Returns how much worse a value is than the reference's, in the metric's unit; negative where it is better.

        >>> MetricBudget("accuracy", "max", 0.01).drop(0.75, 0.5)
        0.25
        >>> MetricBudget("mae", "min", 0.01).drop(2.0, 1.5)
        -0.5
        """
        return reference - value if self.direction == "max" else value - reference


def slice_drops(drops: Mapping[str, float], metric: str, metrics: Collection[str]) -> dict[str, float]:
    """Returns the drops in slices that hold for a metric, by slice: its own, else those that name no metric.

    >>> slice_drops({"label": 0.03, "boxes_mae:label": 2.0}, "boxes_mae", ["boxes_mae", "accuracy"])
    {'label': 2.0}
    >>> slice_drops({"label": 0.03, "boxes_mae:label": 2.0}, "accuracy", ["boxes_mae", "accuracy"])
    {'label': 0.03}

    Args:
      drops: `Budget.max_slice_drops`.
      metric: one of the metrics.
      metrics: names of all that are judged; what else stands before a colon is part of the slice.
    """
    own = {key.removeprefix(f"{metric}:"): drop for key, drop in drops.items() if key.startswith(f"{metric}:")}
    return own or {
        key: drop for key, drop in drops.items() if not key.startswith(tuple(f"{name}:" for name in metrics))
    }


def matches(values: Collection[tuple[str, Any]], asked: str) -> bool:
    """Returns whether a slice is meant by a key of `max_slice_drops`: by its features, or by its very values.

    Args:
      values: (feature, value) of each of the slice's features.
      asked: the key.
    """
    parts = sorted(part.strip() for part in asked.split(","))
    return parts in (sorted(name for name, _ in values), sorted(f"{name}={value}" for name, value in values))


def slice_limit(values: Collection[tuple[str, Any]], drops: Mapping[str, float]) -> float | None:
    """Returns the strictest drop that a slice may have; None where none of the drops' keys means it."""
    return min((drop for asked, drop in drops.items() if matches(values, asked)), default=None)


@dataclasses.dataclass(frozen=True)
class Budget(StepConfig):
    """What a candidate may cost, and what the best one has the least of.

    A limit of None is no limit. Latencies are of one inference (batch 1, one thread, XNNPACK, this machine) unless the
    field's name says otherwise.

    Attributes:
      metric: the compiled metrics that must hold, or `loss`, each `NAME[:max|min[:DROP]]`: whether more of it is better
        (accuracy) or less is (loss, mean absolute error), and how much worse than the float32 baseline it may be, at
        least 0. Keras calls the metrics of a model with several outputs `OUTPUT_NAME`. Every one must hold; the first
        ranks the candidates. None: `accuracy` where it is compiled, else the first compiled metric, else the loss.
      direction: of the metrics that do not say their own; None: what the metric's name and class tell.
      max_drop: of the metrics that do not say their own, in the metric's unit (0.01 is one point of accuracy), at
        least 0.
      drop_bound: what must be within max_drop: `point`, the measured drop, or `upper`, the upper end of its 95%
        interval (paired samples).
      value_threshold: the worst value that the first metric may have, whatever the baseline has; None: any. It keeps a
        run from being pushed whose training failed as a whole.
      max_deployed_drop: how much worse than the model deployed now each metric may be, at least 0; None: the two are
        not compared.
      max_slice_drops: from slices to how much worse than the baseline each metric may be there, at least 0. A slice is
        the name of a feature of the module's `slice_features` or `label` (then each of its values is one), some of
        them joined by commas, or one value such as `label=7` or `camera=front,label=7`. With the name of a metric and a
        colon before it, as in `boxes_mae:label`, it holds for that metric, for which the others then do not.
      min_slice_examples: slices with fewer examples are not judged, at least 1.
      max_bytes: largest `.tflite` file in bytes, at least 1.
      max_zlib_bytes: largest file in bytes after zlib at level 9, at least 1.
      max_latency_ms: longest median time in milliseconds, above 0.
      max_latency_p90_ms: likewise for the 90th percentile.
      max_latency_p99_ms: likewise for the 99th percentile.
      max_latency_all_threads_ms: likewise for the median with one thread per core.
      max_latency_without_xnnpack_ms: likewise for the median on LiteRT's built-in kernels.
      max_cold_start_ms: longest time to load the file and run it once in a fresh process, in milliseconds, above 0.
      max_peak_rss_bytes: most memory that a fresh process takes with the model, over one without, in bytes, at least 1.
      more_limits: other limits, by their names in LIMITS, above 0. Wherever a budget is written, in the report and as
        parameters of the Evaluator, each stands by its own name, as those with a field do.
      objective: what is minimised among the candidates that fit: `zlib_bytes`, `bytes` or `latency_ms`.
      target: the kind of hardware that has to be able to run it: `cpu`, `gpu`, `edgetpu`, `dsp` or `micro`.

    Raises:
      ValueError: a value out of range, or two that contradict each other.
    """

    metric: str | Sequence[str] | None = None
    direction: str | None = None
    max_drop: float = 0.01
    drop_bound: str = "point"
    value_threshold: float | None = None
    max_deployed_drop: float | None = 0.0
    max_slice_drops: Mapping[str, float] = Values({})
    min_slice_examples: int = 20
    max_bytes: int | None = None
    max_zlib_bytes: int | None = None
    max_latency_ms: float | None = None
    max_latency_p90_ms: float | None = None
    max_latency_p99_ms: float | None = None
    max_latency_all_threads_ms: float | None = None
    max_latency_without_xnnpack_ms: float | None = None
    max_cold_start_ms: float | None = None
    max_peak_rss_bytes: int | None = None
    more_limits: Mapping[str, float] = Values({})
    objective: str = "zlib_bytes"
    target: str = targets.DEFAULT

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("direction", DIRECTIONS)
        self.check("max_drop", self.max_drop >= 0, "at least 0")
        if isinstance(self.metric, tuple) and len(self.metric) < 2:  # one spelling: it is part of the cache key
            object.__setattr__(self, "metric", self.metric[0] if self.metric else None)
        self._check_metrics()
        self.check_choice("drop_bound", DROP_BOUNDS)
        self.check(
            "max_deployed_drop",
            self.max_deployed_drop is None or self.max_deployed_drop >= 0,
            "at least 0, or None for any",
        )
        self.check(
            "max_slice_drops",
            all(self.max_slice_drops) and all(drop >= 0 for drop in self.max_slice_drops.values()),
            'a mapping from slices to drops of at least 0, such as {"label": 0.03}',
        )
        # one order for one meaning: it is part of the cache key
        object.__setattr__(self, "max_slice_drops", Values(dict(sorted(self.max_slice_drops.items()))))
        self.check("min_slice_examples", self.min_slice_examples >= 1, "at least 1")
        more = self._without_field()
        self.check("more_limits", self.more_limits.keys() <= set(more), f"by names in LIMITS ({', '.join(more)})")
        for name, limit in LIMITS.items():
            value = self.limit(name)
            self.check(
                "more_limits" if name in more else name,
                value is None or value >= 1 or (value > 0 and not limit.is_whole),
                f"{'at least 1' if limit.is_whole else 'above 0'}, or None for no limit",
            )
        self.check_choice("objective", OBJECTIVES)
        self.check_choice("target", tuple(targets.TARGETS))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by field."""
        return {name: limit for name in LIMITS if (limit := self.limit(name)) is not None}

    def limit(self, name: str) -> float | None:
        """Returns a limit by its name in LIMITS; None where there is none."""
        value: float | None = self.more_limits.get(name) if name in self._without_field() else getattr(self, name)
        return value

    @classmethod
    def _without_field(cls) -> tuple[str, ...]:
        return tuple(name for name in LIMITS if name not in cls.field_types())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns the budget of fields and of limits, whether they have a field or not: what `parameters` returns."""
        more = {name: values[name] for name in cls._without_field() if values.get(name) is not None}
        return cls(**{name: value for name, value in values.items() if name in cls.field_types()}, more_limits=more)

    def parameters(self) -> dict[str, Any]:
        """Returns every field and every limit by name, as JSON has it; see `of`."""
        fields = super().parameters()
        del fields["more_limits"]
        return fields | {name: self.limit(name) for name in self._without_field()}

    @classmethod
    def encoded_types(cls) -> dict[str, type]:
        """Returns the type that TFX declares for every field and every limit."""
        types = super().encoded_types()
        del types["more_limits"]
        return types | dict.fromkeys(cls._without_field(), str)

    def encoded(self) -> dict[str, bool | int | float | str]:
        """Returns every field and every limit as TFX is given it."""
        fields = super().encoded()
        del fields["more_limits"]
        more = {name: self.limit(name) for name in self._without_field()}
        return fields | {name: NONE if limit is None else json.dumps(limit) for name, limit in more.items()}

    @classmethod
    def decoded(cls, properties: Mapping[str, Any]) -> Self:
        """Returns the budget that TFX was given."""
        more = {name: float(properties[name]) for name in cls._without_field() if properties[name] != NONE}
        return super().decoded({**properties, "more_limits": json.dumps(more)})

    @property
    def metrics(self) -> tuple[MetricBudget, ...]:
        """The metrics that are named; empty where none is."""
        texts = (self.metric,) if isinstance(self.metric, str) else self.metric or ()
        return tuple(self._asked(text) for text in texts)

    def judged(self, compiled: Mapping[str, str | None]) -> tuple[MetricBudget, ...]:
        """Returns the metrics that candidates are judged by, each with its direction.

        Args:
          compiled: the loss and the metrics that a module compiles, by name, in its order: `max`, `min`, or None where
            the metric's class does not say what is better.

        Raises:
          UserError: a metric is not compiled, its direction is not known, or contradicts what is known of it.
        """
        return tuple(self._judged(metric, compiled) for metric in self.metrics or (self._default(compiled),))

    def _default(self, compiled: Mapping[str, str | None]) -> MetricBudget:
        names = [name for name in compiled if name != "loss"]
        name = next((name for name in _DEFAULTS if name in names), names[0] if names else "loss")
        return MetricBudget(name, self.direction, self.max_drop)

    def _judged(self, metric: MetricBudget, compiled: Mapping[str, str | None]) -> MetricBudget:
        name = metric.name
        if name not in compiled:
            of_outputs = [known for known in compiled if known.endswith(f"_{name}")]
            hint = did_you_mean(of_outputs[0], of_outputs) if of_outputs else did_you_mean(name, compiled)
            raise UserError(
                f"the budget's metric {name!r}{hint} is not compiled by the model module, which has "
                f"{', '.join(compiled)}; name one of them with --metric, or add it to metrics in compile_model"
            )
        known = compiled[name] or direction_of(name)
        direction = metric.direction or known
        if direction is None:
            raise UserError(
                f"whether more or less of the budget's metric {name!r} is better, neither its name nor its class "
                f"tells; write --metric {name}:max or --metric {name}:min"
            )
        if known is not None and direction != known:
            raise UserError(f"the budget's metric {_contradiction(name, known)}")
        return dataclasses.replace(metric, direction=direction)

    def _asked(self, text: str) -> MetricBudget:
        name, *rest = text.split(":")
        return MetricBudget(
            name, rest[0] if rest else self.direction, float(rest[1]) if len(rest) > 1 else self.max_drop
        )

    def _check_metrics(self) -> None:
        texts = (self.metric,) if isinstance(self.metric, str) else self.metric or ()
        for text in texts:
            _check_metric(text, self.where("metric"))
        names = [metric.name for metric in self.metrics]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{self.where('metric')} names {name} {names.count(name)} times; name it once")
        for text, metric in zip(texts, self.metrics, strict=True):
            known = direction_of(metric.name)
            if known is None or metric.direction in (None, known):
                continue
            if ":" in text:
                raise ValueError(f"{self.where('metric')}: {_contradiction(metric.name, known)}")
            raise ValueError(
                f"{self.where('direction')} is {self.direction}, which contradicts the metric {metric.name}: "
                f"{_words_of(known)} of it is better (--direction {known})"
            )


#: How a metric is written.
_METRIC = "NAME[:max|min[:DROP]], where NAME is that of a compiled metric, or loss"


def _check_metric(text: str, where: str) -> None:
    """Raises ValueError unless a text is a metric as it is written."""
    name, *rest = text.split(":")
    if not name or name != name.strip() or len(rest) > 2 or (rest and rest[0] not in DIRECTIONS):
        raise ValueError(f"{where} must be {_METRIC}, received {text!r}")
    try:
        drop = float(rest[1]) if len(rest) > 1 else 1.0
    except ValueError:
        drop = math.nan
    if not (math.isfinite(drop) and drop >= 0):
        raise ValueError(f"{where}: the drop of {name} must be a finite number of at least 0, received {rest[1]!r}")


def _contradiction(name: str, known: str) -> str:
    wrong = next(each for each in DIRECTIONS if each != known)
    return f"{name} cannot be {wrong}: {_words_of(known)} of it is better; write {name}:{known}, or {name} alone"
