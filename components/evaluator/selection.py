"""The verdict: which candidates meet the budget, which are on the Pareto front, and which one is the best."""

from __future__ import annotations

import dataclasses
import math

from edgeline.evaluator.config import NO_LIMIT, Budget


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a candidate costs and does.

    Attributes:
      name: of the candidate.
      quality: value of the budget's metric.
      bytes: of the `.tflite` file.
      zlib_bytes: of the file after zlib at level 9.
      latency_ms: median time of one inference.
    """

    name: str
    quality: float
    bytes: int
    zlib_bytes: int
    latency_ms: float


def drop(budget: Budget, baseline: float, quality: float) -> float:
    """Returns how much worse a quality is than the baseline's, in the metric's unit; negative where it is better.

    >>> drop(Budget(metric="accuracy", direction="max"), 0.75, 0.5)
    0.25
    >>> drop(Budget(metric="mae", direction="min"), 2.0, 1.5)
    -0.5
    """
    return baseline - quality if budget.direction == "max" else quality - baseline


def reasons(budget: Budget, baseline: float, candidate: Measured) -> list[str]:
    """Returns why a candidate does not meet the budget; empty where it does.

    Args:
      budget: what is allowed.
      baseline: the reference's value of the budget's metric.
      candidate: what is judged.
    """
    found = []
    lost = drop(budget, baseline, candidate.quality)
    # accuracies are fractions of whole examples: a drop of exactly the limit must not fail by a rounding error
    if not lost <= budget.max_drop + 1e-9:
        found.append(f"{budget.metric} drop {lost:.4g} exceeds {budget.max_drop:g}")
    for value, limit, what in (
        (candidate.bytes, budget.max_bytes, "bytes"),
        (candidate.zlib_bytes, budget.max_zlib_bytes, "zlib bytes"),
    ):
        if limit != NO_LIMIT and value > limit:
            found.append(f"{value:,} {what} exceed {limit:,}")
    if budget.max_latency_ms != NO_LIMIT and candidate.latency_ms > budget.max_latency_ms:
        found.append(f"median latency {candidate.latency_ms:.3g} ms exceeds {budget.max_latency_ms:g} ms")
    return found


def pareto(budget: Budget, candidates: list[Measured]) -> set[str]:
    """Returns the names of the candidates that no other one beats in both zlib bytes and quality."""

    def beats(a: Measured, b: Measured) -> bool:
        lost = drop(budget, b.quality, a.quality)
        return a.zlib_bytes <= b.zlib_bytes and lost <= 0 and (a.zlib_bytes < b.zlib_bytes or lost < 0)

    sound = [c for c in candidates if math.isfinite(c.quality)]
    return {c.name for c in sound if not any(beats(other, c) for other in sound)}


def select(budget: Budget, blessed: list[Measured]) -> str | None:
    """Returns the name of the best candidate: least of the objective, then best quality, then name."""
    if not blessed:
        return None
    return min(blessed, key=lambda c: (getattr(c, budget.objective), drop(budget, 0.0, c.quality), c.name)).name


def closest(budget: Budget, baseline: float, candidates: list[Measured]) -> str | None:
    """Returns the name of the candidate that misses the budget by the least: the smallest sum of relative excesses.

    An excess is the part above a limit as a fraction of that limit; of `max_drop`, of the limit or of one point (0.01),
    whichever is larger.
    """

    def excess(c: Measured) -> float:
        lost = drop(budget, baseline, c.quality)
        total = max(lost - budget.max_drop, 0) / max(budget.max_drop, 0.01)
        for value, limit in (
            (c.bytes, budget.max_bytes),
            (c.zlib_bytes, budget.max_zlib_bytes),
            (c.latency_ms, budget.max_latency_ms),
        ):
            if limit != NO_LIMIT:
                total += max(value - limit, 0) / limit
        return total

    sound = [c for c in candidates if math.isfinite(c.quality)]
    return min(sound, key=lambda c: (excess(c), c.name)).name if sound else None
