"""What the user sees at the end of a run."""

from __future__ import annotations

import argparse
import json
import traceback
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.exit_codes import ExitCode


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
    return ExitCode.DONE if outcome.report["selected"] else ExitCode.NOTHING_FITS


#: Columns that a terminal of less than this width is spared.
_WIDE = 110


def _table(report: dict[str, Any], width: int) -> Table:
    metric = report["budget"]["metric"]
    table = Table(
        title=f"{report['pipeline']}: {report['dataset']['examples']:,} examples of the eval split",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    columns = ["candidate", metric, "drop", "bytes", "zlib bytes", "ratio", "p50/p90 ms", "sparsity", "verdict"]
    shown = [i for i, name in enumerate(columns) if width >= _WIDE or name not in ("bytes", "sparsity")]
    for i in shown:
        table.add_column(columns[i], justify="left" if i in (0, 8) else "right", no_wrap=True)

    def add(name: str, facts: dict[str, Any], drop: str, ratio: str, verdict: str, **style: Any) -> None:
        times = facts["latency_ms"]
        cells = [
            name,
            _number(facts["metrics"][metric], ".4f"),
            drop,
            f"{facts['bytes']:,}",
            f"{facts['zlib_bytes']:,}",
            ratio,
            f"{times['p50']:.3f}/{times['p90']:.3f}" if times else "",
            f"{facts.get('sparsity') or 0:.0%}",
            verdict,
        ]
        table.add_row(*(cells[i] for i in shown), **style)

    add("  float32 baseline", report["baseline"], "", "1.0x", "reference", style="dim", end_section=True)
    for c in report["candidates"]:
        if c["name"] == report["selected"]:
            add(f"▶ {c['name']}", c, _number(c["drop"], "+.4f"), f"{c['ratio']:.1f}x", "selected", style="bold green")
        elif c["metrics"] is None or c["failure"]:
            table.add_row(f"  {c['name']}", *[""] * (len(shown) - 2), "failed", style="red")
        else:
            verdict, style = ("fits", "") if c["blessed"] else ("rejected", "yellow")
            add(f"  {c['name']}", c, _number(c["drop"], "+.4f"), f"{c['ratio']:.1f}x", verdict, style=style)
    return table


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _print_verdict(outcome: Any, shown: Console) -> None:
    report = outcome.report

    def say(text: str, style: str = "") -> None:
        console.say(shown, text, style)

    for training in report.get("training", []):
        if training.get("warm_start"):
            say(f"warm start: {training['warm_start']['note']}")
    for c in report["candidates"]:
        if not c["blessed"]:
            say(f"rejected  {c['name']}: {'; '.join(c['reasons'])}", "red" if c["failure"] else "yellow")
    if report["selected"]:
        say(f"selected  {report['selected']}", "bold green")
        if report.get("deployed"):
            say(f"against   {_beside_deployed(report)}")
    else:
        near = f"; closest was {report['closest']}" if report["closest"] else ""
        say(f"no candidate meets the budget, nothing is pushed{near}", "bold yellow")
    say(f"report    {outcome.report_path}")
    if outcome.pushed:
        say(f"pushed    {outcome.pushed}")
    elif outcome.not_pushed:
        say(f"deployed  {outcome.not_pushed}", "yellow")


def _beside_deployed(report: dict[str, Any]) -> str:
    """Says in one line what the selected candidate would change for those who use the deployed model."""
    old, metric = report["deployed"], report["budget"]["metric"]
    [new] = [c for c in report["candidates"] if c["name"] == report["selected"]]
    # by now, this or a later push may have replaced it
    who = f"{old['name'] or 'the model'} (version {old['version']}), deployed before"
    if old["failure"] or old["metrics"] is None:
        return f"{who}: not comparable, {old['failure']}"
    if old["sha256"] == new["sha256"]:
        return f"{who}: the same file"
    quality = " → ".join(_number(model["metrics"][metric], ".4f") or "unknown" for model in (old, new))
    drop = _number(new["deployed_drop"], "+.4f")
    interval = new["deployed_drop_interval"]
    if interval and None not in interval:
        drop += f", 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}"
    sizes = " → ".join(_number(model["zlib_bytes"], ",") or "unknown" for model in (old, new))
    return f"{who}: {metric} {quality}{drop and f' (drop {drop})'}, zlib bytes {sizes}"
