"""What a killed command has left half done in a pipeline's root: the next one finishes or removes it."""

from __future__ import annotations

import contextlib
import datetime
from typing import Any

from edgeline import files
from edgeline.deployed import pointer_file, transaction, versions
from edgeline.deployed.versions import Rollback
from edgeline.errors import UserError
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root


def recover(root: Root) -> None:
    """Finishes a rollback, writes what the event log lacks of pushes and rollbacks, and removes what nobody will use.

    It stops nothing: what cannot be written now is met again by whoever needs it, who says so.
    """
    if not root.path.is_dir():
        return
    with contextlib.suppress(OSError, UserError):
        with transaction.held(str(root.pushed)):
            versions.finish_rollback(str(root.pushed), lambda rollback: log_rollback(root, rollback))
            _log_push(root)
        written = (root.path, root.artifacts, root.report, root.schemas, root.last_statistics)
        for folder in (*written, root.data_checked("").parent):
            files.remove_abandoned(folder)


def log_rollback(root: Root, rollback: Rollback) -> None:
    """Appends the event of a rollback, with the time at which it was asked for, unless it is there."""
    told = {event["time"] for event in _events(root) if event["event"] == "rollback"}
    if rollback.at not in told:
        facts = {"from": rollback.left, "to": rollback.to, "by": rollback.by, "why": rollback.why}
        events.append(root, "rollback", **facts, time=rollback.at)


def _log_push(root: Root) -> None:
    """Appends the `pushed` event of a run that was killed between the pointer's move and its line."""
    pointer, log = pointer_file.path_of(str(root.pushed)), _events(root)
    version, pushed_at = pointer.get("version"), pointer.get("pushed_at")
    told = {event.get("version") for event in log if event["event"] == "pushed"}
    told |= {event.get("to") for event in log if event["event"] == "rollback"}
    if not log or version is None or pushed_at is None or version in told:
        return
    # the pointer's time has whole seconds
    until = datetime.datetime.fromisoformat(pushed_at) + datetime.timedelta(seconds=1)
    started = [e for e in log if e["event"] == "started" and datetime.datetime.fromisoformat(e["time"]) < until]
    ended = {event["run"] for event in log if event["event"] == "finished"}
    run = started[-1]["run"] if started and started[-1]["run"] not in ended else None
    if run is None or not events.is_running(started[-1]):  # one that is at work says so itself
        events.append(root, "pushed", run, version=version, name=pointer.get("name"), time=pushed_at)


def _events(root: Root) -> list[dict[str, Any]]:
    with contextlib.suppress(UserError):
        return events.read(root)
    return []
