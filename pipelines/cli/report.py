"""`edgeline report` and `edgeline compare`: the reports of finished runs, drawn anew and side by side."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from edgeline import files, layout
from edgeline.errors import UserError, nearest
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import compare
from edgeline.pipelines.records.compare import Comparison, Part
from edgeline.pipelines.root import DEFAULT_ROOT, Root
from edgeline.report import formats, report_file, schema
from edgeline.report.schema import Report

#: Longer values are shortened in the table; the JSON has them whole.
_MOST_LETTERS = 60


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `report` and `compare` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    where = "a report.json, the root of a pipeline, or an Evaluator's artifact"
    report = commands.add_parser(
        "report",
        parents=[common],
        description="Draw report.html anew from report.json alone: no model, data or metadata is needed.",
    )
    report.set_defaults(command=_report)
    which = report.add_mutually_exclusive_group()
    which.add_argument("file", nargs="?", type=Path, metavar="FILE", help=where)
    which.add_argument("--root", type=options.root, default=DEFAULT_ROOT, help="of the pipeline (default: %(default)s)")
    which.add_argument("--schema", action="store_true", help="print the JSON Schema of report.json instead")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument(
        "-o", dest="out", type=Path, metavar="OUT.html", help="(default: report.html beside the report.json)"
    )

    both = commands.add_parser(
        "compare",
        parents=[common],
        description=f"Compare the reports of two runs. Each RUN is {where}.",
    )
    both.set_defaults(command=_compare)
    both.add_argument("a", type=Path, metavar="RUN_A", help="the run that the other is compared to")
    both.add_argument("b", type=Path, metavar="RUN_B", help="the run that is compared")
    options.add_output(both)


def find(path: Path) -> Path:
    """Returns the report.json that a path stands for.

    Args:
      path: a report.json, the root of a pipeline, or an artifact of an Evaluator.

    Raises:
      UserError: there is none; names those that are near.
    """
    if path.is_file():
        return path
    if path.is_dir():
        for path_of_report in (path / layout.REPORT_FILE, Root(path).report / layout.REPORT_FILE):
            if path_of_report.is_file():
                return path_of_report
        below = sorted(
            {*path.glob(f"*/{layout.REPORT_FILE}"), *path.glob(f"*/{Root(path).report.name}/{layout.REPORT_FILE}")}
        )
        hint = f"give {' or '.join(map(str, below[:3]))}" if below else "the run makes it when it evaluates candidates"
        raise UserError(f"there is no {layout.REPORT_FILE} in {path}, and none in {Root(path).report}; {hint}")
    missing = next((p for p in reversed((path, *path.parents)) if not p.exists()), path)
    siblings = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    near = nearest(missing.name, siblings, most=3)
    hint = f"did you mean {' or '.join(str(missing.parent / name) for name in near)}?"
    raise UserError(f"{path} does not exist; {hint if near else 'give a report.json or the root of a pipeline'}")


def _read(path: Path) -> tuple[Path, Report]:
    try:
        report_path = find(path)
        return report_path, report_file.read(report_path)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


def _report(arguments: argparse.Namespace) -> int:
    from edgeline.report import rendering

    if arguments.schema:
        console.say(Console(), json.dumps(schema.json_schema(), indent=2))
        return ExitCode.DONE
    source, report = _read(arguments.file or arguments.root.path)
    out = (arguments.out or source.with_name(layout.REPORT_PAGE)).absolute()
    if out == source.absolute():
        raise UserError(f"-o {arguments.out} is the {layout.REPORT_FILE} itself; give another file")
    page = rendering.render(report)
    try:
        files.write_text(out, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another file with -o") from None
    console.say(Console(), str(out))
    if arguments.open and not _open(out):
        console.say(Console(stderr=True), f"edgeline: there is no browser to open here; open {out} in one", "yellow")
    return ExitCode.DONE


def _open(page: Path) -> bool:
    # without a display, webbrowser would take a text browser, which shows nothing of the page and holds the terminal
    if not any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")):
        return False
    return webbrowser.open(page.as_uri())


def _compare(arguments: argparse.Namespace) -> int:
    (path_a, a), (path_b, b) = _read(arguments.a), _read(arguments.b)
    comparison = compare.compare(a, b)
    out = console.for_tables()
    if arguments.output == "json":
        runs = {
            key: {"report": str(path), "pipeline": report.pipeline, "created": report.created}
            for key, path, report in (("a", path_a, a), ("b", path_b, b))
        }
        console.say(out, json.dumps({**runs, **dataclasses.asdict(comparison)}))
        return ExitCode.DONE
    for letter, path, report in (("A", path_a, a), ("B", path_b, b)):
        console.say(out, f"{letter}  {report.pipeline}, {report.created}  {path}")
    _print_parts(comparison, out)
    _print_results(comparison, out)
    if comparison.slices:
        _print_slices(comparison, out)
    return ExitCode.DONE


def _print_parts(comparison: Comparison, out: Console) -> None:
    changed = [(name, change) for name, part in comparison.parts.items() for change in part.changed]
    if changed:
        table = _table("changed", "what", "A", "B")
        before = ""
        for name, change in changed:
            table.add_row(*map(Text, ("" if name == before else name, change.what, _brief(change.a), _brief(change.b))))
            before = name
        out.print(table)
    if same := [name for name, part in comparison.parts.items() if part == Part(())]:
        console.say(out, f"unchanged  {', '.join(same)}")
    if unknown := [f"{name} ({', '.join(part.unknown)})" for name, part in comparison.parts.items() if part.unknown]:
        console.say(out, f"not compared, as a report does not know it  {', '.join(unknown)}")
    for letter, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            console.say(out, f"only in {letter}  {', '.join(names)}")


def _brief(value: Any) -> str:
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}…"  # of a SHA-256 the first letters tell
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _print_results(comparison: Comparison, out: Console) -> None:
    more = [title for name in comparison.more_metrics for title in (name, "drop")]
    titles = ("result", comparison.metric, "drop", *more, "zlib bytes", "p50", "verdict")
    table = _table(*titles, right=tuple(range(1, len(titles) - 1)))
    for pair in comparison.models:
        a, b = pair.a, pair.b
        verdicts = ["selected" if r.selected else r.verdict or "" for r in (a, b)]
        cells = (
            pair.name,
            _both("{:.4f}".format, a.metric, b.metric),
            _both("{:+.4f}".format, a.drop, b.drop),
            *(
                _both(write, *(result.more_metrics[name][key] for result in (a, b)))
                for name in comparison.more_metrics
                for key, write in (("value", "{:.4f}".format), ("drop", "{:+.4f}".format))
            ),
            _both("{:,}".format, a.zlib_bytes, b.zlib_bytes),
            _both(formats.duration, a.p50_ms, b.p50_ms),
            _both(str, *verdicts),
        )
        style = "bold green" if b.selected else "yellow" if verdicts[0] != verdicts[1] else ""
        table.add_row(*map(Text, cells), style=style)
    out.print(table)
    selected = comparison.selected
    console.say(out, f"selected  {_both(str, selected.a or 'none', selected.b or 'none')}", "bold")


def _print_slices(comparison: Comparison, out: Console) -> None:
    is_one = not comparison.more_metrics
    titles = (
        ("model", "slice", "examples", comparison.metric) if is_one else ("model", "slice", "metric", "examples", "")
    )
    table = _table(*titles, "change", right=tuple(range(len(titles) - 2, len(titles) + 1)))
    for each in comparison.slices:
        cells = (
            each.model,
            each.slice,
            *(() if is_one else (each.metric,)),
            _both("{:,}".format, *each.examples),
            _both("{:.4f}".format, each.a, each.b),
            f"{each.b - each.a:+.4f}",
        )
        table.add_row(*map(Text, cells), style="yellow" if each.loss > 0 else "")
    out.print(table)
    more = f"; {comparison.more_slices} not shown" if comparison.more_slices else ""
    console.say(out, f"slices that changed by more than {compare.SLICE_CHANGE:g}, the worst first{more}")


def _table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if index in right else "left", overflow="fold")
    return table


def _both(write: Callable[[Any], str], a: Any, b: Any) -> str:
    before, after = ("–" if value is None else write(value) for value in (a, b))
    return after if before == after else f"{before} → {after}"
