"""What a run is asked to do: the request that the command line builds, and Python in a few lines."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeline.budget import Budget
from edgeline.config import FineTuning
from edgeline.data_gate.config import Gate
from edgeline.errors import UserError
from edgeline.evaluator.config import Evaluation
from edgeline.pipelines import recipes
from edgeline.pipelines.cli import main, run
from edgeline.pipelines.records import events
from edgeline.pipelines.root import CACHE, Root
from edgeline.pipelines.run import execution
from edgeline.pipelines.run.journal import Journal, recorded
from edgeline.pipelines.run.live_view import LiveView
from edgeline.pipelines.run.request import DIGITS_MODULE, Request, prepare
from edgeline.trainer.config import Train


def asked_for(*words: str) -> Request:
    arguments = main.parser([words[0]]).parse_args(words)
    return run._request(arguments, run._root(arguments))


def test_a_command_without_options_asks_what_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, plain = asked_for("run"), Request(Root(tmp_path / "runs" / "digits"))
    assert [recipe.name for recipe in given.recipes] == list(recipes.DEFAULT)
    assert dataclasses.replace(given, recipes=()) == plain
    assert prepare(given).digest == prepare(plain).digest


def test_a_command_and_python_ask_the_same(tmp_path: Path) -> None:
    given = asked_for(
        *("run", "--root", f"{tmp_path}/root", "--module", "m.py", "--data", "day-{SPAN}", "--recipe", "int8"),
        *("--epochs", "3", "--finetune-epochs", "1", "--max-drop", "0.5", "--check-keras", "--window", "2"),
        *("--schema", "s.pbtxt", "--max-drift", "0.5", "--warm-start", "latest", "--no-cache", "--only-new-data"),
        *("--memory-limit", "6.5"),
    )
    assert given == Request(
        Root(tmp_path / "root"), "m.py", Path("day-{SPAN}"), (recipes.int8(),),
        train=Train(epochs=3), finetune=FineTuning(epochs=1), budget=Budget(max_drop=0.5),
        evaluation=Evaluation(check_keras=True), gate=Gate(max_drift=0.5), warm_start="latest", window=2,
        schema=Path("s.pbtxt"), only_new_data=True, use_cache=False, memory_limit=6.5,
    )  # fmt: skip


def test_what_a_request_becomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(Request(Root(Path("root")), budget=Budget(target="micro"), warm_start="latest"))
    assert prepared.request.root == Root(tmp_path / "root")
    assert prepared.job.module.reference == DIGITS_MODULE
    assert [recipe.name for recipe in prepared.job.recipes][:2] == ["int8_io", "qat8_io"]
    assert prepared.job.export.one_example  # as the target has no open sizes
    assert prepared.job.gate.last_statistics == f"{tmp_path}/root/last_statistics"
    assert prepared.job.train.warm_start == "latest"  # what it means is known when the run begins
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": "edgeline.none", "data": Path("data")}, "edgeline.none"),
        ({"module": "edgeline.recipe"}, "--module needs --data"),
        ({"memory_limit": 1.0}, "the memory limit must be at least 4 GiB, received 1"),
        ({"data": Path("day-{SPN}")}, "did you mean {SPAN}?"),
        ({"window": 3}, "--window needs spans"),
        ({"gate": Gate(max_drift=0.5)}, "give --schema"),
        ({"budget": Budget(target="micro"), "recipes": (recipes.float16(),)}, "target micro takes integers only"),
        ({"warm_start": Path("none.keras")}, "none.keras does not exist"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(Request(Root(tmp_path / "root"), **changes))
    assert not (tmp_path / "root").exists()


def begun(root: Root, **facts: Any) -> None:
    with Journal(root, "run") as journal:
        journal.write("data", fingerprint="f", request="r", spans=None, **facts)


def test_a_cache_that_starts_anew_is_said_once(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert execution._why_cache_starts_anew(root) is None  # there was no run
    root.metadata_db.touch()
    assert "starts anew" in str(execution._why_cache_starts_anew(root))  # of a version that wrote no events
    begun(root, cache=CACHE)
    assert execution._why_cache_starts_anew(root) is None
    begun(root)
    [version] = {event["version"] for event in events.read(root) if event["event"] == "started"}
    assert f"made its last run ({version}) knew" in str(execution._why_cache_starts_anew(root))
    with Journal(root, "run"):  # one that is refused changes nothing
        pass
    assert "starts anew" in str(execution._why_cache_starts_anew(root))
    begun(root, cache=CACHE)
    assert execution._why_cache_starts_anew(root) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_from_python(digits_data: Path, tmp_path: Path) -> None:
    root = Root(tmp_path / "digits")
    asked = Request(
        root, data=digits_data, recipes=(recipes.float16(),), train=Train(epochs=1), budget=Budget(max_drop=1.0)
    )
    root.make()
    root.metadata_db.touch()  # as an earlier version left it
    shown, notes = io.StringIO(), []
    with recorded(root, "run") as journal:
        prepared = prepare(asked)
        assert prepared.nothing_new() is None
        outcome = execution.execute(prepared, LiveView(Console(file=shown)), journal, note=notes.append)
        journal.exit_code = 0
    assert outcome.pushed is not None
    assert outcome.pushed.parent.parent == root.pushed
    assert "done    Pusher" in shown.getvalue()
    [note] = notes
    assert "starts anew" in note
    [night] = events.nights(events.read(root))
    assert (night.verdict, night.selected) == ("pushed", "float16")
    assert json.loads((root.report / "report.json").read_text())["selected"] == "float16"
    assert root.metrics.is_file()
    # the same again is nothing new, for whom it is asked
    again = prepare(dataclasses.replace(asked, only_new_data=True))
    assert "nothing trained" in str(again.nothing_new())
