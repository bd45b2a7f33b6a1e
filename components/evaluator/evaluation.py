"""From measured facts to the report: what every candidate does and costs beside the baseline, and the verdict."""

from __future__ import annotations

import base64
import dataclasses
import difflib
import math
import os
import platform
from pathlib import Path
from typing import Any

import tensorflow as tf

from edgeline import contract, targets
from edgeline import passport as passports
from edgeline.deployed import Deployed
from edgeline.errors import UserError
from edgeline.evaluator import comparison, selection, slices
from edgeline.evaluator.comparison import GROUPS
from edgeline.evaluator.config import NO_LIMIT, Budget, matches, slice_limit
from edgeline.evaluator.findings import DEPLOYED, Findings
from edgeline.evaluator.metrics import State
from edgeline.evaluator.report import SCHEMA_VERSION
from edgeline.evaluator.selection import Measured, SliceDrop
from edgeline.evaluator.slices import Key
from edgeline.evaluator.transforms import Evaluated, Flip
from edgeline.passport import Passport


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A TFLiteExporter's output, opened.

    Attributes:
      name: of the recipe.
      folder: with `model.tflite`, `metadata.json` and `passport.json`.
      passport: what was done to it.
      metadata: its sizes and ports; None where it failed earlier.
    """

    name: str
    folder: Path
    passport: Passport
    metadata: dict[str, Any] | None

    @property
    def model_path(self) -> str:
        """The `.tflite` file."""
        return str(self.folder / "model.tflite")


@dataclasses.dataclass(frozen=True)
class DeployedModel:
    """The model in the field.

    Attributes:
      facts: path, version, sha256, name, bytes and zlib_bytes, for the report.
      failure: why it cannot be compared with; None where it can.
    """

    facts: dict[str, Any]
    failure: str | None = None


def deployed_model(found: Deployed, failure: str | None = None) -> DeployedModel:
    """Returns what the report says of the model in the field, and why it cannot be compared with, if so."""
    facts = {name: getattr(found, name) for name in ("path", "version", "sha256", "name", "pushed_at")}
    return DeployedModel({**facts, **{name: found.metadata.get(name) for name in ("bytes", "zlib_bytes")}}, failure)


def report(
    *,
    budget: Budget,
    baseline: Candidate,
    candidates: list[Candidate],
    missing: list[str],
    findings: Findings,
    deployed: DeployedModel | None,
    like: tuple[str, dict[str, Any]] | None = None,
    keras: dict[str, Any] | None,
    dataset: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of `report.json`.

    Args:
      budget: what a candidate may cost.
      baseline: the float32 model; its name is a key of the findings.
      candidates: all that came out of a TFLiteExporter, failed ones too.
      missing: names of those whose earlier steps failed, so that there is no artifact.
      findings: what they do and cost.
      deployed: the model in the field; None where there is none.
      like: what the model is called whose contract a candidate must keep, and that contract; None: any will do.
      keras: what the baseline's Keras model does, where that was asked for.
      dataset: what is known of the evaluated split.
      about: further top-level facts, e.g. created, pipeline, module.

    Raises:
      UserError: the budget's metric is not compiled, or no slice has examples enough to be judged.
      ValueError: the baseline itself could not be evaluated.
    """
    reference = findings.results.get(baseline.name, "it was not evaluated")
    if isinstance(reference, str) or baseline.metadata is None:
        raise ValueError(f"the float32 baseline could not be evaluated: {reference}")
    judge = _Judge(budget, findings, baseline.name, reference)
    pushed = findings.results.get(DEPLOYED) if deployed and not deployed.failure else None
    if isinstance(pushed, str) and deployed is not None:
        deployed = dataclasses.replace(deployed, failure=pushed)
    field = pushed if isinstance(pushed, Evaluated) else None

    entries, measured = [], []
    for candidate in candidates:
        entry = _entry(candidate)
        result = findings.results.get(candidate.name)
        if isinstance(result, str):
            entry["failure"] = {"step": "Evaluator", "error": result}
        elif result is not None and candidate.metadata is not None:
            facts = dataclasses.replace(
                judge.measure(candidate, result, field), misfits=_misfits(budget, candidate, candidate.metadata, like)
            )
            entry |= judge.facts(result, field)
            entry["ratio"] = baseline.metadata["zlib_bytes"] / candidate.metadata["zlib_bytes"]
            entry |= _device_facts(findings, candidate.name)
            entry["drop"] = selection.drop(budget, judge.quality(reference), facts.quality)
            entry["drop_interval"] = facts.drop_interval
            entry["deployed_drop"] = facts.deployed_drop
            entry["reasons"] = selection.reasons(budget, judge.quality(reference), facts)
            if isinstance(error := findings.devices.get(candidate.name), str):
                entry["failure"] = {"step": "Evaluator", "error": f"its cost could not be measured: {error}"}
            else:
                measured.append(facts)
        if entry["failure"]:
            entry["reasons"] = [f"{entry['failure']['step']} failed: {entry['failure']['error']}"]
        entry["blessed"] = entry["metrics"] is not None and not entry["reasons"]
        entries.append(entry)
    for name in missing:
        failure = {"step": "an earlier step", "error": "it failed, so that there is nothing to evaluate; see the log"}
        entries.append({**_EMPTY, "name": name, "failure": failure, "reasons": [failure["error"]]})
    front = selection.pareto(budget, measured)
    for entry in entries:
        entry["pareto"] = entry["name"] in front
    blessed = {entry["name"] for entry in entries if entry["blessed"]}
    selected = selection.select(budget, [m for m in measured if m.name in blessed])
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "dataset": {**dataset, "examples": reference.overall.examples},
        "budget": {
            **{k: None if v == NO_LIMIT and k.startswith("max_") else v for k, v in budget.parameters().items()},
            "value_threshold": budget.threshold,
            "max_slice_drops": budget.slice_drops,
        },
        "like": like and {"of": like[0], "contract": like[1]},
        "baseline": {
            **judge.facts(reference, None, beside=False),
            **{key: baseline.metadata[key] for key in ("bytes", "zlib_bytes", "sha256")},
            **_device_facts(findings, baseline.name),
            "keras": keras,
        },
        "deployed": deployed
        and {
            **deployed.facts,
            **(judge.facts(field, None) if field is not None else {"metrics": None, "slices": []}),
            "failure": deployed.failure,
        },
        "candidates": entries,
        "training": _trainings([c for c in (baseline, *candidates)]),
        "selected": selected,
        "closest": None if selected else selection.closest(budget, judge.quality(reference), measured),
        "versions": passports.versions(),
        "machine": machine(),
    }


def _misfits(
    budget: Budget, candidate: Candidate, metadata: dict[str, Any], like: tuple[str, dict[str, Any]] | None
) -> list[str]:
    """Returns why the target cannot run a candidate, and how it differs from the model whose place it is to take."""
    found = targets.misfits(budget.target, metadata)
    if like is not None:
        own = contract.of(metadata, candidate.passport.io["labels"], budget.target)
        changed = contract.differences(own, like[1], like[0])
        # said once, with the last of them
        found += [*changed[:-1], *(f"{last} (--like none allows a new contract)" for last in changed[-1:])]
    return found


class _Judge:
    """Reads states as numbers, beside the baseline's."""

    def __init__(self, budget: Budget, findings: Findings, name: str, baseline: Evaluated):
        self._budget = budget
        self._metrics = findings.metrics
        self._task = findings.task
        self._findings = findings
        self._name = name
        self._baseline = baseline
        self._slices = {key: self._value(state) for key, state in baseline.slices.items()}
        for asked in budget.slice_drops:
            if not any(matches(key, asked) for key in baseline.slices):
                near = difflib.get_close_matches(asked, [slices.spell(key) for key in baseline.slices], n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(
                    f"the budget limits the drop in slices by {asked!r}{hint}, but the eval split has no example in one"
                )
        if budget.slice_drops and not any(
            state.examples >= budget.min_slice_examples and slice_limit(key, budget.slice_drops) is not None
            for key, state in baseline.slices.items()
        ):
            raise UserError(
                f"the budget limits the drop in slices by {', '.join(budget.slice_drops)}, but none of them has the "
                f"{budget.min_slice_examples} examples that --min-slice-examples asks for"
            )

    def quality(self, result: Evaluated) -> float:
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
        return selection.drop(self._budget, baseline, quality)

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
            if (limit := slice_limit(key, self._budget.slice_drops)) is not None
        ]
        worse = []
        if field is not None:
            for key in enough:
                if key in field.slices:
                    lost = self._drop(self._value(field.slices[key]), self._value(result.slices[key]))
                    if selection.exceeds(lost, 0.0):
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


def _device_facts(findings: Findings, name: str) -> dict[str, Any]:
    device = findings.device(name)
    one = device and device.get("one_thread")
    return {"device": device, "latency_ms": one and {"p50": one["p50"], "p90": one["p90"]}}


def _trainings(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """Returns the history of every step that trained, once, and which candidates it led to."""
    found: dict[str, dict[str, Any]] = {}
    for candidate in candidates:
        for step in candidate.passport.steps:
            if step.get("history"):
                entry = {"step": step["step"], "of": [], "config": step["config"], "history": step["history"]}
                entry |= {fact: step[fact] for fact in ("phases", "warm_start") if fact in step}
                names = found.setdefault(step["model"], entry)["of"]
                if candidate.name not in names:
                    names.append(candidate.name)
    return list(found.values())


_EMPTY: dict[str, Any] = {
    "name": "",
    "recipe": [],
    "metrics": None,
    "drop": None,
    "drop_interval": None,
    "deployed_drop": None,
    "deployed_drop_interval": None,
    "bytes": None,
    "zlib_bytes": None,
    "ratio": None,
    "latency_ms": None,
    "device": None,
    "sparsity": None,
    "classification": None,
    "comparison": None,
    "slices": [],
    "flipped": [],
    "ladder": [],
    "sensitivity": None,
    "ladder_walked": None,
    "blessed": False,
    "reasons": [],
    "pareto": False,
    "sha256": None,
    "failure": None,
    "steps": [],
    "layers": [],
}


def _entry(candidate: Candidate) -> dict[str, Any]:
    steps = candidate.passport.steps
    done = [step for step in steps if step["step"] not in ("Trainer", "ModelImporter", "TFLiteExporter")]
    layers: list[Any] = next((step["layers"] for step in reversed(steps) if step.get("layers")), [])
    metadata = candidate.metadata
    facts = {k: metadata[k] for k in ("bytes", "zlib_bytes", "sparsity", "sha256")} if metadata else {}
    ladder = [
        {"step": step["step"], "zlib_bytes": step["weights_zlib_bytes"]}
        for step in steps
        if "weights_zlib_bytes" in step
    ]
    if metadata:
        ladder.append({"step": "TFLiteExporter", "zlib_bytes": metadata["zlib_bytes"]})
    return {
        **_EMPTY,
        "name": candidate.name,
        "recipe": [f"{step['step']} " + " ".join(f"{k}={v}" for k, v in step["config"].items()) for step in done],
        **facts,
        "reasons": [],
        "failure": candidate.passport.failure,
        "ladder": ladder,
        **{
            name: next((s[name] for s in reversed(steps) if s.get(name)), None)
            for name in ("sensitivity", "ladder_walked")
        },
        "steps": [
            {"step": step["step"], "metrics": step["metrics"], "split": "validation"}
            for step in steps
            if "metrics" in step
        ],
        "layers": layers,
    }


def machine() -> dict[str, Any]:
    """Returns what latencies depend on: processor, cores and system."""
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": cpu or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
    }
