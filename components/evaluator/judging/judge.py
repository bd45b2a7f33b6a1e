"""From measured facts to the report: what every candidate does and costs beside the baseline, and the verdict."""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import TypeVar

import numpy as np
import tensorflow as tf

from edgeline.budget import LIMITS, Budget, MetricBudget, matches, slice_drops, slice_limit
from edgeline.errors import UserError, did_you_mean
from edgeline.evaluator.judging import verdict
from edgeline.evaluator.judging.candidates import Candidate
from edgeline.evaluator.judging.verdict import Measured, Quality, SliceDrop
from edgeline.evaluator.measuring import comparison, slices
from edgeline.evaluator.measuring.comparison import GROUPS
from edgeline.evaluator.measuring.findings import DEPLOYED, Findings
from edgeline.evaluator.measuring.measurements import Evaluated, Flip
from edgeline.evaluator.measuring.metrics import State
from edgeline.evaluator.measuring.slices import Key
from edgeline.report.schema import BaselineReport, ChanceReport, DeviceCost, FlipReport, ModelReport, SliceReport

#: A report of a model, of whichever kind.
M = TypeVar("M", bound=ModelReport)


class Judge:
    """Reads states as numbers, beside the baseline's.

    Attributes:
      budget: that candidates are judged by.
      judged: its metrics.
    """

    def __init__(self, budget: Budget, findings: Findings, name: str, baseline: Evaluated):
        self.budget = budget
        self._metrics = findings.metrics
        self.judged = budget.judged(self._metrics.directions)
        self._task = findings.task
        self._findings = findings
        self._name = name
        self._baseline = baseline
        self._baseline_values, self._baseline_undefined = self._metrics.read(baseline.overall)
        self._slices = {key: self._metrics.result(state) for key, state in baseline.slices.items()}
        names = [metric.name for metric in self.judged]
        self._slice_drops = {name: slice_drops(budget.max_slice_drops, name, names) for name in names}
        for metric in names:
            self._check_slices(metric, self._slice_drops[metric])

    def _check_slices(self, metric: str, drops: dict[str, float]) -> None:
        """Raises UserError where a limit of a metric's drops in slices would judge nothing."""
        slices_of_baseline = self._baseline.slices
        for named in drops:
            if not any(matches(key, named) for key in slices_of_baseline):
                hint = did_you_mean(named, map(slices.spell, slices_of_baseline))
                raise UserError(
                    f"the budget limits the drop in slices by {named!r}{hint}, but the eval split has no example in one"
                )
        limited = [key for key in slices_of_baseline if slice_limit(key, drops) is not None]
        if drops and not any(slices_of_baseline[key].examples >= self.budget.min_slice_examples for key in limited):
            raise UserError(
                f"the budget limits the drop in slices by {', '.join(drops)}, but none of them has "
                f"the {self.budget.min_slice_examples} examples that --min-slice-examples asks for"
            )
        if limited and not any(math.isfinite(self._slices[key][metric]) for key in limited):
            why = self._metrics.undefined(slices_of_baseline[limited[0]]).get(metric, "")
            raise UserError(
                f"the budget limits the drop in slices by {', '.join(drops)}, but {metric} has "
                f"no value in any of them ({slices.spell(limited[0])}: {why}); slice by another feature, or judge "
                f"another metric with --metric"
            )

    def _interval(
        self, metric: MetricBudget, name: str, result: Evaluated, reference: Evaluated, chosen_among: int = 1
    ) -> tuple[float, float] | None:
        """Returns the 95% interval of the drop below a reference, whose name in the states is `name`."""
        difference = None

        def lead(ours: State, theirs: State) -> float:
            return self._metrics.result(ours)[metric.name] - self._metrics.result(theirs)[metric.name]

        if (paired := result.paired.get((name, metric.name))) is not None:
            difference = paired.interval(chosen_among)
        elif len(result.groups) == len(reference.groups) > 1:
            without = [
                lead(_all_but(result.groups, group), _all_but(reference.groups, group)) for group in result.groups
            ]
            if len(without) == GROUPS:  # fewer where some group has no example: too few for an interval
                difference = comparison.jackknife(lead(result.overall, reference.overall), without, chosen_among)
        if difference is None:
            return None
        return (-difference[1], -difference[0]) if metric.direction == "max" else difference

    def measure(self, candidate: Candidate, result: Evaluated, field: Evaluated | None) -> Measured:
        """Returns what the budget judges."""
        device = self._findings.device(candidate.name) or DeviceCost()
        metadata = candidate.metadata or {}
        return Measured(
            candidate.name,
            self._qualities(result, field),
            {name: limit.cost(metadata, device) for name, limit in LIMITS.items()},
        )

    def _qualities(self, result: Evaluated, field: Evaluated | None) -> tuple[Quality, ...]:
        values, undefined = self._metrics.read(result.overall)
        intervals = self.chosen_drop_intervals(result, chosen_among=1)
        in_slices = {key: self._metrics.result(state) for key, state in result.slices.items()}
        field_values = self._metrics.result(field.overall) if field else {}
        field_slices = {key: self._metrics.result(state) for key, state in field.slices.items()} if field else {}
        qualities = []
        for metric in self.judged:
            name = metric.name
            # a metric may be no number in a slice whose weights are all 0: no model can be judged there
            enough = {
                key: (slices.spell(key), state.examples)
                for key, state in result.slices.items()
                if state.examples >= self.budget.min_slice_examples and math.isfinite(self._slices[key][name])
            }
            judged = [
                SliceDrop(*part, metric.drop(self._slices[key][name], in_slices[key][name]), limit)
                for key, part in enough.items()
                if (limit := slice_limit(key, self._slice_drops[name])) is not None
            ]
            beside_field = [
                SliceDrop(*part, metric.drop(field_slices[key][name], in_slices[key][name]), 0.0)
                for key, part in enough.items()
                if key in field_slices
            ]
            worse = [part for part in beside_field if verdict.exceeds(part.drop, 0.0)]
            qualities.append(
                Quality(
                    metric,
                    values[name],
                    self._baseline_values[name],
                    intervals[name],
                    None,
                    metric.drop(field_values[name], values[name]) if field else None,
                    self._interval(metric, DEPLOYED, result, field) if field else None,
                    judged,
                    sorted(worse, key=lambda s: (-s.drop, s.name)),
                    self._why_undefined(name, undefined),
                )
            )
        return tuple(qualities)

    def _why_undefined(self, metric: str, undefined: dict[str, str]) -> str | None:
        """Returns why a metric has no value, of a model or of the baseline; None where both have one."""
        for model, reasons in (("", undefined), ("the baseline's ", self._baseline_undefined)):
            if metric in reasons:
                return f"{model}{metric} has no value on the eval split: {reasons[metric]}"
        return None

    def chance(self, result: Evaluated) -> dict[str, ChanceReport]:
        """Returns what a guess would have of the budget's metrics, by name; nothing of those not compared so."""
        values, guesses = self._metrics.result(result.overall), {}
        for metric in self.judged:
            state, value = result.chance.get(metric.name), values[metric.name]
            guess = None if state is None or math.isnan(value) else state.report(value)
            if guess is not None:
                guesses[metric.name] = guess
        return guesses

    def chosen_drop_intervals(self, result: Evaluated, chosen_among: int) -> dict[str, tuple[float, float] | None]:
        """Returns the 95% intervals of the drops below the baseline of the best of several models, by metric."""
        if result is self._baseline:  # it is often a candidate too, and has no difference to estimate
            return {metric.name: (0.0, 0.0) for metric in self.judged}
        return {
            metric.name: self._interval(metric, self._name, result, self._baseline, chosen_among)
            for metric in self.judged
        }

    def described(self, model: M, result: Evaluated) -> M:
        """Returns the report of a model with what it did; with drops, unless it is the baseline."""
        slices = []
        for key, state in sorted(result.slices.items(), key=_order):
            values, drops = self._metrics.result(state), {}
            if key in self._slices and not isinstance(model, BaselineReport):
                drops = {m.name: m.drop(self._slices[key][m.name], values[m.name]) for m in self.judged}
            drop, more_drops = _first_and_more(drops)
            slices.append(
                SliceReport(
                    features=dict(key), examples=state.examples, metrics=values, drop=drop, more_drops=more_drops
                )
            )
        metrics, undefined = self._metrics.read(result.overall)
        return dataclasses.replace(
            model,
            metrics=metrics,
            undefined=undefined,
            chance=self.chance(result),
            outputs=tuple(self._findings.outputs[name].report(part, _drawn) for name, part in result.parts.items()),
            classification=result.classes.report(self._task) if result.classes and self._task else None,
            comparison=result.comparison.report() if result.comparison else None,
            slices=tuple(slices),
            flipped=tuple(_flip(flip) for flip in result.flips),
        )


def _first_and_more(drops: dict[str, float]) -> tuple[float | None, dict[str, float]]:
    """Returns the drop of the first metric, None where there is none, and those of the others by name."""
    drop, *_ = [*drops.values(), None]
    return drop, dict(list(drops.items())[1:])


def _order(item: tuple[Key, State]) -> list[tuple[str, bool, str | int]]:
    return [(name, isinstance(value, str), value) for name, value in item[0]]  # numbers before words


def _all_but(groups: dict[int, State], left_out: int) -> State:
    return sum((state for group, state in groups.items() if group != left_out), State())


def _drawn(image: np.ndarray) -> str:
    """Returns a picture, uint8, shape [height, width] or [height, width, 3], as a data URI of a PNG."""
    pixels = image if image.ndim == 3 else image[..., None]
    return "data:image/png;base64," + base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()


def _flip(flip: Flip) -> FlipReport:
    image = None
    if flip.image is not None:
        image = _drawn(flip.image)
    return FlipReport(
        kind=flip.kind,
        label=flip.label,
        baseline=flip.baseline,
        candidate=flip.candidate,
        image=image,
        features=flip.features,
    )
