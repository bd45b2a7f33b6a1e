"""A stranger's model is opened in a process of its own: what happens there stays there."""

from __future__ import annotations

import json
import os
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline.errors import UserError
from edgeline.isolation import limits
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.untrusted import sandbox

VALUES = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])


@pytest.fixture
def module(tiny_module: Path) -> ModelModule:
    return hooks.load(str(tiny_module))


def with_layer(tiny_module: Path, body: str) -> ModelModule:
    """A module with a custom layer, whose code is that of a file that breaks what reads it."""
    text = f"\n\nclass Evil(keras.layers.Layer):\n    def build(self, shape):\n        {body}\n"
    tiny_module.write_text(f"{tiny_module.read_text()}{text}\n\ndef custom_objects():\n    return {{'Evil': Evil}}\n")
    return hooks.load(str(tiny_module))


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    class Evil(tf_keras.layers.Layer):
        pass

    x = tf_keras.Input([4], name="x")
    path = tmp_path / "evil.keras"
    tf_keras.Model(x, Evil(name="evil")(x)).save(path)
    return path


def sound(path: Path, units: int = 3) -> tf_keras.Model:
    x = tf_keras.Input([4], name="x")
    y = tf_keras.layers.BatchNormalization()(tf_keras.layers.Dense(units, name="dense")(x))
    model = tf_keras.Model(x, y)
    model.layers[-1].moving_mean.assign(np.arange(units, dtype=np.float32))
    model.save(path)
    return model


def test_a_model_comes_whole(module: ModelModule, tmp_path: Path) -> None:
    model = sound(tmp_path / "m.keras")
    loaded = sandbox.load(tmp_path / "m.keras", "keras", module)
    np.testing.assert_allclose(loaded(VALUES), model(VALUES), atol=1e-6)
    assert [w.name for w in loaded.weights] == [w.name for w in model.weights]


def test_what_is_frozen_makes_no_difference(module: ModelModule, tmp_path: Path) -> None:
    model = sound(tmp_path / "m.keras")
    model.layers[1].trainable = False
    model.save(tmp_path / "m.keras")
    loaded = sandbox.load(tmp_path / "m.keras", "keras", module)
    assert not loaded.layers[1].trainable
    np.testing.assert_allclose(loaded(VALUES), model(VALUES), atol=1e-6)


def test_a_crash_is_the_models(tiny_module: Path, evil: Path) -> None:
    module = with_layer(tiny_module, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UserError, match="is refused: the process that opened it ended by SIGSEGV"):
        sandbox.load(evil, "keras", module)


def test_a_hang_is_the_models(tiny_module: Path, evil: Path) -> None:
    hanging = with_layer(tiny_module, "import time; time.sleep(1000)")
    with pytest.raises(UserError, match="is refused: it was not opened in 1 s"):
        sandbox.load(evil, "keras", hanging, timeout=1)


@pytest.mark.slow  # TensorFlow waits for 10 s before it says that there is no memory
def test_hunger_is_the_models(module: ModelModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.MEMORY_LIMIT, "4")
    path = tmp_path / "m.keras"
    sound(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    config["config"]["layers"][1]["config"]["units"] = 10**9
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (content | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"m\.keras (cannot be loaded|is refused)"):
        sandbox.load(path, "keras", module)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


def test_each_file_has_a_process_of_its_own(tiny_module: Path, evil: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    body = f"import os; file = open({str(seen)!r}, 'a'); print(os.getpid(), file=file); file.close()"
    module = with_layer(tiny_module, body)
    for _ in range(2):
        sandbox.load(evil, "keras", module)
    here, *others = dict.fromkeys(seen.read_text().split())
    # two children; the last builds are this process', from their answers
    assert len({here, *others} - {str(os.getpid())}) == 2
    for pid in {here, *others} - {str(os.getpid())}:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_process_that_ends_without_an_answer(tiny_module: Path, evil: Path) -> None:
    module = with_layer(tiny_module, "import os; os._exit(0)")
    with pytest.raises(UserError, match=r"is refused: .*No such file or directory"):
        sandbox.load(evil, "keras", module)


def test_an_answer_is_not_trusted(module: ModelModule, tmp_path: Path) -> None:
    model = sound(tmp_path / "m.keras")
    sound_config = tf_keras.saving.serialize_keras_object(model)
    sound_values = {f"{i:06d}": np.asarray(variable) for i, variable in enumerate(sandbox._variables(model))}
    answer = tmp_path / "answer"
    answer.mkdir()
    config, weights = answer / "config.json", answer / "weights.npz"

    def built(config_text: str | None = None, save: Any = np.savez, **values: np.ndarray) -> tf_keras.Model:
        config.write_text(json.dumps(sound_config) if config_text is None else config_text)
        save(weights, **(sound_values | values))
        return sandbox._built(tmp_path / "m.keras", answer, module, False)

    np.testing.assert_allclose(built()(VALUES), model(VALUES), atol=1e-6)
    with pytest.raises(UserError, match="of module antigravity"):
        built(json.dumps({**sound_config, "module": "antigravity"}))
    with pytest.raises(UserError, match="is nested too deep"):
        built("[" * 10**5)
    with pytest.raises(UserError, match="it has 7 weights, the model has 6"):
        built(extra=np.zeros(1, np.float32))
    with pytest.raises(UserError, match=r"is float32 \(3, 4\), expected float32 \(4, 3\)"):
        built(**{"000000": sound_values["000000"].T})
    with pytest.raises(UserError, match=r"is float16 .*, expected float32"):
        built(**{"000000": sound_values["000000"].astype(np.float16)})
    with pytest.raises(UserError, match="its weights are 8,000"):
        built(**{"000000": np.zeros(10**6)})
    # a small file that would be a large array
    with pytest.raises(UserError, match="its weights are 8,000"):
        built(save=np.savez_compressed, **{"000000": np.zeros(10**6)})
    with pytest.raises(UserError, match="cannot be built: Object arrays cannot be loaded"):
        built(**{"000000": np.array([{}], dtype=object)})
    # one whose header says more than there is
    built()
    with zipfile.ZipFile(weights) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["000000.npy"] = members["000000.npy"].replace(b"(4, 3), }" + b" " * 10, b"(4, 3000000000), }", 1)
    with zipfile.ZipFile(weights, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="cannot be built"):
        sandbox._built(tmp_path / "m.keras", answer, module, False)
    # another's file behind a name
    (tmp_path / "elsewhere.json").write_text(json.dumps(sound_config))
    config.unlink()
    config.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="is a link or a device"):
        sandbox._built(tmp_path / "m.keras", answer, module, False)
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(UserError, match="is a link or a device"):
        sandbox._built(tmp_path / "m.keras", answer, module, False)


@pytest.mark.parametrize(
    ("policy", "kind"),
    [("mixed_bfloat16", "keras"), ("float16", "keras"), ("float64", "keras"), ("bfloat16", "keras_saved_model")],
)
def test_weights_of_any_number_type_come_whole(module: ModelModule, tmp_path: Path, policy: str, kind: str) -> None:
    x = tf_keras.Input([4], name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, dtype=policy)(x))
    path = tmp_path / ("m.keras" if kind == "keras" else "m")
    model.save(path)
    loaded = sandbox.load(path, kind, module)
    assert [w.dtype for w in loaded.weights] == [w.dtype for w in model.weights]
    for received, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(tf.cast(received, tf.float64), tf.cast(expected, tf.float64))


def adapted(layer: tf_keras.layers.Layer, values: Any) -> tf_keras.layers.Layer:
    layer.adapt(values)
    return layer


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (lambda: adapted(tf_keras.layers.StringLookup(), ["a", "b", "b"]), np.array([["a"], ["b"], ["c"]])),
        (lambda: adapted(tf_keras.layers.IntegerLookup(), [7, 8, 8]), np.array([[7], [8], [9]])),
        (
            lambda: adapted(tf_keras.layers.TextVectorization(), np.array(["a b", "b c"])),
            np.array([["a b"], ["b b"], ["c d"]]),
        ),
        (lambda: adapted(tf_keras.layers.Discretization(num_bins=3), np.arange(9.0)), np.float32([[1], [4], [8]])),
        (lambda: adapted(tf_keras.layers.Normalization(), np.arange(9.0)[:, None]), np.float32([[1], [4], [8]])),
    ],
)
def test_what_a_layer_learnt_by_adapting_comes_with_it(
    module: ModelModule, tmp_path: Path, layer: Any, values: np.ndarray
) -> None:
    x = tf_keras.Input([1], dtype="string" if values.dtype.kind == "U" else values.dtype, name="x")
    model = tf_keras.Model(x, layer()(x))
    path = tmp_path / "m.keras"
    model.save(path)
    np.testing.assert_allclose(sandbox.load(path, "keras", module)(values), model(values), atol=1e-6)
