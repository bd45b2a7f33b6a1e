"""`edgeline.deployed.contract`: what differs between two models, and what is read from a file that anybody made."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline.deployed import contract
from edgeline.errors import UserError


def made(**changes: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "image", "shape": [-1, 8, 8], "dtype": "float32"}],
        "outputs": [
            {"name": "boxes", "shape": [-1, 4], "dtype": "float32"},
            {"name": "logits", "shape": [-1, 3], "dtype": "float32"},
        ],
        "labels": ["bird", "cat", "dog"],
        "target": "cpu",
        **changes,
    }


def inputs(**changes: Any) -> list[dict[str, Any]]:
    return [{**made()["inputs"][0], **changes}]


def test_the_same_contract() -> None:
    assert contract.differences(made(), made(), "deployed") == []


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"inputs": inputs(dtype="int8")}, ["input image: dtype int8, deployed has float32"]),
        ({"inputs": inputs(shape=[1, 8, 8])}, ["input image: shape [1, 8, 8], deployed has [any, 8, 8]"]),
        ({"inputs": inputs(shape=[-1, 8])}, ["input image: shape [any, 8], deployed has [any, 8, 8]"]),
        ({"inputs": inputs(name="picture")}, ["inputs: picture, deployed has image"]),
        ({"inputs": []}, ["inputs: none, deployed has image"]),
        ({"outputs": made()["outputs"][1:]}, ["outputs: logits, deployed has boxes, logits"]),
        ({"outputs": made()["outputs"][::-1]}, ["outputs: logits, boxes, deployed has boxes, logits"]),
        ({"labels": ["bird", "dog", "cat"]}, ["label order: 1 is 'dog', deployed has 'cat' (and 1 more)"]),
        ({"labels": ["bird", "cat", "cow"]}, ["label order: 2 is 'cow', deployed has 'dog'"]),
        ({"labels": ["bird", "cat"]}, ["labels: 2, deployed has 3"]),
        ({"labels": []}, ["labels: none, deployed has 3"]),
        ({"target": "micro"}, ["target: micro, deployed has cpu"]),
        (
            {"inputs": inputs(dtype="int8", shape=[1, 8, 8]), "target": "gpu"},
            [
                "input image: shape [1, 8, 8], deployed has [any, 8, 8]",
                "input image: dtype int8, deployed has float32",
                "target: gpu, deployed has cpu",
            ],
        ),
    ],
)
def test_differences(ours: dict[str, Any], expected: list[str]) -> None:
    assert contract.differences(made(**ours), made(), "deployed") == expected


def test_what_is_not_known_says_nothing() -> None:
    assert contract.differences(made(), made(labels=[], target=None), "old.tflite") == []


def test_what_belongs_to_it() -> None:
    """Neither scale nor zero point: they differ after every training."""
    port = {"name": "x", "shape": [None, 4], "dtype": "int8", "scale": 0.5, "zero_point": 3}
    found = contract.of({"inputs": [port], "outputs": [port], "bytes": 7}, ("a", "b"), "dsp")
    expected = [{"name": "x", "shape": [-1, 4], "dtype": "int8"}]
    assert found == {"inputs": expected, "outputs": expected, "labels": ["a", "b"], "target": "dsp"}


# files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def double(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x, np.eye(4, 3, dtype=np.float32))}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([double.get_concrete_function()], tf.Module())
    path = tmp_path / "old.tflite"
    path.write_bytes(converter.convert())
    return path


def test_a_bare_file(file: Path) -> None:
    assert contract.of_file(file) == {
        "inputs": [{"name": "x", "shape": [-1, 4], "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": [-1, 3], "dtype": "float32"}],
        "labels": [],
        "target": None,
    }


def test_labels_beside_a_file(file: Path) -> None:
    (file.parent / "labels.txt").write_text("a\nb c\n")
    assert contract.of_file(file)["labels"] == ["a", "b c"]
    (file.parent / "labels.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"the labels of .*old.tflite cannot be read: 'utf-8' codec"):
        contract.of_file(file)


def test_labels_within_a_file(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labelmap.txt", "a\nb\n")
    found = contract.of_file(file)
    assert (found["labels"], found["inputs"][0]["name"]) == (["a", "b"], "x")
    (file.parent / "labels.txt").write_text("c\n")
    assert contract.of_file(file)["labels"] == ["c"]


def test_labels_that_would_take_too_much(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "a" * 2**25)
    with pytest.raises(UserError, match=r"cannot be read: 'labelmap\.txt' in it has more than 16,777,216 bytes"):
        contract.of_file(file)
    beside = file.parent / "labels.txt"
    with beside.open("wb") as hole:
        hole.truncate(2**36)
    with pytest.raises(UserError, match=r"cannot be read: it has 68,719,476,736 bytes, allowed are 16,777,216"):
        contract.of_file(file)


def test_labels_within_a_file_that_is_damaged(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "a\nb\n" * 100)
    content = file.read_bytes()
    start = content.rindex(b"PK\x03\x04")
    file.write_bytes(content[: start + 45] + b"\xff\xff" + content[start + 47 :])
    with pytest.raises(UserError, match=r"the labels of .*old.tflite cannot be read: "):
        contract.of_file(file)


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"target": "dsp"}', '{"target": "dsp", "sha256": "other"}'])
def test_metadata_that_is_not_of_this_file(file: Path, content: str) -> None:
    (file.parent / "metadata.json").write_text(content)
    assert contract.of_file(file)["target"] is None


def test_the_target_that_a_file_was_judged_for(file: Path) -> None:
    metadata = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "target": "dsp"}
    (file.parent / "metadata.json").write_text(json.dumps(metadata))
    assert contract.of_file(file)["target"] == "dsp"


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_text("hello")
    with pytest.raises(UserError, match="not a TFLite model"):
        contract.of_file(tmp_path / "x.tflite")
