"""`edgeline push`: which versions of a model are there, and back to an earlier one."""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import posixpath
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from edgeline import layout
from edgeline.deployed import pointer_file, versions
from edgeline.deployed.versions import Rollback, Version
from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events, prometheus, recovery
from edgeline.pipelines.root import Root


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `push` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    push = commands.add_parser(
        "push",
        parents=[common],
        description=(
            "List the versions of a model that were pushed, or point latest.json at another one. The version that is\n"
            "left for an earlier one is withdrawn: no run pushes its file again, until a rollback names it. One\n"
            "that was killed is finished by the same command again."
        ),
        epilog="exit codes: 0 done, 2 there is no such version, or it is not whole, 3 which is deployed is not known",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    push.set_defaults(command=_push)
    where = push.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", type=options.root, help="of the pipeline; its folder `pushed` is meant")
    where.add_argument("--pushed", metavar="PATH", help="a folder that models are pushed to: a path, gs://, ...")
    what = push.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="list the versions; reads every model")
    what.add_argument(
        "--rollback",
        nargs="?",
        const="",
        metavar="VERSION",
        help="deploy this version (default: the latest whole one before the deployed one that is another model)",
    )
    push.add_argument("--why", default="", metavar="TEXT", help="the reason, which is kept with the rollback")
    push.add_argument("--by", metavar="NAME", help="who does it (default: this user)")
    options.add_output(push)


def _push(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for flag in ("why", "by"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag} is for --rollback, which --list is not")
    push_to = arguments.pushed or str(arguments.root.pushed)
    if arguments.root is not None and not arguments.root.path.is_dir():
        raise UserError(f"--root {arguments.root} does not exist; give the folder of a pipeline")
    return _list(arguments, push_to) if arguments.list else _roll_back(arguments, push_to)


def _names(root: Root | None) -> dict[str, str]:
    """Returns the candidates' names by version, as far as the event log of the root knows them."""
    if root is None or not root.events.exists():
        return {}
    return {e["version"]: e["name"] for e in events.read(root) if e["event"] == "pushed" and e["name"]}


def _list(arguments: argparse.Namespace, push_to: str) -> int:
    names, found = _names(arguments.root), versions.versions(push_to)
    code, problem = ExitCode.DONE, None
    try:
        pointer_file.latest(push_to)
    except UserError as error:  # it is not known which one is deployed
        code, problem = ExitCode.STEP_FAILED, str(error)
        console.say(Console(stderr=True), f"edgeline: {problem}", "red")
    entries = [
        {
            "version": version.version,
            "name": (version.withdrawn or {}).get("name") or names.get(version.version),
            "sha256": version.sha256,
            "bytes": version.bytes,
            "pushed_at": version.pushed_at.isoformat(timespec="seconds"),
            "current": version.current,
            "problem": version.problem,
            "withdrawn": version.withdrawn,
        }
        for version in found
    ]
    out = console.for_tables()
    if arguments.output == "json":
        listing = {"exit_code": code, "pushed": push_to, "versions": entries, "problem": problem}
        console.say(out, json.dumps(listing))
        return code
    if not entries:
        console.say(out, f"{push_to} has no versions")
        return code
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("version", "candidate", "sha256", "bytes", "pushed", "state"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for version, entry in zip(found, entries, strict=True):
        state, style = _state(version)
        cells = (
            version.version,
            str(entry["name"] or ""),
            (version.sha256 or "")[:12],
            "" if version.bytes is None else f"{version.bytes:,}",
            f"{version.pushed_at.astimezone():%Y-%m-%d %H:%M}",
            state,
        )
        table.add_row(*map(Text, cells), style=style)
    out.print(table)
    return code


def _state(version: Version) -> tuple[str, str]:
    """Returns what to say of a version, and the style to say it in."""
    current = "deployed" if version.current else ""
    if version.problem:
        return ", ".join(filter(None, (current, version.problem))), "red"
    if version.withdrawn:
        gone = version.withdrawn
        text = f"rolled back {gone['at'][:10]} by {gone['by']}" + (f": {gone['why']}" if gone["why"] else "")
        return ", ".join(filter(None, (current, text))), "yellow"
    return current, "bold green" if version.current else ""


def _roll_back(arguments: argparse.Namespace, push_to: str) -> int:
    root, by, out = arguments.root, arguments.by or _user(), console.for_tables()

    def log(rollback: Rollback) -> None:
        if root is not None:
            recovery.log_rollback(root, rollback)

    if root is not None:
        recovery.recover(root)  # a push that is not logged would be forgotten with the pointer
    with versions.rolled_back(
        push_to, arguments.rollback or None, by=by, why=arguments.why, names=_names(root), log=log
    ) as done:
        if root is not None:
            prometheus.write(root)
        facts = {"from": done.left, "to": done.to, "by": done.by, "why": done.why, "resumed": done.resumed}
        if arguments.output == "json":
            console.say(out, json.dumps({"exit_code": ExitCode.DONE, "pushed": push_to, **facts}))
            return ExitCode.DONE
        console.say(out, f"deployed  {posixpath.join(push_to, done.to, layout.TFLITE_FILE)}")
        if done.left:
            console.say(out, f"before    {done.left}")
        if done.resumed:
            begun = datetime.datetime.fromisoformat(done.at).astimezone()
            text = f"finished  the rollback that {done.by} had begun at {begun:%Y-%m-%d %H:%M}; no other was made"
            console.say(out, text, "yellow")
    return ExitCode.DONE


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
