"""What the model may cost and lose: the budget that candidates are judged by. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from edgeline import targets
from edgeline.config import StepConfig, Values

DIRECTIONS = ("max", "min")
OBJECTIVES = ("zlib_bytes", "bytes", "latency_ms")
DROP_BOUNDS = ("point", "upper")

#: Evaluation.like where it is the contract of the model that was pushed last.
DEPLOYED = "deployed"

#: What each limit is on, in the order in which reasons are listed: (the budget's field, words for it, unit).
LIMITS = (
    ("max_bytes", "file size", "bytes"),
    ("max_zlib_bytes", "size after zlib", "bytes"),
    ("max_latency_ms", "median latency", "ms"),
    ("max_latency_p90_ms", "90th percentile of latency", "ms"),
    ("max_latency_p99_ms", "99th percentile of latency", "ms"),
    ("max_latency_all_threads_ms", "median latency on all threads", "ms"),
    ("max_latency_without_xnnpack_ms", "median latency without XNNPACK", "ms"),
    ("max_cold_start_ms", "cold start", "ms"),
    ("max_peak_rss_bytes", "peak memory", "bytes"),
)

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
        for name, _, unit in LIMITS:
            limit = getattr(self, name)
            is_whole = unit == "bytes"
            self.check(
                name,
                limit is None or limit >= 1 or (limit > 0 and not is_whole),
                f"{'at least 1' if is_whole else 'above 0'}, or None for no limit",
            )
        self.check_choice("objective", OBJECTIVES)
        self.check_choice("target", tuple(targets.TARGETS))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by field."""
        return {name: limit for name, _, _ in LIMITS if (limit := getattr(self, name)) is not None}

    def _check_direction(self) -> None:
        words = self.metric.lower().replace("-", "_").split("_")
        for direction, names in (("min", _LESS_IS_BETTER), ("max", _MORE_IS_BETTER)):
            if words[-1] in names and self.direction != direction:
                raise ValueError(
                    f"{self.where('direction')} is {self.direction}, which contradicts the metric {self.metric}: "
                    f"{'less' if direction == 'min' else 'more'} of it is better (--direction {direction})"
                )
