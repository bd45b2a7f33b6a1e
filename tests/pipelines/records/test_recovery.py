"""What a killed run or command has left is finished, told of, or removed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeline.deployed import pointer_file
from edgeline.pipelines.records import events, prometheus, recovery
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import journal

VERSION = "1790000000"


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A pipeline whose run `n1` has pushed a version, and has not told of it."""
    folder = tmp_path / "pushed" / VERSION
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(b"one")
    metadata = {"sha256": hashlib.sha256(b"one").hexdigest(), "inputs": [], "outputs": []}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    pointer_file.point(str(tmp_path / "pushed"), VERSION, "int8")
    pointer = json.loads((tmp_path / "pushed" / "latest.json").read_text())
    pointer["pushed_at"] = "2026-11-26T02:00:59+00:00"
    (tmp_path / "pushed" / "latest.json").write_text(json.dumps(pointer))
    return Root(tmp_path)


def begin(root: Root, run: str, pid: int, time: str = "2026-11-26T02:00:00.000+00:00", **ended: Any) -> None:
    events.append(root, "started", run, time=time, pid=pid, host=socket.gethostname())
    numbers = {"metric": "accuracy", "value": 0.9, "drop": 0.0, "bytes": 3, "zlib_bytes": 11}
    events.append(root, "selected", run, time=time, name="int8", **numbers)
    if ended:
        events.append(root, "finished", run, time=time, seconds=1.0, error=None, mlmd_run=None, **ended)


def pushes(root: Root) -> list[tuple[Any, ...]]:
    return [(e["run"], e["version"], e["name"], e["time"]) for e in events.read(root) if e["event"] == "pushed"]


def test_a_push_that_its_run_could_not_tell_of(root: Root, dead: int) -> None:
    begin(root, "n0", dead, exit_code=0)
    begin(root, "n1", dead)
    begin(root, "n2", dead, time="2026-11-26T03:00:00.000+00:00", exit_code=2)
    for _ in range(2):
        with journal.recorded(root, "run"):
            pass
        assert pushes(root) == [("n1", VERSION, "int8", "2026-11-26T02:00:59+00:00")]
    nights = {night.run: night for night in events.nights(events.read(root))}
    assert (nights["n1"].verdict, nights["n1"].pushed) == ("killed", VERSION)
    metrics = root.metrics.read_text()
    assert "edgeline_last_push_timestamp_seconds" in metrics
    assert 'edgeline_deployed_metric{pipeline="' in metrics


def test_a_push_of_nobody_knows_whom(root: Root, dead: int) -> None:
    begin(root, "n1", dead, exit_code=0)
    recovery.recover(root)
    assert pushes(root) == [(None, VERSION, "int8", "2026-11-26T02:00:59+00:00")]
    prometheus.write(root)
    assert "edgeline_last_push_timestamp_seconds" in root.metrics.read_text()


def test_a_run_that_is_at_work_tells_for_itself(root: Root) -> None:
    begin(root, "n1", os.getpid(), time=events.now())
    pointer = json.loads((root.pushed / "latest.json").read_text())
    (root.pushed / "latest.json").write_text(json.dumps({**pointer, "pushed_at": events.now()}))
    recovery.recover(root)
    assert pushes(root) == []


def test_what_is_told_is_not_told_again(root: Root, dead: int) -> None:
    events.append(root, "rollback", **{"from": "1", "to": VERSION, "by": "ann", "why": ""})
    begin(root, "n1", dead)
    before = root.events.read_bytes()
    recovery.recover(root)
    assert root.events.read_bytes() == before


def test_no_log_is_begun_by_it(root: Root, tmp_path: Path) -> None:
    recovery.recover(root)
    assert not root.events.exists()
    recovery.recover(Root(tmp_path / "missing"))
    assert not (tmp_path / "missing").exists()


def test_left_overs_are_removed(root: Root) -> None:
    root.report.mkdir()
    written = (
        (root.path, "metrics.prom"), (root.report, "report.html"), (root.pushed, "latest.json"),
        (root.artifacts, ".published.json"),
    )  # fmt: skip
    left = [root.path / "pushed" / ".pushing-1", *(folder / f".{name}.{'0' * 32}" for folder, name in written)]
    for path in left:
        path.mkdir(parents=True)
    recovery.recover(root)
    assert not any(path.exists() for path in left)
    assert {path.name for path in root.pushed.iterdir()} == {".lock", VERSION, "latest.json"}
