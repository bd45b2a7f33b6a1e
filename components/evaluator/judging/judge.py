"""From measured facts to the report: what every candidate does and costs beside the baseline, and the verdict."""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import TypeVar

import tensorflow as tf

from edgeline.budget import LIMITS, Budget, matches, slice_limit
from edgeline.errors import UserError, did_you_mean
from edgeline.evaluator.judging import verdict
from edgeline.evaluator.judging.candidates import Candidate
from edgeline.evaluator.judging.verdict import Measured, SliceDrop
from edgeline.evaluator.measuring import comparison, slices
from edgeline.evaluator.measuring.comparison import GROUPS
from edgeline.evaluator.measuring.findings import DEPLOYED, Findings
from edgeline.evaluator.measuring.measurements import Evaluated, Flip
from edgeline.evaluator.measuring.metrics import State
from edgeline.evaluator.measuring.slices import Key
from edgeline.report.schema import BaselineReport, DeviceCost, FlipReport, ModelReport, SliceReport

#: A report of a model, of whichever kind.
M = TypeVar("M", bound=ModelReport)


class Judge:
    """Reads states as numbers, beside the baseline's.

    Attributes:
      budget: that candidates are judged by.
      baseline_quality: the baseline's value of the budget's metric.
    """

    def __init__(self, budget: Budget, findings: Findings, name: str, baseline: Evaluated):
        self.budget = budget
        self._metrics = findings.metrics
        self._task = findings.task
        self._findings = findings
        self._name = name
        self._baseline = baseline
        self.baseline_quality = self.quality(baseline)
        self._baseline_undefined = self._metrics.undefined(baseline.overall).get(budget.metric)
        self._slices = {key: self._value(state) for key, state in baseline.slices.items()}
        for named in budget.max_slice_drops:
            if not any(matches(key, named) for key in baseline.slices):
                hint = did_you_mean(named, map(slices.spell, baseline.slices))
                raise UserError(
                    f"the budget limits the drop in slices by {named!r}{hint}, but the eval split has no example in one"
                )
        if budget.max_slice_drops and not any(
            state.examples >= budget.min_slice_examples and slice_limit(key, budget.max_slice_drops) is not None
            for key, state in baseline.slices.items()
        ):
            raise UserError(
                f"the budget limits the drop in slices by {', '.join(budget.max_slice_drops)}, but none of them has "
                f"the {budget.min_slice_examples} examples that --min-slice-examples asks for"
            )
        limited = [key for key in baseline.slices if slice_limit(key, budget.max_slice_drops) is not None]
        if limited and not any(math.isfinite(self._slices[key]) for key in limited):
            why = self._metrics.undefined(baseline.slices[limited[0]]).get(budget.metric, "")
            raise UserError(
                f"the budget limits the drop in slices by {', '.join(budget.max_slice_drops)}, but {budget.metric} has "
                f"no value in any of them ({slices.spell(limited[0])}: {why}); slice by another feature, or judge "
                f"another metric with --metric"
            )

    def quality(self, result: Evaluated) -> float:
        """Returns the budget's metric of a model on the whole eval split."""
        return self._value(result.overall)

    def _value(self, state: State) -> float:
        values = self._metrics.result(state)
        if self.budget.metric not in values:
            raise UserError(
                f"the budget's metric {self.budget.metric!r} is not compiled by the model module, which has "
                f"{', '.join(values)}; name one of them with --metric, or add it to metrics in compile_model"
            )
        return values[self.budget.metric]

    def _drop(self, baseline: float, quality: float) -> float:
        return verdict.drop(self.budget, baseline, quality)

    def _interval(self, name: str, result: Evaluated, reference: Evaluated) -> tuple[float, float] | None:
        """Returns the 95% interval of the drop below a reference, whose name in the states is `name`."""
        difference = None
        if (paired := result.paired.get(name)) is not None:
            difference = paired.interval()
        elif len(result.groups) == len(reference.groups) > 1:
            without = [
                self._value(_all_but(result.groups, group)) - self._value(_all_but(reference.groups, group))
                for group in result.groups
            ]
            if len(without) == GROUPS:  # fewer where some group has no example: too few for an interval
                difference = comparison.jackknife(self.quality(result) - self.quality(reference), without)
        if difference is None:
            return None
        return (-difference[1], -difference[0]) if self.budget.direction == "max" else difference

    def measure(self, candidate: Candidate, result: Evaluated, field: Evaluated | None) -> Measured:
        """Returns what the budget judges."""
        device = self._findings.device(candidate.name) or DeviceCost()
        metadata = candidate.metadata or {}
        drops = {key: self._drop(self._slices[key], self._value(s)) for key, s in result.slices.items()}
        # a metric may be no number in a slice whose weights are all 0: no model can be judged there
        enough = [
            key
            for key, state in result.slices.items()
            if state.examples >= self.budget.min_slice_examples and math.isfinite(self._slices[key])
        ]
        judged = [
            SliceDrop(slices.spell(key), result.slices[key].examples, drops[key], limit)
            for key in enough
            if (limit := slice_limit(key, self.budget.max_slice_drops)) is not None
        ]
        worse = []
        if field is not None:
            for key in enough:
                if key in field.slices:
                    lost = self._drop(self._value(field.slices[key]), self._value(result.slices[key]))
                    if verdict.exceeds(lost, 0.0):
                        worse.append(SliceDrop(slices.spell(key), result.slices[key].examples, lost, 0.0))
        return Measured(
            candidate.name,
            self.quality(result),
            {name: limit.cost(metadata, device) for name, limit in LIMITS.items()},
            # the baseline itself is often a candidate too, and has no difference to estimate
            (0.0, 0.0) if result is self._baseline else self._interval(self._name, result, self._baseline),
            None if field is None else self._drop(self.quality(field), self.quality(result)),
            judged,
            sorted(worse, key=lambda s: (-s.drop, s.name)),
            undefined=self._undefined(result),
        )

    def _undefined(self, result: Evaluated) -> str | None:
        """Returns why the budget's metric has no value, of a model or of the baseline; None where both have one."""
        own = self._metrics.undefined(result.overall).get(self.budget.metric)
        for model, why in (("", own), ("the baseline's ", self._baseline_undefined)):
            if why is not None:
                return f"{model}{self.budget.metric} has no value on the eval split: {why}"
        return None

    def deployed_drop_interval(self, result: Evaluated, field: Evaluated | None) -> tuple[float, float] | None:
        """Returns the 95% interval of the drop below the deployed model; None where it is not known."""
        return None if field is None else self._interval(DEPLOYED, result, field)

    def described(self, model: M, result: Evaluated) -> M:
        """Returns the report of a model with what it did; with drops, unless it is the baseline."""
        slices = []
        for key, state in sorted(result.slices.items(), key=_order):
            values, drop = self._metrics.result(state), None
            if key in self._slices and not isinstance(model, BaselineReport):
                drop = self._drop(self._slices[key], values[self.budget.metric])
            slices.append(SliceReport(features=dict(key), examples=state.examples, metrics=values, drop=drop))
        metrics, undefined = self._metrics.read(result.overall)
        return dataclasses.replace(
            model,
            metrics=metrics,
            undefined=undefined,
            classification=result.classes.report(self._task) if result.classes and self._task else None,
            comparison=result.comparison.report() if result.comparison else None,
            slices=tuple(slices),
            flipped=tuple(_flip(flip) for flip in result.flips),
        )


def _order(item: tuple[Key, State]) -> list[tuple[str, bool, str | int]]:
    return [(name, isinstance(value, str), value) for name, value in item[0]]  # numbers before words


def _all_but(groups: dict[int, State], left_out: int) -> State:
    return sum((state for group, state in groups.items() if group != left_out), State())


def _flip(flip: Flip) -> FlipReport:
    image = None
    if flip.image is not None:
        pixels = flip.image if flip.image.ndim == 3 else flip.image[..., None]
        image = "data:image/png;base64," + base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    return FlipReport(
        kind=flip.kind,
        label=flip.label,
        baseline=flip.baseline,
        candidate=flip.candidate,
        image=image,
        features=flip.features,
    )
