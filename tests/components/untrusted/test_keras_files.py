"""What an adversary puts into a file: nothing of it runs, and the message is one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import strategies as st

from edgeline.errors import UserError
from edgeline.untrusted import keras_files, reading

VALUES = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])


def load(path: Path, custom_objects: dict[str, Any] | None = None, **options: Any) -> tf_keras.Model:
    kind = "keras_saved_model" if path.is_dir() else path.suffix[1:]
    return keras_files.load(path, kind, custom_objects or {}, where="model.py", **options)


def refused(path: Path, custom_objects: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as error:
        load(path, custom_objects)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


@pytest.fixture
def model() -> tf_keras.Model:
    tf_keras.backend.clear_session()
    x = tf_keras.Input([4], name="x")
    y = tf.math.multiply(tf_keras.layers.Dense(4, "relu", name="dense")(x), 2.0)
    return tf_keras.Model(x, tf_keras.layers.Dense(3, name="out")(y))


def save(model: tf_keras.Model, path: Path) -> Path:
    if path.suffix == ".h5":
        with pytest.warns(UserWarning, match="HDF5"):
            model.save(path)
    else:
        model.save(path, save_format=None if path.suffix else "tf")
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def change_config(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return
    content = members(path)
    config = json.loads(content["config.json"])
    change(config)
    write(path, content | {"config.json": json.dumps(config).encode()})


def call(config: dict[str, Any], function: str, first: Any, **arguments: Any) -> None:
    """Makes the model's multiplication another call, on constants: it runs while the model is put together."""
    layer = next(each for each in config["config"]["layers"] if each["class_name"] == "TFOpLambda")
    layer["config"]["function"] = function
    layer["inbound_nodes"] = [[["_CONSTANT_VALUE", -1, first, arguments]]]


# code -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_function_that_writes_a_file_is_not_called(model: tf_keras.Model, tmp_path: Path, name: str) -> None:
    path, written = save(model, tmp_path / name), tmp_path / "written"
    change_config(path, lambda config: call(config, "io.write_file", str(written), contents="owned"))
    assert "calls io.write_file" in refused(path)
    assert not written.exists()


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_function_that_builds_a_model_is_not_called(model: tf_keras.Model, tmp_path: Path, name: str) -> None:
    path, ran = save(model, tmp_path / name), tmp_path / "ran"
    marker, x = str(ran), tf_keras.Input([4])
    inner = tf_keras.Model(x, tf_keras.layers.Lambda(lambda t: (open(marker, "w").close(), t)[1])(x)).to_json()
    ran.unlink()
    change_config(path, lambda config: call(config, "keras.models.model_from_json", inner))
    assert "calls keras.models.model_from_json" in refused(path)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_module_is_not_imported(
    model: tf_keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, ran = save(model, tmp_path / name), tmp_path / "ran"
    (tmp_path / "imported_by_a_model.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Model: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    change_config(path, lambda c: c.update(module="imported_by_a_model", class_name="Model", registered_name=None))
    assert "Model of module imported_by_a_model, which is neither" in refused(path)
    assert not ran.exists()


def test_nothing_of_a_saved_models_graph_is_needed(model: tf_keras.Model, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "folder")
    expected = model(VALUES).numpy()
    (folder / "saved_model.pb").write_bytes(b"")
    np.testing.assert_allclose(load(folder)(VALUES), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "folder"])
def test_custom_layers_and_functions(tmp_path: Path, name: str) -> None:
    class Twice(tf_keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    def third(x: Any) -> Any:
        return x / 3

    x = tf_keras.Input([4], name="x")
    model = tf_keras.Model(x, Twice()(tf_keras.layers.Dense(3, third)(x)))
    path = save(model, tmp_path / name)
    loaded = load(path, {"Twice": Twice, "third": third})
    np.testing.assert_allclose(loaded(VALUES), model(VALUES), atol=1e-6)
    assert "which is neither Keras' own nor a custom object. Custom layers and functions" in refused(path)
    assert "a name that tf_keras has for something of its own" in refused(path, {"Dense": Twice})


# archives -------------------------------------------------------------------------------------------------------------


def test_a_config_that_inflates(model: tf_keras.Model, tmp_path: Path) -> None:
    path = save(model, tmp_path / "m.keras")
    content = members(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("metadata.json", "model.weights.h5"):
            archive.writestr(name, content[name])
        with archive.open("config.json", "w", force_zip64=True) as file:
            for _ in range(270):
                file.write(b" " * 2**20)
    assert path.stat().st_size < 2 * 2**20
    assert "would take 283,1" in refused(path)
    # and one that is small enough to be unpacked, but no config
    write(path, content | {"config.json": b" " * 100 * 2**20}, zipfile.ZIP_DEFLATED)
    assert "config.json in" in (message := refused(path))
    assert "allowed are 67,108,864" in message
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 300 * 2**10


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "assets\\..\\evil"])
def test_a_member_that_leads_out(model: tf_keras.Model, tmp_path: Path, name: str) -> None:
    path = save(model, tmp_path / "m.keras")
    write(path, members(path) | {name: b"x"})
    assert "which leads out of it" in refused(path)


def test_a_member_that_is_there_twice(model: tf_keras.Model, tmp_path: Path) -> None:
    path = save(model, tmp_path / "m.keras")
    content = members(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", content["config.json"])
    assert "has 'config.json' twice" in refused(path)


def test_a_deeply_nested_config(model: tf_keras.Model, tmp_path: Path) -> None:
    path = save(model, tmp_path / "m.keras")
    write(path, members(path) | {"config.json": b"[" * 100_000 + b"]" * 100_000})
    assert "nested too deep" in refused(path)
    write(path, members(path) | {"config.json": b'{"a":' * 500 + b"1" + b"}" * 500})
    assert "nested more than 200 deep" in refused(path)


def test_a_node_that_names_itself(model: tf_keras.Model, tmp_path: Path) -> None:
    path = save(model, tmp_path / "m.keras")
    change_config(path, lambda c: c["config"]["layers"][1].update(inbound_nodes=[[["dense", 0, 0, {}]]]))
    assert "need each other's outputs" in refused(path)


def test_a_vocabulary_is_not_read_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a\nb\n")
    for library in (tf_keras, keras):
        path = tmp_path / f"{library.__name__}.keras"
        x = library.Input([1], dtype="string", name="x")
        y = library.layers.StringLookup(vocabulary=["a", "b"], name="lookup")(x)
        library.Model(x, y).save(path)
        change_config(path, lambda c: c["config"]["layers"][1]["config"].update(vocabulary=str(secret)))
        assert "StringLookup lookup takes its vocabulary from a file" in refused(path)


# HDF5 -----------------------------------------------------------------------------------------------------------------


def external(file: h5py.File, other: Path) -> None:
    file["model_weights/evil"] = h5py.ExternalLink(str(other), "/secret")


def soft(file: h5py.File, other: Path) -> None:
    file["model_weights/evil"] = h5py.SoftLink("/model_weights")


def stored_elsewhere(file: h5py.File, other: Path) -> None:
    file.create_dataset("model_weights/evil", (4,), "u1", external=[(str(other), 0, 4)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", (4,))
    file.create_virtual_dataset("model_weights/evil", layout)


def in_itself(file: h5py.File, other: Path) -> None:
    file["model_weights/evil"] = file["/"]


def huge(file: h5py.File, other: Path) -> None:
    file.create_dataset("model_weights/evil", (10**9, 100), "f4", chunks=(1000, 100), compression="gzip")


def of_objects(file: h5py.File, other: Path) -> None:
    file.create_dataset("model_weights/evil", (4,), h5py.string_dtype())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "is a link to another place or file"),
        (soft, "is a link to another place or file"),
        (stored_elsewhere, "has its values in another file"),
        (virtual, "has its values in another file"),
        (in_itself, "is a group that is part of itself"),
        (huge, "would take 400,000,"),
        (of_objects, "holds values of no fixed size"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_an_hdf5_file_with_more_than_arrays(
    model: tf_keras.Model, tmp_path: Path, name: str, change: Callable[[h5py.File, Path], None], message: str
) -> None:
    path, other = save(model, tmp_path / name), tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(4, dtype="f4")
    if name == "m.h5":
        with h5py.File(path, "r+") as file:
            change(file, other)
    else:
        content, weights = members(path), tmp_path / "weights.h5"
        weights.write_bytes(content["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            change(file, other)
        write(path, content | {"model.weights.h5": weights.read_bytes()})
    assert message in refused(path)


ATTRIBUTES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=20), st.binary(max_size=20),
    st.lists(st.text(st.characters(min_codepoint=1), max_size=9), max_size=3), st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from(("[" * 10**4, '{"class_name": "Functional", "config": {}}', "\ud800", "a\0b", "2.21.0", "3.1")),
)  # fmt: skip


@hypothesis.settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
@hypothesis.given(
    where=st.sampled_from(("", "model_weights", "model_weights/dense", "model_weights/out")),
    name=st.sampled_from(("model_config", "keras_version", "backend", "layer_names", "weight_names", "other")),
    value=ATTRIBUTES,
)
def test_any_attribute_of_an_hdf5_file_is_refused_or_harmless(
    model: tf_keras.Model, tmp_path: Path, where: str, name: str, value: Any
) -> None:
    sound = tmp_path / "sound.h5"
    if not sound.exists():
        save(model, sound)
    path = Path(shutil.copy(sound, tmp_path / "m.h5"))
    with h5py.File(path, "a") as file:
        attributes = file[where or "/"].attrs
        attributes.pop(name, None)
        if value is not None:
            try:
                attributes[name] = value
            except (ValueError, TypeError, UnicodeEncodeError):
                hypothesis.reject()  # h5py writes no such thing
    try:
        loaded = load(path)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        np.testing.assert_array_equal(loaded(VALUES), model(VALUES))
    assert "\n" not in message


def test_a_link_in_a_folder(model: tf_keras.Model, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "folder")
    shutil.move(folder / "variables", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "variables")  # noqa: PTH211
    assert "is a link or a device" in refused(folder)


def test_json_that_is_too_long() -> None:
    with pytest.raises(UserError, match=r"the text is 67,108,865 bytes, allowed are"):
        reading.json_of(b" " * (reading.MAX_CONFIG_BYTES + 1), "the text")


# what people have -----------------------------------------------------------------------------------------------------

# one of each family: its larger ones have the same layers
APPLICATIONS = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "EfficientNetV2S",
    "DenseNet121", "ResNet50", "ResNet50V2", "ConvNeXtTiny", "InceptionResNetV2",
)  # fmt: skip
#: What the Keras that wrote a file cannot read again itself.
UNREADABLE = {
    ("MobileNetV3Small", keras, "h5"),
    ("ConvNeXtTiny", tf_keras, "keras"),
    ("ConvNeXtTiny", tf_keras, "h5"),
    ("ConvNeXtTiny", keras, "h5"),
    ("InceptionResNetV2", keras, "h5"),
}
#: What has layers of Keras 3 that tf-keras lacks.
WITHOUT_A_TWIN = {("ConvNeXtTiny", keras, "keras"), ("InceptionResNetV2", keras, "keras")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The `keras.initializers.serialize")
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("library", [tf_keras, keras], ids=lambda library: library.__name__)
@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_loads(tmp_path: Path, name: str, library: Any) -> None:
    # 75 is the smallest that InceptionResNetV2 takes
    size = 96 if name == "InceptionResNetV2" else 64
    library.utils.set_random_seed(0)
    model = getattr(library.applications, name)(input_shape=(size, size, 3), weights=None, classes=10)
    image = np.random.default_rng(0).uniform(0, 1, [1, size, size, 3]).astype("float32")
    expected = np.asarray(model(image))
    for suffix in ("keras", "h5"):
        path = tmp_path / f"m.{suffix}"
        model.save(path)
        if (name, library, suffix) in UNREADABLE:
            with pytest.raises((ValueError, TypeError)):
                library.models.load_model(path, compile=False)
            with pytest.raises(UserError, match="cannot be loaded by"):
                load(path)
        elif (name, library, suffix) in WITHOUT_A_TWIN:
            with pytest.raises(UserError, match="without a twin in tf-keras"):
                load(path)
        else:
            np.testing.assert_allclose(load(path)(image), expected, rtol=1e-4, atol=1e-5)
