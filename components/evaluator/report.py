"""The report: what the Evaluator found, as facts (`report.json`) and as one page drawn from these facts alone.

The page is a single HTML file. It loads nothing from anywhere: styles, scripts and plotly.js are inside, and its
content security policy forbids the browser every request.
"""

from __future__ import annotations

import functools
import json
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeline.errors import UserError
from edgeline.evaluator import charts, presentation, run_graph
from edgeline.evaluator.config import LIMITS
from edgeline.evaluator.presentation import Budget, Format

SCHEMA_VERSION = 2
"""The version of the layout of report.json that this module writes."""

READABLE_VERSIONS = (1, 2)
"""The versions that it reads and draws."""

_REQUIRED = ("created", "pipeline", "module", "dataset", "budget", "baseline", "candidates", "versions", "machine")
_REQUIRED_WITHIN = {"dataset": ("split", "examples"), "budget": ("metric", "direction", "objective")}
#: What version 2 added to version 1, as a report says it that does not know.
_ADDED: dict[str, dict[str, Any]] = {
    "": {"deployed": None, "like": None, "training": [], "run": None, "selected": None, "closest": None},
    "dataset": {"fingerprint": None, "label_names": None, "bad_records": None, "slice_features": []},
    "budget": {
        **dict.fromkeys(("max_bytes", "max_zlib_bytes", "max_latency_ms", "max_latency_p90_ms", "max_latency_p99_ms")),
        **dict.fromkeys(("max_latency_all_threads_ms", "max_latency_without_xnnpack_ms", "max_cold_start_ms")),
        **dict.fromkeys(("max_peak_rss_bytes", "max_deployed_drop", "min_slice_examples", "value_threshold")),
        **{"max_drop": None, "drop_bound": "point", "max_slice_drops": {}, "target": None},
    },
}


def read(path: Path) -> dict[str, Any]:
    """Reads a report.json of any version that is understood.

    Returns:
        The facts, laid out as schema version 2; what an older version does not know is None or empty.

    Raises:
        UserError: the file is no report, is of another version, or lacks something.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{path}: expected a report.json of an Evaluator, found no JSON: {error}") from None
    return _upgraded(content, str(path)) | {"schema_version": SCHEMA_VERSION}


def render(report: dict[str, Any]) -> str:
    """Draws the page.

    Args:
        report: the facts, laid out as report.json, schema version 1 or 2. A NaN or infinite number counts as missing.

    Returns:
        One HTML document; the same text for the same facts.

    Raises:
        UserError: the report has another schema version, or lacks something.
    """
    report = _upgraded(_finite(report), "the report")
    metric, labels = report["budget"]["metric"], report["dataset"]["label_names"]
    baseline = presentation.row(report["baseline"], metric)
    rows = [presentation.row(candidate, metric) for candidate in report["candidates"]]
    by_name = {row["name"]: row for row in rows}
    selected = by_name.get(report["selected"])
    if selected:
        selected["verdict"] = "selected"
    closest = None if selected else by_name.get(report["closest"])
    deployed = report["deployed"] and presentation.row(report["deployed"], metric)
    budget = Budget.of(report["budget"], baseline["metric"])
    style = Format.of(baseline["metric"], baseline["p50"])
    shown = selected or closest
    figures: dict[str, charts.Figure | None] = {
        axis.key: charts.trade_off(axis, baseline, rows, shown, budget, style)
        for axis in (charts.size_axis(budget), charts.latency_axis(budget))
    }
    for number, row in enumerate(rows, 1):
        row |= {
            "number": number,
            "ladder": presentation.ladder(row, style),
            "costs": presentation.device(row, baseline, budget, style),
            "classes": presentation.classification(row, baseline, labels),
            "worst_slices": presentation.worst_slices(row, baseline, budget, labels),
        }
        figures |= _candidate_figures(number, row, baseline)
    training = [each | {"curves": presentation.training_curves(each, metric)} for each in report["training"]]
    for number, each in enumerate(training, 1):
        for name in each["curves"]:
            figure = charts.learning(each["history"], name, presentation.phases(each))
            figures[f"training-{number}-{each['curves'].index(name)}"] = figure
    figures = {name: figure for name, figure in figures.items() if figure}
    nodes = (report["run"] or {}).get("nodes") or []
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            created=datetime.fromisoformat(report["created"]).strftime("%Y-%m-%d %H:%M %Z").strip(),
            baseline=baseline,
            deployed=deployed,
            rows=rows,
            selected=selected,
            closest=closest,
            shown=shown,
            columns=presentation.columns(budget, style, rows),
            warnings=presentation.warnings(report, rows, shown, baseline, budget, style),
            budget=budget,
            style=style,
            labels=labels,
            class_name=lambda number: labels[number] if labels and 0 <= number < len(labels) else str(number),
            limits=LIMITS,
            training=training,
            graph=run_graph.layout(nodes) if nodes else None,
            palettes=charts.PALETTES,
            figures=figures,
            plotly_js=Markup(get_plotlyjs()) if figures else "",
            page=presentation,
        )
    )


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes report.json and report.html into a folder, which is created if need be.

    Each file appears complete or not at all. The facts are written first, so that they outlive a failure to draw them.

    Args:
        report: the facts, laid out as report.json, schema version 1 or 2; NaN and infinite numbers are written as null.
        folder: where to; existing files are replaced.

    Raises:
        UserError: the report has another schema version, or lacks something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = json.dumps(_finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    _write(folder / "report.json", facts + "\n")
    _write(folder / "report.html", render(report))


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _finite(value: Any) -> Any:
    """Copies JSON-like data with None for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _upgraded(report: Any, where: str) -> dict[str, Any]:
    """Checks what nothing can be drawn without, and adds what version 2 has over version 1."""
    if not isinstance(report, dict):
        raise UserError(f"{where}: expected a report.json of an Evaluator, found {type(report).__name__} at its top")
    version = report.get("schema_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise UserError(
            f"{where}: has schema_version {version!r}; this version of edgeline reads {known}. Use the edgeline that "
            "wrote it, or run the pipeline again"
        )
    missing = [key for key in _REQUIRED if key not in report]
    for key, within in _REQUIRED_WITHIN.items():
        missing += [f"{key}.{name}" for name in within if name not in (report.get(key) or ())]
    candidates = report.get("candidates") or ()
    missing += [f"candidates[{i}].name" for i, entry in enumerate(candidates) if "name" not in entry]
    if missing:
        raise UserError(f"{where}: is no complete report.json, it lacks {', '.join(missing)}; run the pipeline again")
    parts = {key: _filled(report if not key else report[key], added) for key, added in _ADDED.items()}
    return parts.pop("") | parts


def _filled(part: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    return part | {key: value for key, value in added.items() if part.get(key) is None}


def _candidate_figures(number: int, row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, charts.Figure]:
    """The charts of one candidate, by name in the page."""
    classes, figures = row["classes"], {}
    if classes and classes["draw"]:
        figures[f"confusion-{number}"] = charts.confusion_change(
            baseline["classification"]["confusion"], row["classification"]["confusion"], classes["names"]
        )
    if classes and row["classification"].get("bins"):
        bins = {"baseline": baseline["classification"], "this candidate": row["classification"]}
        figures[f"calibration-{number}"] = charts.calibration(
            {name: (each or {}).get("bins") for name, each in bins.items()}
        )
    return figures
