"""From measured facts to the report: what every candidate does and costs beside the baseline, and the verdict."""

from __future__ import annotations

import base64
import math
from typing import Any

import tensorflow as tf

from edgeline.budget import Budget, matches, slice_limit
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


class Judge:
    """Reads states as numbers, beside the baseline's."""

    def __init__(self, budget: Budget, findings: Findings, name: str, baseline: Evaluated):
        self._budget = budget
        self._metrics = findings.metrics
        self._task = findings.task
        self._findings = findings
        self._name = name
        self._baseline = baseline
        self._slices = {key: self._value(state) for key, state in baseline.slices.items()}
        for asked in budget.max_slice_drops:
            if not any(matches(key, asked) for key in baseline.slices):
                hint = did_you_mean(asked, map(slices.spell, baseline.slices))
                raise UserError(
                    f"the budget limits the drop in slices by {asked!r}{hint}, but the eval split has no example in one"
                )
        if budget.max_slice_drops and not any(
            state.examples >= budget.min_slice_examples and slice_limit(key, budget.max_slice_drops) is not None
            for key, state in baseline.slices.items()
        ):
            raise UserError(
                f"the budget limits the drop in slices by {', '.join(budget.max_slice_drops)}, but none of them has "
                f"the {budget.min_slice_examples} examples that --min-slice-examples asks for"
            )

    def quality(self, result: Evaluated) -> float:
        """Returns the budget's metric of a model on the whole eval split."""
        return self._value(result.overall)

    def _value(self, state: State) -> float:
        found = self._metrics.result(state)
        if self._budget.metric not in found:
            raise UserError(
                f"the budget's metric {self._budget.metric!r} is not compiled by the model module, which has "
                f"{', '.join(found)}; name one of them with --metric, or add it to metrics in compile_model"
            )
        return found[self._budget.metric]

    def _drop(self, baseline: float, quality: float) -> float:
        return verdict.drop(self._budget, baseline, quality)

    def _interval(self, name: str, result: Evaluated, reference: Evaluated) -> tuple[float, float] | None:
        """Returns the 95% interval of the drop below a reference, whose name in the states is `name`."""
        found = None
        if (paired := result.paired.get(name)) is not None:
            found = paired.interval()
        elif len(result.groups) == len(reference.groups) > 1:
            without = [
                self._value(_all_but(result.groups, group)) - self._value(_all_but(reference.groups, group))
                for group in result.groups
            ]
            if len(without) == GROUPS:  # fewer where some group has no example: too few for an interval
                found = comparison.jackknife(self.quality(result) - self.quality(reference), without)
        if found is None:
            return None
        return (-found[1], -found[0]) if self._budget.direction == "max" else found

    def measure(self, candidate: Candidate, result: Evaluated, field: Evaluated | None) -> Measured:
        """Returns what the budget judges."""
        device = self._findings.device(candidate.name) or {}
        metadata = candidate.metadata or {}
        one, every, plain = (device.get(key) or {} for key in ("one_thread", "all_threads", "without_xnnpack"))
        drops = {key: self._drop(self._slices[key], self._value(s)) for key, s in result.slices.items()}
        # a metric may be no number in a slice whose weights are all 0: no model can be judged there
        enough = [
            key
            for key, state in result.slices.items()
            if state.examples >= self._budget.min_slice_examples and math.isfinite(self._slices[key])
        ]
        judged = [
            SliceDrop(slices.spell(key), result.slices[key].examples, drops[key], limit)
            for key in enough
            if (limit := slice_limit(key, self._budget.max_slice_drops)) is not None
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
            {
                "max_bytes": metadata.get("bytes"),
                "max_zlib_bytes": metadata.get("zlib_bytes"),
                "max_latency_ms": one.get("p50"),
                "max_latency_p90_ms": one.get("p90"),
                "max_latency_p99_ms": one.get("p99"),
                "max_latency_all_threads_ms": every.get("p50"),
                "max_latency_without_xnnpack_ms": plain.get("p50"),
                "max_cold_start_ms": device.get("cold_start_ms"),
                "max_peak_rss_bytes": device.get("peak_rss_bytes"),
            },
            # the baseline itself is often a candidate too, and has no difference to estimate
            (0.0, 0.0) if result is self._baseline else self._interval(self._name, result, self._baseline),
            None if field is None else self._drop(self.quality(field), self.quality(result)),
            judged,
            sorted(worse, key=lambda s: (-s.drop, s.name)),
        )

    def facts(self, result: Evaluated, field: Evaluated | None, *, beside: bool = True) -> dict[str, Any]:
        """Returns what the report says of a model's quality, with its drops where it stands beside the baseline."""
        entries = []
        for key, state in sorted(result.slices.items(), key=_order):
            values = self._metrics.result(state)
            entry: dict[str, Any] = {"features": dict(key), "examples": state.examples, "metrics": values}
            if beside and key in self._slices:
                entry["drop"] = self._drop(self._slices[key], values[self._budget.metric])
            entries.append(entry)
        return {
            "metrics": self._metrics.result(result.overall),
            "classification": result.classes.facts(self._task) if result.classes and self._task else None,
            "comparison": result.comparison and result.comparison.facts(),
            "deployed_drop_interval": None if field is None else self._interval(DEPLOYED, result, field),
            "slices": entries,
            "flipped": [_flip(flip) for flip in result.flips],
        }


def _order(item: tuple[Key, State]) -> list[tuple[str, bool, str | int]]:
    return [(name, isinstance(value, str), value) for name, value in item[0]]  # numbers before words


def _all_but(groups: dict[int, State], left_out: int) -> State:
    return sum((state for group, state in groups.items() if group != left_out), State())


def _flip(flip: Flip) -> dict[str, Any]:
    image = None
    if flip.image is not None:
        pixels = flip.image if flip.image.ndim == 3 else flip.image[..., None]
        image = "data:image/png;base64," + base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    facts = {"kind": flip.kind, "label": flip.label, "baseline": flip.baseline, "candidate": flip.candidate}
    return {**facts, "image": image, "features": flip.features}
