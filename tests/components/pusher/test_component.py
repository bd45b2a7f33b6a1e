"""The Pusher's executor on real artifacts: a push is whole or it is not there."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from power_cut import Disk, Image, restore
from tfx.components import Pusher as StockPusher
from tfx.dsl.components.common.importer import Importer
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2
from tfx.types import channel
from tfx.types.standard_artifacts import Model, ModelBlessing, PushedModel
from tfx.utils import proto_utils

from edgeline.deployed import pointer_file
from edgeline.pipelines.records import lineage
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import session
from edgeline.pipelines.run.local_runner import LocalRunner
from edgeline.pusher.component import Executor, Pusher

# sha256 of b"one" and b"two", by sha256sum
ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
TWO = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"

Push = Callable[..., PushedModel]


def write_model(serving: Path, content: bytes) -> None:
    """What the TFLiteExporter writes, as far as it matters here."""
    port = {"shape": [-1, 4], "dtype": "float32", "scale": 0.0, "zero_point": 0}
    metadata = {
        "sha256": ONE if content == b"one" else TWO,
        "inputs": [{"name": "x", **port}],
        "outputs": [{"name": "y", **port}],
    }
    serving.mkdir(parents=True, exist_ok=True)
    (serving / "model.tflite").write_bytes(content)
    (serving / "metadata.json").write_text(json.dumps(metadata))
    (serving / "labels.txt").write_text("a\nb\n")


@pytest.fixture
def push(tmp_path: Path) -> Push:
    """Runs the executor as TFX does, and returns its output artifact."""

    def run(content: bytes, to: Path | str, *, blessed: bool = True, name: str = "int8") -> PushedModel:
        folder = tmp_path / "artifacts" / str(time.monotonic_ns())
        model, blessing, pushed = Model(), ModelBlessing(), PushedModel()
        for artifact, part in ((model, "model"), (blessing, "blessing"), (pushed, "pushed")):
            artifact.uri = str(folder / part)
            Path(artifact.uri).mkdir(parents=True)
        serving = Path(model.uri, "Format-Serving")
        serving.mkdir()
        if blessed:
            write_model(serving, content)
            model.set_string_custom_property("candidate", name)
        blessing.set_int_custom_property("blessed", int(blessed))
        Path(blessing.uri, "BLESSED" if blessed else "NOT_BLESSED").touch()
        destination = pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(to))
        )
        Executor().Do(
            {"model": [model], "model_blessing": [blessing]},
            {"pushed_model": [pushed]},
            {"push_destination": proto_utils.proto_to_json(destination), "custom_config": "null"},
        )
        return pushed

    return run


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("latest.json", ".lock"))


def test_a_push(tmp_path: Path, push: Push) -> None:
    before = int(time.time())
    pushed = push(b"one", tmp_path / "pushed")
    [version] = versions(tmp_path / "pushed")
    assert before <= int(version) <= time.time()
    folder = tmp_path / "pushed" / version
    assert sorted(path.name for path in folder.iterdir()) == ["labels.txt", "metadata.json", "model.tflite"]
    assert (folder / "model.tflite").read_bytes() == b"one"
    # as the stock executor marks it: lineage and the command line read this
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_destination") == str(folder)
    assert pushed.get_string_custom_property("pushed_version") == version
    assert (Path(pushed.uri) / "model.tflite").read_bytes() == b"one"
    found = pointer_file.latest(str(tmp_path / "pushed"))
    assert found is not None
    assert (found.version, found.name, found.sha256) == (version, "int8", ONE)
    assert found.contract["labels"] == ["a", "b"]


def test_apps_may_read_what_is_pushed(tmp_path: Path, push: Push) -> None:
    """Its folder has the rights of any other new one, not the private ones of a temporary folder."""
    push(b"one", tmp_path / "pushed")
    (tmp_path / "other").mkdir()
    [version] = versions(tmp_path / "pushed")
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "pushed" / version, tmp_path / "other")]
    assert modes[0] == modes[1]


def test_two_pushes_within_a_second(tmp_path: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_790_000_000.5)
    push(b"one", tmp_path)
    pushed = push(b"two", tmp_path, name="qat8")
    assert [name for name in versions(tmp_path) if name != "artifacts"] == ["1790000000", "1790000001"]
    assert pushed.get_string_custom_property("pushed_destination") == str(tmp_path / "1790000001")
    pointer = json.loads((tmp_path / "latest.json").read_text())
    assert (pointer["sha256"], pointer["name"], pointer["previous"]) == (TWO, "qat8", "1790000000")
    monkeypatch.setattr(time, "time", lambda: 1_780_000_000.0)  # a clock that was set back
    assert push(b"one", tmp_path).get_string_custom_property("pushed_version") == "1790000002"


def test_a_push_that_another_one_overtakes(tmp_path: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_790_000_000.5)
    rename = Path.rename

    def slow(path: Path, target: Path) -> Path:
        if not (tmp_path / "pushed" / "1790000000").exists():
            (tmp_path / "pushed" / "1790000000").mkdir()
            (tmp_path / "pushed" / "1790000000" / "model.tflite").write_bytes(b"faster")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slow)
    assert push(b"one", tmp_path / "pushed").get_string_custom_property("pushed_version") == "1790000001"
    assert (tmp_path / "pushed" / "1790000000" / "model.tflite").read_bytes() == b"faster"


def test_what_is_not_blessed_leaves_everything_as_it_is(tmp_path: Path, push: Push) -> None:
    pushed = push(b"", tmp_path / "pushed", blessed=False)
    assert pushed.get_int_custom_property("pushed") == 0
    assert not (tmp_path / "pushed").exists()
    push(b"one", tmp_path / "pushed")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pushed").rglob("*")}
    push(b"", tmp_path / "pushed", blessed=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pushed").rglob("*")} == before


@pytest.mark.parametrize("moment", ["copy", "rename", "pointer"])
def test_a_push_that_fails_leaves_nothing(
    moment: str, tmp_path: Path, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(b"one", tmp_path / "pushed")
    before = pointer_file.latest(str(tmp_path / "pushed"))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if moment == "copy":
            patched.setattr("tfx.dsl.io.fileio.copy", full)
        elif moment == "rename":
            patched.setattr(Path, "rename", full)
        else:
            patched.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            push(b"two", tmp_path / "pushed")
    assert before is not None
    assert pointer_file.latest(str(tmp_path / "pushed")) == before
    assert versions(tmp_path / "pushed") == [before.version]


@pytest.mark.parametrize("moment", ["rename", "pointer"])
def test_a_push_that_is_killed_does_not_count(
    moment: str, tmp_path: Path, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process runs no clean-up: here it is stopped, and what was there at that moment is looked at."""
    push(b"one", tmp_path / "pushed")
    before = pointer_file.latest(str(tmp_path / "pushed"))
    there: list[str] = []

    def look(*arguments: Any) -> None:
        there.extend(versions(tmp_path / "pushed"))
        assert pointer_file.latest(str(tmp_path / "pushed")) == before
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename" if moment == "rename" else "replace", look)
    with pytest.raises(KeyboardInterrupt):
        push(b"two", tmp_path / "pushed")
    assert before is not None
    new = [name for name in there if name != before.version and not name.startswith(".")]
    if moment == "rename":
        assert new == []  # what is copied has no version's name, and is hidden from a shell's *
        assert any(name.startswith(".pushing-") for name in there)
    else:
        assert len(new) == 1
        complete = {"labels.txt", "metadata.json", "model.tflite"}
        assert {path.name for path in (tmp_path / "pushed" / new[0]).iterdir()} == complete


def test_a_push_is_on_the_disk_before_the_pointer_names_it(tmp_path: Path, push: Push) -> None:
    push(b"one", tmp_path / "pushed")
    disk = Disk(tmp_path / "pushed")
    with disk.watched():
        version = push(b"two", tmp_path / "pushed").get_string_custom_property("pushed_version")
    moved, pointed = (i for i, call in enumerate(disk.calls) if call.startswith("rename"))
    staged = disk.calls[moved].split()[1]
    assert disk.calls[moved] == f"rename {staged} {version}"
    names = ("labels.txt", "metadata.json", "model.tflite")
    assert sorted(disk.calls[:moved]) == sorted(f"fsync {path}" for path in (*(f"{staged}/{n}" for n in names), staged))
    new = disk.calls[pointed].split()[1]
    assert disk.calls[moved + 1 :] == ["fsync .", f"fsync {new}", f"rename {new} latest.json", "fsync ."]


def test_a_push_that_is_cut_off_from_power(tmp_path: Path, push: Push) -> None:
    """At every moment the old model is deployed or the new one, and pushing again leaves the new one once."""
    push(b"one", tmp_path / "pushed")
    disk = Disk(tmp_path / "pushed")
    images: list[Image] = []

    def cut() -> None:
        images.extend(image for image in disk.images() if image not in images)

    with disk.watched(cut):
        push(b"two", tmp_path / "pushed")
        stays = list(disk.images())
    assert len(images) > 10
    for number, image in enumerate([*images, *stays]):
        folder = tmp_path / f"after{number}"
        restore(image, folder)
        found = pointer_file.latest(str(folder))
        assert found is not None
        assert found.sha256 in ((ONE, TWO) if number < len(images) else (TWO,))
        if number % 5 == 0:  # whatever was left
            push(b"two", folder)
            contents = [path.read_bytes() for path in sorted(folder.glob("*/model.tflite"))]
            assert contents == [b"one", b"two"]
            assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [".lock"]


def test_a_push_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(b"one", tmp_path / "pushed")

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            push(b"two", tmp_path / "pushed")
    first, half = versions(tmp_path / "pushed")
    (tmp_path / "pushed" / half / ".latest.json").touch()  # what is not the model's
    other = push(b"two", tmp_path / "pushed").get_string_custom_property("pushed_version")
    assert versions(tmp_path / "pushed") == [first, half, other]
    (tmp_path / "pushed" / half / ".latest.json").unlink()
    pointer_file.point(str(tmp_path / "pushed"), first)
    again = push(b"two", tmp_path / "pushed", name="qat8")
    assert again.get_string_custom_property("pushed_version") == other  # the latest that is the same
    pointer = json.loads((tmp_path / "pushed" / "latest.json").read_text())
    assert (pointer["version"], pointer["previous"], pointer["name"]) == (other, first, "qat8")


def test_the_deployed_model_is_not_pushed_a_second_time(tmp_path: Path, push: Push) -> None:
    first = push(b"one", tmp_path / "pushed")
    before = (tmp_path / "pushed" / "latest.json").read_bytes()
    again = push(b"one", tmp_path / "pushed")
    for name in ("pushed_version", "pushed_destination"):
        assert again.get_string_custom_property(name) == first.get_string_custom_property(name)
    assert again.get_int_custom_property("pushed") == 1
    assert len(versions(tmp_path / "pushed")) == 1
    assert (tmp_path / "pushed" / "latest.json").read_bytes() == before
    # one that was damaged is
    (tmp_path / "pushed" / versions(tmp_path / "pushed")[0] / "model.tflite").write_bytes(b"")
    assert (
        push(b"one", tmp_path / "pushed").get_string_custom_property("pushed_version")
        == versions(tmp_path / "pushed")[-1]
    )
    found = pointer_file.latest(str(tmp_path / "pushed"))
    assert found is not None
    assert found.sha256 == ONE


def test_a_uri(push: Push) -> None:
    root = "ram://pusher/models"
    first = push(b"one", root)
    second = push(b"two", f"{root}/")
    found = pointer_file.latest(root)
    assert found is not None
    assert found.sha256 == TWO
    assert second.get_string_custom_property("pushed_destination") == f"{root}/{found.version}"
    assert int(found.version) > int(first.get_string_custom_property("pushed_version"))
    with found.local() as path:
        assert path.read_bytes() == b"two"


def test_a_uri_that_fails(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "ram://broken/models"
    copy = tf.io.gfile.copy

    def stop(source: str, target: str, overwrite: bool = False) -> None:
        if target.startswith(root) and target.endswith("metadata.json"):
            raise tf.errors.UnavailableError(None, None, "the store is away")
        copy(source, target, overwrite=overwrite)

    monkeypatch.setattr(tf.io.gfile, "copy", stop)
    with pytest.raises(tf.errors.UnavailableError):
        push(b"one", root)
    assert pointer_file.latest(root) is None
    assert tf.io.gfile.glob(f"{root}/*/*") == []


@pytest.mark.parametrize("runner", [LocalDagRunner, LocalRunner])
def test_in_a_pipeline(runner: type, tmp_path: Path) -> None:
    """Under TFX's own runner and ours: cached, found by the command line, traced by its content."""

    def pipeline() -> Pipeline:
        def imported(name: str, kind: type, **properties: Any) -> Importer:
            node = Importer(source_uri=str(tmp_path / name), artifact_type=kind, custom_properties=properties)
            return node.with_id(name)

        export = imported("export", Model, sha256=ONE)
        selected = imported("selected", Model, sha256=ONE, candidate="int8")
        blessing = imported("blessing", ModelBlessing, blessed=1)
        pusher = Pusher(
            model=selected.outputs["result"],
            model_blessing=blessing.outputs["result"],
            push_destination=pusher_pb2.PushDestination(
                filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(tmp_path / "pushed"))
            ),
        )
        connection = metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db"))
        return Pipeline(
            "p",
            str(tmp_path / "artifacts"),
            components=[export, selected, blessing, pusher],
            enable_cache=True,
            metadata_connection_config=connection,
        )

    write_model(tmp_path / "selected" / "Format-Serving", b"one")
    runner().run(pipeline())
    found = pointer_file.latest(str(tmp_path / "pushed"))
    assert found is not None
    assert (found.name, found.sha256) == ("int8", ONE)
    result = LocalRunner().run(pipeline())
    assert result.nodes["Pusher"].state == "cached"
    assert session._pushed(result) == Path(found.path)
    assert pointer_file.latest(str(tmp_path / "pushed")) == found
    [push] = lineage.trace(found.path, Root(tmp_path)).pushes
    assert push.destination == str(tmp_path / "pushed" / found.version)


def test_it_is_tfx_pusher_but_for_the_executor() -> None:
    ports = {"model": channel.Channel(type=Model), "model_blessing": channel.Channel(type=ModelBlessing)}
    destination = pusher_pb2.PushDestination(filesystem=pusher_pb2.PushDestination.Filesystem(base_directory="/p"))
    ours, stock = (kind(**ports, push_destination=destination) for kind in (Pusher, StockPusher))
    assert (ours.id, ours.exec_properties) == (stock.id, stock.exec_properties)
    # ML Metadata and the cache know it by these: moving them breaks lineage
    assert ours.type == "edgeline.pusher.component.Pusher"
    assert ours.executor_spec.class_path == "edgeline.pusher.component.Executor"
