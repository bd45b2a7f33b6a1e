"""The event log of a pipeline: `events.jsonl` in its root, one line of JSON per event, only ever appended to.

    {"time": "2026-01-31T01:30:00.123+00:00", "run": "20260131-023000-4f1c9a", "event": "started", ...}

Events of a run, in their order:

    started        command, host, pid, version (of Edgeline), data and module as they were given
    data           fingerprint, request (digests by which the next run knows them again), spans (or null), cache (see
                   `edgeline.pipelines.root.CACHE`)
    step           step, state (running, done, cached, failed or skipped), seconds, detail
    evaluated      metric, baseline, examples, candidates, blessed (how many), deployed (version, value, zlib_bytes)
    selected       name, sha256, value (of the metric), drop, bytes, zlib_bytes; or
    none_selected  closest, and of that the same
    pushed         version, name; or
    not_pushed     why
    no_new_data    why
    finished       exit_code, seconds, error (null where there was none), mlmd_run (the run in ML Metadata)

The log of a run is `logs/<run>.log`. A run that has no `finished` is running or was killed. Events without a run:
`rollback` (from, to, by, why) and `gc` (runs, kept, folders, logs, bytes). Standard library only: a run that is refused
at once pays nothing for its line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from edgeline.errors import UserError
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.root import Root


def append(root: Root, event: str, run: str | None = None, /, **facts: Any) -> None:
    """Appends one event to a root's log, in one write; does nothing where there is no such folder.

    A log that cannot be written stops nothing: what is logged has happened, and matters more.
    """
    line = json.dumps({"time": now(), "run": run, "event": event, **facts}, ensure_ascii=False)
    append_lines(root, [line])


def now() -> str:
    """Returns the time in UTC, as events carry it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def append_lines(root: Root, lines: list[str]) -> None:
    """Appends lines to a root's log in one write."""
    text = "".join(f"{line}\n" for line in lines).encode()
    with contextlib.suppress(OSError):
        descriptor = os.open(root.events, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            # a process that was killed while it wrote has left half a line: only that one is to be lost
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" + text if torn else text)
        finally:
            os.close(descriptor)


def read(root: Root) -> list[dict[str, Any]]:
    """Returns the events in a root's log, oldest first; lines that are cut off or are no events are left out.

    Raises:
      UserError: there is no log, or it cannot be read.
    """
    path = root.events
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"there is no {path}, to which every run of a pipeline appends; give the root of a pipeline, the same as "
            "for `edgeline run --root`. Runs of earlier versions are listed by `edgeline runs`"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return list(_parsed(lines))


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"time", "run", "event"} <= event.keys():
                datetime.datetime.fromisoformat(event["time"])
                yield event


@dataclasses.dataclass(frozen=True)
class Night:
    """One run, as the log tells it.

    Attributes:
      run: its id; its log is `logs/<run>.log`.
      started: UTC.
      seconds: how long it took; None while it runs, and where it was killed.
      exit_code: None likewise.
      verdict: in a few words, such as `pushed` or `refused`.
      selected: the candidate that was selected, or came closest; None without an evaluation.
      metric, value, drop, bytes, zlib_bytes: of that candidate.
      examples: of the eval split.
      candidates: how many were made.
      blessed: how many of these met the budget.
      pushed: the version that it pushed.
      why: why it pushed nothing.
      mlmd_run: the run in ML Metadata.
    """

    run: str
    started: datetime.datetime
    seconds: float | None
    exit_code: int | None
    verdict: str
    selected: str | None = None
    metric: str | None = None
    value: float | None = None
    drop: float | None = None
    bytes: int | None = None
    zlib_bytes: int | None = None
    examples: int | None = None
    candidates: int | None = None
    blessed: int | None = None
    pushed: str | None = None
    why: str | None = None
    mlmd_run: str | None = None


def nights(events: list[dict[str, Any]]) -> list[Night]:
    """Returns the runs of a log, oldest first."""
    by_run: dict[str, dict[str, dict[str, Any]]] = {}
    for event in events:
        if event["run"] is not None and event["event"] != "step":
            by_run.setdefault(event["run"], {})[event["event"]] = event
    last = next(reversed(by_run), None)
    return [_night(run, events_of_run, run == last) for run, events_of_run in by_run.items()]


def _night(run: str, events: dict[str, dict[str, Any]], is_last: bool) -> Night:
    nothing: dict[str, Any] = {}
    finished, evaluated = events.get("finished", nothing), events.get("evaluated", nothing)
    chosen = events.get("selected") or events.get("none_selected") or nothing
    why = next((events[event]["why"] for event in ("no_new_data", "not_pushed") if event in events), None)
    first = events.get("started") or next(iter(events.values()))
    return Night(
        run,
        datetime.datetime.fromisoformat(first["time"]),
        finished.get("seconds"),
        finished.get("exit_code"),
        _verdict(events, is_last),
        chosen.get("name") or chosen.get("closest"),
        **{key: chosen.get(key) for key in ("metric", "value", "drop", "bytes", "zlib_bytes")},
        **{key: evaluated.get(key) for key in ("examples", "candidates", "blessed")},
        pushed=events.get("pushed", nothing).get("version"),
        why=finished.get("error") or why,
        mlmd_run=finished.get("mlmd_run"),
    )


def _verdict(events: dict[str, dict[str, Any]], is_last: bool) -> str:
    if "finished" not in events:
        return "running" if is_last and _runs(events.get("started")) else "killed"
    code = events["finished"]["exit_code"]
    if code != ExitCode.DONE:
        return {
            ExitCode.NOTHING_FITS: "nothing fits",
            ExitCode.USERS_MISTAKE: "refused",
            ExitCode.INTERRUPTED: "interrupted",
        }.get(code, "failed")
    if "pushed" in events:
        return "pushed"
    return "no new data" if "no_new_data" in events else "not pushed"


def _runs(started: dict[str, Any] | None) -> bool:
    """Whether the process of a run is still there; one on another machine is taken to be."""
    if started is None:
        return False
    if started.get("host") != socket.gethostname():
        return True
    try:
        os.kill(started["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True
