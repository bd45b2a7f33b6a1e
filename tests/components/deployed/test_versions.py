"""Back to an earlier version: the pointer moves, and what was rolled back stays so."""

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tfx.proto import pusher_pb2
from tfx.types.standard_artifacts import Model, ModelBlessing, PushedModel
from tfx.utils import proto_utils

from edgeline.deployed import pointer_file, versions
from edgeline.errors import UserError
from edgeline.pusher.component import Executor

CONTENTS = {"1790000000": b"one", "1790086400": b"two", "1790172800": b"three"}
ONE, TWO, THREE = CONTENTS


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def metadata(content: bytes) -> str:
    return json.dumps({"sha256": sha256(content), "inputs": [], "outputs": []})


@pytest.fixture
def pushed(tmp_path: Path) -> Path:
    """A folder with three whole versions, of which the last is deployed."""
    for version, content in CONTENTS.items():
        (tmp_path / version).mkdir()
        (tmp_path / version / "model.tflite").write_bytes(content)
        (tmp_path / version / "metadata.json").write_text(metadata(content))
        pointer_file.point(str(tmp_path), version, f"model of {version}")
    return tmp_path


def pointer(folder: Path) -> Any:
    return json.loads((folder / "latest.json").read_text())


def back(folder: Path, version: str | None = None, **said: Any) -> str:
    version = version or versions.previous(str(folder))
    versions.roll_back(str(folder), version, **{"by": "ann", "why": "", **said})
    return version


def test_versions_newest_first(pushed: Path) -> None:
    found = versions.versions(str(pushed))
    assert [(v.version, v.sha256, v.bytes, v.current) for v in found] == [
        (THREE, sha256(b"three"), 5, True),
        (TWO, sha256(b"two"), 3, False),
        (ONE, sha256(b"one"), 3, False),
    ]
    assert all(v.problem is None and v.withdrawn is None for v in found)
    assert found[2].pushed_at == datetime.datetime(2026, 9, 21, 14, 13, 20, tzinfo=datetime.UTC)  # by `date -u -d @...`
    assert versions.versions(str(pushed / "missing")) == []


def test_back_and_back_again_never_swings(pushed: Path) -> None:
    assert back(pushed, why="grey pictures") == TWO
    assert pointer(pushed)["version"] == TWO
    found = pointer_file.latest(str(pushed))
    assert found is not None
    assert Path(found.path).read_bytes() == b"two"
    assert back(pushed) == ONE
    assert pointer(pushed)["previous"] == TWO
    gone = pointer(pushed)["withdrawn"]
    assert [(e["version"], e["sha256"], e["name"], e["by"], e["why"]) for e in gone] == [
        (THREE, sha256(b"three"), f"model of {THREE}", "ann", "grey pictures"),
        (TWO, sha256(b"two"), None, "ann", ""),
    ]
    assert all(datetime.datetime.fromisoformat(e["at"]).utcoffset() == datetime.timedelta(0) for e in gone)
    with pytest.raises(UserError, match=f"no version in .* before {ONE} can be deployed: none"):
        versions.previous(str(pushed))


def test_a_version_that_is_returned_to_is_withdrawn_no_longer(pushed: Path) -> None:
    back(pushed)
    assert versions.withdrawal(str(pushed), sha256(b"three"))
    back(pushed, THREE)
    assert (pointer(pushed)["version"], pointer(pushed)["name"]) == (THREE, f"model of {THREE}")
    assert "withdrawn" not in pointer(pushed)  # going forward withdraws nothing


def test_a_later_push_keeps_what_was_withdrawn(pushed: Path) -> None:
    back(pushed)
    pointer_file.point(str(pushed), ONE)  # as a push does
    assert versions.withdrawal(str(pushed), sha256(b"three"))
    assert versions.withdrawal(str(pushed), sha256(b"two")) is None


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("model.tflite", b"tow", "its metadata.json describes another model.tflite"),
        ("model.tflite", None, "model.tflite is missing"),
        ("metadata.json", None, "metadata.json is missing"),
        ("metadata.json", b"{", "its metadata.json is not that of a model"),
        ("metadata.json", b"[1]", "its metadata.json is not that of a model"),
    ],
)
def test_a_version_that_is_not_whole_is_passed_over(
    name: str, content: bytes | None, problem: str, pushed: Path
) -> None:
    path = pushed / TWO / name
    path.write_bytes(content) if content is not None else path.unlink()
    assert versions.versions(str(pushed))[1].problem == problem
    with pytest.raises(UserError, match=rf"version {TWO} in .* is not whole: {problem}; there is {THREE}, {TWO} \("):
        back(pushed, TWO)
    assert pointer(pushed)["version"] == THREE
    assert back(pushed) == ONE


def test_what_cannot_be_deployed(pushed: Path) -> None:
    with pytest.raises(UserError, match=f"has no version 7; there is {THREE}, {TWO}, {ONE}$"):
        back(pushed, "7")
    with pytest.raises(UserError, match=f"version {THREE} is the one that is deployed"):
        back(pushed, THREE)
    (pushed / "latest.json").write_text("{")
    with pytest.raises(UserError, match=f"does not say which version is deployed.*name the version.*{THREE}, {TWO}"):
        versions.previous(str(pushed))
    back(pushed, TWO)  # named, it mends a broken pointer
    assert (pointer(pushed)["version"], "withdrawn" in pointer(pushed)) == (TWO, False)


def test_a_damaged_deployment_is_left(pushed: Path) -> None:
    (pushed / THREE / "model.tflite").unlink()
    with pytest.raises(UserError, match=r"model\.tflite is missing"):
        pointer_file.latest(str(pushed))
    assert back(pushed) == TWO
    assert pointer_file.latest(str(pushed)) is not None


def test_on_a_uri() -> None:
    root = "ram://rollback/models"
    assert versions.versions(root) == []
    for version, content in CONTENTS.items():
        tf.io.gfile.makedirs(f"{root}/{version}")
        for name, text in (("model.tflite", content), ("metadata.json", metadata(content).encode())):
            with tf.io.gfile.GFile(f"{root}/{version}/{name}", "wb") as file:
                file.write(text)
        pointer_file.point(root, version)
    assert [v.version for v in versions.versions(root)] == [THREE, TWO, ONE]
    versions.roll_back(root, versions.previous(root), by="ann", why="")
    found = pointer_file.latest(root)
    assert found is not None
    assert found.version == TWO
    assert versions.withdrawal(root, sha256(b"three"))


def push(to: Path, content: bytes, folder: Path) -> PushedModel:
    """Runs the Pusher's executor as TFX does."""
    model, blessing, made = Model(), ModelBlessing(), PushedModel()
    for artifact, part in ((model, "model"), (blessing, "blessing"), (made, "made")):
        artifact.uri = str(folder / part)
        Path(artifact.uri).mkdir(parents=True)
    serving = Path(model.uri, "Format-Serving")
    serving.mkdir()
    (serving / "model.tflite").write_bytes(content)
    (serving / "metadata.json").write_text(metadata(content))
    blessing.set_int_custom_property("blessed", 1)
    Path(blessing.uri, "BLESSED").touch()
    destination = pusher_pb2.PushDestination(filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(to)))
    Executor().Do(
        {"model": [model], "model_blessing": [blessing]},
        {"pushed_model": [made]},
        {"push_destination": proto_utils.proto_to_json(destination), "custom_config": "null"},
    )
    return made


def test_no_run_pushes_a_withdrawn_file(pushed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    back(pushed)
    before = pointer(pushed)
    made = push(pushed, b"three", tmp_path_factory.mktemp("again"))
    assert made.get_int_custom_property("pushed") == 0
    assert pointer(pushed) == before
    assert len(versions.versions(str(pushed))) == 3
    made = push(pushed, b"four", tmp_path_factory.mktemp("new"))
    assert made.get_int_custom_property("pushed") == 1
    assert pointer(pushed)["sha256"] == sha256(b"four")
    assert versions.withdrawal(str(pushed), sha256(b"three"))
