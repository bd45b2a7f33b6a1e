"""The event log of a pipeline: `events.jsonl` in its root, one line of JSON per event, only ever appended to.

    {"time": "2026-01-31T01:30:00.123+00:00", "run": "20260131-023000-4f1c9a", "event": "started", ...}

Events of a run, in their order:

    started        command, host, pid, version (of Edgeline), data and module as they were given
    data           fingerprint, request (digests by which the next run knows them again), spans (or null), cache (see
                   `edgeline.pipelines.root.CACHE`)
    step           step, state (running, done, cached, failed or skipped), seconds, detail
    evaluated      metric, baseline, examples, candidates, blessed (how many), deployed (version, value, zlib_bytes,
                   more_metrics)
    selected       name, sha256, metric (of the budget, the first), value, drop, more_metrics (value and drop of the
                   others, by name), bytes, zlib_bytes; or
    none_selected  closest, and of that the same
    pushed         version, name; or
    not_pushed     why
    no_new_data    why
    finished       exit_code, seconds, error (null where there was none), mlmd_run (the run in ML Metadata)

The log of a run is `logs/<run>.log`. A run that has no `finished` is running or was killed. Events without a run:
`rollback` (from, to, by, why; written before the pointer moves) and `gc` (runs, kept, folders, logs, bytes). What a
killed run or rollback could not write, the next one does, with the time at which it happened: times need not ascend.
Nothing slow is imported: a run that is refused at once pays nothing for its line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import stat
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeline import files
from edgeline.errors import UserError
from edgeline.pipelines.exit_codes import STOPPED, ExitCode
from edgeline.pipelines.root import Root


def append(root: Root, event: str, run: str | None = None, /, **facts: Any) -> None:
    """Appends one event to a root's log, in one write; does nothing where there is no such folder.

    A log that cannot be written stops nothing: what is logged has happened, and matters more.
    """
    append_lines(root, [line({"time": now(), "run": run, "event": event, **facts})])


def line(event: dict[str, Any]) -> str:
    """Returns the line of an event; what UTF-8 does not hold, such as a part of a file's name, stands escaped there."""
    return json.dumps(event, ensure_ascii=False).encode(errors="backslashreplace").decode()


def now() -> str:
    """Returns the time in UTC, as events carry it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def append_lines(root: Root, lines: list[str]) -> None:
    """Appends lines to a root's log in one write; when it returns, they are on the disk to stay."""
    text = "".join(f"{line}\n" for line in lines).encode()
    with contextlib.suppress(OSError):
        is_new = not root.events.exists()
        descriptor = os.open(root.events, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            # a process that was killed while it wrote has left half a line: only that one is to be lost
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" + text if torn else text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            files.sync(root.path)


def read(root: Root) -> list[dict[str, Any]]:
    """Returns the events in a root's log, oldest first; lines that are cut off or are no events are left out.

    Raises:
      UserError: there is no log, or it cannot be read.
    """
    path = root.events
    try:
        # a reason may hold U+2028 and the like, at which `splitlines` splits too
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if _is_file(path) else []
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"there is no {path}, to which every run of a pipeline appends; give the root of a pipeline, the same as "
            "for `edgeline run --root`. Runs of earlier versions are listed by `edgeline runs`"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return list(_parsed(lines))


def _is_file(path: Path) -> bool:
    """Returns whether there is a file at a path, and raises where something else is: a device may have no end."""
    if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is no file, expected an event log; move it away, a new one is begun")
    return True


_TEXT, _MAYBE_TEXT = (str,), (str, types.NoneType)
_COUNT, _NUMBER, _MAYBE_NUMBER = (int,), (int, float), (int, float, types.NoneType)
_CHOSEN: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("metric", "sha256"), _MAYBE_TEXT),
    **dict.fromkeys(("value", "drop", "bytes", "zlib_bytes"), _MAYBE_NUMBER),
    "more_metrics": (dict, types.NoneType),
}
#: What events must hold to be read, by their names: fields and their types; one that may be None may be absent too.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "started": {"host": _MAYBE_TEXT, "pid": (int, types.NoneType), "version": _MAYBE_TEXT},
    "data": {"fingerprint": _MAYBE_TEXT, "request": _MAYBE_TEXT, "spans": (list, types.NoneType)},
    "step": {"step": _MAYBE_TEXT, "state": _MAYBE_TEXT},
    "evaluated": {
        "metric": _TEXT,
        **dict.fromkeys(("examples", "candidates", "blessed"), _COUNT),
        "deployed": (dict, types.NoneType),
    },
    "selected": {"name": _TEXT, **_CHOSEN},
    "none_selected": {"closest": _MAYBE_TEXT, **_CHOSEN},
    "pushed": {"version": _TEXT, "name": _MAYBE_TEXT},
    "not_pushed": {"why": _MAYBE_TEXT},
    "no_new_data": {"why": _MAYBE_TEXT},
    "finished": {"exit_code": _COUNT, "seconds": _NUMBER, "error": _MAYBE_TEXT, "mlmd_run": _MAYBE_TEXT},
    "rollback": {"from": _MAYBE_TEXT, **dict.fromkeys(("to", "by", "why"), _TEXT)},
}
#: No number in the log comes near it; neither NaN nor infinity is less.
_MOST = 1e18
_DEPLOYED: dict[str, tuple[type, ...]] = {
    "version": _TEXT, "value": _MAYBE_NUMBER, "zlib_bytes": _MAYBE_NUMBER, "more_metrics": (dict, types.NoneType)
}  # fmt: skip
_MORE_METRICS: dict[str, tuple[type, ...]] = {"value": _MAYBE_NUMBER, "drop": _MAYBE_NUMBER}


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for text in lines:
        with contextlib.suppress(ValueError, OverflowError, RecursionError):
            event = json.loads(text)
            if _is_event(event):
                if "\\u" in text:  # half a pair of surrogates, which no file and no terminal takes
                    event = json.loads(json.dumps(event, ensure_ascii=False).encode(errors="replace"))
                yield dict.fromkeys(_FIELDS.get(event["event"], {})) | event


def _is_event(event: Any) -> bool:
    """Returns whether a line holds an event: anybody may have written into the log, and no odd line may stop a run."""
    if not isinstance(event, dict) or not _has(event, {"time": _TEXT, "run": _MAYBE_TEXT, "event": _TEXT}):
        return False
    moment = datetime.datetime.fromisoformat(event["time"])
    if "run" not in event or moment.tzinfo is None:
        return False
    moment.astimezone().timestamp()  # raises where no clock can have shown it
    if not _has(event, _FIELDS.get(event["event"], {})):
        return False
    deployed = event.get("deployed") if event["event"] == "evaluated" else None
    more = (event if "more_metrics" in _FIELDS.get(event["event"], {}) else deployed or {}).get("more_metrics") or {}
    return (deployed is None or _has(deployed, _DEPLOYED)) and all(
        isinstance(numbers, dict) and _has(numbers, _MORE_METRICS) for numbers in more.values()
    )


def _has(content: dict[str, Any], fields: dict[str, tuple[type, ...]]) -> bool:
    values = ((content.get(name), kinds) for name, kinds in fields.items())
    return all(
        isinstance(value, kinds) and (not isinstance(value, int | float) or abs(value) < _MOST)
        for value, kinds in values
    )


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
      metric, value, drop, bytes, zlib_bytes: of that candidate; the metric is the first of the budget.
      more_metrics: value and drop by the others, by name; None likewise, and of older logs.
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
    more_metrics: dict[str, dict[str, float | None]] | None = None
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
        if event["run"] is not None and (event["event"] != "step" or event["state"] == "running"):
            by_run.setdefault(event["run"], {})[event["event"]] = event
    last = next(reversed(by_run), None)
    return [_night(run, events_of_run, run == last) for run, events_of_run in by_run.items()]


def _night(run: str, events: dict[str, dict[str, Any]], is_last: bool) -> Night:
    nothing: dict[str, Any] = {}
    finished, evaluated = events.get("finished", nothing), events.get("evaluated", nothing)
    chosen = events.get("selected") or events.get("none_selected") or nothing
    why = next((events[event]["why"] for event in ("no_new_data", "not_pushed") if event in events), None)
    verdict = _verdict(events, is_last)
    if verdict == "killed":
        step = f" while {events['step']['step']} ran" if "step" in events else ""
        why = f"it ended without a word{step}: it was killed, native code crashed, or the machine stopped"
    first = events.get("started") or next(iter(events.values()))
    return Night(
        run,
        datetime.datetime.fromisoformat(first["time"]),
        finished.get("seconds"),
        finished.get("exit_code"),
        verdict,
        chosen.get("name") or chosen.get("closest"),
        **{key: chosen.get(key) for key in ("metric", "value", "drop", "more_metrics", "bytes", "zlib_bytes")},
        **{key: evaluated.get(key) for key in ("examples", "candidates", "blessed")},
        pushed=events.get("pushed", nothing).get("version"),
        why=finished.get("error") or why,
        mlmd_run=finished.get("mlmd_run"),
    )


def _verdict(events: dict[str, dict[str, Any]], is_last: bool) -> str:
    if "finished" not in events:
        return "running" if is_last and is_running(events.get("started")) else "killed"
    code = events["finished"]["exit_code"]
    if code != ExitCode.DONE:
        return {
            ExitCode.NOTHING_FITS: "nothing fits",
            ExitCode.USERS_MISTAKE: "refused",
            **dict.fromkeys(STOPPED, "interrupted"),
        }.get(code, "failed")
    if "pushed" in events:
        return "pushed"
    return "no new data" if "no_new_data" in events else "not pushed"


def is_running(started: dict[str, Any] | None) -> bool:
    """Returns whether the process of a run, by its `started`, is still there; one on another machine is taken to be."""
    if started is None or started["pid"] is None:
        return False
    if started.get("host") != socket.gethostname():
        return True
    began = _began(started["pid"])
    # another process may have got the number since, in a container even every time
    return began is not None and began < datetime.datetime.fromisoformat(started["time"]).timestamp() + 5


def _began(pid: int) -> float | None:
    """Returns when a process on this machine began, in seconds since 1970; None where there is none of that number."""
    try:
        # the name, in brackets, may hold anything; the 20th word after it is the time since the machine started
        ticks = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
