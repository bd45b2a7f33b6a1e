"""Reading and writing report.json. Versions 1 and 2 of its layout are read too."""

from __future__ import annotations

import dataclasses
import datetime
import graphlib
import json
import re
from pathlib import Path
from typing import Any

from edgeline import files
from edgeline.budget import LIMITS
from edgeline.errors import UserError
from edgeline.report import dataclass_json
from edgeline.report.dataclass_json import MismatchError
from edgeline.report.schema import SCHEMA_VERSION, ClassificationReport, RecipeStep, Report

READABLE_VERSIONS = (1, 2, SCHEMA_VERSION)


def read(path: Path) -> Report:
    """Reads a report.json of any version that is understood; what an older one does not know is None or empty.

    Raises:
      UserError: the file is no report, is of another version, lacks something or contradicts itself.
      OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of bytes that are no text
        raise UserError(f"{path}: expected a report.json of an Evaluator, found no JSON: {error}") from None
    return parse(content, str(path))


def parse(content: Any, where: str) -> Report:
    """Returns the report that the JSON of a report.json of any understood version holds.

    Args:
      content: as `json.loads` returned it; it is left as it is.
      where: it is from, for messages.

    Raises:
      UserError: it is no report, is of another version, lacks something or contradicts itself.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a report.json of an Evaluator, found {type(content).__name__} at its top")
    version = content.get("schema_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        *known, last = map(str, READABLE_VERSIONS)
        raise UserError(
            f"{where}: has schema_version {version!r}; this version of edgeline reads {', '.join(known)} and {last}. "
            "Use the edgeline that wrote it, or run the pipeline again"
        )
    try:
        report = dataclass_json.from_json(Report, content if version == SCHEMA_VERSION else _upgraded(content))
    except MismatchError as error:
        if error.missing:
            lacks = ", ".join(error.missing)
            raise UserError(f"{where}: is no complete report.json, it lacks {lacks}; run the pipeline again") from None
        raise _damaged(where, error.wrong) from None
    except RecursionError:
        raise _damaged(where, ["it is nested too deeply"]) from None
    if contradictions := _contradictions(report):
        raise _damaged(where, contradictions)
    return report


def write(report: Report, path: Path) -> None:
    """Writes report.json, atomically; numbers that are NaN or infinite are written as null."""
    content = json.dumps(dataclass_json.to_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(path, content + "\n")


def _damaged(where: str, faults: list[str]) -> UserError:
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return UserError(f"{where}: is damaged: {'; '.join(faults[:3])}{more}; run the pipeline again")


def _contradictions(report: Report) -> list[str]:
    """Returns what no Evaluator writes, though every value is of its kind."""
    contradictions = []
    try:
        datetime.datetime.fromisoformat(report.created)
    except ValueError:
        contradictions.append(f"created: expected a time as in ISO 8601, found {report.created!r}")
    named = [(f"candidates[{i}]", candidate) for i, candidate in enumerate(report.candidates)]
    for place, model in (("baseline", report.baseline), *named):
        contradictions += _of_classes(model.classification, place)
        for index, output in enumerate(model.outputs):
            where = f"{place}.outputs[{index}]"
            contradictions += _of_classes(output.classification, where)
            if (numbers := output.regression) and len(numbers.labels) != len(numbers.predicted):
                contradictions.append(f"{where}.regression.predicted: expected {len(numbers.labels)} examples")
    nodes = report.run.nodes if report.run else ()
    try:
        graphlib.TopologicalSorter({node.id: node.upstream for node in nodes}).prepare()
    except graphlib.CycleError as error:
        contradictions.append(f"run.nodes: expected no step to wait for itself, found {' → '.join(error.args[1])}")
    return contradictions


def _of_classes(scores: ClassificationReport | None, place: str) -> list[str]:
    contradictions = []
    if scores and scores.confusion and {len(scores.confusion), *map(len, scores.confusion)} != {scores.classes}:
        contradictions.append(f"{place}.classification.confusion: expected {scores.classes} rows and columns")
    if scores and scores.per_class and len(scores.per_class) != scores.classes:
        contradictions.append(f"{place}.classification.per_class: expected {scores.classes} classes")
    return contradictions


# older versions -------------------------------------------------------------------------------------------------------


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON of version 1 or 2 laid out as version 3; what is damaged stays so, to be refused."""
    upgraded = content | {"schema_version": SCHEMA_VERSION}
    if isinstance(dataset := content.get("dataset"), dict) and isinstance(by := dataset.get("slice_features"), list):
        # one feature was written without a list around it for a while
        slice_features = [[names] if isinstance(names, str) else names for names in by]
        upgraded["dataset"] = dataset | {"slice_features": slice_features}
    if isinstance(budget := content.get("budget"), dict):
        upgraded["budget"] = dict.fromkeys(LIMITS) | budget
    if isinstance(candidates := content.get("candidates"), list):
        upgraded["candidates"] = [_upgraded_candidate(candidate) for candidate in candidates]
    return upgraded


def _upgraded_candidate(candidate: Any) -> Any:
    if not isinstance(candidate, dict) or not isinstance(recipe := candidate.get("recipe"), list):
        return candidate
    steps = [dataclasses.asdict(recipe_step(step)) if isinstance(step, str) else step for step in recipe]
    return candidate | {"recipe": steps}


def recipe_step(text: str) -> RecipeStep:
    """Reads a step as versions 1 and 2 spelled it; numbers, lists and objects are read as JSON, all else is text.

    >>> recipe_step("Pruner sparsity=0.8 epochs=2 schedule=polynomial_decay")
    RecipeStep(step='Pruner', config={'sparsity': 0.8, 'epochs': 2, 'schedule': 'polynomial_decay'})
    """
    step, _, rest = text.partition(" ")
    # a value may have spaces
    _, *parts = re.split(r"(?:^| )(\w+)=", rest)
    return RecipeStep(step=step, config=dict(zip(parts[::2], map(_read_value, parts[1::2]), strict=True)))


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
