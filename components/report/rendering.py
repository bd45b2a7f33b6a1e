"""The report: what the Evaluator found, as facts (`report.json`) and as one page drawn from these facts alone.

The page is a single HTML file. It loads nothing from anywhere: styles, scripts and plotly.js are inside, and its
content security policy forbids the browser every request.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeline import files, layout
from edgeline.budget import LIMITS
from edgeline.report import TEMPLATES, charts, report_file, run_graph, words
from edgeline.report.formats import Format
from edgeline.report.words import Budget

"""The version of the layout of report.json that this module writes."""

"""The versions that it reads and draws."""


def render(report: dict[str, Any]) -> str:
    """Draws the page.

    Args:
        report: the facts, laid out as report.json, schema version 1 or 2. A NaN or infinite number counts as missing.

    Returns:
        One HTML document; the same text for the same facts.

    Raises:
        UserError: the report has another schema version, or lacks something.
    """
    report = report_file.upgraded(report_file.finite(report), "the report")
    metric, labels = report["budget"]["metric"], report["dataset"]["label_names"]
    baseline = words.row(report["baseline"], metric)
    rows = [words.row(candidate, metric) for candidate in report["candidates"]]
    by_name = {row["name"]: row for row in rows}
    selected = by_name.get(report["selected"])
    if selected:
        selected["verdict"] = "selected"
    closest = None if selected else by_name.get(report["closest"])
    deployed = report["deployed"] and words.row(report["deployed"], metric)
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
            "ladder": words.ladder(row, style),
            "costs": words.device(row, baseline, budget, style),
            "classes": words.classification(row, baseline, labels),
            "worst_slices": words.worst_slices(row, baseline, budget, labels),
        }
        figures |= _candidate_figures(number, row, baseline)
    training = [each | {"curves": words.training_curves(each, metric)} for each in report["training"]]
    for number, each in enumerate(training, 1):
        for name in each["curves"]:
            figure = charts.learning(each["history"], name, words.phases(each))
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
            columns=words.columns(budget, style, rows),
            warnings=words.warnings(report, rows, shown, baseline, budget, style),
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
            page=words,
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
    facts = json.dumps(report_file.finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / layout.REPORT_FILE, facts + "\n")
    files.write_text(folder / layout.REPORT_PAGE, render(report))


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
