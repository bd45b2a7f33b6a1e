"""The verdict: which candidates meet the budget, which are on the Pareto front, and which one is the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from edgeline.budget import LIMITS, Budget, MetricBudget
from edgeline.report import formats

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


#: What a miss is about, the easiest to mend first.
Kind = Literal["budget", "chance", "contract", "target"]
_KINDS: tuple[Kind, ...] = ("budget", "chance", "contract", "target")


@dataclasses.dataclass(frozen=True)
class Misfit:
    """Why a candidate cannot be used where it is to go, whatever it costs and does beside the baseline.

    Attributes:
      kind: what that is about.
      text: the reason, in words.
    """

    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a candidate does by one of the budget's metrics.

    Attributes:
      metric: what it may lose by it.
      value: on the whole eval split.
      baseline: the baseline's.
      drop_interval: 95% interval of the drop below the baseline; None where it is not known.
      chosen_drop_interval: the same, where the candidate was selected among several; None: it is not known that it was.
      deployed_drop: how much worse than the deployed model it is; None where there is none to compare with.
      deployed_drop_interval: 95% interval of that; None where it is not known.
      slices: those for which the budget has a limit and that have examples enough.
      worse_slices: those that are worse than the deployed model's, worst first.
      undefined: why the metric has no value, of it or of the baseline; None: both have one.
    """

    metric: MetricBudget
    value: float
    baseline: float
    drop_interval: tuple[float, float] | None = None
    chosen_drop_interval: tuple[float, float] | None = None
    deployed_drop: float | None = None
    deployed_drop_interval: tuple[float, float] | None = None
    slices: Sequence[SliceDrop] = ()
    worse_slices: Sequence[SliceDrop] = ()
    undefined: str | None = None

    @property
    def drop(self) -> float:
        """How much worse than the baseline it is."""
        return self.metric.drop(self.baseline, self.value)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a candidate costs and does.

    Attributes:
      name: of the candidate.
      qualities: by each of the budget's metrics; the first ranks the candidates.
      costs: by the budget's field that limits them; None where one was not measured.
      misfits: why it cannot be used where it is to go, whatever it costs and does beside the baseline.
    """

    name: str
    qualities: Sequence[Quality]
    costs: dict[str, float | None]
    misfits: Sequence[Misfit] = ()

    @property
    def ranking(self) -> Quality:
        """By the metric that ranks the candidates."""
        return self.qualities[0]

    @property
    def zlib_bytes(self) -> float:
        """Of the file after zlib at level 9."""
        return self.costs["max_zlib_bytes"] or 0.0


def exceeds(value: float, limit: float) -> bool:
    """Returns whether a drop is larger than its limit.

    Accuracies are fractions of whole examples: a drop of exactly the limit must not fail by a rounding error.
    """
    return not value <= limit + 1e-9


def reasons(budget: Budget, candidate: Measured) -> list[str]:
    """Returns why a candidate does not meet the budget; empty where it does.

    Args:
      budget: what is allowed.
      candidate: what is judged.
    """
    texts = [misfit.text for misfit in candidate.misfits]
    for quality in candidate.qualities:
        texts += _drop_reasons(budget, quality)
    ranking = candidate.ranking
    if (
        budget.value_threshold is not None
        and not math.isnan(ranking.value)
        and exceeds(ranking.metric.drop(budget.value_threshold, ranking.value), 0.0)
    ):
        texts.append(
            f"{ranking.metric.name} {ranking.value:.4g} is worse than {budget.value_threshold:g} (--value-threshold); "
            f"the baseline has {ranking.baseline:.4g}"
        )
    for quality in candidate.qualities:
        texts += _slice_reasons(quality)
    for quality in candidate.qualities:
        texts += _deployed_reasons(budget, quality)
    for name, allowed in budget.limits.items():
        limit, value = LIMITS[name], candidate.costs.get(name)
        if value is None:
            texts.append(f"{limit.words} could not be measured, and the budget limits it")
        elif value > allowed:
            texts.append(f"{limit.words} {_cost(name, value)} exceeds {_cost(name, allowed, exact=True)}")
    return texts


def _drop_reasons(budget: Budget, quality: Quality) -> list[str]:
    name, limit, lost = quality.metric.name, quality.metric.max_drop, quality.drop
    if quality.undefined is not None:
        return [quality.undefined]
    if exceeds(lost, limit):
        return [f"{name} drop {lost:.4g} exceeds {limit:g}"]
    if budget.drop_bound != "upper":
        return []
    if quality.drop_interval is None:
        return [f"the interval of the {name} drop, which --drop-bound upper asks for, is not known"]
    if not exceeds(quality.drop_interval[1], limit):
        return []
    return [
        f"{name} drop {lost:.4g} may be up to {quality.drop_interval[1]:.4g} (95% interval), which exceeds {limit:g}; "
        f"more eval examples would narrow it"
    ]


def _cost(name: str, value: float, exact: bool = False) -> str:
    """Returns a cost with its unit: bytes of memory in MB, of files as they are, times below 0.1 ms in microseconds.

    Args:
      name: of the budget's field that limits it.
      value: in the limit's unit.
      exact: whether it is what the user gave, with all its digits.
    """
    limit = LIMITS[name]
    if name == "max_peak_rss_bytes":
        return f"{value / 1e6:,.15g} MB"
    if limit.is_whole:
        return f"{value:,.0f} {limit.unit}"
    if not exact:
        return formats.duration(value)
    return f"{1000 * value:.12g} µs" if value < 0.1 else f"{value:,.15g} ms"


def misses(reasons: Sequence[str], misfits: Sequence[Misfit]) -> tuple[Kind, ...]:
    """Returns what a candidate's reasons are about, each kind once.

    Args:
      reasons: all that the function `reasons` returns.
      misfits: those among them that are no matter of the budget.
    """
    kinds: list[Kind] = [misfit.kind for misfit in misfits]
    if len(reasons) > len(misfits):
        kinds.append("budget")
    return tuple(dict.fromkeys(kinds))


def _slice_reasons(quality: Quality) -> list[str]:
    def margin(s: SliceDrop) -> tuple[float, str]:
        return (-math.inf if math.isnan(s.drop) else s.limit - s.drop), s.name

    name = quality.metric.name
    over = sorted((s for s in quality.slices if exceeds(s.drop, s.limit)), key=margin)
    texts = [
        f"{name} has no value in {s.name} ({s.examples:,} examples), where the budget limits its drop"
        if math.isnan(s.drop)
        else f"{name} drop {s.drop:.4g} in {s.name} ({s.examples:,} examples) exceeds {s.limit:g}"
        for s in over[:_NAMED]
    ]
    if len(over) > _NAMED:
        texts.append(f"{name} drop exceeds its limit in {_more(len(over) - _NAMED)}")
    return texts


def _deployed_reasons(budget: Budget, quality: Quality) -> list[str]:
    name, lost, allowed = quality.metric.name, quality.deployed_drop, budget.max_deployed_drop
    if lost is None or allowed is None or quality.undefined is not None:
        return []  # there is nothing to compare
    if math.isnan(lost):
        return [f"the deployed model's {name} has no value on the eval split (--max-deployed-drop)"]
    if not exceeds(lost, allowed):
        return []
    worse = f"; worse in {_list(quality.worse_slices)}" if quality.worse_slices else ""
    return [
        f"{name} is {lost:.4g} worse than the deployed model's, which exceeds {allowed:g} (--max-deployed-drop){worse}"
    ]


def _list(slices: Sequence[SliceDrop]) -> str:
    named = ", ".join(f"{s.name} ({s.drop:.4g})" for s in slices[:_NAMED])
    return named + (f" and {_more(len(slices) - _NAMED)}" if len(slices) > _NAMED else "")


def _more(count: int) -> str:
    return f"{count:,} more slice{'s' if count > 1 else ''}"


def pareto(candidates: list[Measured]) -> set[str]:
    """Returns the names of the candidates that no other one beats in both zlib bytes and the metric that ranks them."""

    def beats(a: Measured, b: Measured) -> bool:
        lost = a.ranking.metric.drop(b.ranking.value, a.ranking.value)
        return a.zlib_bytes <= b.zlib_bytes and lost <= 0 and (a.zlib_bytes < b.zlib_bytes or lost < 0)

    sound = [c for c in candidates if math.isfinite(c.ranking.value)]
    return {c.name for c in sound if not any(beats(other, c) for other in sound)}


def select(budget: Budget, blessed: list[Measured]) -> str | None:
    """Returns the name of the best candidate: least of the objective, then best by the first metric, then by name."""
    if not blessed:
        return None

    def rank(candidate: Measured) -> tuple[float, float, str]:
        cost, ranking = candidate.costs.get(f"max_{budget.objective}"), candidate.ranking
        return math.inf if cost is None else cost, ranking.metric.drop(0.0, ranking.value), candidate.name

    return min(blessed, key=rank).name


def closest(budget: Budget, candidates: list[Measured]) -> str | None:
    """Returns the name of the candidate that misses the budget by the least.

    What the budget alone refuses is closer than what is at chance level, and that closer than what breaks the contract;
    what the target cannot run is close to nothing. Of one kind it is the one with the least sum of relative excesses.
    An excess is the part above a limit as a fraction of that limit; of a drop, of its limit or of one point (0.01),
    whichever is larger; of the threshold, in points. Of all slices the worst excess of a metric counts. A misfit counts
    as the whole of a limit.
    """

    def above(value: float, limit: float) -> float:
        return math.inf if math.isnan(value) else max(value - limit, 0.0) / max(limit, 0.01)

    def lost(q: Quality) -> float:
        drop = q.drop_interval[1] if budget.drop_bound == "upper" and q.drop_interval is not None else q.drop
        total = above(drop, q.metric.max_drop) + max((above(s.drop, s.limit) for s in q.slices), default=0.0)
        if q.deployed_drop is not None and budget.max_deployed_drop is not None:
            total += above(q.deployed_drop, budget.max_deployed_drop)
        return total

    def excess(c: Measured) -> float:
        total = sum(map(lost, c.qualities))
        if budget.value_threshold is not None:
            total += above(c.ranking.metric.drop(budget.value_threshold, c.ranking.value), 0.0)
        for name, limit in budget.limits.items():
            value = c.costs.get(name)
            total += 1.0 if value is None else max(value - limit, 0.0) / limit
        return total + len(c.misfits)

    def kind(c: Measured) -> int:
        return max((_KINDS.index(misfit.kind) for misfit in c.misfits), default=0)

    def can_run(c: Measured) -> bool:
        return all(misfit.kind != "target" for misfit in c.misfits)

    sound = [c for c in candidates if can_run(c) and all(math.isfinite(q.value) for q in c.qualities)]
    return min(sound, key=lambda c: (kind(c), excess(c), c.name)).name if sound else None
