"""`edgeline history`: what became of every run of a pipeline."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from edgeline import files
from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root

_STYLES = {"pushed": "green", "nothing fits": "yellow", "refused": "red", "failed": "red", "killed": "red"}


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `history` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    history = commands.add_parser(
        "history",
        parents=[common],
        description="List the runs of a pipeline from its event log (events.jsonl), the refused among them.",
    )
    history.set_defaults(command=_history)
    history.add_argument("root", type=options.root, metavar="ROOT", help="of the pipeline")
    history.add_argument(
        "--html",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="also draw a page of it (default: report/history.html in ROOT)",
    )
    options.add_output(history)


def _history(arguments: argparse.Namespace) -> int:
    root: Root = arguments.root
    log = events.read(root)
    nights = events.nights(log)
    back = [event for event in log if event["event"] == "rollback"]
    page = None
    if arguments.html is not None:
        page = root.history_page if arguments.html == Path() else arguments.html
        _draw(page, root.absolute().path.name, nights, log)
    out = console.for_tables()
    if arguments.output == "json":
        runs = [dataclasses.asdict(n) | {"started": n.started.isoformat(timespec="seconds")} for n in nights]
        console.say(
            out, json.dumps({"exit_code": ExitCode.DONE, "runs": runs, "rollbacks": back, "page": page and str(page)})
        )
        return ExitCode.DONE
    out.print(_table(nights))
    for event in back:
        why = f": {event['why']}" if event["why"] else ""
        console.say(out, f"rollback  {event['time'][:16]} UTC, {event['from']} → {event['to']}, by {event['by']}{why}")
    if page:
        console.say(out, f"page      {page}")
    return ExitCode.DONE


def _draw(page: Path, pipeline: str, nights: list[events.Night], log: list[dict[str, Any]]) -> None:
    from edgeline.pipelines.records import history

    text = history.render(pipeline, nights, history.rollbacks(log))
    try:
        page.parent.mkdir(exist_ok=True)
        files.write_text(page, text)
    except OSError as error:
        raise UserError(f"{page} cannot be written: {error.strerror}; choose another file with --html") from None


def _table(nights: list[events.Night]) -> Table:
    metrics = {night.metric for night in nights if night.metric}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    right = ("exit", metric, "drop", "zlib bytes", "time")
    for name in ("started", "verdict", "selected", *right, "pushed, or why not"):
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for night in nights:
        cells = (
            f"{night.started.astimezone():%Y-%m-%d %H:%M}",
            night.verdict,
            night.selected or "",
            _written("{}", night.exit_code),
            _written("{:.4f}", night.value),
            _written("{:+.4f}", night.drop),
            _written("{:,}", night.zlib_bytes),
            "" if night.seconds is None else console.format_seconds(night.seconds),
            night.pushed or (night.why or "").partition("\n")[0].removesuffix(":"),
        )
        table.add_row(*map(Text, cells), style=_STYLES.get(night.verdict, ""))
    return table


def _written(style: str, value: float | None) -> str:
    return "" if value is None else style.format(value)
