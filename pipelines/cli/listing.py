"""`edgeline recipes`, `runs` and `lineage`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeline.pipelines import console, recipes
from edgeline.pipelines.cli import options
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.root import DEFAULT_ROOT


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `recipes`, `runs` and `lineage` to the commands of `edgeline`.

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

    found = lineage.render(lineage.trace(arguments.target, arguments.root))
    # what reads a pipe wants whole paths and digests
    console.for_tables().print(found)
    return ExitCode.DONE
