"""What report.json says of a run: the facts of each candidate, the baseline and the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

from edgeline import targets, toolchain
from edgeline.budget import Budget
from edgeline.deployed import contract
from edgeline.deployed.pointer_file import Deployed
from edgeline.evaluator.judging import verdict
from edgeline.evaluator.judging.candidates import Candidate, DeployedModel
from edgeline.evaluator.judging.judge import Judge
from edgeline.evaluator.measuring.findings import DEPLOYED, Findings
from edgeline.evaluator.measuring.measurements import Evaluated
from edgeline.report.report_file import SCHEMA_VERSION


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
    judge = Judge(budget, findings, baseline.name, reference)
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
            entry["drop"] = verdict.drop(budget, judge.quality(reference), facts.quality)
            entry["drop_interval"] = facts.drop_interval
            entry["deployed_drop"] = facts.deployed_drop
            entry["reasons"] = verdict.reasons(budget, judge.quality(reference), facts)
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
    front = verdict.pareto(budget, measured)
    for entry in entries:
        entry["pareto"] = entry["name"] in front
    blessed = {entry["name"] for entry in entries if entry["blessed"]}
    selected = verdict.select(budget, [m for m in measured if m.name in blessed])
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "dataset": {**dataset, "examples": reference.overall.examples},
        "budget": budget.parameters(),
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
        "closest": None if selected else verdict.closest(budget, judge.quality(reference), measured),
        "versions": toolchain.versions(),
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
