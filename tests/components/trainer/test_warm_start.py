"""Beginning with the weights of a trained model: all of them, or none and a reason."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline import files, layout
from edgeline.errors import UserError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.trainer.config import Train
from edgeline.trainer.warm_start import begin


@pytest.fixture
def trained(small: Any) -> str:
    return str(Path(small.folder, layout.KERAS_FILE))


def weights_of(model: tf_keras.Model) -> list[np.ndarray]:
    return [weight.numpy() for weight in model.weights]


def same(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_all_weights_are_taken(small: Any, trained: str) -> None:
    model = small.module.build_model()
    expected = weights_of(small.load())
    assert not same(weights_of(model), expected)
    digest = files.sha256_of(trained)
    facts = begin(model, small.module, Train(warm_start=trained, warm_start_digest=digest))
    assert facts == {
        "from": trained, "sha256": digest, "taken": True, "note": f"starts from the weights of {trained}"
    }  # fmt: skip
    assert same(weights_of(model), expected)  # the norm's statistics too


def test_a_uri_is_copied_first(small: Any, trained: str) -> None:
    model = small.module.build_model()
    uri = f"file://{trained}"
    assert begin(model, small.module, Train(warm_start=uri))["taken"]
    assert same(weights_of(model), weights_of(small.load()))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('Dense(16, activation="relu", name="hidden")', 'Dense(12, activation="relu", name="hidden")',
         r"layer hidden: kernel \(128, 12\) here, \(128, 16\) there"),
        ('name="hidden"', 'name="wide"', "layer wide is only here"),
        ('keras.layers.Dense(16, activation="relu", name="hidden"),', "", r"layer logits: kernel \(128, 3\) here"),
        ("Conv2D(2, 3, use_bias=False", "Conv2D(2, 3", "layer conv1: 2 weights here, 1 there"),
        ('keras.layers.BatchNormalization(name="norm"),', "", "layer norm is only there"),
    ],
)  # fmt: skip
def test_another_model_starts_from_scratch(
    small: Any, trained: str, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    code = Path(small.path).read_text()
    assert old in code
    (tmp_path / "other.py").write_text(code.replace(old, new))
    module = hooks.load(str(tmp_path / "other.py"))
    model = module.build_model()
    before = weights_of(model)
    facts = begin(model, module, Train(warm_start=trained))
    assert not facts["taken"]
    assert re.match(f"starts from scratch because {reason}", facts["note"])
    assert same(weights_of(model), before)


def test_a_file_that_cannot_be_read(small: Any, tmp_path: Path) -> None:
    model = small.module.build_model()
    before = weights_of(model)
    facts = begin(model, small.module, Train(warm_start=str(tmp_path / "gone.keras")))
    assert (facts["sha256"], facts["taken"]) == (None, False)
    assert f"starts from scratch because {tmp_path}/gone.keras cannot be read: " in facts["note"]
    (tmp_path / "bad.keras").write_bytes(b"PK no zip")
    facts = begin(model, small.module, Train(warm_start=str(tmp_path / "bad.keras")))
    assert len(facts["sha256"]) == 64
    assert "cannot be read: " in facts["note"]
    assert "\n" not in facts["note"]
    assert same(weights_of(model), before)


def test_a_file_that_was_replaced_stops_the_run(small: Any, trained: str) -> None:
    config = Train(warm_start=trained, warm_start_digest="0" * 64)
    with pytest.raises(UserError, match=r"is not the file this run began with .* expected 000000000000\)"):
        begin(small.module.build_model(), small.module, config)


def test_what_is_frozen_makes_no_difference(tmp_path: Path, small: Any) -> None:
    def build(frozen: bool) -> tf_keras.Model:
        tf_keras.backend.reset_uids()
        base = tf_keras.Sequential(
            [tf_keras.Input([4]), tf_keras.layers.Dense(4), tf_keras.layers.BatchNormalization()], name="base"
        )
        base.trainable = not frozen
        x = tf_keras.Input([4], name="x")
        return tf_keras.Model(x, tf_keras.layers.Dense(4, name="logits")(base(x)))

    source, model = build(True), build(False)
    source.get_layer("base").layers[1].moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    keras_file.save(source, str(tmp_path))
    config = Train(warm_start=str(tmp_path / layout.KERAS_FILE))
    assert begin(model, small.module, config)["taken"]
    np.testing.assert_array_equal(model.get_layer("base").layers[1].moving_mean, [1.0, 2.0, 3.0, 4.0])
    data = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(model(data), source(data))


def test_the_weights_are_part_of_the_cache_key() -> None:
    one, two = Train(warm_start="a.keras", warm_start_digest="1"), Train(warm_start="a.keras", warm_start_digest="2")
    assert one.encoded() != two.encoded()
    assert dataclasses.replace(one, warm_start=None, warm_start_digest=None) == Train()


def test_a_refused_file_starts_from_scratch(small: Any, trained: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.keras"
    with zipfile.ZipFile(trained) as archive, zipfile.ZipFile(path, "w") as target:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                content = json.dumps({**json.loads(content), "module": "antigravity"}).encode()
            target.writestr(name, content)
    model = small.module.build_model()
    expected = weights_of(model)
    facts = begin(model, small.module, Train(warm_start=str(path)))
    assert re.match(r"starts from scratch because .* is refused: .* of module antigravity", facts["note"])
    assert same(weights_of(model), expected)
