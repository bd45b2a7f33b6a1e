"""What the user sees at the end of a run."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.report import words
from edgeline.report.formats import Format
from edgeline.report.schema import CandidateReport, DeployedReport, JudgedMetric, Latency, MeasuredReport, Report


def show(outcome: Any, log: Path, arguments: argparse.Namespace, terminal: console.Terminal) -> int:
    """Prints what a run came to, for people or for machines; returns the exit code."""
    code = _exit_code(outcome)
    for line in outcome.drifted:
        console.say(terminal.err, f"edgeline: drift allowed: {line}", "yellow")
    for failure in outcome.failures:
        console.say(terminal.err, f"edgeline: {failure.text}", "red")
        if arguments.debug and failure.error is not None:
            console.say(terminal.err, "".join(traceback.format_exception(failure.error)))
    if outcome.failures:
        terminal.err.print(f"full log: {log}", soft_wrap=True, highlight=False)
    if arguments.output == "json":
        summary = {"exit_code": code, "no_new_data": False, **outcome.summary(), "log": str(log)}
        console.say(terminal.out, json.dumps(summary))
        return code
    if outcome.report is None:
        return code
    if not terminal.out.is_terminal:
        terminal.out.width = console.FILE_WIDTH  # a file has no width that could be too small
    terminal.out.print(_table(outcome.report, terminal.out.width))
    _print_verdict(outcome, terminal.out)
    return code


def _exit_code(outcome: Any) -> int:
    if outcome.failures:
        return (
            ExitCode.USERS_MISTAKE
            if all(isinstance(f.error, UserError) for f in outcome.failures)
            else ExitCode.STEP_FAILED
        )
    return ExitCode.DONE if outcome.report.selected else ExitCode.NOTHING_FITS


#: Columns that a terminal of less than this width is spared: the others fit 80, beside a name of 22.
_WIDE, _SPARED = 110, ("latency", "sparsity")


def _table(report: Report, width: int) -> Table:
    metric, more = report.budget.metric, [judged.metric for judged in report.budget.more_metrics]
    # what else is compiled; the loss says little beside a metric
    others = [name for name in report.baseline.metrics or () if name not in (metric, *more, "loss")]
    table = Table(
        title=f"{report.pipeline}: {report.dataset.examples:,} examples of the eval split",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    style = Format.of(report.baseline.value(metric), (report.baseline.latency_ms or Latency()).p50)
    columns = [
        *("candidate", metric, "drop", *(title for name in more for title in (name, "drop")), *others),
        *("bytes", "zlib bytes", "ratio", "latency", "sparsity", "verdict"),
    ]
    titles = {"latency": f"p50/p90 {style.time_unit}"}
    if width < _WIDE:
        titles["zlib bytes"] = "zlib\nbytes"
    shown = [i for i, name in enumerate(columns) if width >= _WIDE or name not in (*_SPARED, *others)]
    for i in shown:
        is_word = i in (0, len(columns) - 1)
        title = titles.get(columns[i], columns[i])
        table.add_column(title, justify="left" if is_word else "right", no_wrap=True)

    def add(
        name: str, model: MeasuredReport, drop: str, ratio: str, sparsity: float | None, verdict: str, **look: Any
    ) -> None:
        latency = model.latency_ms or Latency()
        lost = [model.lost(each).drop if isinstance(model, CandidateReport) else None for each in more]
        cells = [
            name,
            _number(model.value(metric), ".4f"),
            drop,
            *(
                cell
                for each, drop in zip(more, lost, strict=True)
                for cell in (_number(model.value(each), ".4f"), _number(drop, "+.4f"))
            ),
            *(_number(model.value(each), ".4f") for each in others),
            _number(model.bytes, ","),
            _number(model.zlib_bytes, ","),
            ratio,
            "/".join(style.time(time) for time in (latency.p50, latency.p90) if time is not None),
            f"{sparsity or 0:.0%}",
            verdict,
        ]
        table.add_row(*(cells[i] for i in shown), **look)

    add("  float32 baseline", report.baseline, "", "1.0x", None, "", style="dim", end_section=True)
    for candidate in report.candidates:
        numbers = (_number(candidate.drop, "+.4f"), f"{_number(candidate.ratio, '.1f')}x", candidate.sparsity)
        if candidate.name == report.selected:
            add(f"▶ {candidate.name}", candidate, *numbers, "selected", style="bold green")
        elif candidate.metrics is None or candidate.failure:
            table.add_row(f"  {candidate.name}", *[""] * (len(shown) - 2), "failed", style="red")
        else:
            verdict, color = ("fits", "") if candidate.blessed else ("rejected", "yellow")
            add(f"  {candidate.name}", candidate, *numbers, verdict, style=color)
    return table


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _print_verdict(outcome: Any, shown: Console) -> None:
    report = outcome.report

    def say(text: str, style: str = "") -> None:
        console.say(shown, text, style)

    for training in report.training:
        if training.warm_start:
            say(f"warm start: {training.warm_start.note}")
    if report.budget.metric_is_default or report.budget.more_metrics:
        say(f"metric    {words.judged_by(report.budget)}")
    for note in (words.at_chance_level(report), *words.without_examples(report)):
        if note is not None:
            say(f"note      {note}", "yellow")
    for candidate in report.candidates:
        if not candidate.blessed:
            style = "red" if candidate.failure else "yellow"
            say(f"rejected  {candidate.name}: {'; '.join(candidate.reasons)}", style)
    if selected := report.candidate(report.selected):
        say(f"selected  {selected.name}{_among(selected, report)}", "bold green")
        if report.deployed:
            say(f"against   {_beside_deployed(selected, report.deployed, report.budget.judged)}")
    else:
        near = f"; closest was {report.closest}" if report.closest else ""
        say(f"{words.nothing_selected(report).line}, nothing is pushed{near}", "bold yellow")
    say(f"report    {outcome.report_path}")
    if outcome.pushed:
        say(f"pushed    {outcome.pushed}")
    elif outcome.not_pushed:
        say(f"deployed  {outcome.not_pushed}", "yellow")


def _among(selected: CandidateReport, report: Report) -> str:
    """Says how far the selected candidate's drop may be from what was measured, as it was chosen for looking good."""
    interval, among = selected.chosen_drop_interval, report.chosen_among or 1
    if not interval or None in interval:
        return ""
    chosen = f", as the best of {among}" if among > 1 else ""
    return f" (drop {interval[0]:+.4f} to {interval[1]:+.4f} with 95% confidence{chosen})"


def _beside_deployed(new: CandidateReport, old: DeployedReport, metrics: Sequence[JudgedMetric]) -> str:
    """Says in one line what the selected candidate would change for those who use the deployed model."""
    # by now, this or a later push may have replaced it
    who = f"{old.name or 'the model'} (version {old.version}), deployed before"
    if old.failure or old.metrics is None:
        return f"{who}: not comparable, {old.failure}"
    if old.sha256 == new.sha256:
        return f"{who}: the same file"
    sizes = " → ".join(_number(model.zlib_bytes, ",") or "unknown" for model in (old, new))
    qualities = [_beside(new, old, judged.metric) for judged in metrics]
    return f"{who}: {', '.join(qualities)}, zlib bytes {sizes}"


def _beside(new: CandidateReport, old: DeployedReport, metric: str) -> str:
    quality = " → ".join(_number(model.value(metric), ".4f") or "unknown" for model in (old, new))
    lost = new.lost(metric)
    drop, interval = _number(lost.deployed_drop, "+.4f"), lost.deployed_drop_interval
    if interval and None not in interval:
        drop += f", 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}"
    return f"{metric} {quality}{drop and f' (drop {drop})'}"
