"""What the Evaluator may be asked: the budget a candidate has to meet."""

from __future__ import annotations

import dataclasses

from edgeline.config import StepConfig

DIRECTIONS = ("max", "min")
OBJECTIVES = ("zlib_bytes", "bytes", "latency_ms")

#: Limits are off at this value: a component's parameters can be neither optional nor None.
NO_LIMIT = -1


@dataclasses.dataclass(frozen=True)
class Budget(StepConfig):
    """What a candidate may cost, and what the best one has the least of.

    Attributes:
      metric: the compiled metric that must hold, or `loss`.
      direction: `max` if more of the metric is better (accuracy), `min` if less is (loss, mean absolute error).
      max_drop: how much worse than the float32 baseline the metric may be, in the metric's own unit (0.01 is one point
        of accuracy), at least 0.
      max_bytes: largest `.tflite` file in bytes, at least 1, or -1 for no limit.
      max_zlib_bytes: largest file in bytes after zlib at level 9, at least 1, or -1 for no limit.
      max_latency_ms: longest median time of one inference in milliseconds (batch 1, one thread, this machine), above 0,
        or -1 for no limit.
      objective: what is minimised among the candidates that fit: `zlib_bytes`, `bytes` or `latency_ms`.
    """

    metric: str = "accuracy"
    direction: str = "max"
    max_drop: float = 0.01
    max_bytes: int = NO_LIMIT
    max_zlib_bytes: int = NO_LIMIT
    max_latency_ms: float = float(NO_LIMIT)
    objective: str = "zlib_bytes"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("metric", bool(self.metric), "the name of a compiled metric, or loss")
        self.check_choice("direction", DIRECTIONS)
        self.check("max_drop", self.max_drop >= 0, "at least 0")
        for name in ("max_bytes", "max_zlib_bytes"):
            self.check(name, getattr(self, name) >= 1 or getattr(self, name) == NO_LIMIT, "at least 1, or -1 for none")
        self.check(
            "max_latency_ms", self.max_latency_ms > 0 or self.max_latency_ms == NO_LIMIT, "above 0, or -1 for none"
        )
        self.check_choice("objective", OBJECTIVES)
