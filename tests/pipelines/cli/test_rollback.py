"""`edgeline push --rollback`, killed, repeated, and while somebody pushes."""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from edgeline.deployed import pointer_file, transaction, versions
from edgeline.pipelines.cli import main
from edgeline.pipelines.cli import push as commands
from edgeline.pipelines.records import events, prometheus, recovery
from edgeline.pipelines.root import Root

OLD, MIDDLE, NEW = "1790000000", "1790043200", "1790086400"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pipeline that has pushed three versions, and said so in its event log."""
    path = tmp_path / "root"
    for name, content in ((OLD, b"one"), (MIDDLE, b"two"), (NEW, b"three")):
        pointer_file.point(str(path / "pushed"), version(path, name, content), "int8")
        events.append(Root(path), "pushed", name, version=name, name="int8")
    return path


def version(root: Path, name: str, content: bytes) -> str:
    folder = root / "pushed" / name
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(content)
    metadata = {"sha256": hashlib.sha256(content).hexdigest(), "inputs": [], "outputs": []}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return name


def push(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main.main(["push", *map(str, arguments), "--output", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def run(*arguments: object) -> None:
    """Runs the command without the last resort of `main`, which would catch what stands for a kill."""
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    parsed = parser.parse_args(["push", *map(str, arguments)])
    assert parsed.command(parsed) == 0


def killed_at(moment: int) -> contextlib.AbstractContextManager[None]:
    """Stops at the n-th write to the disk, and at all that comes after it, as a kill would."""
    calls = 0

    def stop(call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return call(*arguments, **options)

        return counted

    stack = contextlib.ExitStack()
    for name in ("fsync", "replace", "unlink"):
        stack.enter_context(mock.patch.object(os, name, stop(getattr(os, name))))
    return stack


class Killed(BaseException):
    pass


@pytest.mark.parametrize("asked", [[], [MIDDLE]])
def test_a_rollback_that_was_killed_and_asked_for_again_is_one(
    asked: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = 0
    while True:
        copy = tmp_path / f"copy{moments}"
        shutil.copytree(root, copy)
        try:
            with killed_at(moments):
                run("--root", copy, "--rollback", *asked, "--why", "grey", "--by", "ann")
            break
        except Killed:
            capsys.readouterr()
        if moments % 2:  # a run in between tells of it, but the next who asks still asks for the same
            recovery.recover(Root(copy))
        done = push(capsys, "--root", copy, "--rollback", *asked, "--why", "grey", "--by", "ann")
        assert (done["from"], done["to"]) == (NEW, MIDDLE)
        pointer = json.loads((copy / "pushed" / "latest.json").read_text())
        assert pointer["version"] == MIDDLE
        assert [entry["version"] for entry in pointer["withdrawn"]] == [NEW]
        told = [event for event in events.read(Root(copy)) if event["event"] == "rollback"]
        assert [(event["from"], event["to"], event["why"]) for event in told] == [(NEW, MIDDLE, "grey")]
        recovery.recover(Root(copy))
        names = {path.name for folder in (copy, copy / "pushed") for path in folder.iterdir()}
        assert {name for name in names if name.startswith(".")} == {".lock"}
        moments += 1
    assert moments > 10
    capsys.readouterr()
    # what was told of is done: asking again goes on
    assert push(capsys, "--root", copy, "--rollback")["to"] == OLD


def test_a_rollback_that_was_killed_is_finished_before_another(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(versions, "_move", side_effect=Killed), pytest.raises(Killed):
        run("--root", root, "--rollback")
    assert json.loads((root / "pushed" / "latest.json").read_text())["version"] == NEW
    assert push(capsys, "--root", root, "--rollback", OLD)["from"] == MIDDLE
    told = [(e["from"], e["to"]) for e in events.read(Root(root)) if e["event"] == "rollback"]
    assert told == [(NEW, MIDDLE), (MIDDLE, OLD)]
    withdrawn = json.loads((root / "pushed" / "latest.json").read_text())["withdrawn"]
    assert [entry["version"] for entry in withdrawn] == [NEW, MIDDLE]


def test_one_that_is_told_again_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(prometheus, "write", side_effect=Killed), pytest.raises(Killed):
        run("--root", root, "--rollback", "--by", "ann")
    assert main.main(["push", "--root", str(root), "--rollback"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"deployed  {root}/pushed/{MIDDLE}/model.tflite\nbefore    {NEW}\nfinished  the rollback ")
    assert "that ann had begun at" in out


def test_a_push_meanwhile_ends_a_killed_rollback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(prometheus, "write", side_effect=Killed), pytest.raises(Killed):
        run("--root", root, "--rollback")
    newest = version(root, "1790172800", b"newest")
    pointer_file.point(str(root / "pushed"), newest, "int8")
    done = push(capsys, "--root", root, "--rollback")
    assert (done["from"], done["to"], done["resumed"]) == (newest, MIDDLE, False)


def test_a_rollback_waits_for_a_push(root: Path) -> None:
    """Else one of them would write back what it had read before the other wrote."""
    push_to = str(root / "pushed")
    newest = version(root, "1790172800", b"newest")
    began = threading.Event()

    def roll_back() -> None:
        began.set()
        versions.roll_back(push_to, OLD, by="ann", why="")

    with transaction.held(push_to):
        before = pointer_file.path_of(push_to)
        thread = threading.Thread(target=roll_back)
        thread.start()
        began.wait()
        thread.join(0.1)
        assert thread.is_alive()
        assert pointer_file.path_of(push_to) == before
        pointer_file.point(push_to, newest)
    thread.join()
    pointer = pointer_file.path_of(push_to)
    assert (pointer["version"], [entry["version"] for entry in pointer["withdrawn"]]) == (OLD, [newest])


def test_back_to_another_model_or_to_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = version(root, "1790172800", b"three")  # as a killed push left it
    pointer_file.point(str(root / "pushed"), again)
    assert push(capsys, "--root", root, "--rollback")["to"] == MIDDLE
    pointer_file.point(str(root / "pushed"), again)
    assert main.main(["push", "--root", str(root), "--rollback", NEW]) == 2
    assert f"version {NEW} in {root}/pushed is the same file as version {again}, which is deployed" in said(capsys)
    for name in (OLD, MIDDLE):
        shutil.rmtree(root / "pushed" / name)
    assert main.main(["push", "--root", str(root), "--rollback"]) == 2
    assert f"no version in {root}/pushed before {again} can be deployed and is another model: {NEW}" in said(capsys)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_nothing_is_made_for_a_rollback_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["push", "--pushed", str(tmp_path / "typo"), "--rollback"]) == 2
    assert "does not say which version is deployed" in said(capsys)
    assert list(tmp_path.iterdir()) == []
