"""`edgeline verify`: whether an exported model still is what was exported, and does what it did."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgeline import layout
from edgeline.conversion import verification
from edgeline.errors import UserError
from edgeline.isolation import limits
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.exit_codes import ExitCode


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `verify` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    verify = commands.add_parser(
        "verify",
        parents=[common],
        description=(
            "Check a model against the files beside it: SHA-256, size and ports against metadata.json, labels.txt,\n"
            "what passport.json promises of its weights, and what it makes of golden.npz, in a process of its own."
        ),
        epilog="exit codes: 0 it is what was exported, 2 something differs, is missing or damaged",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.set_defaults(command=_verify)
    verify.add_argument(
        "path", type=Path, metavar="FILE_OR_FOLDER", help="a .tflite file with its bundle beside it, or the folder"
    )
    options.add_memory_limit(verify)
    options.add_output(verify)


def _verify(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    if not path.exists():
        raise UserError(f"{path} does not exist; give a .tflite file or the folder that it was exported to")
    model = path / layout.TFLITE_FILE if path.is_dir() else path
    if not model.is_file():
        inside = sorted(path.glob(f"*/{layout.TFLITE_FILE}")) if path.is_dir() else []
        hint = f"give {inside[-1].parent}" if inside else "give the folder that a model was exported to"
        raise UserError(f"there is no {model}; {hint}")
    with limits.memory(arguments.memory_limit):
        checks = verification.check(model)
    differences = [f"{name}: {text}" for name, found in checks.items() for text in found["differences"]]
    code = ExitCode.USERS_MISTAKE if differences else ExitCode.DONE
    out = console.for_tables()
    if arguments.output == "json":
        console.say(
            out, json.dumps({"exit_code": code, "file": str(model), "differences": differences, "checks": checks})
        )
        return code
    for name, found in checks.items():
        for text in found["differences"]:
            console.say(out, f"✗ {name}: {text}", "red")
        if not found["differences"]:
            console.say(out, f"✓ {name}: {found['found']}", "green" if found["checked"] else "yellow")
    console.say(out, f"{model} {'differs from what was exported' if differences else 'is what was exported'}", "bold")
    return code
