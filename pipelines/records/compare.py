"""Two reports side by side: what was asked differently, and what came out differently."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgeline.report.dataclass_json import to_json
from edgeline.report.schema import (
    BudgetReport,
    CandidateReport,
    DatasetReport,
    DeployedReport,
    JudgedMetric,
    MeasuredReport,
    ModelReport,
    Report,
    SliceReport,
    TrainingReport,
)

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
      drop: below the baseline; None if the report's budget does not judge that metric, or the other way round.
      more_metrics: by B's other metrics the same, `value` and `drop`, by name.
      zlib_bytes: of the file.
      p50_ms: median latency with one thread.
      verdict: fits, rejected or failed; None for the baseline.
      selected: whether it is the selected candidate.
    """

    metric: float | None
    drop: float | None
    more_metrics: Mapping[str, Mapping[str, float | None]]
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
    """A slice of a model on which a metric differs.

    Attributes:
      model: name of the candidate, or baseline.
      slice: its features, as in "camera=front,label=3".
      metric: its name.
      examples: of the slice, in each report.
      a: its value.
      b: its value.
      loss: how much worse it is in the second report; negative: better.
    """

    model: str
    slice: str
    metric: str
    examples: tuple[int, int]
    a: float
    b: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What differs between two reports, A and B.

    Attributes:
      metric: the one that B's budget judges, the first of several.
      more_metrics: the others.
      parts: data, module, training, budget, recipes, deployed, versions and machine, by name.
      selected: names of the selected candidates; None where none was.
      models: the baseline, then the candidates of both reports in the order of B.
      only_a: candidates that B does not have.
      only_b: candidates that A does not have.
      slices: those in which a metric differs by more than SLICE_CHANGE, the worst MOST_SLICES; of several metrics the
        worst as a multiple of what B's budget allows. Those too small to be judged are left out.
      more_slices: how many more there are.
    """

    metric: str
    more_metrics: tuple[str, ...]
    parts: dict[str, Part]
    selected: Change
    models: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    slices: tuple[SliceChange, ...]
    more_slices: int


def compare(a: Report, b: Report) -> Comparison:
    """Compares two reports.

    Args:
      a: the first.
      b: the second.
    """
    candidates_a = {candidate.name: candidate for candidate in a.candidates}
    candidates = [(candidates_a[after.name], after) for after in b.candidates if after.name in candidates_a]
    models: list[tuple[MeasuredReport, MeasuredReport]] = [(a.baseline, b.baseline), *candidates]
    slices = _slices(models, a.budget, b.budget)
    names_b = {candidate.name for candidate in b.candidates}
    first, *more = [judged.metric for judged in b.budget.judged]
    return Comparison(
        first,
        tuple(more),
        {
            "data": _data(a.dataset, b.dataset),
            "module": _joined(
                _known("content", a.module_digest, b.module_digest), _known("reference", a.module, b.module)
            ),
            "training": _training(_trainer(a), _trainer(b)),
            "budget": Part(_changes(_budget(a.budget), _budget(b.budget))),
            "recipes": _recipes(candidates),
            "deployed": Part(_changes(_deployed(a), _deployed(b))),
            "versions": Part(_changes(a.versions, b.versions)),
            "machine": Part(_changes(to_json(a.machine), to_json(b.machine))),
        },
        Change("selected", a.selected, b.selected),
        tuple(
            Pair(str(after.name), _result(before, a, b.budget), _result(after, b, b.budget)) for before, after in models
        ),
        tuple(name for name in candidates_a if name not in names_b),
        tuple(candidate.name for candidate in b.candidates if candidate.name not in candidates_a),
        tuple(slices[:MOST_SLICES]),
        len(slices[MOST_SLICES:]),
    )


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys((*a, *b))
    return tuple(Change(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name))


#: Fields of a config that were off at 0.
_OFF_AT_ZERO = ("early_stopping_patience", "frequency", "sensitivity_layers")


def _config_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(
        change for change in _changes(a, b) if natural(change.what, change.a) != natural(change.what, change.b)
    )


def natural(name: str, value: Any) -> Any:
    """Returns the value of a config's field as it is written now; older reports have it as TFX kept it.

    >>> natural("begin_step", -1), natural("include", '["Dense"]'), natural("block_size", "1x4"), natural("epochs", 2)
    (None, ['Dense'], [1, 4], 2)
    """
    if value in ("", "none", -1) or (value == 0 and name in _OFF_AT_ZERO):
        return None
    if not isinstance(value, str):
        return value
    if pair := re.fullmatch(r"(\d+)x(\d+)", value):
        return [int(pair[1]), int(pair[2])]
    with contextlib.suppress(ValueError):
        return json.loads(value) if value.startswith(("[", "{")) else value
    return value


def _budget(budget: BudgetReport) -> dict[str, Any]:
    """Returns a budget by field, the other metrics as they are written."""
    more = [
        f"{m.metric}:{m.direction}" + ("" if m.max_drop is None else f":{m.max_drop:g}") for m in budget.more_metrics
    ]
    return to_json(budget) | {"more_metrics": more}


def _known(what: str, a: Any, b: Any) -> Part:
    """Compares a fact that old reports do not know."""
    if a is None or b is None:
        return Part((), (what,))
    return Part((Change(what, a, b),) if a != b else ())


def _joined(*parts: Part) -> Part:
    return Part(tuple(c for part in parts for c in part.changed), tuple(u for part in parts for u in part.unknown))


def _data(a: DatasetReport, b: DatasetReport) -> Part:
    # other spans are other data, which the fingerprint says
    others = [to_json(dataclasses.replace(dataset, fingerprint=None, spans=None)) for dataset in (a, b)]
    return _joined(_known("fingerprint", a.fingerprint, b.fingerprint), Part(_changes(*others)))


def _deployed(report: Report) -> dict[str, str | None]:
    deployed = report.deployed or DeployedReport()
    return {"name": deployed.name, "version": deployed.version, "sha256": deployed.sha256}


def _training(a: TrainingReport | None, b: TrainingReport | None) -> Part:
    """Compares the first training; that of the other steps is part of the recipes."""
    epochs = _known("epochs done", a.epochs if a else None, b.epochs if b else None)
    if a is None or b is None or a.config is None or b.config is None:
        return _joined(epochs, Part((), ("parameters",)))
    return _joined(epochs, Part(_config_changes(a.config, b.config)))


def _trainer(report: Report) -> TrainingReport | None:
    return next((training for training in report.training if training.step == "Trainer"), None)


def _recipes(candidates: Iterable[tuple[CandidateReport, CandidateReport]]) -> Part:
    changed: list[Change] = []
    unknown = []
    for a, b in candidates:
        steps_a, steps_b = ([step.step for step in candidate.recipe] for candidate in (a, b))
        if any(candidate.failure and not candidate.recipe for candidate in (a, b)):
            unknown.append(b.name)  # what came before a failure is in no artifact
        elif steps_a != steps_b:
            changed.append(Change(b.name, " → ".join(steps_a), " → ".join(steps_b)))
        else:
            for before, after in zip(a.recipe, b.recipe, strict=True):
                changed += [
                    Change(f"{b.name}: {after.step} {change.what}", change.a, change.b)
                    for change in _config_changes(before.config, after.config)
                ]
    return Part(tuple(changed), tuple(unknown))


def _result(model: MeasuredReport, report: Report, budget: BudgetReport) -> Result:
    """Returns what a model of a report came to by the metrics of a budget, its report's own or the other's."""
    verdict = None
    if isinstance(model, CandidateReport):
        verdict = "failed" if model.failure or not model.metrics else "fits" if model.blessed else "rejected"
    own = [(judged.metric, judged.direction) for judged in report.budget.judged]

    def drop(metric: JudgedMetric) -> float | None:
        is_comparable = isinstance(model, CandidateReport) and (metric.metric, metric.direction) in own
        return model.lost(metric.metric).drop if isinstance(model, CandidateReport) and is_comparable else None

    first, *more = budget.judged
    return Result(
        model.value(first.metric),
        drop(first),
        {metric.metric: {"value": model.value(metric.metric), "drop": drop(metric)} for metric in more},
        model.zlib_bytes,
        model.latency_ms.p50 if model.latency_ms else None,
        verdict,
        verdict is not None and model.name == report.selected,
    )


def _slices(
    models: Iterable[tuple[ModelReport, ModelReport]], budget_a: BudgetReport, budget_b: BudgetReport
) -> list[SliceChange]:
    """Returns the slices in which a metric differs by more than SLICE_CHANGE, the worst first."""
    changes = []
    for a, b in models:
        before, after = _judged_slices(a, budget_a), _judged_slices(b, budget_b)
        for name, new in after.items():
            if (old := before.get(name)) is None:
                continue
            for judged in budget_b.judged:
                x, y = old.metrics.get(judged.metric), new.metrics.get(judged.metric)
                # a point more or less by rounding alone is no change of more than a point
                if x is not None and y is not None and abs(y - x) > SLICE_CHANGE + 1e-9:
                    loss = judged.sign * (x - y)
                    counts = (old.examples, new.examples)
                    changes.append(SliceChange(str(b.name), name, judged.metric, counts, x, y, loss))
    unit = {judged.metric: judged.max_drop or SLICE_CHANGE for judged in budget_b.judged}
    return sorted(changes, key=lambda change: -change.loss / unit[change.metric])


def _judged_slices(model: ModelReport, budget: BudgetReport) -> dict[str, SliceReport]:
    """Returns the slices of a model that are not too small to be judged, by name."""
    return {
        ",".join(f"{feature}={value}" for feature, value in sorted(part.features.items())): part
        for part in model.slices
        if part.examples >= (budget.min_slice_examples or 0)
    }
