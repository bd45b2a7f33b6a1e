"""What the report's page says: the facts of report.json as rows and words, in the order in which they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeline.budget import slice_limit
from edgeline.report.formats import Format

VERDICTS = {"selected": "Selected", "fits": "Meets budget", "misses": "Misses budget", "failed": "Failed"}
"""What a candidate's verdict is called."""

NOISY = 0.1
"""A latency's relative spread above which the page warns of it."""

#: Longer lists are cut to what matters most.
_MOST_ROWS = 20
#: Up to so many classes a confusion matrix is drawn.
_DRAWN_CLASSES = 50

_OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("metrics", "drop", "bytes", "zlib_bytes", "ratio", "latency_ms", "sparsity", "sha256", "failure")),
    **dict.fromkeys(("drop_interval", "deployed_drop", "deployed_drop_interval")),
    **dict.fromkeys(("device", "classification", "comparison", "keras", "version", "path", "pushed_at")),
    **dict.fromkeys(
        ("recipe", "reasons", "steps", "layers", "slices", "flipped", "ladder", "ladder_walked", "sensitivity"), ()
    ),
    **dict.fromkeys(("blessed", "pareto"), False),
}
_OBJECTIVES = {"zlib_bytes": "fewest zlib bytes", "bytes": "smallest file", "latency_ms": "lowest latency"}
_SETTINGS = {"one_thread": "One thread", "all_threads": "All threads", "without_xnnpack": "Without XNNPACK"}


@dataclass(frozen=True)
class Budget:
    """The budget in the terms of the page.

    Attributes:
        sign: 1 where more of the metric is better, -1 where less is.
        max_drop: None where it is not limited.
        metric_limit: the worst value of the metric that the budget allows; None where it allows any.
        objective: words for what the selected candidate has the least of.
        upper: whether the upper end of the drop's interval is judged.
        facts: the budget of the report.
    """

    metric: str
    sign: int
    max_drop: float | None
    metric_limit: float | None
    objective: str
    upper: bool
    facts: dict[str, Any]

    @classmethod
    def of(cls, budget: dict[str, Any], baseline: float | None) -> Budget:
        """Reads a report's budget.

        Args:
            budget: of the report.
            baseline: the baseline's value of the metric.
        """
        sign = -1 if budget["direction"] == "min" else 1
        max_drop = budget.get("max_drop")
        limits = [] if max_drop is None or baseline is None else [baseline - sign * max_drop]
        if budget.get("value_threshold") is not None:
            limits.append(budget["value_threshold"])
        return cls(
            metric=budget["metric"],
            sign=sign,
            max_drop=max_drop,
            metric_limit=max(limits, key=lambda limit: sign * limit, default=None),
            objective=_OBJECTIVES.get(budget["objective"], budget["objective"]),
            upper=budget.get("drop_bound") == "upper",
            facts=budget,
        )

    @property
    def drop_word(self) -> str:
        """What a loss of quality is called, as a metric of which less is better rises."""
        return "drop" if self.sign > 0 else "rise"

    def limit(self, name: str) -> float | None:
        """Returns one of the budget's limits; None where there is none."""
        value: float | None = self.facts.get(name)
        return value

    def change(self, drop: float | None) -> float | None:
        """Returns a drop as a change of the metric."""
        return None if drop is None else -self.sign * drop

    def change_interval(self, interval: Sequence[float | None] | None) -> list[float | None] | None:
        """Returns an interval of a drop as one of the change of the metric, lower end first."""
        if not interval:
            return None
        ends = [self.change(end) for end in interval]
        return ends[::-1] if self.sign > 0 else ends


def row(entry: dict[str, Any], metric: str) -> dict[str, Any]:
    """Copies a model's facts: optional keys present, the numbers of the table on one level.

    Args:
        entry: of the baseline, of a candidate or of the deployed model.
        metric: the budget's.
    """
    found = _OPTIONAL | {key: value for key, value in entry.items() if value is not None}
    latency, device = found["latency_ms"] or {}, found["device"] or {}
    verdict = "failed" if found["failure"] else "fits" if found["blessed"] else "misses"
    return found | {
        "metric": (found["metrics"] or {}).get(metric),
        "p50": latency.get("p50"),
        "p90": latency.get("p90"),
        "p99": (device.get("one_thread") or {}).get("p99"),
        "cold_start_ms": device.get("cold_start_ms"),
        "peak_rss_bytes": device.get("peak_rss_bytes"),
        "noise": (device.get("one_thread") or {}).get("noise"),
        "agreement": (found["comparison"] or {}).get("agreement"),
        "verdict": verdict,
    }


@dataclass(frozen=True)
class Column:
    """A column of numbers in the table of candidates.

    Attributes:
        title: its header.
        value: a row's number, by which it is sorted.
        text: the same, to be read.
        note: what is said below it, if anything.
        wide: whether it is shown on wide screens only.
    """

    title: str
    value: Callable[[dict[str, Any]], float | None]
    text: Callable[[dict[str, Any]], str]
    note: Callable[[dict[str, Any]], str | None] = lambda row: None
    wide: bool = False


def columns(budget: Budget, style: Format, rows: list[dict[str, Any]]) -> list[Column]:
    """Returns the columns of the table: those that reports have always had, and others of which a row has a number."""

    def column(title: str, key: str, write: Callable[[Any], str], **more: Any) -> Column:
        return Column(title, lambda row: row[key], lambda row: write(row[key]), **more)

    found = [
        column(budget.metric, "metric", style.metric),
        column(
            budget.drop_word.capitalize(),
            "drop",
            style.metric,
            note=lambda row: style.interval(row["drop_interval"]),
        ),
        column("Zlib bytes", "zlib_bytes", style.count),
        column("Ratio", "ratio", style.times),
        column("Bytes", "bytes", style.count),
        Column("p50 / p90 ms", lambda row: row["p50"], lambda row: style.latency(row["p50"], row["p90"])),
    ]
    newer = [
        column("Agreement", "agreement", style.percent),
        column("Sparsity", "sparsity", style.percent),
        column("p99 ms", "p99", style.ms, wide=True),
        column("Cold start ms", "cold_start_ms", style.ms, wide=True),
        column("Memory", "peak_rss_bytes", style.size, wide=True),
        column(
            f"{budget.drop_word.capitalize()} from deployed",
            "deployed_drop",
            style.metric,
            note=lambda row: style.interval(row["deployed_drop_interval"]),
            wide=True,
        ),
    ]
    return found + [c for c in newer if c.title == "Sparsity" or any(c.value(row) is not None for row in rows)]


def class_names(count: int, labels: Sequence[str] | None) -> list[str]:
    """Returns the names of classes; their numbers where they have no names."""
    return [labels[i] if labels and i < len(labels) else str(i) for i in range(count)]


def slice_name(features: dict[str, Any], labels: Sequence[str] | None) -> str:
    """Returns a slice as the budget writes it, and the label's name."""

    def value(name: str, of: Any) -> str:
        known = name == "label" and isinstance(of, int) and labels and 0 <= of < len(labels)
        return f"{of} ({labels[of]})" if known and labels and labels[of] != str(of) else str(of)

    return ", ".join(f"{name}={value(name, of)}" for name, of in features.items())


def worst_slices(
    row: dict[str, Any], baseline: dict[str, Any], budget: Budget, labels: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Returns a candidate's slices, the largest drop first.

    Each has name, examples, few (too few to be judged), baseline and metric (values of the budget's metric), drop, and
    limit and verdict: None and "" where no limit holds, else "over", "within" or, with too few examples, "few".
    """
    metric = budget.metric
    before = {_key(each): each["metrics"].get(metric) for each in baseline["slices"]}
    limits = budget.facts.get("max_slice_drops") or {}
    found = []
    for each in row["slices"]:
        limit, drop = slice_limit(each["features"].items(), limits), each.get("drop")
        few = each["examples"] < (budget.limit("min_slice_examples") or 0)
        if limit is None:
            verdict = ""
        elif few:
            verdict = "few"
        else:
            verdict = "over" if drop is None or drop > limit + 1e-9 else "within"
        found.append(
            {
                "name": slice_name(each["features"], labels),
                "examples": each["examples"],
                "few": few,
                "baseline": before.get(_key(each)),
                "metric": each["metrics"].get(metric),
                "drop": drop,
                "limit": limit,
                "verdict": verdict,
            }
        )
    return sorted(found, key=lambda each: -math.inf if each["drop"] is None else each["drop"], reverse=True)


def _key(entry: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(entry["features"].items()))


def warnings(
    report: dict[str, Any],
    rows: list[dict[str, Any]],
    shown: dict[str, Any] | None,
    baseline: dict[str, Any],
    budget: Budget,
    style: Format,
) -> list[str]:
    """Returns what a reader should know before believing the verdict.

    Args:
        report: the facts.
        rows: of the candidates.
        shown: the selected or closest candidate.
        baseline: its row.
        budget: what a candidate may cost.
        style: how numbers are written.
    """
    found = []
    if bad := report["dataset"].get("bad_records"):
        records = "1 record" if bad == 1 else f"{style.count(bad)} records"
        found.append(f"{records} of the {report['dataset']['split']} split could not be read and took no part.")
    noisy = [each for each in [baseline | {"name": "the baseline"}, *rows] if (each["noise"] or 0) > NOISY]
    if noisy:
        worst = max(noisy, key=lambda each: each["noise"])
        models = "1 model" if len(noisy) == 1 else f"{len(noisy)} models"
        found.append(
            f"The machine was busy: the latency of {models} varied by more than {100 * NOISY:.0f}% while it was "
            f"measured ({worst['name']}: {style.percent(worst['noise'])})."
        )
    failed = sum(each["verdict"] == "failed" for each in rows)
    if failed and failed < len(rows):
        found.append(f"{failed} of {len(rows)} candidates failed; the table says why.")
    deployed = report.get("deployed")
    if deployed and deployed.get("failure"):
        found.append(f"The deployed model could not be compared with: {deployed['failure']}")
    if shown:
        found += _doubts(shown, baseline, budget, style, report["dataset"].get("label_names"))
    return found


def _doubts(
    shown: dict[str, Any], baseline: dict[str, Any], budget: Budget, style: Format, labels: Sequence[str] | None
) -> list[str]:
    found = []
    interval, limit = shown["drop_interval"], budget.max_drop
    upper = None if budget.upper or not interval else interval[1]
    lost = shown["drop"]
    if upper is not None and limit is not None and lost is not None and lost <= limit < upper:
        found.append(
            f"On other data the {budget.drop_word} of {budget.metric} may be up to {style.metric(upper)} (95% "
            f"interval), more than the {style.metric(limit)} allowed; more examples would narrow it."
        )
    slices = [each for each in worst_slices(shown, baseline, budget, labels) if not each["few"]]
    worse = [each for each in slices if each["drop"] is not None and each["drop"] > (limit or 0) + 1e-9]
    if worse:
        than = f"more than the {style.metric(limit)} allowed overall" if limit else "something"
        loses = "loses" if len(worse) == 1 else "lose"
        found.append(
            f"{len(worse)} of {len(slices)} slices {loses} {than}; most: {worse[0]['name']}, "
            f"{style.metric(worse[0]['drop'])} in {style.count(worse[0]['examples'])} examples."
        )
    return found


def ladder(row: dict[str, Any], style: Format) -> list[dict[str, Any]]:
    """Returns what each step left of the zlib bytes: step, zlib_bytes, share of the largest (0-1), change in words."""
    steps = row["ladder"]
    most = max((each["zlib_bytes"] or 0 for each in steps), default=0)
    found = []
    for before, each in zip((None, *steps), steps, strict=False):
        change = before and style.ratio(before["zlib_bytes"], each["zlib_bytes"], "smaller", "larger")
        found.append(
            {
                "step": each["step"],
                "zlib_bytes": each["zlib_bytes"],
                "share": (each["zlib_bytes"] or 0) / most if most else 0,
                "change": "" if not change or change.startswith("1.0×") else change,
            }
        )
    return found


def device(row: dict[str, Any], baseline: dict[str, Any], budget: Budget, style: Format) -> dict[str, Any] | None:
    """Returns what a candidate costs where it was measured; None where that is not known.

    `settings`: name, cells (of p50, p90, p99: text, limit, over), noise, runs, and the baseline's p50. `more`: name,
    text, limit, over and baseline, for cold start and memory. Limits are texts, or None where there is none.
    """
    if not row["device"]:
        return None

    def cell(
        value: float | None, limit_name: str | None, write: Callable[[float | None], str], brief: Callable[[float], str]
    ) -> dict[str, Any]:
        limit = budget.limit(limit_name) if limit_name else None
        return {
            "text": write(value),
            "limit": None if limit is None else brief(limit),
            "over": value is not None and limit is not None and value > limit,
        }

    def milliseconds(value: float | None) -> str:
        return f"{style.number(value)} ms"

    limits = {
        "one_thread": ("max_latency_ms", "max_latency_p90_ms", "max_latency_p99_ms"),
        "all_threads": ("max_latency_all_threads_ms", None, None),
        "without_xnnpack": ("max_latency_without_xnnpack_ms", None, None),
    }
    settings = []
    for key, name in _SETTINGS.items():
        if not (found := row["device"].get(key)):
            continue
        threads = f" ({found['threads']})" if found.get("threads") else ""
        settings.append(
            {
                "name": name + threads,
                "cells": [
                    cell(found.get(p), limit, style.ms, style.number)
                    for p, limit in zip(("p50", "p90", "p99"), limits[key], strict=True)
                ],
                "noise": found.get("noise"),
                "runs": found.get("runs"),
                "baseline": ((baseline["device"] or {}).get(key) or {}).get("p50"),
            }
        )
    names = {"cold_start_ms": ("Cold start", milliseconds), "peak_rss_bytes": ("Peak memory", style.size)}
    more = [
        {
            "name": name,
            "baseline": None if baseline[key] is None else write(baseline[key]),
            **cell(row[key], f"max_{key}", write, write),
        }
        for key, (name, write) in names.items()
        if row[key] is not None
    ]
    return {"settings": settings, "more": more}


def classification(
    row: dict[str, Any], baseline: dict[str, Any], labels: Sequence[str] | None
) -> dict[str, Any] | None:
    """Returns how a classifier differs from the baseline; None where it is none.

    `scores`: name, baseline, value. `classes`: name, examples, baseline and recall, change, share (of the largest
    change, 0-1): of at most 20 classes, those that changed most. `pairs`: label, predicted, baseline, count, change,
    right: the 20 cells of the confusion matrix that changed most, where it is too large to draw. `draw`: whether it is
    drawn. `names`: of all classes. `all_classes`, `unchanged`: whether all that changed are listed, and some did not.
    """
    here, before = row["classification"], baseline["classification"] or {}
    if not here:
        return None
    names = class_names(here["classes"], labels)
    scores = [
        (f"Top-{k} accuracy", (before.get("top_k") or {}).get(k), value)
        for k, value in (here.get("top_k") or {}).items()
    ]
    scores += [("Log loss", before.get("log_loss"), here.get("log_loss"))]
    scores += [("Expected calibration error", before.get("ece"), here.get("ece"))]
    both = before.get("confusion") and here.get("confusion") and before.get("classes") == here["classes"]
    changed = _changed_classes(here.get("per_class") or [], before.get("per_class") or [], names)
    return {
        "scores": scores,
        "classes": sorted(changed[:_MOST_ROWS], key=lambda each: each["change"]),
        "unchanged": len(changed) < len(names),
        "all_classes": len(changed) <= _MOST_ROWS,
        "pairs": _changed_pairs(here["confusion"], before["confusion"], names)
        if both and here["classes"] > _DRAWN_CLASSES
        else [],
        "draw": bool(both) and here["classes"] <= _DRAWN_CLASSES,
        "names": names,
    }


def _changed_classes(here: list[Any], before: list[Any], names: list[str]) -> list[dict[str, Any]]:
    found = [
        {
            "name": name,
            "examples": new["examples"],
            "baseline": old["recall"],
            "recall": new["recall"],
            "change": new["recall"] - old["recall"],
        }
        for name, old, new in zip(names, before, here, strict=False)
        if old["recall"] is not None and new["recall"] is not None and old["recall"] != new["recall"]
    ]
    most = max((abs(each["change"]) for each in found), default=1)
    found.sort(key=lambda each: -abs(each["change"]))
    return [each | {"share": abs(each["change"]) / most} for each in found]


def _changed_pairs(here: list[list[int]], before: list[list[int]], names: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"label": names[i], "predicted": names[j], "baseline": old, "count": new, "change": new - old, "right": i == j}
        for i, (olds, news) in enumerate(zip(before, here, strict=True))
        for j, (old, new) in enumerate(zip(olds, news, strict=True))
        if old != new
    ]
    return sorted(found, key=lambda each: -abs(each["change"]))[:_MOST_ROWS]


def training_curves(training: dict[str, Any], metric: str) -> list[str]:
    """Returns which metrics of a training step's history are drawn: its loss, and the budget's metric."""
    history = training.get("history") or {}
    return [name for name in dict.fromkeys(("loss", metric)) if history.get(name) or history.get(f"val_{name}")]


def phases(training: dict[str, Any]) -> list[tuple[str, int]]:
    """Returns name and epochs of each phase of a training step; empty where it was all one."""
    return [(phase["name"], phase["epochs"]) for phase in training.get("phases") or []]


def largest_drop(sensitivity: list[dict[str, Any]]) -> float:
    """Returns the largest change that a layer's sensitivity has, 0 where none is known."""
    return max((abs(each.get("drop") or 0) for each in sensitivity), default=0)


def most_rows(rows: list[Any]) -> list[Any]:
    """Returns the first rows of a long list."""
    return rows[:_MOST_ROWS]
