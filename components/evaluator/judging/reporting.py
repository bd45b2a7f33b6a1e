"""What report.json says of a run: the facts of each candidate, the baseline and the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeline import targets, toolchain
from edgeline.budget import Budget
from edgeline.deployed import contract
from edgeline.deployed.pointer_file import Deployed
from edgeline.evaluator.judging import verdict
from edgeline.evaluator.judging.candidates import Candidate
from edgeline.evaluator.judging.judge import Judge
from edgeline.evaluator.judging.verdict import Measured, Misfit, Quality
from edgeline.evaluator.measuring.findings import DEPLOYED, Findings
from edgeline.evaluator.measuring.measurements import Evaluated
from edgeline.report import words
from edgeline.report.dataclass_json import from_json
from edgeline.report.schema import (
    BaselineReport,
    BudgetReport,
    CandidateReport,
    ContractReport,
    DatasetReport,
    DeployedReport,
    DeviceCost,
    DropReport,
    FailureReport,
    KerasReport,
    LadderRung,
    LadderStep,
    Latency,
    LayerReport,
    LayerSensitivity,
    MachineReport,
    RecipeStep,
    Report,
    StepQuality,
    TrainingReport,
)

#: What a first push at chance level is answered.
_FIRST_PUSH = (
    "; as the first model that is pushed it has to be better: train longer, say with --value-threshold what is good "
    "enough, or let it be pushed with --allow-chance-level"
)


def deployed_report(deployed: Deployed, failure: str | None = None) -> DeployedReport:
    """Returns what the report says of the deployed model beforehand, and why it cannot be compared with, if so."""
    return DeployedReport(
        name=deployed.name,
        path=deployed.path,
        version=deployed.version,
        pushed_at=deployed.pushed_at,
        sha256=deployed.sha256,
        bytes=deployed.metadata.get("bytes"),
        zlib_bytes=deployed.metadata.get("zlib_bytes"),
        failure=failure,
    )


def report(
    *,
    budget: Budget,
    baseline: Candidate,
    candidates: list[Candidate],
    missing: list[str],
    findings: Findings,
    deployed: DeployedReport | None,
    like: tuple[str, dict[str, Any]] | None = None,
    must_beat_chance: bool = False,
    keras: KerasReport | None,
    dataset: DatasetReport,
    created: str,
    pipeline: str,
    module: str,
    module_digest: str | None = None,
) -> Report:
    """Returns the content of `report.json`.

    Args:
      budget: what a candidate may cost.
      baseline: the float32 model; its name is a key of the findings.
      candidates: all that came out of a TFLiteExporter, failed ones too.
      missing: names of those whose earlier steps failed, so that there is no artifact.
      findings: what they do and cost.
      deployed: the deployed model; None where there is none.
      like: what the model is called whose contract a candidate must keep, and that contract; None: any will do.
      must_beat_chance: whether a candidate has to be better than a guess, where that can be said of the metric.
      keras: what the baseline's Keras model does, where that was asked for.
      dataset: what is known of the evaluated split.
      created: UTC, ISO 8601.
      pipeline: its name.
      module: reference of the model module.
      module_digest: of its code.

    Raises:
      UserError: a metric of the budget is not compiled, or no slice has examples enough to be judged.
      ValueError: the baseline itself could not be evaluated.
    """
    reference = findings.results.get(baseline.name, "it was not evaluated")
    if isinstance(reference, str) or baseline.metadata is None:
        raise ValueError(f"the float32 baseline could not be evaluated: {reference}")
    judge = Judge(budget, findings, baseline.name, reference)
    field = None
    if deployed is not None and not deployed.failure:
        result = findings.results.get(DEPLOYED)
        if isinstance(result, str):
            deployed = dataclasses.replace(deployed, failure=result)
        elif result is not None:
            deployed, field = judge.described(deployed, result), result

    reports, measured = [], []
    for candidate in candidates:
        candidate_report, judged = _judged(judge, findings, baseline.metadata, candidate, field, like, must_beat_chance)
        reports.append(candidate_report)
        measured += [judged] if judged else []
    reports += [_missing(name) for name in missing]
    front = verdict.pareto(measured)
    blessed = {candidate.name for candidate in reports if candidate.blessed}
    selected = verdict.select(budget, [judged for judged in measured if judged.name in blessed])
    chosen_among = len({candidate.sha256 for candidate in reports if candidate.metrics is not None})
    reports = [
        _chosen(judge, findings, candidate, chosen_among) if candidate.name == selected else candidate
        for candidate in reports
    ]
    device = findings.device(baseline.name)
    return Report(
        created=created,
        pipeline=pipeline,
        module=module,
        module_digest=module_digest,
        dataset=dataset,
        budget=_budget(judge),
        like=ContractReport(of=like[0], contract=like[1]) if like else None,
        baseline=judge.described(
            BaselineReport(
                bytes=baseline.metadata["bytes"],
                zlib_bytes=baseline.metadata["zlib_bytes"],
                sha256=baseline.metadata["sha256"],
                device=device,
                latency_ms=_latency(device),
                keras=keras,
            ),
            reference,
        ),
        deployed=deployed,
        candidates=tuple(dataclasses.replace(candidate, pareto=candidate.name in front) for candidate in reports),
        training=_trainings([baseline, *candidates]),
        selected=selected,
        chosen_among=chosen_among if selected else None,
        closest=None if selected else verdict.closest(budget, measured),
        versions=toolchain.versions(),
        machine=machine(),
    )


def _judged(
    judge: Judge,
    findings: Findings,
    baseline: dict[str, Any],
    candidate: Candidate,
    field: Evaluated | None,
    like: tuple[str, dict[str, Any]] | None,
    must_beat_chance: bool,
) -> tuple[CandidateReport, Measured | None]:
    """Returns the report of a candidate, and what of it the budget judged; None where it failed."""
    report, measured = _made(candidate), None
    result = findings.results.get(candidate.name)
    if isinstance(result, str):
        report = dataclasses.replace(report, failure=FailureReport(step="Evaluator", error=result))
    elif result is not None and candidate.metadata is not None:
        measured = judge.measure(candidate, result, field)
        misfits = _misfits(judge.budget, candidate, candidate.metadata, like)
        if must_beat_chance:
            misfits += _guesses(judge, measured, result, candidate.passport.io.get("labels"))
        measured = dataclasses.replace(measured, misfits=misfits)
        device = findings.device(candidate.name)
        reasons = verdict.reasons(judge.budget, measured)
        report = dataclasses.replace(
            judge.described(report, result),
            **_drop(measured.ranking),
            more_drops={quality.metric.name: DropReport(**_drop(quality)) for quality in measured.qualities[1:]},
            ratio=baseline["zlib_bytes"] / candidate.metadata["zlib_bytes"],
            latency_ms=_latency(device),
            device=device,
            reasons=tuple(reasons),
            misses=verdict.misses(reasons, misfits),
        )
        if isinstance(error := findings.devices.get(candidate.name), str):
            failure = FailureReport(step="Evaluator", error=f"its cost could not be measured: {error}")
            report, measured = dataclasses.replace(report, failure=failure), None
    if report.failure:
        reason = f"{report.failure.step} failed: {report.failure.error}"
        report = dataclasses.replace(report, reasons=(reason,), misses=())
    return dataclasses.replace(report, blessed=report.metrics is not None and not report.reasons), measured


def _drop(quality: Quality) -> dict[str, Any]:
    """Returns the fields of a DropReport."""
    names = [field.name for field in dataclasses.fields(DropReport)]
    return {name: getattr(quality, name) for name in names}


def _budget(judge: Judge) -> BudgetReport:
    """Returns what the report says of the budget, and of the metrics that it came to."""
    first, *more = [
        {"metric": metric.name, "direction": metric.direction, "max_drop": metric.max_drop} for metric in judge.judged
    ]
    is_default = judge.budget.metric is None
    return from_json(
        BudgetReport, {**judge.budget.parameters(), **first, "more_metrics": more, "metric_is_default": is_default}
    )


def _chosen(judge: Judge, findings: Findings, report: CandidateReport, chosen_among: int) -> CandidateReport:
    """Returns the report of the selected candidate, with intervals that know that it was chosen."""
    result = findings.results[report.name]
    if isinstance(result, str):
        return report
    intervals = judge.chosen_drop_intervals(result, chosen_among)
    return dataclasses.replace(
        report,
        chosen_drop_interval=intervals[judge.judged[0].name],
        more_drops={
            name: dataclasses.replace(lost, chosen_drop_interval=intervals[name])
            for name, lost in report.more_drops.items()
        },
    )


def _missing(name: str) -> CandidateReport:
    error = "it failed, so that there is nothing to evaluate; see the log"
    return CandidateReport(name=name, failure=FailureReport(step="an earlier step", error=error), reasons=(error,))


def _misfits(
    budget: Budget, candidate: Candidate, metadata: dict[str, Any], like: tuple[str, dict[str, Any]] | None
) -> list[Misfit]:
    """Returns why the target cannot run a candidate, and how it differs from the model whose place it is to take."""
    misfits = [Misfit("target", text) for text in targets.misfits(budget.target, metadata)]
    if like is not None:
        own = contract.of(metadata, candidate.passport.io["labels"], budget.target)
        changed = contract.differences(own, like[1], like[0])
        # said once, with the last of them
        said = [*changed[:-1], *(f"{last} (--like none allows a new contract)" for last in changed[-1:])]
        misfits += [Misfit("contract", text) for text in said]
    return misfits


def _guesses(judge: Judge, measured: Measured, result: Evaluated, labels: Sequence[str] | None) -> list[Misfit]:
    """Returns by which of the budget's metrics a candidate is no better than a guess."""
    values = {quality.metric.name: quality.value for quality in measured.qualities}
    return [
        Misfit("chance", f"at chance level: {words.guess_says(name, values[name], guess, labels)}{_FIRST_PUSH}")
        for name, guess in judge.chance(result).items()
        if not guess.beaten
    ]


def _latency(device: DeviceCost | None) -> Latency | None:
    return Latency(p50=device.one_thread.p50, p90=device.one_thread.p90) if device and device.one_thread else None


def _trainings(candidates: list[Candidate]) -> tuple[TrainingReport, ...]:
    """Returns every step that trained, once, and which candidates it led to."""
    trainings: dict[str, TrainingReport] = {}
    for candidate in candidates:
        for step in candidate.passport.steps:
            if step.get("history"):
                training = trainings.get(step["model"]) or from_json(TrainingReport, step)
                names = dict.fromkeys([*training.of, candidate.name])
                trainings[step["model"]] = dataclasses.replace(training, of=tuple(names))
    return tuple(trainings.values())


#: Steps of a passport that are no step of a recipe.
_NOT_IN_RECIPES = ("Trainer", "ModelImporter", "TFLiteExporter")


def _made(candidate: Candidate) -> CandidateReport:
    """Returns what is known of a candidate before it is evaluated: how it was made, and its file."""
    steps = candidate.passport.steps
    metadata = candidate.metadata or {}
    ladder = [
        LadderStep(step=step["step"], zlib_bytes=step["weights_zlib_bytes"])
        for step in steps
        if "weights_zlib_bytes" in step
    ]
    if metadata:
        ladder.append(LadderStep(step="TFLiteExporter", zlib_bytes=metadata["zlib_bytes"]))
    sensitivity, ladder_walked = (_last(steps, name) for name in ("sensitivity", "ladder_walked"))
    return CandidateReport(
        name=candidate.name,
        recipe=tuple(
            RecipeStep(step=step["step"], config=step["config"])
            for step in steps
            if step["step"] not in _NOT_IN_RECIPES
        ),
        bytes=metadata.get("bytes"),
        zlib_bytes=metadata.get("zlib_bytes"),
        sparsity=metadata.get("sparsity"),
        sha256=metadata.get("sha256"),
        ladder=tuple(ladder),
        sensitivity=tuple(from_json(LayerSensitivity, layer) for layer in sensitivity) if sensitivity else None,
        ladder_walked=tuple(from_json(LadderRung, rung) for rung in ladder_walked) if ladder_walked else None,
        failure=from_json(FailureReport, candidate.passport.failure) if candidate.passport.failure else None,
        steps=tuple(StepQuality(step=step["step"], metrics=step["metrics"]) for step in steps if "metrics" in step),
        layers=tuple(from_json(LayerReport, layer) for layer in _last(steps, "layers") or ()),
    )


def _last(steps: Sequence[dict[str, Any]], name: str) -> Any:
    """Returns a fact of the last step that says it; None where none does."""
    return next((step[name] for step in reversed(steps) if step.get(name)), None)


def machine() -> MachineReport:
    """Returns what latencies depend on: processor, cores and system."""
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return MachineReport(
        cpu=cpu or platform.machine(), cores=os.cpu_count(), system=f"{platform.system()} {platform.release()}"
    )
