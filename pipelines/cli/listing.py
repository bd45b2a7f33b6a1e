"""`edgeline recipes`, and what is known of a pipeline's runs: `runs`, `lineage` and `history`."""

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
from edgeline.pipelines import console, recipes
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events
from edgeline.pipelines.root import DEFAULT_ROOT, Root

_VERDICT_STYLES = {"pushed": "green", "nothing fits": "yellow", "refused": "red", "failed": "red", "killed": "red"}


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `recipes`, `runs`, `lineage` and `history` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    listing = commands.add_parser("recipes", parents=[common])
    options.add_recipes_file(listing)
    listing.set_defaults(command=_recipes)

    runs = commands.add_parser("runs", parents=[common])
    runs.add_argument("--root", type=options.root, default=DEFAULT_ROOT, help="(default: %(default)s)")
    runs.set_defaults(command=_runs)

    lineage = commands.add_parser("lineage", parents=[common])
    lineage.add_argument(
        "target", metavar="FILE.tflite|ARTIFACT_ID", help="matched by its SHA-256, or by its id in the metadata"
    )
    lineage.add_argument(
        "--root", type=options.root, help="of the pipeline (default: found above FILE, else runs/digits)"
    )
    lineage.set_defaults(command=_lineage)

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


def _recipes(arguments: argparse.Namespace) -> int:
    table = Table("recipe", "steps", "what for")
    known = recipes.catalog(arguments.recipes_file)
    for name, recipe in known.recipes.items():
        marked = f"{name} *" if name in known.default else name
        table.add_row(marked, " → ".join(step.token for step in recipe.steps), known.descriptions[name])
    shown = Console()
    shown.print(table)
    shown.print("* made by `edgeline run` where no --recipe is given")
    shown.print("Each recipe that ends with int8 or qat8 exists with int8 inputs and outputs too: NAME_io")
    return ExitCode.DONE


def _runs(arguments: argparse.Namespace) -> int:
    from edgeline.pipelines.records import lineage

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("run", "started", "seconds", "steps", "cached", "failed"):
        table.add_column(name, justify="left" if name in ("run", "started") else "right", no_wrap=True)
    table.add_column("selected", overflow="fold")
    for entry in lineage.runs(arguments.root):
        cells = dataclasses.asdict(entry) | {
            "started": f"{entry.started:%Y-%m-%d %H:%M}",
            "seconds": f"{entry.seconds:.1f}",
            "selected": entry.selected or "",
        }
        table.add_row(*map(str, cells.values()))
    console.for_tables().print(table)
    return ExitCode.DONE


def _lineage(arguments: argparse.Namespace) -> int:
    from edgeline.pipelines.records import lineage

    tree = lineage.render(lineage.trace(arguments.target, arguments.root))
    # what reads a pipe wants whole paths and digests
    console.for_tables().print(tree)
    return ExitCode.DONE


def _history(arguments: argparse.Namespace) -> int:
    root: Root = arguments.root
    log = events.read(root)
    nights = events.nights(log)
    back = [event for event in log if event["event"] == "rollback"]
    page = None
    if arguments.html is not None:
        page = root.history_page if arguments.html == Path() else arguments.html
        _draw_history(page, root.absolute().path.name, nights, log)
    out = console.for_tables()
    if arguments.output == "json":
        runs = [dataclasses.asdict(n) | {"started": n.started.isoformat(timespec="seconds")} for n in nights]
        console.say(
            out, json.dumps({"exit_code": ExitCode.DONE, "runs": runs, "rollbacks": back, "page": page and str(page)})
        )
        return ExitCode.DONE
    out.print(_history_table(nights))
    for event in back:
        why = f": {event['why']}" if event["why"] else ""
        console.say(out, f"rollback  {event['time'][:16]} UTC, {event['from']} → {event['to']}, by {event['by']}{why}")
    if page:
        console.say(out, f"page      {page}")
    return ExitCode.DONE


def _draw_history(page: Path, pipeline: str, nights: list[events.Night], log: list[dict[str, Any]]) -> None:
    from edgeline.pipelines.records import history

    text = history.render(pipeline, nights, history.rollbacks(log))
    try:
        page.parent.mkdir(exist_ok=True)
        files.write_text(page, text)
    except OSError as error:
        raise UserError(f"{page} cannot be written: {error.strerror}; choose another file with --html") from None


def _history_table(nights: list[events.Night]) -> Table:
    metrics = {night.metric for night in nights if night.metric}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    more = list(dict.fromkeys(name for night in nights for name in night.more_metrics or ()))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    numbers = ("exit", metric, "drop", *(title for name in more for title in (name, "drop")), "zlib bytes", "time")
    for name in ("started", "verdict", "selected", *numbers, "pushed, or why not"):
        table.add_column(Text(name), justify="right" if name in numbers else "left", overflow="fold")
    for night in nights:
        others = [(night.more_metrics or {}).get(name, {}) for name in more]
        cells = (
            f"{night.started.astimezone():%Y-%m-%d %H:%M}",
            night.verdict,
            night.selected or "",
            _written("{}", night.exit_code),
            _written("{:.4f}", night.value),
            _written("{:+.4f}", night.drop),
            *(
                _written(style, other.get(key))
                for other in others
                for style, key in (("{:.4f}", "value"), ("{:+.4f}", "drop"))
            ),
            _written("{:,}", night.zlib_bytes),
            "" if night.seconds is None else console.format_seconds(night.seconds),
            night.pushed or (night.why or "").partition("\n")[0].removesuffix(":"),
        )
        table.add_row(*map(Text, cells), style=_VERDICT_STYLES.get(night.verdict, ""))
    return table


def _written(style: str, value: float | None) -> str:
    return "" if value is None else style.format(value)
