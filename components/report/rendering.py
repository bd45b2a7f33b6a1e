"""The report: what the Evaluator found, as facts (`report.json`) and as one page drawn from these facts alone.

The page is a single HTML file. It loads nothing from anywhere: styles, scripts and plotly.js are inside, and its
content security policy forbids the browser every request.
"""

from __future__ import annotations

import dataclasses
import functools
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeline import files, layout
from edgeline.budget import LIMITS
from edgeline.report import TEMPLATES, charts, report_file, run_graph, words
from edgeline.report.formats import Format
from edgeline.report.schema import BaselineReport, CandidateReport, ClassificationReport, Report
from edgeline.report.words import PageBudget, Row


@dataclasses.dataclass(frozen=True)
class Details:
    """What the page says of a candidate below the table."""

    row: Row
    candidate: CandidateReport
    ladder: list[words.LadderRow]
    costs: words.Costs | None
    classes: words.Classes | None
    parts: list[words.Part]
    worst_slices: list[words.SliceRow]
    more_slices: dict[str, list[words.SliceRow]]


def render(report: Report) -> str:
    """Draws the page.

    Args:
        report: as `report_file` returns it: without NaN or infinite numbers.

    Returns:
        One HTML document; the same text for the same report.
    """
    metric, labels = report.budget.metric, report.dataset.label_names
    baseline = Row.of(report.baseline, metric)
    rows = [
        Row.of(candidate, metric, number=number, selected=report.selected)
        for number, candidate in enumerate(report.candidates, 1)
    ]
    by_name = {row.name: row for row in rows}
    selected = by_name.get(report.selected or "")
    closest = None if selected else by_name.get(report.closest or "")
    budget = PageBudget.of(report.budget, baseline.metric)
    style = Format.of(baseline.metric, baseline.p50)
    shown = selected or closest
    figures: dict[str, charts.Figure | None] = {
        axis.key: charts.trade_off(axis, baseline, rows, shown, budget, style)
        for axis in (charts.size_axis(budget), charts.latency_axis(budget))
    }
    candidates = [
        Details(
            row,
            candidate,
            words.ladder(candidate, style),
            words.costs(candidate, report.baseline, budget, style),
            words.classes(candidate.classification, report.baseline.classification, labels),
            words.parts(candidate, report.baseline, labels),
            words.worst_slices(candidate, report.baseline, budget, labels),
            {
                judged.metric: words.worst_slices(candidate, report.baseline, budget, labels, judged.metric)
                for judged in report.budget.more_metrics
            },
        )
        for row, candidate in zip(rows, report.candidates, strict=True)
    ]
    for details in candidates:
        figures |= _candidate_figures(details, report.baseline)
    curves = [words.training_curves(training, report.budget) for training in report.training]
    for number, (training, names) in enumerate(zip(report.training, curves, strict=True), 1):
        for index, name in enumerate(names):
            figures[f"training-{number}-{index}"] = charts.learning(training.history, name, training.phases)
    drawn = {name: figure for name, figure in figures.items() if figure}
    nodes = report.run.nodes if report.run else ()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            created=datetime.fromisoformat(report.created).strftime("%Y-%m-%d %H:%M %Z").strip(),
            baseline=baseline,
            deployed=Row.of(report.deployed, metric) if report.deployed else None,
            rows=rows,
            selected=selected,
            nothing=words.nothing_selected(report),
            closest=closest,
            shown=shown,
            columns=words.columns(budget, style, rows),
            warnings=words.warnings(report, rows, shown, baseline, budget, style),
            budget=budget,
            style=style,
            labels=labels,
            class_name=lambda number: labels[number] if labels and 0 <= number < len(labels) else str(number),
            limits=LIMITS,
            candidates=candidates,
            curves=curves,
            graph=run_graph.layout(nodes) if nodes else None,
            palettes=charts.PALETTES,
            figures=drawn,
            plotly_js=Markup(get_plotlyjs()) if drawn else "",
            page=words,
        )
    )


def write_report(report: Report, folder: Path) -> None:
    """Writes report.json and report.html into a folder, which is created if need be.

    Each file appears complete or not at all. The facts are written first, so that they outlive a failure to draw them.

    Args:
        report: NaN and infinite numbers are written as null.
        folder: where to; existing files are replaced.
    """
    files.make_folder(folder)
    report_file.write(report, folder / layout.REPORT_FILE)
    files.write_text(folder / layout.REPORT_PAGE, render(report_file.read(folder / layout.REPORT_FILE)))


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _candidate_figures(details: Details, baseline: BaselineReport) -> dict[str, charts.Figure]:
    """The charts of one candidate, by name in the page."""
    number = details.row.number
    here, before = details.candidate.classification, baseline.classification
    figures = _classifier_figures(str(number), details.classes, here, before)
    for index, part in enumerate(details.parts, 1):
        own, old = part.here, part.before
        figures |= _classifier_figures(
            f"{number}-{index}", part.classes, own.classification, old.classification if old else None
        )
        if own.regression and any(own.regression.labels) and any(own.regression.predicted):
            figures[f"predicted-{number}-{index}"] = charts.predictions(own.regression)
    return figures


def _classifier_figures(
    place: str,
    classes: words.Classes | None,
    here: ClassificationReport | None,
    before: ClassificationReport | None,
) -> dict[str, charts.Figure]:
    figures = {}
    if classes and classes.draw and here and here.confusion and before and before.confusion:
        figures[f"confusion-{place}"] = charts.confusion_change(before.confusion, here.confusion, classes.names)
    if here and here.bins:
        bins = {"baseline": before.bins if before else (), "this candidate": here.bins}
        figures[f"calibration-{place}"] = charts.calibration(bins)
    return figures
