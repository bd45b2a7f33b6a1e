"""Two reports side by side: what was asked differently, and what came out differently."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

#: Changes of a slice up to this, in the metric's unit, are not listed.
SLICE_CHANGE = 0.01
#: So many slices are listed, the worst.
MOST_SLICES = 10


@dataclasses.dataclass(frozen=True)
class Change:
    """A fact that differs: its name, and its value in each report; None where the report does not have it."""

    what: str
    a: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of what a report says of its run.

    Attributes:
      changed: the facts that differ.
      unknown: facts that were not compared, as a report does not know them.
    """

    changed: tuple[Change, ...]
    unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a model came to in one report; None where that is not known.

    Attributes:
      metric: value of the comparison's metric.
      drop: below the baseline; None if the report's budget names another metric.
      zlib_bytes: of the file.
      p50_ms: median latency with one thread.
      verdict: fits, rejected or failed; None for the baseline.
      selected: whether it is the selected candidate.
    """

    metric: float | None
    drop: float | None
    zlib_bytes: int | None
    p50_ms: float | None
    verdict: str | None
    selected: bool


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model that both reports have."""

    name: str
    a: Result
    b: Result


@dataclasses.dataclass(frozen=True)
class SliceChange:
    """A slice of a model on which the metric differs.

    Attributes:
      model: name of the candidate, or baseline.
      slice: its features, as in "camera=front,label=3".
      examples: of the slice, in each report.
      a: the metric.
      b: the metric.
      loss: how much worse it is in the second report; negative: better.
    """

    model: str
    slice: str
    examples: tuple[int, int]
    a: float
    b: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What differs between two reports, A and B.

    Attributes:
      metric: the one that B's budget names.
      parts: data, module, training, budget, recipes, deployed, versions and machine, by name.
      selected: names of the selected candidates; None where none was.
      models: the baseline, then the candidates of both reports in the order of B.
      only_a: candidates that B does not have.
      only_b: candidates that A does not have.
      slices: those whose metric differs by more than SLICE_CHANGE, the worst MOST_SLICES; those too small to be judged
        are left out.
      more_slices: how many more there are.
    """

    metric: str
    parts: dict[str, Part]
    selected: Change
    models: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    slices: tuple[SliceChange, ...]
    more_slices: int


def compare(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Compares two reports.

    Args:
      a: the facts of the first, as `edgeline.report.report_file.read` returns them.
      b: those of the second.
    """
    candidates_a, candidates_b = ({c["name"]: c for c in report["candidates"]} for report in (a, b))
    both = [name for name in candidates_b if name in candidates_a]
    metric = b["budget"]["metric"]
    same_drop = all(a["budget"][key] == b["budget"][key] for key in ("metric", "direction"))
    models = [("baseline", a["baseline"], b["baseline"]), *((n, candidates_a[n], candidates_b[n]) for n in both)]
    slices = _slices(models, metric, a["budget"], b["budget"])
    return Comparison(
        metric,
        {
            "data": _data(a, b),
            "module": _module(a, b),
            "training": _training(a, b),
            "budget": Part(_changes(a["budget"], b["budget"])),
            "recipes": _recipes([(n, candidates_a[n], candidates_b[n]) for n in both]),
            "deployed": Part(_changes(*(_only(report["deployed"], "name", "version", "sha256") for report in (a, b)))),
            "versions": Part(_changes(a["versions"], b["versions"])),
            "machine": Part(_changes(a["machine"], b["machine"])),
        },
        Change("selected", a["selected"], b["selected"]),
        tuple(
            Pair(name, _result(x, metric, a["selected"], same_drop), _result(y, metric, b["selected"], True))
            for name, x, y in models
        ),
        tuple(name for name in candidates_a if name not in candidates_b),
        tuple(name for name in candidates_b if name not in candidates_a),
        tuple(slices[:MOST_SLICES]),
        len(slices[MOST_SLICES:]),
    )


def _only(facts: dict[str, Any] | None, *names: str) -> dict[str, Any]:
    return {name: (facts or {}).get(name) for name in names}


def _changes(a: dict[str, Any], b: dict[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys((*a, *b))
    return tuple(Change(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name))


def _known(what: str, a: Any, b: Any) -> Part:
    """Compares a fact that old reports do not know."""
    if a is None or b is None:
        return Part((), (what,))
    return Part((Change(what, a, b),) if a != b else ())


def _joined(*parts: Part) -> Part:
    return Part(tuple(c for part in parts for c in part.changed), tuple(u for part in parts for u in part.unknown))


def _data(a: dict[str, Any], b: dict[str, Any]) -> Part:
    x, y = a["dataset"], b["dataset"]
    names = ("split", "examples", "bad_records", "label_names", "slice_features")
    return _joined(
        _known("fingerprint", x["fingerprint"], y["fingerprint"]), Part(_changes(_only(x, *names), _only(y, *names)))
    )


def _module(a: dict[str, Any], b: dict[str, Any]) -> Part:
    content = _known("content", a.get("module_digest"), b.get("module_digest"))
    return _joined(content, _known("reference", a["module"], b["module"]))


def _training(a: dict[str, Any], b: dict[str, Any]) -> Part:
    """Compares the first training; that of the other steps is part of the recipes."""
    x, y = _trainer(a), _trainer(b)
    epochs = [max(map(len, each["history"].values()), default=0) if each else None for each in (x, y)]
    if x.get("config") is None or y.get("config") is None:
        return _joined(_known("epochs done", *epochs), Part((), ("parameters",)))
    return _joined(_known("epochs done", *epochs), Part(_changes(x["config"], y["config"])))


def _trainer(report: dict[str, Any]) -> dict[str, Any]:
    return next((training for training in report["training"] if training["step"] == "Trainer"), {})


def _recipes(candidates: Iterable[tuple[str, dict[str, Any], dict[str, Any]]]) -> Part:
    changed: list[Change] = []
    unknown = []
    for name, a, b in candidates:
        before, after = ([_step(text) for text in c.get("recipe") or ()] for c in (a, b))
        if any(c.get("failure") and not c.get("recipe") for c in (a, b)):  # what came before it is in no artifact
            unknown.append(name)
        elif [kind for kind, _ in before] != [kind for kind, _ in after]:
            changed.append(Change(name, *(" → ".join(kind for kind, _ in steps) for steps in (before, after))))
        else:
            for (kind, x), (_, y) in zip(before, after, strict=True):
                changed += [Change(f"{name}: {kind} {c.what}", c.a, c.b) for c in _changes(x, y)]
    return Part(tuple(changed), tuple(unknown))


def _step(text: str) -> tuple[str, dict[str, str]]:
    """Reads a step of a recipe, such as "Pruner sparsity=0.8 epochs=2"."""
    kind, _, rest = text.partition(" ")
    # a value may have spaces
    _, *parts = re.split(r"(?:^| )(\w+)=", rest)
    return kind, dict(zip(parts[::2], parts[1::2], strict=True))


def _result(entry: dict[str, Any], metric: str, selected: str | None, is_drop_comparable: bool) -> Result:
    metrics = entry.get("metrics") or {}
    verdict = None
    if "name" in entry:
        is_failed = entry.get("failure") or not metrics
        verdict = "failed" if is_failed else "fits" if entry.get("blessed") else "rejected"
    return Result(
        metrics.get(metric),
        entry.get("drop") if is_drop_comparable else None,
        entry.get("zlib_bytes"),
        (entry.get("latency_ms") or {}).get("p50"),
        verdict,
        selected is not None and entry.get("name") == selected,
    )


def _slices(
    models: Iterable[tuple[str, dict[str, Any], dict[str, Any]]],
    metric: str,
    budget_a: dict[str, Any],
    budget_b: dict[str, Any],
) -> list[SliceChange]:
    """Returns the slices whose metric differs by more than SLICE_CHANGE, the worst first."""
    sign = -1 if budget_b["direction"] == "min" else 1
    found = []
    for name, a, b in models:
        before, after = (
            {
                ",".join(f"{feature}={value}" for feature, value in sorted(s["features"].items())): s
                for s in entry.get("slices") or ()
                if s["examples"] >= (budget.get("min_slice_examples") or 0)
            }
            for entry, budget in ((a, budget_a), (b, budget_b))
        )
        for key, s in after.items():
            old = before[key]["metrics"].get(metric) if key in before else None
            new = s["metrics"].get(metric)
            # a point more or less by rounding alone is no change of more than a point
            if old is not None and new is not None and abs(new - old) > SLICE_CHANGE + 1e-9:
                examples = (before[key]["examples"], s["examples"])
                found.append(SliceChange(name, key, examples, old, new, sign * (old - new)))
    return sorted(found, key=lambda each: -each.loss)
