"""`edgeline gc`: deletes what old runs have left behind and nothing needs any more."""

from __future__ import annotations

import argparse
import json
from typing import Any

from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `gc` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    gc = commands.add_parser(
        "gc",
        parents=[common],
        description=(
            "Delete the artifacts and logs of old runs. Kept is all that the last N runs made or were served from the\n"
            "cache, all that a model in pushed/ or a blessed one was made of, back to the data, and the reports on\n"
            "these. What is deleted stays in the metadata, marked so; a later run makes it anew where it needs it."
        ),
        epilog="exit codes: 0 done, 2 the root is none, a run is working there, or something cannot be deleted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gc.set_defaults(command=_gc)
    gc.add_argument("root", type=options.root, metavar="ROOT", help="of the pipeline")
    gc.add_argument("--keep", type=int, required=True, metavar="N", help="so many of the last runs keep everything")
    gc.add_argument(
        "--forget-blessed",
        action="store_true",
        help="keep only what models in pushed/ were made of, not what every model was that once met the budget",
    )
    gc.add_argument("--dry-run", action="store_true", help="delete nothing, say what would be")
    options.add_output(gc)


def _gc(arguments: argparse.Namespace) -> int:
    if arguments.keep < 1:
        raise UserError(f"--keep must be at least 1, received {arguments.keep}")
    from edgeline.pipelines.records import cleaning

    root, dry = arguments.root, arguments.dry_run
    garbage = (cleaning.find if dry else cleaning.delete)(root, arguments.keep, forget_blessed=arguments.forget_blessed)
    counts = {"folders": len(garbage.folders), "logs": len(garbage.logs), "bytes": garbage.bytes}
    if not dry:
        events.append(root, "gc", runs=garbage.runs, kept=garbage.kept, **counts)
    out = console.for_tables()
    if arguments.output == "json":
        paths = [str(path) for path in (*garbage.folders, *garbage.logs)]
        facts = {
            "exit_code": ExitCode.DONE,
            "dry_run": dry,
            "runs": garbage.runs,
            "kept": garbage.kept,
            **counts,
            "paths": paths,
        }
        console.say(out, json.dumps(facts))
        return ExitCode.DONE
    if dry:
        for path in (*garbage.folders, *garbage.logs):
            console.say(out, str(path))
    console.say(
        out,
        f"{'would free' if dry else 'freed'} {garbage.bytes:,} bytes: {counts['folders']} folders of artifacts and "
        f"{counts['logs']} logs; {garbage.kept} of {garbage.runs} runs are kept whole",
    )
    return ExitCode.DONE
