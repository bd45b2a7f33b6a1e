"""What the report's page says: report.json as rows and words, in the order in which they are read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgeline.budget import slice_drops, slice_limit
from edgeline.report import doubts
from edgeline.report.formats import Format
from edgeline.report.schema import (
    BudgetReport,
    CandidateReport,
    ChanceReport,
    ClassificationReport,
    ClassReport,
    DeviceCost,
    DropReport,
    FailureReport,
    Interval,
    JudgedMetric,
    Latency,
    LayerSensitivity,
    MeasuredReport,
    ModelReport,
    OutputReport,
    RegressionReport,
    Report,
    SliceReport,
    Timing,
    TrainingReport,
)

VERDICTS = {"selected": "Selected", "fits": "Meets budget", "misses": "Misses budget", "failed": "Failed"}
"""What a candidate's verdict is called."""

NOISY = 0.1
"""A latency's relative spread above which the page warns of it."""

#: Longer lists are cut to what matters most.
_MOST_ROWS = 20
#: Up to so many classes a confusion matrix is drawn.
_DRAWN_CLASSES = 50

#: Classes without examples that are named.
_NAMED_CLASSES = 5
_OBJECTIVES = {"zlib_bytes": "fewest zlib bytes", "bytes": "smallest file", "latency_ms": "lowest latency"}


@dataclass(frozen=True)
class PageBudget:
    """The budget in the terms of the page.

    Attributes:
        metric: that is judged.
        sign: 1 where more of the metric is better, -1 where less is.
        max_drop: None where it is not limited.
        metric_limit: the worst value of the metric that the budget allows; None where it allows any.
        objective: words for what the selected candidate has the least of.
        upper: whether the upper end of the drop's interval is judged.
        terms: all of it, as the report has it.
    """

    metric: str
    sign: int
    max_drop: float | None
    metric_limit: float | None
    objective: str
    upper: bool
    terms: BudgetReport

    @classmethod
    def of(cls, budget: BudgetReport, baseline: float | None) -> PageBudget:
        """Reads a report's budget.

        Args:
            budget: of the report.
            baseline: the baseline's value of the metric.
        """
        sign = -1 if budget.direction == "min" else 1
        limits = [] if budget.max_drop is None or baseline is None else [baseline - sign * budget.max_drop]
        if budget.value_threshold is not None:
            limits.append(budget.value_threshold)
        return cls(
            metric=budget.metric,
            sign=sign,
            max_drop=budget.max_drop,
            metric_limit=max(limits, key=lambda limit: sign * limit, default=None),
            objective=_OBJECTIVES.get(budget.objective, budget.objective),
            upper=budget.drop_bound == "upper",
            terms=budget,
        )

    @property
    def drop_word(self) -> str:
        """What a loss of quality is called, as a metric of which less is better rises."""
        return "drop" if self.sign > 0 else "rise"

    def limit(self, name: str) -> float | None:
        """Returns the most that a candidate may cost, by the budget's field; None where it is not limited."""
        return self.terms.limits.get(name)

    def change(self, drop: float | None) -> float | None:
        """Returns a drop as a change of the metric."""
        return None if drop is None else -self.sign * drop

    def change_interval(self, interval: Interval | None) -> Interval | None:
        """Returns an interval of a drop as one of the change of the metric, lower end first."""
        return change_interval(self.terms.judged[0], interval)


@dataclass(frozen=True)
class Row:
    """A model's line in the table of candidates, and its points in the charts; a number is None where it is not known.

    Attributes:
        name: of the model; empty where it is not known.
        number: of the candidate on the page, from 1; 0 for the baseline and the deployed model.
        verdict: a key of VERDICTS.
        metric: value of the budget's metric.
        agreement: fraction of the examples on which it agrees with the baseline.
        noise: relative spread of the latency.
        model: all that the report says of it. The other fields are those of its parts.
    """

    name: str
    number: int
    verdict: str
    metric: float | None
    drop: float | None
    drop_interval: Interval | None
    deployed_drop: float | None
    deployed_drop_interval: Interval | None
    bytes: int | None
    zlib_bytes: int | None
    ratio: float | None
    sparsity: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    noise: float | None
    cold_start_ms: float | None
    peak_rss_bytes: int | None
    agreement: float | None
    pareto: bool
    reasons: tuple[str, ...]
    failure: FailureReport | None
    model: ModelReport

    @classmethod
    def of(cls, model: ModelReport, metric: str, *, number: int = 0, selected: str | None = None) -> Row:
        """Returns the row of a model.

        Args:
            model: the baseline, a candidate or the deployed model.
            metric: the budget's.
            number: of a candidate.
            selected: name of the selected candidate.
        """
        measured = model if isinstance(model, MeasuredReport) else MeasuredReport(name=model.name)
        candidate = model if isinstance(model, CandidateReport) else CandidateReport(name=model.name or "")
        latency, device = measured.latency_ms or Latency(), measured.device or DeviceCost()
        one_thread = device.one_thread or Timing()
        verdict = "failed" if candidate.failure else "fits" if candidate.blessed else "misses"
        return cls(
            name=model.name or "",
            number=number,
            verdict="selected" if number and candidate.name == selected else verdict,
            metric=model.value(metric),
            drop=candidate.drop,
            drop_interval=candidate.drop_interval,
            deployed_drop=candidate.deployed_drop,
            deployed_drop_interval=candidate.deployed_drop_interval,
            bytes=model.bytes,
            zlib_bytes=model.zlib_bytes,
            ratio=candidate.ratio,
            sparsity=candidate.sparsity,
            p50=latency.p50,
            p90=latency.p90,
            p99=one_thread.p99,
            noise=one_thread.noise,
            cold_start_ms=device.cold_start_ms,
            peak_rss_bytes=device.peak_rss_bytes,
            agreement=model.comparison.agreement if model.comparison else None,
            pareto=candidate.pareto,
            reasons=candidate.reasons,
            failure=candidate.failure,
            model=model,
        )


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
    value: Callable[[Row], float | None]
    text: Callable[[Row], str]
    note: Callable[[Row], str | None] = lambda row: None
    wide: bool = False


def columns(budget: PageBudget, style: Format, rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of the table: those that reports have always had, and others of which a row has a number."""

    def column(title: str, key: str, write: Callable[[Any], str], **more: Any) -> Column:
        return Column(title, lambda row: getattr(row, key), lambda row: write(getattr(row, key)), **more)

    always = [
        column(budget.metric, "metric", style.metric),
        column(
            budget.drop_word.capitalize(),
            "drop",
            style.metric,
            note=lambda row: style.interval(row.drop_interval),
        ),
        column("Zlib bytes", "zlib_bytes", style.count),
        column("Ratio", "ratio", style.times),
        column("Bytes", "bytes", style.count),
        Column(f"p50 / p90 {style.time_unit}", lambda row: row.p50, lambda row: style.latency(row.p50, row.p90)),
    ]
    newer = [
        column("Agreement", "agreement", style.percent),
        column("Sparsity", "sparsity", style.percent),
        column(f"p99 {style.time_unit}", "p99", style.time, wide=True),
        column("Cold start", "cold_start_ms", style.duration, wide=True),
        column("Memory", "peak_rss_bytes", style.memory, wide=True),
        column(
            f"{budget.drop_word.capitalize()} from deployed",
            "deployed_drop",
            style.metric,
            note=lambda row: style.interval(row.deployed_drop_interval),
            wide=True,
        ),
    ]
    always[2:2] = [*_judged_columns(budget), *_other_columns(budget, rows)]
    return always + [c for c in newer if c.title == "Sparsity" or any(c.value(row) is not None for row in rows)]


def _judged_columns(budget: PageBudget) -> list[Column]:
    """Returns the columns of the metrics that are judged beside the first: value and drop."""
    return [
        column
        for judged in budget.terms.more_metrics
        for column in (_metric_column(judged.metric), _drop_column(judged))
    ]


def _other_columns(budget: PageBudget, rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of the compiled metrics that are not judged; the loss has none."""
    judged = {metric.metric for metric in budget.terms.judged}
    names = dict.fromkeys(name for row in rows for name in row.model.metrics or ())
    return [_metric_column(name) for name in names if name not in judged and name != "loss"]


def _metric_column(name: str) -> Column:
    return Column(
        name,
        lambda row: row.model.value(name),
        lambda row: style_of(row.model.value(name)).metric(row.model.value(name)),
    )


def _drop_column(judged: JudgedMetric) -> Column:
    name = judged.metric

    def lost(row: Row) -> DropReport:
        return row.model.lost(name) if isinstance(row.model, CandidateReport) else DropReport()

    return Column(
        drop_word(judged).capitalize(),
        lambda row: lost(row).drop,
        lambda row: style_of(row.model.value(name)).metric(lost(row).drop),
        note=lambda row: style_of(row.model.value(name)).interval(lost(row).drop_interval),
    )


def style_of(value: float | None) -> Format:
    """Returns the format for values of a metric that are about as large as this one."""
    return Format.of(value, None)


def drop_word(metric: JudgedMetric) -> str:
    """Returns what a loss of quality is called, as a metric of which less is better rises."""
    return "drop" if metric.sign > 0 else "rise"


def change_interval(metric: JudgedMetric, interval: Interval | None) -> Interval | None:
    """Returns an interval of a drop of a metric as one of its change, lower end first."""
    if not interval or metric.sign < 0:
        return interval
    low, high = interval
    return (None if high is None else -high, None if low is None else -low)


def judged_by(budget: BudgetReport) -> str:
    """Says by which metrics the candidates were judged, and why by these.

    >>> judged_by(BudgetReport(metric="mae", direction="min", max_drop=0.5, objective="bytes", metric_is_default=True))
    'mae (less is better; rise at most 0.5), as no --metric was given'
    """
    said = [
        f"{m.metric} ({'more' if m.sign > 0 else 'less'} is better"
        + (")" if m.max_drop is None else f"; {drop_word(m)} at most {m.max_drop:g})")
        for m in budget.judged
    ]
    why = ", as no --metric was given" if budget.metric_is_default else ""
    return ", ".join(said) + why + ("; the first ranks the candidates" if len(said) > 1 else "")


def class_names(count: int, labels: Sequence[str] | None) -> list[str]:
    """Returns the names of classes; their numbers where they have no names."""
    return [labels[i] if labels and i < len(labels) else str(i) for i in range(count)]


def slice_name(features: Mapping[str, Any], labels: Sequence[str] | None) -> str:
    """Returns a slice as the budget writes it, and the label's name.

    >>> slice_name({"camera": "front", "label": 1}, ["cat", "dog"])
    'camera=front, label=1 (dog)'
    """

    def value(name: str, of: Any) -> str:
        known = name == "label" and isinstance(of, int) and labels and 0 <= of < len(labels)
        return f"{of} ({labels[of]})" if known and labels and labels[of] != str(of) else str(of)

    return ", ".join(f"{name}={value(name, of)}" for name, of in features.items())


@dataclass(frozen=True)
class SliceRow:
    """What a candidate loses in a slice.

    Attributes:
        name: as the budget writes it.
        examples: in it.
        few: whether these are too few to be judged.
        baseline: the baseline's value of a metric of the budget.
        metric: the candidate's.
        drop: from the baseline.
        limit: the most that the drop may be; None where no limit holds.
        verdict: "over", "within" or, with too few examples, "few"; empty where no limit holds.
    """

    name: str
    examples: int
    few: bool
    baseline: float | None
    metric: float | None
    drop: float | None
    limit: float | None
    verdict: str


def worst_slices(
    candidate: ModelReport,
    baseline: ModelReport,
    budget: PageBudget,
    labels: Sequence[str] | None,
    metric: str | None = None,
) -> list[SliceRow]:
    """Returns a candidate's slices by one of the budget's metrics, the largest drop first; None: by the first."""
    metric = metric or budget.metric
    before = {_key(part): part.metrics.get(metric) for part in baseline.slices}
    drops = slice_drops(budget.terms.max_slice_drops, metric, [judged.metric for judged in budget.terms.judged])
    rows = []
    for part in candidate.slices:
        limit = slice_limit(part.features.items(), drops)
        drop = part.drop if metric == budget.metric else part.more_drops.get(metric)
        few = part.examples < (budget.terms.min_slice_examples or 0)
        if limit is None:
            verdict = ""
        elif few:
            verdict = "few"
        else:
            verdict = "over" if drop is None or drop > limit + 1e-9 else "within"
        rows.append(
            SliceRow(
                name=slice_name(part.features, labels),
                examples=part.examples,
                few=few,
                baseline=before.get(_key(part)),
                metric=part.metrics.get(metric),
                drop=drop,
                limit=limit,
                verdict=verdict,
            )
        )
    return sorted(rows, key=lambda row: -math.inf if row.drop is None else row.drop, reverse=True)


def _examples_by_class(report: Report) -> list[tuple[str, int]]:
    """Returns the classes' names and how many examples of each were evaluated; empty: nothing was classified."""
    scores = report.baseline.classification
    counts = [of_class.examples for of_class in scores.per_class] if scores else []
    return list(zip(class_names(len(counts), report.dataset.label_names), counts, strict=True))


def without_examples(report: Report) -> list[str]:
    """Says of which classes the evaluated split has no example, and of which the training one; nothing where all have.

    Args:
        report: all of it.
    """
    counts, trained_on = _examples_by_class(report), report.dataset.training_examples
    said = []
    if text := _named_absent([name for name, count in counts if not count], len(counts)):
        said.append(
            f"The {report.dataset.split} split has no example of {text}: nothing here says what becomes of them."
        )
    untrained = [name for number, (name, _) in enumerate(counts) if trained_on and not trained_on.get(str(number))]
    if text := _named_absent(untrained, len(counts)):
        said.append(f"The train split has no example of {text}: no training of this run has seen them.")
    return said


def _named_absent(absent: Sequence[str], classes: int) -> str:
    named = ", ".join(absent[:_NAMED_CLASSES]) + (", …" if len(absent) > _NAMED_CLASSES else "")
    return f"{len(absent)} of {classes} classes ({named})" if absent else ""


def guess_says(metric: str, value: float | None, guess: ChanceReport, labels: Sequence[str] | None) -> str:
    """Says what a model has of a metric, and what a guess would have.

    >>> guess = ChanceReport(guess="commonest class", answer=1, value=0.2, margin=0.0784, beaten=False)
    >>> guess_says("accuracy", 0.25, guess, ["cat", "dog"])
    'accuracy 0.2500, where always to answer dog, the commonest class, has 0.2000 (0.0784 more may be luck)'

    Args:
      metric: its name.
      value: the model's.
      guess: of the metric.
      labels: names of the classes.
    """
    if guess.answer is None:
        answer, more = "the mean of the labels", "less"
    else:
        answer, more = f"{class_names(guess.answer + 1, labels)[-1]}, the commonest class,", "more"
    luck = f"{guess.margin:.4f} {more} may be luck" if guess.margin is not None else "one example says nothing"
    shown = "none" if value is None else f"{value:.4f}"
    return f"{metric} {shown}, where always to answer {answer} has {guess.value:.4f} ({luck})"


def at_chance_level(report: Report) -> str | None:
    """Says that a model is no better than one that answers the same whatever goes in; None: it is, or nobody knows.

    It is the selected model, else the closest, else the baseline.

    Args:
      report: all of it.
    """
    model = report.chosen or report.baseline
    said = [
        guess_says(metric, model.value(metric), guess, report.dataset.label_names)
        for metric, guess in model.chance.items()
        if not guess.beaten
    ]
    if not said:
        return None
    name = "The baseline" if model is report.baseline else model.name
    return (
        f"{name} is at chance level: {'; '.join(said)}. Train longer before compressing, or judge "
        f"another metric with --metric."
    )


def compared_with_chance(report: Report) -> str:
    """Says what the budget's metrics were compared with, to tell a model from a guess."""
    said = []
    for judged in report.budget.judged:
        guess = report.baseline.chance.get(judged.metric)
        if guess is None:
            said.append(f"{judged.metric} is not compared: only an accuracy of one label per example, mse and mae are")
        else:
            answer = "the mean" if guess.answer is None else "the commonest class"
            said.append(f"{judged.metric} beside always answering {answer}")
    return "; ".join(said)


class NothingSelected(NamedTuple):
    """Why nothing was selected.

    Attributes:
      title: in a few words.
      line: the same as part of a sentence.
    """

    title: str
    line: str


def nothing_selected(report: Report) -> NothingSelected:
    """Returns why nothing was selected: what stopped the candidate that came closest."""
    evaluated = [candidate for candidate in report.candidates if not candidate.failure]
    closest = report.candidate(report.closest)
    if not report.candidates:
        return NothingSelected("There were no candidates", "there were no candidates")
    if not evaluated:
        return NothingSelected("Every candidate failed", "every candidate failed")
    if all("target" in candidate.misses for candidate in evaluated):
        target = report.budget.target
        return NothingSelected(f"Nothing runs on {target}", f"the target {target} can run no candidate")
    if all(candidate.value(report.budget.metric) is None for candidate in evaluated):
        return NothingSelected("Nothing could be judged", f"{report.budget.metric} has no value for any candidate")
    misses = closest.misses if closest else ()
    if "contract" in misses:
        return NothingSelected("Nothing keeps the contract", "no candidate keeps the contract")
    if "chance" in misses:
        return NothingSelected("Nothing is better than chance", "no candidate is better than chance")
    return NothingSelected("Nothing met the budget", "no candidate met the budget")


def _key(part: SliceReport) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(part.features.items()))


def warnings(
    report: Report, rows: Sequence[Row], shown: Row | None, baseline: Row, budget: PageBudget, style: Format
) -> list[str]:
    """Returns what a reader should know before believing the verdict.

    Args:
        report: all of it.
        rows: of the candidates.
        shown: the selected or closest candidate.
        baseline: its row.
        budget: what a candidate may cost.
        style: how numbers are written.
    """
    texts = []
    if chance := at_chance_level(report):
        texts.append(chance)
    if bad := report.dataset.bad_records:
        records = "1 record" if bad == 1 else f"{style.count(bad)} records"
        texts.append(f"{records} of the {report.dataset.split} split could not be read and took no part.")
    texts += without_examples(report)
    texts += [f"The metric {name} has no value on this split: {why}." for name, why in baseline.model.undefined.items()]
    timed = [dataclasses.replace(baseline, name="the baseline"), *rows]
    noisy = [(row.noise, row.name) for row in timed if row.noise is not None and row.noise > NOISY]
    if noisy:
        noise, name = max(noisy, key=lambda pair: pair[0])
        models = "1 model" if len(noisy) == 1 else f"{len(noisy)} models"
        texts.append(
            f"The machine was busy: the latency of {models} varied by more than {100 * NOISY:.0f}% while it was "
            f"measured ({name}: {style.percent(noise)})."
        )
    failed = sum(row.verdict == "failed" for row in rows)
    if failed and failed < len(rows):
        texts.append(f"{failed} of {len(rows)} candidates failed; the table says why.")
    if report.deployed and report.deployed.failure:
        texts.append(f"The deployed model could not be compared with: {report.deployed.failure}")
    if shown:
        texts += _doubts(shown, baseline, budget, style, report.dataset.label_names)
    return texts + doubts.of(report, style)


def _doubts(shown: Row, baseline: Row, budget: PageBudget, style: Format, labels: Sequence[str] | None) -> list[str]:
    if not isinstance(shown.model, CandidateReport):
        return []
    texts = []
    for judged in budget.terms.judged:
        own = style if judged.metric == budget.metric else style_of(baseline.model.value(judged.metric))
        texts += _interval_doubts(judged, shown.model, budget, own)
        slices = worst_slices(shown.model, baseline.model, budget, labels, judged.metric)
        texts += _slice_doubts(judged, [row for row in slices if not row.few], budget, own)
    return texts


def _interval_doubts(judged: JudgedMetric, candidate: CandidateReport, budget: PageBudget, style: Format) -> list[str]:
    lost, limit = candidate.lost(judged.metric), judged.max_drop
    interval = lost.chosen_drop_interval or lost.drop_interval
    upper = None if budget.upper or not interval else interval[1]
    if upper is None or limit is None or lost.drop is None or not lost.drop <= limit < upper:
        return []
    return [
        f"On other data the {drop_word(judged)} of {judged.metric} may be up to {style.metric(upper)} (95% "
        f"interval), more than the {style.metric(limit)} allowed; more examples would narrow it."
    ]


def _slice_doubts(judged: JudgedMetric, slices: Sequence[SliceRow], budget: PageBudget, style: Format) -> list[str]:
    limit = judged.max_drop
    worse = [row for row in slices if row.drop is not None and row.drop > (limit or 0) + 1e-9]
    if not worse:
        return []
    than = f"more than the {style.metric(limit)} allowed overall" if limit else "something"
    loses = "loses" if len(worse) == 1 else "lose"
    by = f" by {judged.metric}" if budget.terms.more_metrics else ""
    return [
        f"{len(worse)} of {len(slices)} slices {loses} {than}{by}; most: {worse[0].name}, "
        f"{style.metric(worse[0].drop)} in {style.count(worse[0].examples)} examples."
    ]


@dataclass(frozen=True)
class LadderRow:
    """What a step left of the zlib bytes.

    Attributes:
        step: its name.
        zlib_bytes: None where it is not known.
        share: of the largest, 0-1.
        change: from the step before, in words; empty where it is none.
    """

    step: str
    zlib_bytes: int | None
    share: float
    change: str


def ladder(candidate: CandidateReport, style: Format) -> list[LadderRow]:
    """Returns what each step left of the zlib bytes."""
    most = max((step.zlib_bytes or 0 for step in candidate.ladder), default=0)
    rows = []
    for before, step in zip((None, *candidate.ladder), candidate.ladder, strict=False):
        change = before and style.ratio(before.zlib_bytes, step.zlib_bytes, "smaller", "larger")
        share = (step.zlib_bytes or 0) / most if most else 0
        text = "" if not change or change.startswith("1.0×") else change
        rows.append(LadderRow(step.step, step.zlib_bytes, share, text))
    return rows


@dataclass(frozen=True)
class CostCell:
    """A measured cost beside its limit: both as text, the limit None where there is none, and whether it is over."""

    text: str
    limit: str | None
    over: bool


@dataclass(frozen=True)
class TimingRow:
    """A candidate's times in one setting.

    Attributes:
        name: of the setting.
        cells: p50, p90 and p99.
        noise: relative spread; None where it is not known.
        runs: that were timed; None likewise.
        baseline: the baseline's p50 in ms; None likewise.
    """

    name: str
    cells: list[CostCell]
    noise: float | None
    runs: int | None
    baseline: float | None


@dataclass(frozen=True)
class CostRow:
    """Another cost of a candidate: its name, its value, and the baseline's as text (None where it is not known)."""

    name: str
    cell: CostCell
    baseline: str | None


@dataclass(frozen=True)
class Costs:
    """What a candidate costs where it was measured: times in each setting, cold start and memory."""

    settings: list[TimingRow]
    more: list[CostRow]


def costs(candidate: CandidateReport, baseline: MeasuredReport, budget: PageBudget, style: Format) -> Costs | None:
    """Returns what a candidate costs where it was measured; None where that is not known."""
    if not candidate.device:
        return None

    def cell(
        value: float | None, limit_name: str | None, write: Callable[[float | None], str], brief: Callable[[float], str]
    ) -> CostCell:
        limit = budget.limit(limit_name) if limit_name else None
        over = value is not None and limit is not None and value > limit
        return CostCell(write(value), None if limit is None else brief(limit), over)

    own, reference = candidate.device, baseline.device or DeviceCost()
    settings = []
    for name, timing, before, limits in (
        (
            *("One thread", own.one_thread, reference.one_thread),
            ("max_latency_ms", "max_latency_p90_ms", "max_latency_p99_ms"),
        ),
        ("All threads", own.all_threads, reference.all_threads, ("max_latency_all_threads_ms", None, None)),
        (
            *("Without XNNPACK", own.without_xnnpack, reference.without_xnnpack),
            ("max_latency_without_xnnpack_ms", None, None),
        ),
    ):
        if timing is None:
            continue
        times = zip((timing.p50, timing.p90, timing.p99), limits, strict=True)
        settings.append(
            TimingRow(
                name=name + (f" ({timing.threads})" if timing.threads else ""),
                cells=[cell(time, limit, style.time, style.time) for time, limit in times],
                noise=timing.noise,
                runs=timing.runs,
                baseline=before.p50 if before else None,
            )
        )
    more = [
        CostRow(name, cell(value, limit, write, write), None if before is None else write(before))
        for name, value, before, limit, write in (
            ("Cold start", own.cold_start_ms, reference.cold_start_ms, "max_cold_start_ms", style.duration),
            ("Peak memory", own.peak_rss_bytes, reference.peak_rss_bytes, "max_peak_rss_bytes", style.memory),
        )
        if value is not None
    ]
    return Costs(settings, more)


@dataclass(frozen=True)
class RecallRow:
    """How the recall of a class changed.

    Attributes:
        name: of the class.
        examples: of it.
        baseline: the baseline's recall, 0-1.
        recall: the candidate's, 0-1.
        share: of the largest change, 0-1.
    """

    name: str
    examples: int
    baseline: float
    recall: float
    share: float = 0.0

    @property
    def change(self) -> float:
        """How much more it is; negative where it is less."""
        return self.recall - self.baseline


@dataclass(frozen=True)
class ConfusionRow:
    """A cell of the confusion matrix that changed.

    Attributes:
        label: name of the examples' class.
        predicted: name of the class that is predicted.
        baseline: examples that the baseline decides so.
        count: examples that the candidate does.
        right: whether both classes are the same.
    """

    label: str
    predicted: str
    baseline: int
    count: int
    right: bool

    @property
    def change(self) -> int:
        """How many more there are; negative where they are fewer."""
        return self.count - self.baseline


@dataclass(frozen=True)
class Classes:
    """How a classifier differs from the baseline.

    Attributes:
        scores: name, the baseline's value and the candidate's.
        classes: of at most 20 classes, those whose recall changed most, by rising change.
        pairs: the 20 cells of the confusion matrix that changed most, where it is too large to draw.
        draw: whether it is drawn.
        names: of all classes.
        all_classes: whether all that changed are listed.
        unchanged: whether some did not change.
    """

    scores: list[tuple[str, float | None, float | None]]
    classes: list[RecallRow]
    pairs: list[ConfusionRow]
    draw: bool
    names: list[str]
    all_classes: bool
    unchanged: bool


def classes(
    here: ClassificationReport | None, before: ClassificationReport | None, labels: Sequence[str] | None
) -> Classes | None:
    """Returns how a classifier differs from the baseline, whose scores are `before`; None where it is none."""
    if not here:
        return None
    before = before or ClassificationReport(classes=0)
    names = class_names(max(len(here.per_class), len(here.confusion or ())), labels)
    scores = [
        *((f"Top-{k} accuracy", before.top_k.get(k), value) for k, value in here.top_k.items()),
        ("Log loss", before.log_loss, here.log_loss),
        ("Expected calibration error", before.ece, here.ece),
    ]
    is_drawable = bool(before.confusion and here.confusion) and before.classes == here.classes
    changed = _changed_classes(here.per_class, before.per_class, names)
    return Classes(
        scores=scores,
        classes=sorted(changed[:_MOST_ROWS], key=lambda row: row.change),
        unchanged=len(changed) < len(names),
        all_classes=len(changed) <= _MOST_ROWS,
        pairs=_changed_pairs(here.confusion or (), before.confusion or (), names)
        if is_drawable and here.classes > _DRAWN_CLASSES
        else [],
        draw=is_drawable and here.classes <= _DRAWN_CLASSES,
        names=names,
    )


@dataclass(frozen=True)
class Part:
    """What a candidate does at one of its outputs, beside the baseline.

    Attributes:
        output: its name.
        here: what the candidate does.
        before: what the baseline does; None where it is not known.
        classes: of a classifying output; else None.
        scores: of numbers: name, the baseline's value and the candidate's.
        rows: of tags and classes of pixels: name, the candidate's numbers and the baseline's; what lost most is first.
    """

    output: str
    here: OutputReport
    before: OutputReport | None
    classes: Classes | None
    scores: list[tuple[str, float | None, float | None]]
    rows: list[tuple[str, Any, Any]]


def parts(candidate: ModelReport, baseline: ModelReport, labels: Sequence[str] | None) -> list[Part]:
    """Returns what a candidate does at each output that is not described by its classification."""
    known = {output.output: output for output in baseline.outputs}
    return [_part(output, known.get(output.output), labels) for output in candidate.outputs]


def _part(here: OutputReport, before: OutputReport | None, labels: Sequence[str] | None) -> Part:
    scores: list[tuple[str, float | None, float | None]] = []
    rows: list[tuple[str, Any, Any]] = []
    if now := here.regression:
        old = (before and before.regression) or RegressionReport(numbers=0)
        scores = [
            ("R²", old.r2, now.r2),
            ("Mean error", old.mean_abs_error, now.mean_abs_error),
            ("Root mean square error", old.rmse, now.rmse),
            *(
                (_QUANTILES.get(q, f"Error quantile {q}"), old.error_quantiles.get(q), value)
                for q, value in now.error_quantiles.items()
            ),
        ]
    elif here.tags:
        rows = _rows(here.tags, before.tags if before else None, labels, lambda tag: tag.f1)
    elif here.segmentation:
        old_classes = before.segmentation.per_class if before and before.segmentation else None
        rows = _rows(here.segmentation.per_class, old_classes, labels, lambda each: each.iou)
    own = here.classification
    of_output = labels if labels and own and len(labels) == own.classes else None  # they may be another output's
    scored = classes(own, before.classification if before else None, of_output)
    return Part(here.output, here, before, scored, scores, rows)


#: Quantiles of the absolute error, as the page calls them.
_QUANTILES = {"0.5": "Median error", "0.9": "90% of errors are below", "0.99": "99% below", "1": "Largest error"}


def _rows(
    here: Sequence[Any],
    before: Sequence[Any] | None,
    labels: Sequence[str] | None,
    score: Callable[[Any], float | None],
) -> list[tuple[str, Any, Any]]:
    """Returns name, the candidate's numbers and the baseline's of tags or classes; what lost most is first."""
    names = class_names(len(here), labels if labels and len(labels) == len(here) else None)
    rows = list(zip(names, here, before or [None] * len(here), strict=False))

    def change(row: tuple[str, Any, Any]) -> float:
        now, old = score(row[1]), score(row[2]) if row[2] else None
        return 0.0 if now is None or old is None else now - old

    return sorted(rows, key=change)


def difference(now: float | None, before: float | None) -> str:
    """Returns a difference with its sign and four decimals; nothing where one of both is not known.

    >>> difference(0.5, 0.75), difference(0.5, 0.5), difference(None, 0.5)
    ('−0.2500', '0.0000', '')
    """
    if now is None or before is None:
        return ""
    return f"{now - before:+.4f}".replace("-", "−") if now != before else "0.0000"


def _changed_classes(here: Sequence[ClassReport], before: Sequence[ClassReport], names: list[str]) -> list[RecallRow]:
    rows = [
        RecallRow(name, new.examples, old.recall, new.recall)
        for name, old, new in zip(names, before, here, strict=False)
        if old.recall is not None and new.recall is not None and old.recall != new.recall
    ]
    most = max((abs(row.change) for row in rows), default=1)
    rows.sort(key=lambda row: -abs(row.change))
    return [dataclasses.replace(row, share=abs(row.change) / most) for row in rows]


def _changed_pairs(
    here: Sequence[Sequence[int]], before: Sequence[Sequence[int]], names: list[str]
) -> list[ConfusionRow]:
    rows = [
        ConfusionRow(names[i], names[j], old, new, i == j)
        for i, (olds, news) in enumerate(zip(before, here, strict=True))
        for j, (old, new) in enumerate(zip(olds, news, strict=True))
        if old != new
    ]
    return sorted(rows, key=lambda row: -abs(row.change))[:_MOST_ROWS]


def training_curves(training: TrainingReport, budget: BudgetReport) -> list[str]:
    """Returns which metrics of a training step's history are drawn: its loss, and the budget's metrics."""
    history = training.history
    names = dict.fromkeys(("loss", *(judged.metric for judged in budget.judged)))
    return [name for name in names if history.get(name) or history.get(f"val_{name}")]


def largest_drop(sensitivity: Sequence[LayerSensitivity]) -> float:
    """Returns the largest change that a layer's sensitivity has, 0 where none is known."""
    return max((abs(layer.drop or 0) for layer in sensitivity), default=0)


def setting(name: str, value: Any) -> str:
    """Returns a field of a config as it is written, lists and objects as JSON.

    >>> setting("sparsity", 0.8), setting("include", ["stem*"]), setting("schedule", "constant")
    ('sparsity=0.8', 'include=["stem*"]', 'schedule=constant')
    """
    return f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def most_rows(rows: list[Any]) -> list[Any]:
    """Returns the first rows of a long list."""
    return rows[:_MOST_ROWS]
