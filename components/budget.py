"""What the model may cost and lose: the budget that candidates are judged by. Standard library only."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

from edgeline import targets
from edgeline.config import NONE, StepConfig, Values

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

# Metrics whose better direction is no matter of opinion.
_LESS_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "mape", "msle", "crossentropy")
_MORE_IS_BETTER = ("accuracy", "acc", "auc", "precision", "recall", "f1", "iou")


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
      metric: the compiled metric that must hold, or `loss`.
      direction: `max` if more of the metric is better (accuracy), `min` if less is (loss, mean absolute error).
      max_drop: how much worse than the float32 baseline the metric may be, in the metric's own unit (0.01 is one point
        of accuracy), at least 0.
      drop_bound: what must be within max_drop: `point`, the measured drop, or `upper`, the upper end of its 95%
        interval (paired samples).
      value_threshold: the worst value that the metric may have, whatever the baseline has; None: any. It keeps a run
        from being pushed whose training failed as a whole.
      max_deployed_drop: how much worse than the model deployed now the metric may be, at least 0; None: the two are not
        compared.
      max_slice_drops: from slices to how much worse than the baseline the metric may be there, at least 0. A slice is
        the name of a feature of the module's `slice_features` or `label` (then each of its values is one), some of
        them joined by commas, or one value such as `label=7` or `camera=front,label=7`.
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

    metric: str = "accuracy"
    direction: str = "max"
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
        self.check("metric", bool(self.metric), "the name of a compiled metric, or loss")
        self.check_choice("direction", DIRECTIONS)
        self._check_direction()
        self.check("max_drop", self.max_drop >= 0, "at least 0")
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

    def _check_direction(self) -> None:
        words = self.metric.lower().replace("-", "_").split("_")
        for direction, names in (("min", _LESS_IS_BETTER), ("max", _MORE_IS_BETTER)):
            if words[-1] in names and self.direction != direction:
                raise ValueError(
                    f"{self.where('direction')} is {self.direction}, which contradicts the metric {self.metric}: "
                    f"{'less' if direction == 'min' else 'more'} of it is better (--direction {direction})"
                )
