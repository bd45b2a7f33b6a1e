"""The pointer to the model in the field: what it says, and what is said where it is broken."""

import dataclasses
import datetime
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgeline.deployed import pointer_file, versions
from edgeline.errors import UserError

# sha256 of b"one", by sha256sum
ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
PORT = {"name": "image", "shape": [-1, 8, 8], "dtype": "int8"}
OUTPUT = {"name": "logits", "shape": [-1, 2], "dtype": "float32"}


def version_files(content: bytes = b"one") -> dict[str, bytes]:
    """What the TFLiteExporter writes, as far as it matters here."""
    metadata = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "target": "micro",
        "inputs": [{**PORT, "scale": 0.5, "zero_point": 3}],
        "outputs": [{**OUTPUT, "scale": 0.0, "zero_point": 0}],
    }
    return {
        "model.tflite": content,
        "metadata.json": json.dumps(metadata).encode(),
        "labels.txt": b"cat\nmother duck\n",
    }


@pytest.fixture
def pushed(tmp_path: Path) -> Path:
    """A folder with two complete versions, of which the first is deployed."""
    for version, content in (("1", b"one"), ("2", b"two")):
        (tmp_path / version).mkdir()
        for name, text in version_files(content).items():
            (tmp_path / version / name).write_bytes(text)
    pointer_file.point(str(tmp_path), "1", "prune80_int8")
    return tmp_path


def pointer(folder: Path) -> Any:
    return json.loads((folder / "latest.json").read_text())


def test_before_the_first_push(tmp_path: Path) -> None:
    assert pointer_file.latest(str(tmp_path)) is None
    assert pointer_file.latest(str(tmp_path / "missing")) is None
    assert pointer_file.latest("") is None  # not the working directory


def test_what_the_pointer_says(pushed: Path) -> None:
    content = pointer(pushed)
    moved = datetime.datetime.fromisoformat(content.pop("pushed_at"))
    assert moved.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - moved) < datetime.timedelta(minutes=5)
    assert content == {
        "schema_version": 1,
        "version": "1",
        "model": "1/model.tflite",
        "sha256": ONE,
        "bytes": 3,
        "name": "prune80_int8",
        "contract": {"inputs": [PORT], "outputs": [OUTPUT], "labels": ["cat", "mother duck"], "target": "micro"},
        "previous": None,
    }


def test_what_is_found(pushed: Path) -> None:
    found = pointer_file.latest(str(pushed))
    assert found is not None
    assert (found.version, found.sha256, found.name) == ("1", ONE, "prune80_int8")
    assert found.contract == pointer(pushed)["contract"]
    assert found.pushed_at == pointer(pushed)["pushed_at"]
    assert found.metadata["inputs"][0]["zero_point"] == 3
    with found.local() as path:
        assert path == pushed / "1" / "model.tflite"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.version = "2"  # type: ignore[misc]


def test_the_pointer_moves(pushed: Path) -> None:
    pointer_file.point(str(pushed), "2")
    assert (pointer(pushed)["version"], pointer(pushed)["previous"], pointer(pushed)["name"]) == ("2", "1", None)
    found = pointer_file.latest(str(pushed))
    assert found is not None
    assert Path(found.path).read_bytes() == b"two"
    assert sorted(path.name for path in pushed.iterdir()) == ["1", "2", "latest.json"]  # nothing else is left


def test_a_model_without_known_labels(pushed: Path) -> None:
    (pushed / "2" / "labels.txt").unlink()
    pointer_file.point(str(pushed), "2")
    assert pointer(pushed)["contract"]["labels"] == []


def test_a_pointer_that_does_not_say_what_for(pushed: Path) -> None:
    content = pointer(pushed)
    del content["contract"]["target"]
    (pushed / "latest.json").write_text(json.dumps(content))
    found = pointer_file.latest(str(pushed))
    assert found is not None
    assert found.contract["target"] is None


def test_a_relative_folder(pushed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pushed.parent)
    found = pointer_file.latest(pushed.name)
    assert found is not None
    assert found.path == f"{pushed.name}/1/model.tflite"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "SHA-256 3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3, expected 7692c3ad"),
        (None, "names a version of which .*/1/model.tflite is missing"),
        ({"model": "3/model.tflite"}, "names a version of which .*/3/model.tflite is missing"),
        ({"schema_version": 2}, "has schema_version 2; this version of Edgeline reads 1"),
        ({"sha256": ...}, "is not the pointer of a push .KeyError: 'sha256'"),
        ({"schema_version": ...}, "is not the pointer of a push .KeyError: 'schema_version'"),
        ({"model": 7}, "is not the pointer of a push .TypeError"),
        ({"contract": {"inputs": []}}, "is not the pointer of a push .KeyError: 'outputs'"),
    ],
)
def test_a_broken_deployment_is_told(change: dict[str, Any] | None, message: str, pushed: Path) -> None:
    model = pushed / "1" / "model.tflite"
    if change is None:
        model.unlink()
    elif not change:
        model.write_bytes(b"two")
    else:
        content = {key: value for key, value in {**pointer(pushed), **change}.items() if value is not ...}
        (pushed / "latest.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"{pushed}/latest.json .*{message}.*delete {pushed}/latest.json to start anew"
    ):
        pointer_file.latest(str(pushed))


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe{"])
def test_what_is_no_pointer_is_told_and_replaced_by_the_next_push(text: bytes, pushed: Path) -> None:
    (pushed / "latest.json").write_bytes(text)
    with pytest.raises(UserError, match=r"latest.json is not the pointer of a push"):
        pointer_file.latest(str(pushed))
    pointer_file.point(str(pushed), "2")
    found = pointer_file.latest(str(pushed))
    assert found is not None
    assert found.version == "2"
    assert pointer(pushed)["previous"] is None


def test_metadata_that_is_no_json(pushed: Path) -> None:
    (pushed / "1" / "metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"whose metadata\.json is no JSON"):
        pointer_file.latest(str(pushed))


def test_what_is_not_complete_does_not_move_the_pointer(pushed: Path) -> None:
    before = pointer(pushed)
    (pushed / "2" / "model.tflite").write_bytes(b"three")
    with pytest.raises(ValueError, match=r"2/model.tflite is not the file that its metadata.json describes"):
        pointer_file.point(str(pushed), "2")
    (pushed / "2" / "metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"2/metadata.json"):
        pointer_file.point(str(pushed), "2")
    with pytest.raises(FileNotFoundError, match=r"3/model.tflite"):
        pointer_file.point(str(pushed), "3")
    assert pointer(pushed) == before


def test_a_pointer_that_cannot_be_written_stays(pushed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pointer(pushed)

    def full(path: Path, target: str) -> None:
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        pointer_file.point(str(pushed), "2")
    assert pointer(pushed) == before
    assert sorted(path.name for path in pushed.iterdir()) == ["1", "2", "latest.json"]


def test_on_a_uri() -> None:
    root = "ram://deployed/models"
    assert pointer_file.latest(root) is None
    for version, content in (("1", b"one"), ("2", b"two")):
        tf.io.gfile.makedirs(f"{root}/{version}")
        for name, text in version_files(content).items():
            with tf.io.gfile.GFile(f"{root}/{version}/{name}", "wb") as file:
                file.write(text)
        pointer_file.point(root, version, "int8")
    found = pointer_file.latest(root)
    assert found is not None
    assert (found.path, found.version, found.name) == (f"{root}/2/model.tflite", "2", "int8")
    assert found.contract["labels"] == ["cat", "mother duck"]
    with found.local() as path:
        assert path.read_bytes() == b"two"
    assert not path.exists()
    with tf.io.gfile.GFile(f"{root}/latest.json") as file:
        assert json.loads(file.read())["previous"] == "1"
    tf.io.gfile.remove(f"{root}/2/model.tflite")
    with pytest.raises(UserError, match=r"ram://deployed/models/2/model.tflite is missing"):
        pointer_file.latest(root)


def test_a_path_needs_the_standard_library_only(pushed: Path) -> None:
    code = (
        f"import sys; from edgeline.deployed import pointer_file; pointer_file.latest({str(pushed)!r}); "
        "print([name for name in ('tensorflow', 'tfx', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# damaged metadata -----------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_PORTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.just("x") | _JSON, "shape": st.just([-1]) | _JSON, "dtype": st.just("int8") | _JSON}
    )
    | _JSON,
    max_size=2,
)
_METADATA = st.fixed_dictionaries(
    {"sha256": st.just(ONE) | _JSON, "inputs": _PORTS | _JSON, "outputs": _PORTS | _JSON},
    optional={"bytes": st.just(3) | _JSON, "zlib_bytes": st.just(9) | _JSON, "target": st.just("cpu") | _JSON},
)
_MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def read_in_every_way(folder: Path, metadata: bytes) -> None:
    """Whatever is in the file, it is refused in words, or what is read of it has the right types."""
    (folder / "1" / "metadata.json").write_bytes(metadata)
    before = (folder / "latest.json").read_bytes()
    listed = {version.version: version.problem for version in versions.versions(str(folder))}
    try:
        found = pointer_file.latest(str(folder))
    except UserError as error:
        assert f"{folder}/latest.json names a version whose metadata.json " in str(error)  # noqa: PT017
        assert listed["1"]
        with pytest.raises(ValueError, match=r"metadata\.json"):
            pointer_file.point(str(folder), "1")
        assert (folder / "latest.json").read_bytes() == before
        return
    assert found is not None
    assert all(isinstance(found.metadata.get(size, 0), int) for size in ("bytes", "zlib_bytes"))
    if listed["1"] is None:
        pointer_file.point(str(folder), "1")
        assert versions.versions(str(folder))[-1].problem is None


@_MANY
@given(_METADATA | _JSON)
@example(None)
@example([])
@example({"sha256": ONE})
def test_any_json_in_the_metadatas_place(pushed: Path, metadata: Any) -> None:
    read_in_every_way(pushed, json.dumps(metadata).encode())


@_MANY
@given(st.integers(0, 400), st.binary(max_size=4))
@example(0, b"")
@example(0, b"[" * 100_000)
@example(0, b"\xff\xfe")
def test_metadata_that_is_cut_off_or_changed(pushed: Path, place: int, put: bytes) -> None:
    whole = version_files()["metadata.json"]
    read_in_every_way(pushed, whole[:place] + put)
    read_in_every_way(pushed, whole[:place] + put + whole[place + len(put) :])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": 3}, "is not that of a model: its sha256 is not a SHA-256"),
        ({"inputs": {}}, "is not that of a model: its inputs is not a list of ports"),
        ({"outputs": [{**OUTPUT, "shape": ["a"]}]}, "is not that of a model: its outputs is not a list of ports"),
        ({"bytes": "many"}, "is not that of a model: its bytes is not a number of bytes"),
    ],
)
def test_what_is_wrong_with_metadata_is_said(pushed: Path, change: dict[str, Any], said: str) -> None:
    metadata = {**json.loads(version_files()["metadata.json"]), **change}
    (pushed / "1" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=f"names a version whose metadata.json {said}"):
        pointer_file.latest(str(pushed))
