"""`edgeline push`: the versions, and back to one of them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from edgeline.deployed import pointer_file
from edgeline.pipelines.cli import main
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root

OLD, NEW = "1790000000", "1790086400"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pipeline that has pushed two versions, and said so in its event log."""
    for version, content in ((OLD, b"one"), (NEW, b"three")):
        folder = tmp_path / "pushed" / version
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(content)
        metadata = {"sha256": hashlib.sha256(content).hexdigest(), "inputs": [], "outputs": []}
        (folder / "metadata.json").write_text(json.dumps(metadata))
        pointer_file.point(str(tmp_path / "pushed"), version, f"recipe{version[-1]}{len(content)}")
        events.append(Root(tmp_path), "pushed", version, version=version, name=f"recipe{version[-1]}{len(content)}")
    return tmp_path


def push(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main.main(["push", *map(str, arguments), "--output", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = push(capsys, "--root", root, "--list")
    assert found["pushed"] == str(root / "pushed")
    assert [(v["version"], v["name"], v["bytes"], v["current"], v["problem"]) for v in found["versions"]] == [
        (NEW, "recipe05", 5, True, None),
        (OLD, "recipe03", 3, False, None),
    ]
    assert found["versions"][1]["pushed_at"] == "2026-09-21T14:13:20+00:00"
    assert main.main(["push", "--root", str(root), "--list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    [row] = [line for line in lines if line[:1] == [NEW]]
    assert row[1:4] == ["recipe05", hashlib.sha256(b"three").hexdigest()[:12], "5"]
    assert row[-1] == "deployed"


def test_back_and_forward(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = push(capsys, "--root", root, "--rollback", "--why", "grey pictures", "--by", "ann")
    assert done == {
        "exit_code": 0, "pushed": str(root / "pushed"), "from": NEW, "to": OLD, "by": "ann", "why": "grey pictures",
        "resumed": False,
    }  # fmt: skip
    found = pointer_file.latest(str(root / "pushed"))
    assert found is not None
    assert (found.version, found.name) == (OLD, "recipe03")  # as the event log knows it
    event = events.read(Root(root))[-1]
    assert (event["event"], event["run"], event["from"], event["to"], event["by"], event["why"]) == (
        "rollback", None, NEW, OLD, "ann", "grey pictures",
    )  # fmt: skip
    assert (root / "metrics.prom").exists()
    assert main.main(["push", "--root", str(root), "--list"]) == 0
    assert "by ann: grey pictures" in capsys.readouterr().out
    assert main.main(["push", "--root", str(root), "--rollback", NEW]) == 0
    out = capsys.readouterr().out
    assert out == f"deployed  {root}/pushed/{NEW}/model.tflite\nbefore    {OLD}\n"
    assert "withdrawn" not in json.loads((root / "pushed" / "latest.json").read_text())


def test_a_folder_without_a_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = "ram://push-cli/models"
    for version in (OLD, NEW):
        tf.io.gfile.makedirs(f"{target}/{version}")
        for path in (root / "pushed" / version).iterdir():
            tf.io.gfile.copy(str(path), f"{target}/{version}/{path.name}")
        pointer_file.point(target, version)
    assert push(capsys, "--pushed", target, "--rollback")["to"] == OLD
    listed = push(capsys, "--pushed", target, "--list")["versions"]
    assert [(v["version"], v["current"], v["name"]) for v in listed] == [(NEW, False, None), (OLD, True, None)]
    assert listed[0]["withdrawn"]["version"] == NEW
    assert len(events.read(Root(root))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollback", "7"], f"has no version 7; there is {NEW}, {OLD}"),
        (["--rollback", NEW], f"version {NEW} is the one that is deployed"),
        (["--list", "--why", "x"], "--why is for --rollback"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (root / "pushed" / "latest.json").read_bytes()
    assert main.main(["push", "--root", str(root), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (root / "pushed" / "latest.json").read_bytes() == before
    assert len(events.read(Root(root))) == 2


def test_where_nothing_was_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["push", "--root", str(tmp_path / "nowhere"), "--list"]) == 2
    assert "does not exist; give the folder of a pipeline" in capsys.readouterr().err
    assert push(capsys, "--root", tmp_path, "--list")["versions"] == []
    assert main.main(["push", "--root", str(tmp_path), "--rollback"]) == 2
    assert "does not say which version is deployed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["pointer", "model", "version"])
def test_where_it_is_not_known_which_is_deployed(root: Path, change: str, capfd: pytest.CaptureFixture[str]) -> None:
    pushed = root / "pushed"
    if change == "pointer":
        (pushed / "latest.json").write_text("{")
    elif change == "model":
        (pushed / NEW / "model.tflite").write_bytes(b"other")
    else:
        shutil.rmtree(pushed / NEW)
    assert main.main(["push", "--root", str(root), "--list"]) == ExitCode.STEP_FAILED
    shown = capfd.readouterr()
    assert OLD in shown.out
    assert shown.err.startswith(f"edgeline: {pushed}/latest.json ")
    assert main.main(["push", "--root", str(root), "--list", "--output", "json"]) == ExitCode.STEP_FAILED
    listed = json.loads(capfd.readouterr().out)
    assert (listed["exit_code"], f"edgeline: {listed['problem']}\n") == (3, shown.err)
