"""The event log, what is read from it, and the metrics made of it."""

import datetime
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeline.errors import UserError
from edgeline.pipelines.cli import main
from edgeline.pipelines.records import events, prometheus
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.journal import Journal
from edgeline.pipelines.run.node_events import Event
from edgeline.report.report_file import parse

CANDIDATE = {
    "name": "int8",
    "metrics": {"accuracy": 0.96},
    "drop": 0.01,
    "bytes": 30,
    "zlib_bytes": 11,
    "blessed": True,
    "sha256": "abc",
    "reasons": ["accuracy drop 0.02 exceeds 0.01", "too slow"],
}


def outcome(
    selected: str | None = "int8",
    version: str | None = "1790000000",
    *,
    now: bool = True,
    mae: bool = False,
    **more: Any,
) -> SimpleNamespace:
    """What session.run returns, as far as the log reads it; judged by a second metric where `mae` is set."""
    content: dict[str, Any] = {
        **{"schema_version": 3, "created": "2026-11-22T02:00:00+00:00", "pipeline": "p", "module": "m"},
        **{"versions": {}, "machine": {}},
        "budget": {"metric": "accuracy", "direction": "max", "objective": "zlib_bytes"},
        "baseline": {"metrics": {"accuracy": 0.97}},
        "dataset": {"split": "eval", "examples": 173},
        "candidates": [CANDIDATE | {"name": "float16"}, CANDIDATE | {"blessed": selected is not None}],
        "selected": selected,
        "closest": None if selected else "int8",
        "deployed": {"version": "1780000000", "metrics": {"accuracy": 0.91}, "zlib_bytes": 22},
    }
    if mae:
        content["budget"]["more_metrics"] = [{"metric": "mae", "direction": "min", "max_drop": 0.5}]
        second = {"metrics": {"accuracy": 0.96, "mae": 1.5}, "more_drops": {"mae": {"drop": 0.25}}}
        content["candidates"] = [candidate | second for candidate in content["candidates"]]
        content["deployed"]["metrics"]["mae"] = 1.75
    pushed = Path("/srv/pushed", version, "model.tflite") if version else None
    report = parse(content, "the report")
    facts = {"failures": (), "report": report, "pushed": pushed, "not_pushed": None, "pushed_now": now, "run_id": "t"}
    return SimpleNamespace(**facts | more)


def night(root: Path, what: Any, code: int = 0) -> str:
    with Journal(Root(root), "run", data="data") as journal:
        journal.step(Event("Trainer", "waiting"))
        journal.step(Event("Trainer", "running"))
        journal.step(Event("Trainer", "done", 1.23456))
        if isinstance(what, BaseException):
            raise what
        journal.outcome(what)
        journal.exit_code = code
    return journal.run


def test_what_a_run_writes(tmp_path: Path) -> None:
    run = night(tmp_path, outcome())
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "started", "step", "step", "evaluated", "selected", "pushed", "finished",
    ]  # fmt: skip
    assert {line["run"] for line in lines} == {run}
    times = [datetime.datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert all(time.utcoffset() == datetime.timedelta(0) for time in times)
    started, running, done, evaluated, selected, pushed, finished = lines
    assert (started["command"], started["data"], started["pid"]) == ("run", "data", os.getpid())
    assert (running["step"], running["state"], done["state"], done["seconds"]) == ("Trainer", "running", "done", 1.235)
    assert (evaluated["examples"], evaluated["candidates"], evaluated["blessed"]) == (173, 2, 2)
    assert evaluated["deployed"] == {"version": "1780000000", "value": 0.91, "zlib_bytes": 22, "more_metrics": {}}
    assert (selected["name"], selected["value"], selected["zlib_bytes"]) == ("int8", 0.96, 11)
    assert selected["more_metrics"] == {}
    assert (pushed["version"], pushed["name"]) == ("1790000000", "int8")
    assert (finished["exit_code"], finished["error"], finished["mlmd_run"]) == (0, None, "t")


def test_ten_nights_make_ten_rows(tmp_path: Path) -> None:
    failure = SimpleNamespace(text="Trainer: no good", error=ValueError("no good"))
    night(tmp_path, outcome())
    night(tmp_path, outcome(now=False))
    night(tmp_path, outcome(version=None, not_pushed="qat8 is deployed"))
    night(tmp_path, outcome(None, None), 1)
    night(tmp_path, outcome(report=None, version=None, failures=(failure,)), 3)
    for error in (UserError("data/x.gz is damaged"), KeyboardInterrupt(), ValueError("bug")):
        with pytest.raises(type(error)):
            night(tmp_path, error)
    with Journal(Root(tmp_path), "run") as journal:
        journal.write("no_new_data", why="the data are those of the last run")
        journal.exit_code = 0
    Journal(Root(tmp_path), "run")  # begins and is never heard of again
    events.append(Root(tmp_path), "gc", folders=0)
    found = events.nights(events.read(Root(tmp_path)))
    assert [(n.verdict, n.exit_code, n.why) for n in found] == [
        ("pushed", 0, None),
        ("not pushed", 0, "version 1790000000, pushed earlier, is this model"),
        ("not pushed", 0, "qat8 is deployed"),
        ("nothing fits", 1, "no candidate met the budget; int8: accuracy drop 0.02 exceeds 0.01; too slow"),
        ("failed", 3, "Trainer: no good"),
        ("refused", 2, "data/x.gz is damaged"),
        ("interrupted", 130, "interrupted; finished steps are kept, run the same command again to go on"),
        ("failed", 3, "ValueError: bug"),
        ("no new data", 0, "the data are those of the last run"),
        ("running", None, None),  # this process is still there
    ]
    first, closest = found[0], found[3]
    assert (first.selected, first.metric, first.value, first.drop, first.bytes, first.zlib_bytes, first.pushed) == (
        "int8", "accuracy", 0.96, 0.01, 30, 11, "1790000000",
    )  # fmt: skip
    assert (closest.selected, closest.blessed, closest.pushed) == ("int8", 1, None)


def test_a_killed_run(tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from edgeline.pipelines.root import Root; "
    code += "from edgeline.pipelines.run.journal import Journal; "
    code += "Journal(Root(Path(sys.argv[1])), 'run'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    [only] = events.nights(events.read(Root(tmp_path)))
    assert (only.verdict, only.exit_code, only.seconds) == ("killed", None, None)
    night(tmp_path, outcome())
    assert [n.verdict for n in events.nights(events.read(Root(tmp_path)))] == ["killed", "pushed"]


def test_a_line_that_is_cut_off_costs_no_other(tmp_path: Path) -> None:
    night(tmp_path, outcome())
    whole = events.read(Root(tmp_path))
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026-11-2')
    assert events.read(Root(tmp_path)) == whole
    night(tmp_path, outcome())
    assert [n.verdict for n in events.nights(events.read(Root(tmp_path)))] == ["pushed", "pushed"]
    path.write_bytes(path.read_bytes() + b'\xff\n[1]\n{"a": 1}\n{"time": "x", "run": null, "event": "gc"}\n')
    assert len(events.read(Root(tmp_path))) == 2 * len(whole)


def test_two_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from edgeline.pipelines.records import events\n"
    code += "from edgeline.pipelines.root import Root\n"
    code += "for n in range(200): events.append(Root(Path(sys.argv[1])), 'gc', number=n, padding='x' * 500)"
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    numbers = [event["number"] for event in events.read(Root(tmp_path))]
    assert sorted(numbers) == sorted([*range(200), *range(200)])


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    night(tmp_path, outcome())
    prometheus.write(Root(tmp_path))
    with pytest.raises(UserError, match=r"events.jsonl cannot be read: Is a directory"):
        events.read(Root(tmp_path))


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*events.jsonl.*edgeline runs"):
        events.read(Root(tmp_path))


def test_refused_runs_leave_their_line(tmp_path: Path, tiny_module: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, data = tmp_path / "root", tmp_path / "data"
    run = ["run", "--module", str(tiny_module), "--data", str(data), "--root", str(root)]
    assert main.main([*run, "--recipe", "int9"]) == 2
    assert not root.exists()  # a mistake makes no folder
    root.mkdir()
    assert main.main([*run, "--recipe", "int9"]) == 2
    assert main.main([*run, "--recipe", "int8"]) == 2  # no data
    capfd.readouterr()
    found = events.nights(events.read(Root(root)))
    assert [(n.verdict, n.exit_code) for n in found] == [("refused", 2)] * 2
    assert "unknown recipe 'int9'" in str(found[0].why)
    assert str(data) in str(found[1].why)
    assert [path.stem for path in (root / "logs").iterdir()] == [found[1].run]
    assert 'edgeline_last_run_exit_code{pipeline="root"} 2\n' in (root / "metrics.prom").read_text()


#: The text format, as https://prometheus.io/docs/instrumenting/exposition_formats/ has it.
_SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (-?[\d.]+(?:e[+-]?\d+)?)')


def samples(text: str) -> dict[str, float]:
    """Reads an exposition of one metric strictly: HELP, TYPE and one sample for each name."""
    assert text.endswith("\n")
    lines = text.splitlines()
    found = {}
    for about, kind, line in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        match = _SAMPLE.fullmatch(line)
        assert match, line
        assert about.startswith(f"# HELP {match[1]} ")
        assert kind == f"# TYPE {match[1]} gauge"
        assert match[1] not in found
        found[match[1]] = float(match[3])
    return found


def deploy(root: Path, version: str) -> None:
    from edgeline.deployed import pointer_file

    folder = root / "pushed" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(b"one")
    sha256 = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    (folder / "metadata.json").write_text(json.dumps({"sha256": sha256, "inputs": [], "outputs": []}))
    pointer_file.point(str(root / "pushed"), version)


def test_metrics(tmp_path: Path) -> None:
    root = tmp_path / 'shop "north"'
    root.mkdir()
    deploy(root, "1790000000")
    night(root, outcome())
    prometheus.write(Root(root))
    text = (root / "metrics.prom").read_text()
    assert 'edgeline_deployed_metric{pipeline="shop \\"north\\"",metric="accuracy"} 0.96\n' in text
    found = samples(text)
    pushed = found.pop("edgeline_last_push_timestamp_seconds")
    ended = found.pop("edgeline_last_run_timestamp_seconds")
    assert 0 <= datetime.datetime.now(datetime.UTC).timestamp() - pushed < 60
    assert found.pop("edgeline_last_run_duration_seconds") < 60
    assert found == {
        "edgeline_last_run_exit_code": 0,
        "edgeline_deployed_metric": 0.96,
        "edgeline_deployed_zlib_bytes": 11,
        "edgeline_examples": 173,
        "edgeline_candidates": 2,
        "edgeline_candidates_blessed": 2,
    }
    # a run that fails changes what is said of runs, and nothing of the model
    with pytest.raises(UserError):
        night(root, UserError("no"))
    prometheus.write(Root(root))
    found = samples((root / "metrics.prom").read_text())
    assert (found["edgeline_last_run_exit_code"], found["edgeline_last_push_timestamp_seconds"]) == (2, pushed)
    assert found["edgeline_last_run_timestamp_seconds"] >= ended
    assert found["edgeline_deployed_metric"] == 0.96
    # after a rollback, what the last evaluation measured of the model that is back
    deploy(root, "1780000000")
    prometheus.write(Root(root))
    found = samples((root / "metrics.prom").read_text())
    assert (found["edgeline_deployed_metric"], found["edgeline_deployed_zlib_bytes"]) == (0.91, 22)
    assert [path.name for path in root.glob(".*")] == []


def test_several_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy(tmp_path, "1790000000")
    night(tmp_path, outcome(), 0)
    night(tmp_path, outcome(mae=True))
    log = events.read(Root(tmp_path))
    [evaluated] = [event for event in log if event["event"] == "evaluated"][1:]
    assert evaluated["deployed"]["more_metrics"] == {"mae": {"value": 1.75}}
    one, two = events.nights(log)
    assert (one.more_metrics, two.metric, two.value) == ({}, "accuracy", 0.96)
    assert two.more_metrics == {"mae": {"value": 1.5, "drop": 0.25}}
    prometheus.write(Root(tmp_path))
    text = (tmp_path / "metrics.prom").read_text()
    about = "edgeline_deployed_metric"
    assert [line for line in text.splitlines() if about in line] == [
        f"# HELP {about} The deployed model's metrics, as they were last measured.",
        f"# TYPE {about} gauge",
        f'{about}{{pipeline="{tmp_path.name}",metric="accuracy"}} 0.96',
        f'{about}{{pipeline="{tmp_path.name}",metric="mae"}} 1.5',
    ]
    capsys.readouterr()
    assert main.main(["history", str(tmp_path), "--html"]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[2:] for line in out.splitlines() if line.strip().startswith("20")]
    assert [row[:6] for row in rows] == [
        ["pushed", "int8", "0", "0.9600", "+0.0100", "11"],
        ["pushed", "int8", "0", "0.9600", "+0.0100", "1.5000"],
    ]
    assert '<th scope="col" class="number">mae</th>' in (tmp_path / "report" / "history.html").read_text()
    # what anybody may have written there costs its line, and no more
    odd = json.dumps(log[-2] | {"event": "selected", "name": "x", "more_metrics": {"mae": {"value": "much"}}})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(odd + "\n")
    assert len(events.read(Root(tmp_path))) == len(log)


def test_another_machine_may_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name: Callable[[], str] = lambda: "elsewhere"  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(socket, "gethostname", name)
        Journal(Root(tmp_path), "run")
    assert [n.verdict for n in events.nights(events.read(Root(tmp_path)))] == ["running"]
