"""From measured facts to the report: what every candidate does and costs beside the baseline, and the verdict."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from edgeline import passport as passports
from edgeline import progress
from edgeline.errors import UserError
from edgeline.evaluator import selection
from edgeline.evaluator.config import NO_LIMIT, Budget
from edgeline.evaluator.metrics import State
from edgeline.evaluator.report import SCHEMA_VERSION
from edgeline.litert import latency_ms
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


def _quality(budget: Budget, metrics: dict[str, float], where: str) -> float:
    if budget.metric not in metrics:
        raise UserError(
            f"the budget's metric {budget.metric!r} is not compiled by the model module; {where} has "
            f"{', '.join(metrics)}; name one of them with --metric, or add it to metrics in compile_model"
        )
    return metrics[budget.metric]


def measure_latencies(candidates: list[Candidate], sample: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Times all candidates, one after the other, on one real example; nothing else of this process may run meanwhile.

    Args:
      candidates: all that can run.
      sample: one example by input name, shape [1, ...].

    Returns:
      p50 and p90 in milliseconds by candidate.
    """
    timed = {}
    for done, candidate in enumerate(candidates):
        progress.report(done, len(candidates), f"latency of {candidate.name}")
        times = latency_ms(candidate.model_path, sample, seconds=0.5)
        timed[candidate.name] = {"p50": times["p50"], "p90": times["p90"]}
    return timed


def report(
    *,
    budget: Budget,
    baseline: Candidate,
    candidates: list[Candidate],
    missing: list[str],
    results: dict[str, tuple[int, dict[str, float]] | str],
    latencies: dict[str, dict[str, float]],
    dataset: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of `report.json`.

    Args:
      budget: what a candidate may cost.
      baseline: the float32 model; its name is a key of `results` and `latencies`.
      candidates: all that came out of a TFLiteExporter, failed ones too.
      missing: names of those whose earlier steps failed, so that there is no artifact.
      results: per name the number of examples and the metrics, or why it was given up.
      latencies: per name p50 and p90 in milliseconds.
      dataset: what is known of the evaluated split.
      about: further top-level facts, e.g. created, pipeline, module.

    Raises:
      UserError: the budget's metric is not compiled.
      ValueError: the baseline itself could not be evaluated.
    """
    reference = results[baseline.name]
    if isinstance(reference, str) or baseline.metadata is None:
        raise ValueError(f"the float32 baseline could not be evaluated: {reference}")
    examples, base_metrics = reference
    base_quality = _quality(budget, base_metrics, "the baseline")
    entries, measured = [], []
    for candidate in candidates:
        entry = _entry(candidate)
        result = results.get(candidate.name)
        if isinstance(result, str):
            entry["failure"] = {"step": "Evaluator", "error": result}
        elif result is not None and candidate.metadata is not None:
            facts = selection.Measured(
                candidate.name,
                _quality(budget, result[1], candidate.name),
                candidate.metadata["bytes"],
                candidate.metadata["zlib_bytes"],
                latencies[candidate.name]["p50"],
            )
            measured.append(facts)
            entry["metrics"] = result[1]
            entry["drop"] = selection.drop(budget, base_quality, facts.quality)
            entry["ratio"] = baseline.metadata["zlib_bytes"] / facts.zlib_bytes
            entry["latency_ms"] = latencies[candidate.name]
            entry["reasons"] = selection.reasons(budget, base_quality, facts)
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
        "dataset": {**dataset, "examples": examples},
        "budget": {k: None if v == NO_LIMIT and k.startswith("max_") else v for k, v in budget.parameters().items()},
        "baseline": {
            "metrics": base_metrics,
            "bytes": baseline.metadata["bytes"],
            "zlib_bytes": baseline.metadata["zlib_bytes"],
            "latency_ms": latencies[baseline.name],
            "sha256": baseline.metadata["sha256"],
        },
        "candidates": entries,
        "selected": selected,
        "closest": None if selected else selection.closest(budget, base_quality, measured),
        "versions": passports.versions(),
        "machine": machine(),
    }


_EMPTY: dict[str, Any] = {
    "name": "",
    "recipe": [],
    "metrics": None,
    "drop": None,
    "bytes": None,
    "zlib_bytes": None,
    "ratio": None,
    "latency_ms": None,
    "sparsity": None,
    "blessed": False,
    "reasons": [],
    "pareto": False,
    "sha256": None,
    "failure": None,
    "steps": [],
    "layers": [],
}


def _entry(candidate: Candidate) -> dict[str, Any]:
    done = [step for step in candidate.passport.steps if step["step"] not in ("Trainer", "TFLiteExporter")]
    layers: list[Any] = next((step["layers"] for step in reversed(candidate.passport.steps) if step.get("layers")), [])
    facts = (
        {k: candidate.metadata[k] for k in ("bytes", "zlib_bytes", "sparsity", "sha256")} if candidate.metadata else {}
    )
    return {
        **_EMPTY,
        "name": candidate.name,
        "recipe": [f"{step['step']} " + " ".join(f"{k}={v}" for k, v in step["config"].items()) for step in done],
        **facts,
        "reasons": [],
        "failure": candidate.passport.failure,
        "steps": [
            {"step": step["step"], "metrics": step["metrics"], "split": "validation"}
            for step in candidate.passport.steps
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


def outcome(state: State | str | None, metrics: Any) -> tuple[int, dict[str, float]] | str:
    """Returns the number of examples and the metrics of a model's merged State, or why it was given up."""
    if isinstance(state, str):
        return state
    if state is None or state.metrics is None:
        raise UserError("the eval split is empty: 0 examples were evaluated")
    return state.examples, metrics.result(state)
