from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline import layout
from edgeline.conversion.failures import ExportError
from edgeline.errors import UserError
from edgeline.model_importer import importing
from edgeline.model_importer.component import ModelImporter
from edgeline.model_importer.config import Import, digest_of, kind_of
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.tflite import litert
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export

VALUES = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])


@pytest.fixture
def module(tiny_module: Path) -> ModelModule:
    return hooks.load(str(tiny_module))


def load(path: Path, module: ModelModule, **options: Any) -> tuple[Any, dict[str, Any]]:
    return importing.load(Import(str(path), digest_of(path), **options), module)


def opened(model: GraphModel) -> GraphModel:
    """A stranger's graph, which this test has made itself, loaded in this process."""
    return graph_model.opened(model.folder, model.io)


def names(ports: list[dict[str, Any]]) -> list[str]:
    return [port["name"] for port in ports]


def quiet(save: Callable[[], Any]) -> None:
    with pytest.warns(UserWarning, match="HDF5"):
        save()


# models with layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "folder"])
def test_a_model_of_tf_keras(module: ModelModule, tmp_path: Path, name: str) -> None:
    model = module.build_model()
    expected = model(VALUES).numpy()
    if name == "m.h5":
        quiet(lambda: model.save(tmp_path / name))
    else:
        model.save(tmp_path / name, save_format=None if name == "m.keras" else "tf")
    kind = {"m.keras": "keras", "m.h5": "h5", "folder": "keras_saved_model"}[name]
    assert kind_of(tmp_path / name) == kind
    loaded, io = load(tmp_path / name, module)
    assert isinstance(loaded, tf_keras.Model)
    np.testing.assert_allclose(loaded(VALUES), expected, atol=1e-6)
    assert io["inputs"] == [{"name": "x", "shape": [None, 4], "dtype": "float32"}]
    assert names(io["outputs"]) == loaded.output_names
    keras_file.save(loaded, str(tmp_path / "artifact"))
    np.testing.assert_allclose(keras_file.load(str(tmp_path / "artifact"), module)(VALUES), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_model_of_keras_3(module: ModelModule, tmp_path: Path, name: str) -> None:
    model = keras.Sequential(
        [keras.Input([4], name="x"), keras.layers.Dense(5, "relu"), keras.layers.BatchNormalization(name="out")]
    )
    model.save(tmp_path / name)
    loaded, io = load(tmp_path / name, module)
    assert isinstance(loaded, tf_keras.Model)
    np.testing.assert_allclose(loaded(VALUES), model(VALUES), atol=1e-6)
    assert (names(io["inputs"]), names(io["outputs"])) == (["x"], ["out"])


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "folder"])
def test_a_lambda_is_refused_and_can_be_allowed(module: ModelModule, tmp_path: Path, name: str) -> None:
    marker = str(tmp_path / "ran")
    x = tf_keras.Input([4], name="x")
    scaled = tf_keras.layers.Lambda(
        lambda t, k: (open(marker, "w").close(), t * k)[1], arguments={"k": 2.0}, name="own"
    )
    model = tf_keras.Model(x, tf_keras.layers.Dense(3)(scaled(x)))
    expected = model(VALUES).numpy()
    if name == "m.h5":
        quiet(lambda: model.save(tmp_path / name))
    else:
        model.save(tmp_path / name, save_format=None if name == "m.keras" else "tf")
    os.remove(marker)  # noqa: PTH107
    with pytest.raises(UserError, match=r"holds Lambda layers \(own\): Python code .* allow it with --allow-lambda"):
        load(tmp_path / name, module)
    assert not Path(marker).exists()
    loaded, _ = load(tmp_path / name, module, allow_lambda=True)
    # from here on it is loaded in safe mode
    keras_file.save(loaded, str(tmp_path / "artifact"))
    np.testing.assert_allclose(keras_file.load(str(tmp_path / "artifact"), module)(VALUES), expected, atol=1e-6)


def test_a_lambda_of_keras_3_is_refused(module: ModelModule, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input([4]), keras.layers.Lambda(lambda t: 2 * t, name="twice")])
    model.save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"Lambda layers \(twice\): .* Replace them by layers or keras.ops"):
        load(tmp_path / "m.keras", module)


def test_a_custom_layer_must_be_in_the_module(module: ModelModule, tmp_path: Path) -> None:
    class Unknown(tf_keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    tf_keras.Sequential([tf_keras.Input([4]), Unknown()]).save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"is refused: .*Unknown.* returned by custom_objects\(\) of"):
        load(tmp_path / "m.keras", module)


def test_a_function_under_another_name(tiny_module: Path, tmp_path: Path) -> None:
    x = tf_keras.Input([4], name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, lambda t: t / 3, name="thirds")(x))
    name = "folder"
    model.save(tmp_path / name, save_format="tf")
    text = tiny_module.read_text()
    tiny_module.write_text(f"{text}\n\ndef third(x):\n    return x / 3\n\n\ndef custom_objects():\n"
                           f"    return {{'<lambda>': third}}\n")  # fmt: skip
    module = hooks.load(str(tiny_module))
    loaded, _ = load(tmp_path / name, module)
    keras_file.save(loaded, str(tmp_path / "artifact"))
    again = keras_file.load(str(tmp_path / "artifact"), module)
    np.testing.assert_allclose(again(VALUES), model(VALUES), atol=1e-6)
    tiny_module.write_text(f"{text}\n\ndef custom_objects():\n    return {{'<lambda>': lambda x: x / 3}}\n")
    with pytest.raises(UserError, match="layer thirds computes with a lambda, which no file can hold; give"):
        load(tmp_path / name, hooks.load(str(tiny_module)))


def test_a_subclassed_model_is_refused(module: ModelModule, tmp_path: Path) -> None:
    class Own(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = tf_keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Own()
    model(VALUES)
    model.save(tmp_path / "folder", save_format="tf")
    with pytest.raises(UserError, match=r"is a subclassed Own, .* without Keras metadata"):
        load(tmp_path / "folder", module)


def test_weights_alone_are_refused(module: ModelModule, tmp_path: Path) -> None:
    module.build_model().save_weights(tmp_path / "w.h5")
    with pytest.raises(UserError, match=r"holds weights alone; save the whole model: model.save\(...\)"):
        load(tmp_path / "w.h5", module)


def test_a_model_that_was_changed_is_refused(module: ModelModule, tmp_path: Path) -> None:
    module.build_model().save(tmp_path / "m.keras")
    with pytest.raises(UserError, match="was changed since this run began"):
        importing.load(Import(str(tmp_path / "m.keras"), "0" * 64), module)


# graphs ---------------------------------------------------------------------------------------------------------------


def plain_saved_model(folder: Path, batch: int | None = None, **signatures: Any) -> np.ndarray:
    """A SavedModel with a variable, two outputs and no Keras metadata."""
    holder = tf.Module()
    holder.kernel = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3) / 10)

    @tf.function(input_signature=[tf.TensorSpec([batch, 4], tf.float32, name="x")])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = tf.matmul(x, holder.kernel)
        return {"scores": scores, "best": tf.reduce_max(scores, -1)}

    holder.call = call
    tf.saved_model.save(holder, str(folder), signatures=signatures or {"serving_default": call})
    return VALUES @ holder.kernel.numpy()


def frozen_graph(path: Path, batch: Any = None, shaped: bool = True) -> np.ndarray:
    kernel = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [batch, 4] if shaped else None, name="image/x")
        scores = tf.matmul(tf.reshape(x, [-1, 4]), kernel, name="scores")
        tf.reduce_max(scores, -1, name="best")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return VALUES @ kernel


def test_a_saved_model_without_keras(module: ModelModule, tmp_path: Path) -> None:
    expected = plain_saved_model(tmp_path / "sm")
    assert kind_of(tmp_path / "sm") == "saved_model"
    model, io = load(tmp_path / "sm", module)
    assert isinstance(model, GraphModel)
    assert io == {
        "inputs": [{"name": "x", "shape": [None, 4], "dtype": "float32"}],
        "outputs": [
            {"name": "best", "shape": [None], "dtype": "float32"},
            {"name": "scores", "shape": [None, 3], "dtype": "float32"},
        ],
        "labels": [],
    }
    best, scores = opened(model)(tf.constant(VALUES))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    np.testing.assert_allclose(best, expected.max(-1), rtol=1e-6)
    # in an artifact, with both signatures
    graph_model.save(opened(model), module, io, str(tmp_path / "artifact"))
    assert graph_model.is_one(str(tmp_path / "artifact"))
    again = graph_model.opened(str(tmp_path / "artifact"), io)
    np.testing.assert_allclose(again(tf.constant(VALUES))[1], expected, rtol=1e-6)
    assert set(tf.saved_model.load(str(tmp_path / "artifact/Format-Serving")).signatures) == {
        "serving_default",
        "serving_raw",
    }


def test_output_names_order_the_outputs_of_a_graph(tiny_module: Path, tmp_path: Path) -> None:
    plain_saved_model(tmp_path / "sm")
    tiny_module.write_text(tiny_module.read_text() + "\n\ndef output_names():\n    return ['scores', 'best']\n")
    assert names(load(tmp_path / "sm", hooks.load(str(tiny_module)))[1]["outputs"]) == ["scores", "best"]
    tiny_module.write_text(tiny_module.read_text().replace("['scores', 'best']", "['a', 'b']"))
    with pytest.raises(UserError, match=r"returns a, b, but the model's outputs are best, scores"):
        load(tmp_path / "sm", hooks.load(str(tiny_module)))


def test_a_frozen_graph(module: ModelModule, tmp_path: Path) -> None:
    path = tmp_path / "frozen.pb"
    expected = frozen_graph(path)
    assert kind_of(path) == "graph_def"
    model, io = load(path, module)
    assert (names(io["inputs"]), names(io["outputs"])) == (["image_x"], ["best"])
    np.testing.assert_allclose(opened(model)(tf.constant(VALUES))[0], expected.max(-1), rtol=1e-6)
    model, io = load(path, module, inputs=["image/x"], outputs=["scores", "best:0"])
    assert names(io["outputs"]) == ["scores", "best"]
    np.testing.assert_allclose(opened(model)(tf.constant(VALUES))[0], expected, rtol=1e-6)


def test_shapes_that_a_frozen_graph_does_not_say(module: ModelModule, tmp_path: Path) -> None:
    path = tmp_path / "frozen.pb"
    frozen_graph(path, shaped=False)
    with pytest.raises(UserError, match=r"does not say the shape of image/x:0; give it: --input image/x:0=\?,96,96,3"):
        load(path, module)
    assert load(path, module, inputs=["image/x=?,4"])[1]["inputs"][0]["shape"] == [None, 4]
    with pytest.raises(UserError, match="a shape is numbers joined by commas"):
        load(path, module, inputs=["image/x=four"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ["picture"]}, "has no node 'picture'; its placeholders are image/x"),
        ({"outputs": ["logits"]}, "has no node 'logits'; its last nodes are best"),
    ],
)
def test_names_that_a_frozen_graph_does_not_have(
    module: ModelModule, tmp_path: Path, options: dict[str, list[str]], message: str
) -> None:
    frozen_graph(tmp_path / "frozen.pb")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "frozen.pb", module, **options)


def test_signatures(module: ModelModule, tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    with pytest.raises(UserError, match="without signatures, so its inputs and outputs are unknown"):
        load(tmp_path / "none", module)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x}

    plain_saved_model(tmp_path / "two", first=call, second=call)
    with pytest.raises(
        UserError, match=r"2 signatures \(first, second\), none of them serving_default; choose one with"
    ):
        load(tmp_path / "two", module)
    with pytest.raises(UserError, match="has no signature 'third'; its signatures are first, second"):
        load(tmp_path / "two", module, signature="third")
    plain_saved_model(tmp_path / "default", serving_default=call, other=call)
    assert names(load(tmp_path / "default", module)[1]["outputs"]) == ["y"]
    assert names(load(tmp_path / "two", module, signature="second")[1]["outputs"]) == ["y"]


# bad input ------------------------------------------------------------------------------------------------------------


def test_wrong_kinds(module: ModelModule, tmp_path: Path) -> None:
    def refused(name: str, content: bytes | None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            importing.load(Import(str(path)), module)
        return str(error.value)

    assert "does not exist" in refused("absent.keras", None)
    assert "begins with b'hello'" in refused("m.keras", b"hello")
    assert "is of no known kind" in refused("empty.keras", b"")
    assert "not a sound TFLite model" in refused("m.tflite", b"\x1c\0\0\0TFL3" + bytes(20))
    assert "is no frozen GraphDef" in refused("m.pb", os.urandom(300))
    (tmp_path / "folder").mkdir()
    assert "a folder without saved_model.pb" in refused("folder", None)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "is a zip file, but no .keras file: config.json, metadata.json" in refused("other.zip", None)
    plain_saved_model(tmp_path / "sm")
    assert "is a part of a SavedModel; give its folder" in refused("sm/saved_model.pb", None)
    (tmp_path / "sm" / "saved_model.pb").write_bytes(os.urandom(300))
    assert "is a damaged or incomplete SavedModel" in refused("sm", None)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.pb", "sm"])
def test_truncated_files(module: ModelModule, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "m.h5":
        quiet(lambda: module.build_model().save(path))
    elif name == "m.keras":
        module.build_model().save(path)
    elif name == "m.pb":
        frozen_graph(path)
    else:
        plain_saved_model(path)
    file = path / "variables/variables.data-00000-of-00001" if name == "sm" else path
    whole = file.read_bytes()
    for share in (0.3, 0.6, 0.95):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"truncated|damaged|cannot be loaded|no node|cannot be used|and 0 outputs"):
            load(path, module)


def test_a_damaged_keras_file(module: ModelModule, tmp_path: Path) -> None:
    module.build_model().save(tmp_path / "m.keras")
    content = bytearray((tmp_path / "m.keras").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "m.keras", module)


# the steps after it ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Folder:
    uri: str

    def set_string_custom_property(self, name: str, value: str) -> None:
        assert (name, value) == ("stage", "imported")


def import_to(path: Path, folder: Path, examples: str, module: ModelModule, **options: Any) -> Passport:
    """Runs the component's own function."""
    config = Import(str(path), digest_of(path), **options)
    folder.mkdir()
    ModelImporter.EXECUTOR_SPEC.executor_class._FUNCTION(
        examples=Folder(examples), model=Folder(str(folder)), module=module.source.reference,
        module_digest=module.source.digest, toolchain="tools", **config.encoded(),
    )  # fmt: skip
    return Passport.read(folder)


def quantize_and_export(
    folder: Path, calibration: str, module: ModelModule, scheme: str, io_type: str = "float32", examples: str = ""
) -> tuple[dict[str, Any], bytes]:
    root = folder.parent / f"{folder.name}-{scheme}"
    (root / "quantized").mkdir(parents=True)
    (root / "serving").mkdir()
    quantization.quantize(
        Quantize(scheme, io_type), module, Passport.read(folder), toolchain="tools", examples_uri=examples,
        model_uri=str(folder),
        calibration_uri=calibration, compressed_uri=str(root / "quantized"), run_uri=str(root / "run"),
    )  # fmt: skip
    metadata = conversion.export(
        Export(), module, Passport.read(root / "quantized"), toolchain="tools", model_uri=str(root / "quantized"),
        calibration_uri=calibration, serving=root / "serving",
    )  # fmt: skip
    return metadata, (root / "serving" / "model.tflite").read_bytes()


def test_an_imported_keras_model_is_as_a_trained_one(small: Any, tmp_path: Path) -> None:
    source = tmp_path / "elsewhere.keras"
    shutil.copy(Path(small.folder, layout.KERAS_FILE), source)
    passport = import_to(source, tmp_path / "model", small.examples, small.module)
    assert passport.io == Passport.read(small.folder).io
    [step] = passport.steps
    assert step["step"] == "ModelImporter"
    assert step["inputs"]["source"] == digest_of(source)
    assert step["model"] == Passport.read(small.folder).steps[-1]["model"]
    files = {p.relative_to(tmp_path / "model").parts[0] for p in (tmp_path / "model").rglob("*")}
    assert files == {"Format-Keras", "Format-Serving", "passport.json"}


@pytest.mark.slow  # of a graph in a .tflite file the next test shows one every time
@pytest.mark.parametrize(
    ("batch", "schemes"),
    [
        (None, ["float32", "dynamic_range", "float16", "int8", "int16x8"]),
        (1, ["float32", "int8"]),
        (5, ["int8"]),
    ],
)
def test_a_graph_through_the_schemes(
    small: Any, calibration: str, tmp_path: Path, batch: int | None, schemes: list[str]
) -> None:
    keras_model = small.load()
    holder = tf.Module()
    holder.model = keras_model

    @tf.function(input_signature=[tf.TensorSpec([batch, 8, 8, 1], tf.float32, name="image")])
    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": keras_model(image, training=False)}

    tf.saved_model.save(holder, str(tmp_path / "sm"), signatures=call)
    passport = import_to(tmp_path / "sm", tmp_path / "model", small.examples, small.module)
    assert passport.io["outputs"] == [{"name": "logits", "shape": [batch, 3], "dtype": "float32"}]
    expected = keras_model(small.images()).numpy()
    for scheme in schemes:
        metadata, content = quantize_and_export(tmp_path / "model", calibration, small.module, scheme)
        received = litert.TFLiteModel(content).run({"image": small.images()})["logits"]
        assert np.abs(received - expected).max() < (0.25 if scheme == "int8" else 0.1) * np.abs(expected).max()
        assert metadata["any_batch"] == (batch is None)
    with pytest.raises(ValueError, match="scheme qat8 trains, but of the imported model only the graph is known"):
        quantize_and_export(tmp_path / "model", calibration, small.module, "qat8")


@pytest.mark.parametrize(
    ("scheme", "io_type"),
    [
        ("int8", "int8"),
        pytest.param("float32", "float32", marks=pytest.mark.slow),
        pytest.param("int8", "uint8", marks=pytest.mark.slow),
        pytest.param("int16x8", "float32", marks=pytest.mark.slow),
        pytest.param("dynamic_range", "float32", marks=pytest.mark.slow),
        pytest.param("float16", "float32", marks=pytest.mark.slow),
        pytest.param("auto", "float32", marks=pytest.mark.slow),
    ],
)
def test_a_tflite_file_through_the_schemes(
    small: Any, calibration: str, tmp_path: Path, scheme: str, io_type: str
) -> None:
    keras_model = small.load()
    spec = tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")
    call = tf.function(lambda image: {"logits": keras_model(image)}, input_signature=[spec]).get_concrete_function()
    source = tmp_path / "elsewhere.tflite"
    source.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([call], keras_model).convert())
    passport = import_to(source, tmp_path / "model", small.examples, small.module)
    assert passport.io == {**Passport.read(small.folder).io, "labels": ["top", "middle", "bottom"]}
    metadata, content = quantize_and_export(
        tmp_path / "model", calibration, small.module, scheme, io_type, small.examples
    )
    expected = keras_model(small.images()).numpy()
    received = litert.TFLiteModel(content).run({"image": small.images()})["logits"]
    assert np.abs(received - expected).max() < (0.25 if scheme in ("int8", "auto") else 0.1) * np.abs(expected).max()
    assert metadata["any_batch"]
    assert {port["dtype"] for side in ("inputs", "outputs") for port in metadata[side]} == {io_type}
    # the float file run by LiteRT stands where Keras does elsewhere
    assert metadata["parity"]["logits"]["max_abs"] <= (0 if scheme == "float32" else 0.25 * np.abs(expected).max())
    assert (content == source.read_bytes()) == (scheme == "float32")
    if scheme == "int8":
        with pytest.raises(ValueError, match="scheme qat8 trains, but of the imported model only the graph is known"):
            quantize_and_export(tmp_path / "model", calibration, small.module, "qat8")


def test_a_model_that_does_not_fit_the_data(small: Any, module: ModelModule, tmp_path: Path) -> None:
    module.build_model().save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"returns input 'x' of shape \(None, 8, 8, 1\) float32, but .* \(None, 4\)"):
        import_to(tmp_path / "m.keras", tmp_path / "model", small.examples, small.module)


# a model of others ----------------------------------------------------------------------------------------------------

BASIC_PITCH = """
import numpy as np
import tensorflow as tf


def feature_spec():
    return {"audio": tf.io.FixedLenFeature([43844, 1], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return {"input_2": features["audio"]}, features["label"]


def build_model():
    raise NotImplementedError


def compile_model(model):
    raise NotImplementedError
"""


@pytest.mark.slow
def test_a_published_audio_network(tmp_path: Path, write_split: Any) -> None:
    assets = os.environ.get("EDGELINE_TEST_ASSETS", "")
    source = Path(assets, "basic_pitch/saved_models/icassp_2022/nmp")
    if not assets or not source.is_dir():
        pytest.skip("EDGELINE_TEST_ASSETS names no folder with the unpacked wheel of basic-pitch 0.4.0")
    (tmp_path / "audio.py").write_text(BASIC_PITCH)
    module = hooks.load(str(tmp_path / "audio.py"))
    # chords in a room: on sines alone its logarithms would be of rounding errors
    room = np.random.default_rng(0).normal(0, 0.03, [4, 43844, 1])
    seconds = np.arange(43844) / 22050
    chords = ((220, 277, 330), (262, 330, 392), (147, 175, 220), (440, 554, 659))
    tones = [sum(0.2 * np.sin(2 * np.pi * pitch * seconds) for pitch in chord) for chord in chords]
    audio = (np.stack(tones)[..., np.newaxis] + room).astype(np.float32)
    write_split(tmp_path / "examples", "train", [{"audio": clip, "label": 0} for clip in audio])
    passport = import_to(source, tmp_path / "model", str(tmp_path / "examples"), module)
    assert names(passport.io["outputs"]) == ["contour", "note", "onset"]
    from edgeline.data import calibration_set

    manifest = {"digest": "d", "samples": 4, "ranges": {}}
    manifest["inputs"] = {"input_2": {"shape": [43844, 1], "dtype": "float32"}}
    calibration_set.write(str(tmp_path / "calibration"), {"input_2": audio}, manifest)
    calibration = str(tmp_path / "calibration")
    for scheme, size in {"float32": 202_200, "dynamic_range": 102_408}.items():
        metadata, _ = quantize_and_export(tmp_path / "model", calibration, module, scheme)
        assert metadata["bytes"] == size, json.dumps(metadata["parity"])
    # in int8 a divisor becomes zero, which XNNPACK does not notice and the reference kernels do
    with pytest.raises(ExportError, match=r"data\[i\] != zero_point was not true.*\(DIV\) failed to invoke"):
        quantize_and_export(tmp_path / "model", calibration, module, "int8")
    model = graph_model.load(str(tmp_path / "model-int8" / "quantized"), passport.io)
    planned = Passport.read(tmp_path / "model-int8" / "quantized")
    assert len(conversion.convert(model, planned, {"input_2": audio})) == 120_960
