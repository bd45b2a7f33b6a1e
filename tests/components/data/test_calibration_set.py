from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeline import files
from edgeline.data import calibration_set
from edgeline.errors import UserError

SAMPLES = {"b": np.float32([[1, -2], [3, 0.5], [0, 0]]), "a": np.int32([[7], [8], [9]])}
PORTS = [
    {"name": "a", "shape": [None, 1], "dtype": "int32"},
    {"name": "b", "shape": [None, 2], "dtype": "float32"},
]

# hypothesis runs each test many times in one folder: what was there is written over
in_one_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, **changes: Any) -> dict[str, Any]:
    """Writes a sound set, then changes fields of its manifest; None takes one away."""
    manifest = calibration_set.write(str(folder), SAMPLES, {"strategy": "uniform", "digests": ["0" * 64] * 3})
    manifest = {name: value for name, value in {**manifest, **changes}.items() if value is not None}
    Path(folder, "manifest.json").write_text(json.dumps(manifest))
    return manifest


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = write(tmp_path)
    samples, manifest = calibration_set.read(str(tmp_path))
    assert manifest == written == calibration_set.read_manifest(str(tmp_path))
    assert manifest == {
        "strategy": "uniform",
        "digests": ["0" * 64] * 3,
        "schema_version": 2,
        "samples": 3,
        "digest": calibration_set.digest(SAMPLES),
        "inputs": {"b": {"shape": [2], "dtype": "float32"}, "a": {"shape": [1], "dtype": "int32"}},
        "ranges": {"b": [-2.0, 3.0], "a": [7.0, 9.0]},
    }
    assert samples.keys() == SAMPLES.keys()
    for name, values in samples.items():
        np.testing.assert_array_equal(values, SAMPLES[name], strict=True)


def test_the_first_examples_are_kept_in_a_form_that_any_protobuf_library_reads(tmp_path: Path) -> None:
    def example(number: int) -> bytes:
        feature = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes([0, 255, number])])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[-number])),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    calibration_set.write(str(tmp_path), SAMPLES, {}, [example(number) for number in range(20)])
    lines = (tmp_path / "raw.jsonl").read_text().splitlines()
    assert [json_format.Parse(line, tf.train.Example()) for line in lines] == [
        tf.train.Example.FromString(example(number)) for number in range(8)
    ]
    assert json.loads(lines[1])["features"]["feature"]["image"]["bytes_list"]["value"] == ["AP8B"]


def test_the_digest_is_of_names_types_shapes_and_values_and_of_no_order() -> None:
    found = calibration_set.digest(SAMPLES)
    assert calibration_set.digest({"a": SAMPLES["a"], "b": SAMPLES["b"]}) == found
    assert calibration_set.digest({**SAMPLES, "b": np.asfortranarray(SAMPLES["b"])}) == found
    others = [
        {"b": SAMPLES["b"], "c": SAMPLES["a"]},
        {**SAMPLES, "a": SAMPLES["a"].astype(np.uint32)},
        {**SAMPLES, "a": SAMPLES["a"][:, 0]},
        {**SAMPLES, "a": SAMPLES["a"] + 1},
    ]
    assert len({found, *map(calibration_set.digest, others)}) == 5


# bad manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, r"has schema version 1, this Edgeline reads 2; run RepresentativeDatasetGen again"),
        ({"schema_version": None}, "has schema version null, this Edgeline reads 2"),
        ({"schema_version": True}, "has schema version true"),
        ({"digest": None, "ranges": None}, "has no digest, ranges;"),
        ({"samples": 0}, "is empty: 0 samples;"),
        ({"samples": -1}, "says samples -1, which must be a number of samples"),
        ({"samples": 3.0}, "says samples 3.0"),
        ({"digest": "abc"}, 'says digest "abc", which must be a SHA-256 in hexadecimal'),
        ({"digest": "G" * 64}, "which must be a SHA-256"),
        ({"digests": ["0" * 64]}, "says digests .*, which must be one SHA-256 in hexadecimal per sample"),
        ({"digests": "0" * 64}, "one SHA-256 in hexadecimal per sample"),
        ({"inputs": {}}, "says inputs {}, which must be an object with at least one input"),
        ({"inputs": ["a"]}, "at least one input"),
        ({"inputs": {"a": {"shape": [-1], "dtype": "int32"}}}, "says of input 'a' .*, which must be its shape and dt"),
        ({"inputs": {"a": {"shape": [1]}}}, "its shape and dtype"),
        ({"inputs": {"a": 5}}, "says of input 'a' 5"),
        ({"ranges": {"c": [0, 1]}}, "says a range of 'c', which is none of its inputs 'b', 'a'"),
        ({"ranges": []}, r"says ranges \[\], which must be an object"),
        ({"ranges": {"a": [1, 0]}}, r"says of input 'a' the range \[1, 0\], which must be \[min, max\]"),
        ({"ranges": {"a": [0, float("inf")]}}, r"\[0, Infinity\], which must be"),
        ({"ranges": {"a": [float("nan"), 1]}}, r"\[NaN, 1\], which must be"),
        ({"ranges": {"a": [0, 10**400]}}, r"which must be \[min, max\]"),
        ({"ranges": {"a": [False, True]}}, r"which must be \[min, max\]"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    for reader in (calibration_set.read_manifest, calibration_set.read):
        with pytest.raises(UserError, match=message) as caught:
            reader(str(tmp_path))
        assert str(caught.value).startswith(f"the calibration set's {tmp_path}/manifest.json ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "manifest.json is not valid JSON: Expecting value"),
        (b'{"schema_version": 2', "is not valid JSON"),
        (b"\xff\xfe\x00\xd8", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "must be a JSON object, found list"),
        (b"null", "must be a JSON object, found NoneType"),
    ],
)
def test_no_manifest(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=r"the calibration set has no manifest.json \(/"):
        calibration_set.read_manifest(str(tmp_path))
    Path(tmp_path, "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        calibration_set.read_manifest(str(tmp_path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def check_readable(folder: Path) -> None:
    """The reader's whole contract: a sound manifest, or one clear error."""
    try:
        manifest = calibration_set.read_manifest(str(folder))
    except UserError as error:
        assert str(error).startswith("the calibration set")  # noqa: PT017 - there may be none
        assert "run RepresentativeDatasetGen again" in str(error)  # noqa: PT017
        return
    assert manifest["schema_version"] == 2
    assert manifest["samples"] >= 1
    assert len(bytes.fromhex(manifest["digest"])) == 32
    for name, spec in manifest["inputs"].items():
        assert all(n >= 0 for n in spec["shape"])
        low, high = manifest["ranges"].get(name, [0, 0])
        assert float(low) <= float(high)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
@in_one_folder
def test_any_bytes_are_a_manifest_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    Path(tmp_path, "manifest.json").write_bytes(content)
    check_readable(tmp_path)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in paths_of(part, (*path, key)))]


@given(st.data())
@in_one_folder
def test_any_change_of_a_value_leaves_a_sound_manifest_or_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    manifest = copy.deepcopy(write(tmp_path))
    *way, last = data.draw(st.sampled_from(paths_of(manifest)[1:]))
    holder = manifest
    for key in way:
        holder = holder[key]
    holder[last] = data.draw(json_values)
    Path(tmp_path, "manifest.json").write_text(json.dumps(manifest))
    check_readable(tmp_path)


@given(st.data())
@in_one_folder
def test_a_manifest_that_breaks_off_is_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    text = json.dumps(write(tmp_path))
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    Path(tmp_path, "manifest.json").write_text(cut)
    with pytest.raises(UserError, match="is not valid JSON"):
        calibration_set.read_manifest(str(tmp_path))


# bad samples ----------------------------------------------------------------------------------------------------------


def test_samples_that_were_changed(tmp_path: Path) -> None:
    write(tmp_path)
    changed = {**SAMPLES, "a": SAMPLES["a"] + 1}
    files.write_arrays(tmp_path / "samples.npz", changed)
    found = calibration_set.digest(changed)[:12]
    with pytest.raises(UserError, match=f"samples.npz was changed after it was made: its digest is {found}, the manif"):
        calibration_set.read(str(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"b": SAMPLES["b"]},
        {"b": SAMPLES["b"], "c": SAMPLES["a"]},
        {**SAMPLES, "a": SAMPLES["a"].astype(np.int64)},
        {**SAMPLES, "a": SAMPLES["a"][:2]},
        {**SAMPLES, "a": np.int32(5)},
        {name: values[:2] for name, values in SAMPLES.items()},
        {},
    ],
)
def test_samples_that_are_not_the_manifests(tmp_path: Path, other: dict[str, np.ndarray]) -> None:
    write(tmp_path)
    files.write_arrays(tmp_path / "samples.npz", other)
    with pytest.raises(UserError, match=r"samples.npz holds {.*}, but its manifest says 3 samples of {'b': "):
        calibration_set.read(str(tmp_path))


def test_no_samples(tmp_path: Path) -> None:
    write(tmp_path)
    Path(tmp_path, "samples.npz").unlink()
    with pytest.raises(UserError, match=r"the calibration set has no samples.npz"):
        calibration_set.read(str(tmp_path))


@given(st.data())
@in_one_folder
def test_damaged_samples_are_a_clear_error_or_the_same(tmp_path: Path, data: st.DataObject) -> None:
    write(tmp_path)
    content = bytearray(Path(tmp_path, "samples.npz").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    Path(tmp_path, "samples.npz").write_bytes(content)
    try:
        samples, _ = calibration_set.read(str(tmp_path))
    except UserError as error:
        assert "run RepresentativeDatasetGen again" in str(error)  # noqa: PT017 - there may be none
    else:  # a bit of no consequence, such as a date
        assert calibration_set.digest(samples) == calibration_set.digest(SAMPLES)


# another model's ------------------------------------------------------------------------------------------------------


def test_samples_of_the_model(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    calibration_set.check_fits(manifest, PORTS)
    calibration_set.check_fits(manifest, PORTS[::-1], manifest["digest"])
    calibration_set.check_fits(manifest, [PORTS[0], {**PORTS[1], "shape": [None, None]}])


@pytest.mark.parametrize(
    "ports",
    [
        [],
        PORTS[:1],
        [*PORTS, {"name": "c", "shape": [None], "dtype": "float32"}],
        [PORTS[0], {**PORTS[1], "name": "c"}],
        [PORTS[0], {**PORTS[1], "shape": [None, 3]}],
        [PORTS[0], {**PORTS[1], "shape": [None, 2, 1]}],
        [PORTS[0], {**PORTS[1], "dtype": "float16"}],
    ],
)
def test_samples_of_another_model(tmp_path: Path, ports: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"the calibration samples do not fit the model: its inputs are .*'b': {'shape"):
        calibration_set.check_fits(write(tmp_path), ports)


def test_other_samples_than_were_planned_with(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    given = manifest["digest"][:12]
    expected = rf"quantized with other calibration samples \(digest ffffffffffff\) than are given now \({given}\)"
    with pytest.raises(UserError, match=expected):
        calibration_set.check_fits(manifest, PORTS, "f" * 64)
