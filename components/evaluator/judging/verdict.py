"""The verdict: which candidates meet the budget, which are on the Pareto front, and which one is the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from edgeline.budget import LIMITS, Budget

#: Slices that a reason names one by one.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class SliceDrop:
    """What a slice loses.

    Attributes:
      name: e.g. `camera=front,label=7`.
      examples: in it.
      drop: of the budget's metric, below the reference's in the same slice.
      limit: the largest that is allowed.
    """

    name: str
    examples: int
    drop: float
    limit: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a candidate costs and does.

    Attributes:
      name: of the candidate.
      quality: value of the budget's metric.
      costs: by the budget's field that limits them; None where one was not measured.
      drop_interval: 95% interval of the drop below the baseline; None where it is not known.
      deployed_drop: how much worse than the deployed model it is; None where there is none to compare with.
      slices: those for which the budget has a limit and that have examples enough.
      worse_slices: those that are worse than the deployed model's, worst first.
      misfits: why it cannot be used where it is to go, whatever it costs and does.
      undefined: why the metric has no value, of it or of the baseline; None: both have one.
    """

    name: str
    quality: float
    costs: dict[str, float | None]
    drop_interval: tuple[float, float] | None = None
    deployed_drop: float | None = None
    slices: Sequence[SliceDrop] = ()
    worse_slices: Sequence[SliceDrop] = ()
    misfits: Sequence[str] = ()
    undefined: str | None = None

    @property
    def zlib_bytes(self) -> float:
        """Of the file after zlib at level 9."""
        return self.costs["max_zlib_bytes"] or 0.0


def drop(budget: Budget, baseline: float, quality: float) -> float:
    """Returns how much worse a quality is than the baseline's, in the metric's unit; negative where it is better.

    >>> drop(Budget(metric="accuracy", direction="max"), 0.75, 0.5)
    0.25
    >>> drop(Budget(metric="mae", direction="min"), 2.0, 1.5)
    -0.5
    """
    return baseline - quality if budget.direction == "max" else quality - baseline


def exceeds(value: float, limit: float) -> bool:
    """Returns whether a drop is larger than its limit.

    Accuracies are fractions of whole examples: a drop of exactly the limit must not fail by a rounding error.
    """
    return not value <= limit + 1e-9


def reasons(budget: Budget, baseline: float, candidate: Measured) -> list[str]:
    """Returns why a candidate does not meet the budget; empty where it does.

    Args:
      budget: what is allowed.
      baseline: the reference's value of the budget's metric.
      candidate: what is judged.
    """
    texts = list(candidate.misfits)
    lost = drop(budget, baseline, candidate.quality)
    if candidate.undefined is not None:
        texts.append(candidate.undefined)
    elif exceeds(lost, budget.max_drop):
        texts.append(f"{budget.metric} drop {lost:.4g} exceeds {budget.max_drop:g}")
    elif budget.drop_bound == "upper":
        if candidate.drop_interval is None:
            texts.append(f"the interval of the {budget.metric} drop, which --drop-bound upper asks for, is not known")
        elif exceeds(candidate.drop_interval[1], budget.max_drop):
            texts.append(
                f"{budget.metric} drop {lost:.4g} may be up to {candidate.drop_interval[1]:.4g} (95% interval), which "
                f"exceeds {budget.max_drop:g}; more eval examples would narrow it"
            )
    if (
        budget.value_threshold is not None
        and not math.isnan(candidate.quality)
        and exceeds(drop(budget, budget.value_threshold, candidate.quality), 0.0)
    ):
        texts.append(
            f"{budget.metric} {candidate.quality:.4g} is worse than {budget.value_threshold:g} (--value-threshold); "
            f"the baseline has {baseline:.4g}"
        )
    texts += _slice_reasons(budget, candidate.slices)
    texts += _deployed_reasons(budget, candidate)
    for name, allowed in budget.limits.items():
        limit, value = LIMITS[name], candidate.costs.get(name)
        if value is None:
            texts.append(f"{limit.words} could not be measured, and the budget limits it")
        elif value > allowed:
            spelled = f"{value:,.0f}" if limit.is_whole or value >= 1000 else f"{value:.3g}"
            texts.append(f"{limit.words} {spelled} {limit.unit} exceeds {allowed:,.15g} {limit.unit}")
    return texts


def _slice_reasons(budget: Budget, judged: Sequence[SliceDrop]) -> list[str]:
    def margin(s: SliceDrop) -> tuple[float, str]:
        return (-math.inf if math.isnan(s.drop) else s.limit - s.drop), s.name

    over = sorted((s for s in judged if exceeds(s.drop, s.limit)), key=margin)
    texts = [
        f"{budget.metric} has no value in {s.name} ({s.examples:,} examples), where the budget limits its drop"
        if math.isnan(s.drop)
        else f"{budget.metric} drop {s.drop:.4g} in {s.name} ({s.examples:,} examples) exceeds {s.limit:g}"
        for s in over[:_NAMED]
    ]
    if len(over) > _NAMED:
        texts.append(f"{budget.metric} drop exceeds its limit in {_more(len(over) - _NAMED)}")
    return texts


def _deployed_reasons(budget: Budget, candidate: Measured) -> list[str]:
    lost, allowed = candidate.deployed_drop, budget.max_deployed_drop
    if lost is None or allowed is None or candidate.undefined is not None:
        return []  # there is nothing to compare
    if math.isnan(lost):
        return [f"the deployed model's {budget.metric} has no value on the eval split (--max-deployed-drop)"]
    if not exceeds(lost, allowed):
        return []
    worse = f"; worse in {_list(candidate.worse_slices)}" if candidate.worse_slices else ""
    return [
        f"{budget.metric} is {lost:.4g} worse than the deployed model's, which exceeds {allowed:g} "
        f"(--max-deployed-drop){worse}"
    ]


def _list(slices: Sequence[SliceDrop]) -> str:
    named = ", ".join(f"{s.name} ({s.drop:.4g})" for s in slices[:_NAMED])
    return named + (f" and {_more(len(slices) - _NAMED)}" if len(slices) > _NAMED else "")


def _more(count: int) -> str:
    return f"{count:,} more slice{'s' if count > 1 else ''}"


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

    def rank(candidate: Measured) -> tuple[float, float, str]:
        cost = candidate.costs.get(f"max_{budget.objective}")
        return math.inf if cost is None else cost, drop(budget, 0.0, candidate.quality), candidate.name

    return min(blessed, key=rank).name


def closest(budget: Budget, baseline: float, candidates: list[Measured]) -> str | None:
    """Returns the name of the candidate that misses the budget by the least: the smallest sum of relative excesses.

    An excess is the part above a limit as a fraction of that limit; of a drop, of its limit or of one point (0.01),
    whichever is larger; of the threshold, in points. Of all slices the worst excess counts. A misfit counts as the
    whole of a limit.
    """

    def above(value: float, limit: float) -> float:
        return math.inf if math.isnan(value) else max(value - limit, 0.0) / max(limit, 0.01)

    def excess(c: Measured) -> float:
        lost = drop(budget, baseline, c.quality)
        if budget.drop_bound == "upper" and c.drop_interval is not None:
            lost = c.drop_interval[1]
        total = above(lost, budget.max_drop)
        if budget.value_threshold is not None:
            total += above(drop(budget, budget.value_threshold, c.quality), 0.0)
        total += max((above(s.drop, s.limit) for s in c.slices), default=0.0)
        if c.deployed_drop is not None and budget.max_deployed_drop is not None:
            total += above(c.deployed_drop, budget.max_deployed_drop)
        for name, limit in budget.limits.items():
            value = c.costs.get(name)
            total += 1.0 if value is None else max(value - limit, 0.0) / limit
        return total + len(c.misfits)

    sound = [c for c in candidates if math.isfinite(c.quality)]
    return min(sound, key=lambda c: (excess(c), c.name)).name if sound else None
