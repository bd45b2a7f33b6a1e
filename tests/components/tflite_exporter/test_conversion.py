from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from google.protobuf import json_format

from edgeline import files, schemes, targets
from edgeline.conversion import checks
from edgeline.conversion.failures import ExportError
from edgeline.data import calibration_set, reading
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport, Promise
from edgeline.schemes import Tolerance
from edgeline.tflite import litert
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export

QAT_LAYERS = ["conv1", "norm", "relu", "conv2", "flatten", "hidden", "logits"]


def with_scheme(passport: Passport, scheme: str, io_type: str = "float32", **more: Any) -> Passport:
    return dataclasses.replace(passport, scheme={"scheme": scheme, "io_type": io_type, **more})


def operators(content: bytes) -> set[str]:
    """The names of the operators that a `.tflite` file uses; what it lists may be more."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    used = [model.operatorCodes[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators]
    return {names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in used}


# conversion -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(small: Any) -> Any:
    """Converts the small model by scheme and io_type, each once: the file, and the Keras model's outputs."""
    passport = Passport.read(small.folder)
    images = small.images()
    found: dict[tuple[str, str], tuple[bytes, np.ndarray]] = {}

    def convert(scheme: str, io_type: str = "float32") -> tuple[bytes, np.ndarray]:
        if (scheme, io_type) not in found:
            model = small.load()
            if scheme == "qat8":
                model = keras_file.quantization_aware(model, {"layers": QAT_LAYERS})
                model(images, training=True)  # the ranges of the activations
            content = conversion.convert(model, with_scheme(passport, scheme, io_type), {"image": images})
            found[scheme, io_type] = content, model(images).numpy()
        return found[scheme, io_type]

    return convert


#: scheme, io_type, type of the ports, types of the kernels by number of values
SCHEMES = [
    ("float32", "float32", "float32", {18: "float32", 144: "float32", 2048: "float32", 48: "float32"}),
    # the converter leaves kernels of less than 1,024 values as they are
    ("dynamic_range", "float32", "float32", {18: "float32", 144: "float32", 2048: "int8", 48: "float32"}),
    ("float16", "float32", "float32", {18: "float16", 144: "float16", 2048: "float16", 48: "float16"}),
    ("int8", "float32", "float32", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
    ("int8", "int8", "int8", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
    pytest.param("int8", "uint8", "uint8", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}, marks=pytest.mark.slow),
    ("int16x8", "float32", "float32", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
    pytest.param(
        "qat8", "float32", "float32", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}, marks=pytest.mark.slow
    ),
    ("qat8", "int8", "int8", {18: "int8", 144: "int8", 2048: "int8", 48: "int8"}),
]


@pytest.mark.parametrize(("scheme", "io_type", "ports", "kernels"), SCHEMES, ids=lambda v: v if type(v) is str else "")
def test_number_types_names_and_batches(
    converted: Any, small: Any, scheme: str, io_type: str, ports: str, kernels: dict[int, str]
) -> None:
    content, expected = converted(scheme, io_type)
    model = TFLiteModel(content)
    assert [(port.name, port.dtype, port.shape) for port in model.inputs] == [("image", ports, (-1, 8, 8, 1))]
    assert [(port.name, port.dtype, port.shape) for port in model.outputs] == [("logits", ports, (-1, 3))]
    assert all((port.scale > 0) == (ports != "float32") for port in (*model.inputs, *model.outputs))
    assert {w.stored.size: w.stored.dtype.name for w in litert.kernels(content, at_least=2)} == kernels
    assert model.any_batch
    received = model.run({"image": small.images()}, 5)["logits"]
    facts = checks.parity({"logits": expected}, {"logits": received})["logits"]
    assert facts["relative"] < {"float32": 1e-5, "float16": 1e-2, "int16x8": 2e-2}.get(scheme, 0.1)
    assert facts["agreement"] >= 0.9


@pytest.mark.parametrize(("scheme", "io_type"), [("int8", "int8"), ("qat8", "int8"), ("int16x8", "float32")])
def test_an_integer_model_has_no_float_operators(converted: Any, scheme: str, io_type: str) -> None:
    found = operators(converted(scheme, io_type)[0])
    # the normalization is folded into the convolution: no MUL, no ADD
    assert found - {"QUANTIZE", "DEQUANTIZE", "SHAPE", "STRIDED_SLICE", "PACK"} == {
        "CONV_2D",
        "FULLY_CONNECTED",
        "RESHAPE",
    }
    assert ("QUANTIZE" in found) == (io_type == "float32")


def test_the_same_model_gives_the_same_bytes(converted: Any, small: Any) -> None:
    passport = with_scheme(Passport.read(small.folder), "int8")
    again = conversion.convert(small.load(), passport, {"image": small.images()})
    assert again == converted("int8")[0]


def test_several_inputs_are_calibrated_by_name() -> None:
    # of one shape, and in the order in which the alphabet does not put them
    wide, narrow = tf_keras.Input([4], name="wide"), tf_keras.Input([4], name="narrow")
    model = tf_keras.Model([wide, narrow], tf_keras.layers.Concatenate(name="both")([wide, narrow]))
    ports = [{"name": name, "shape": [None, 4], "dtype": "float32"} for name in ("wide", "narrow")]
    passport = with_scheme(Passport({"inputs": ports, "outputs": [{"name": "joined"}], "labels": []}), "int8", "int8")
    samples = {
        "narrow": np.linspace(0, 1, 40, dtype=np.float32).reshape(10, 4),
        "wide": np.linspace(-100, 100, 40, dtype=np.float32).reshape(10, 4),
    }
    runner = TFLiteModel(conversion.convert(model, passport, samples))
    scales = {port.name: port.scale for port in runner.inputs}
    assert scales["wide"] == pytest.approx(200 / 255, rel=0.01)
    assert scales["narrow"] <= 1.01 * 200 / 255  # a Concatenate gives all its inputs one scale
    assert runner.outputs[0].name == "joined"
    joined = runner.run(samples)["joined"]
    np.testing.assert_allclose(joined, np.concatenate([samples["wide"], samples["narrow"]], 1), atol=0.8)


# promises -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("float32", marks=pytest.mark.slow),
        "float16",
        pytest.param("dynamic_range", marks=pytest.mark.slow),
        "int8",
    ],
)
def test_zeros_and_shared_values_survive_every_conversion(small: Any, pruned_and_clustered: Any, scheme: str) -> None:
    passport = with_scheme(Passport.read(small.folder), scheme)
    content = conversion.convert(pruned_and_clustered.load(), passport, {"image": small.images()})
    promises = pruned_and_clustered.outcome.promises
    assert len(promises) == 6
    checks.check_promises(content, promises)
    assert litert.sparsity(content) > 0.75


# export ---------------------------------------------------------------------------------------------------------------


def export(
    small: Any,
    calibration: str,
    folder: Path,
    scheme: str,
    io_type: str = "float32",
    *,
    one: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    passport = dataclasses.replace(with_scheme(Passport.read(small.folder), scheme, io_type), **changes)
    folder.mkdir(exist_ok=True)
    return conversion.export(
        Export(parity_samples=8, timeout_seconds=60, one_example=one),
        small.module,
        passport,
        toolchain="tools",
        model_uri=small.folder,
        calibration_uri=calibration,
        serving=folder,
    )


def test_export_writes_the_folder_that_is_deployed(small: Any, calibration: str, tmp_path: Path) -> None:
    metadata = export(small, calibration, tmp_path / "out", "float16")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.tflite",
        "metadata.json",
        "labels.txt",
        "passport.json",
        "golden.npz",
        "golden.jsonl",
    }
    content = (tmp_path / "out" / "model.tflite").read_bytes()
    assert metadata["sha256"] == hashlib.sha256(content).hexdigest()
    assert metadata["bytes"] == len(content)
    assert metadata["zlib_bytes"] == len(zlib.compress(content, 9))
    assert metadata["any_batch"] is True
    assert metadata["inputs"] == [
        {"name": "image", "shape": [-1, 8, 8, 1], "dtype": "float32", "scale": 0.0, "zero_point": 0}
    ]
    assert [port["name"] for port in metadata["outputs"]] == ["logits"]
    assert metadata["parity"]["logits"]["agreement"] == metadata["parity_reference"]["logits"]["agreement"] == 1.0
    assert metadata["fixed_batch"] is metadata["not_run"] is None
    assert metadata["training_examples"] == {"0": 40, "2": 7}
    assert metadata["ops"]["builtin"]["CONV_2D"] == metadata["float_ops"]["CONV_2D"] == 2
    assert metadata["ops"]["custom"] == metadata["ops"]["flex"] == {}
    # 18 + 144 + 2048 + 48 values and 29 biases, the first convolution's from its normalization
    assert metadata["techniques"]["float16"]["bytes"] == 2 * (18 + 144 + 2048 + 48 + 29)
    assert metadata["layers"]["hidden"]["bytes"] == 2 * (2048 + 16)
    assert 0 < metadata["peak_rss_bytes"] < 30_000_000
    assert metadata["preprocessing"] == {"digest": small.module.source.digest}
    assert [step["step"] for step in metadata["passport"]["steps"]] == ["Trainer"]
    assert metadata["passport"]["scheme"] == {"scheme": "float16", "io_type": "float32"}
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()) == metadata
    assert (tmp_path / "out" / "labels.txt").read_text() == "top\nmiddle\nbottom\n"
    passport = Passport.read(tmp_path / "out")
    assert [step["step"] for step in passport.steps] == ["Trainer", "TFLiteExporter"]
    assert passport.steps[-1]["sha256"] == metadata["sha256"]
    assert passport.failure is None


def test_export_for_a_target_of_fixed_sizes(small: Any, calibration: str, tmp_path: Path) -> None:
    metadata = export(small, calibration, tmp_path / "out", "int8", "int8", one=True)
    assert [port["shape"] for port in (*metadata["inputs"], *metadata["outputs"])] == [[1, 8, 8, 1], [1, 3]]
    assert metadata["any_batch"] is False
    assert metadata["fixed_batch"] == "it was asked for, as the target needs fixed sizes"
    assert metadata["number_types"].keys() == {"int8", "int32"}
    assert "CONV_2D" in metadata["number_types"]["int8"]
    assert {name: targets.misfits(name, metadata) for name in targets.TARGETS} == {key: [] for key in targets.TARGETS}


def test_golden_vectors_are_what_the_app_sees(small: Any, calibration: str, tmp_path: Path) -> None:
    metadata = export(small, calibration, tmp_path / "out", "int8", "uint8")
    golden = files.read_arrays(tmp_path / "out" / "golden.npz")
    # the app's own preprocessing starts from these
    raw = [
        json_format.Parse(line, tf.train.Example())
        for line in (tmp_path / "out" / "golden.jsonl").read_text().splitlines()
    ]
    inputs, _, _ = reading.ExampleParser(small.module)(tf.constant([example.SerializeToString() for example in raw]))
    np.testing.assert_array_equal(inputs, small.images()[:8])
    assert golden.keys() == {"inputs/image", "outputs/logits"}
    assert metadata["golden"] == len(golden["inputs/image"]) == len(golden["outputs/logits"]) == 8
    assert {values.dtype.name for values in golden.values()} == {"uint8"}
    [port] = metadata["inputs"]
    expected = small.images()[:8] / port["scale"] + port["zero_point"]
    np.testing.assert_allclose(golden["inputs/image"], expected, atol=0.51)
    # as any LiteRT runs them
    interpreter = Interpreter(model_path=str(tmp_path / "out" / "model.tflite"))
    interpreter.allocate_tensors()
    for image, logits in zip(golden["inputs/image"], golden["outputs/logits"], strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[np.newaxis])
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0], logits)


@pytest.mark.slow
def test_export_of_a_model_trained_for_quantization(small: Any, calibration: str, tmp_path: Path) -> None:
    plan = {"layers": QAT_LAYERS}
    source = tmp_path / "model"
    base = small.load()
    keras_file.save(base, str(source))
    wrapped = keras_file.quantization_aware(base, plan)
    wrapped(small.images(), training=True)
    keras_file.save_qat(wrapped, str(source))
    passport = with_scheme(Passport.read(small.folder), "qat8", "uint8", qat=plan)
    metadata = conversion.export(
        Export(parity_samples=8), small.module, passport, toolchain="tools", model_uri=str(source),
        calibration_uri=calibration, serving=tmp_path,
    )  # fmt: skip
    assert metadata["inputs"][0]["dtype"] == metadata["outputs"][0]["dtype"] == "uint8"
    assert metadata["inputs"][0]["scale"] == pytest.approx(1 / 255, rel=0.02)
    assert metadata["parity"]["logits"]["cosine"] > 0.99


def test_export_refuses_what_differs_from_keras(
    small: Any, calibration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = dataclasses.replace(schemes.SCHEMES["float32"], tolerance=Tolerance(relative=-1.0))
    monkeypatch.setitem(schemes.SCHEMES, "float32", strict)
    with pytest.raises(
        ExportError, match=r"output 'logits' differs from the source model's by .*; float32 may differ by"
    ):
        export(small, calibration, tmp_path / "out", "float32")
    assert not list((tmp_path / "out").iterdir())


def test_export_refuses_a_broken_promise(small: Any, calibration: str, tmp_path: Path) -> None:
    promises = (Promise("sparsity", "hidden", (128, 16), 0.5),)
    with pytest.raises(BrokenPromiseError, match=r"hidden \(sparsity 0.5, found 0.0000 zeros"):
        export(small, calibration, tmp_path / "out", "float32", promises=promises)
    assert not list((tmp_path / "out").iterdir())


def test_export_refuses_outputs_that_are_no_numbers(tiny_module: Path, tmp_path: Path) -> None:
    code = tiny_module.read_text().replace(
        'keras.layers.Dense(8, activation="relu")', "keras.layers.Activation(tf.math.log)"
    )
    tiny_module.write_text(code + "\n\ndef custom_objects():\n    return {'log': tf.math.log}\n")
    module = hooks.load(str(tiny_module))
    model = module.build_model()
    keras_file.save(model, str(tmp_path))
    calibration_set.write(str(tmp_path / "calibration"), {"x": np.float32([[-1, 1, 1, 1]])}, {})
    passport = with_scheme(Passport(keras_file.describe_io(model, module)), "float32")
    with pytest.raises(ExportError, match="NaN or infinite"):
        conversion.export(
            Export(), module, passport, toolchain="", model_uri=str(tmp_path),
            calibration_uri=str(tmp_path / "calibration"), serving=tmp_path,
        )  # fmt: skip


# what operators demand ------------------------------------------------------------------------------------------------


def export_built(tiny_module: Path, build: str, scheme: str, *, shape: tuple[int, ...] = (4,), **asked: Any) -> Any:
    """Exports an untrained model of `build`, lines that end with one; returns its metadata and its passport."""
    code, _, rest = tiny_module.read_text().partition("def build_model():\n")
    after = rest[rest.index("def compile_model") :]
    tiny_module.write_text(f"{code}{build}\n\n\n{after}")
    tf_keras.utils.set_random_seed(1)
    module = hooks.load(str(tiny_module))
    model = module.build_model()
    folder = tiny_module.parent / "artifact"
    keras_file.save(model, str(folder))
    samples = np.random.default_rng(0).normal(size=[12, *shape]).astype(np.float32)
    calibration_set.write(str(folder / "calibration"), {"x": samples}, {})
    serving = folder / "serving"
    serving.mkdir()
    passport = with_scheme(
        Passport(keras_file.describe_io(model, module), steps=({"step": "T", "config": {}, "model": ""},)), scheme
    )
    metadata = conversion.export(
        Export(**asked), module, passport, toolchain="", model_uri=str(folder),
        calibration_uri=str(folder / "calibration"), serving=serving,
    )  # fmt: skip
    assert json.loads((serving / "metadata.json").read_text()) == metadata
    return metadata, Passport.read(serving)


RECURRENT = """
def build_model():
    layers = [keras.Input([6, 3], name="x"), keras.layers.{kind}(5, name="memory"), keras.layers.Dense(2, name="last")]
    return keras.Sequential(layers)
"""


@pytest.mark.slow
def test_a_gru_takes_one_example_at_a_time(tiny_module: Path) -> None:
    metadata, passport = export_built(tiny_module, RECURRENT.format(kind="GRU"), "float32", shape=(6, 3))
    assert metadata["any_batch"] is False
    assert metadata["fixed_batch"].startswith("LiteRT has no tf.TensorListReserve")
    assert metadata["inputs"][0]["shape"] == [1, 6, 3]
    assert metadata["ops"]["builtin"]["WHILE"] == 1
    assert metadata["ops"]["custom"] == metadata["ops"]["flex"] == {}
    assert metadata["parity"]["last"]["relative"] < 1e-5
    assert passport.failure is None


@pytest.mark.slow
def test_a_gru_cannot_be_calibrated(tiny_module: Path) -> None:
    # LiteRT's calibrator would take this process with it
    with pytest.raises(ExportError, match=r"^int8 cannot be calibrated: .* crashes on loops, and memory is one"):
        export_built(tiny_module, RECURRENT.format(kind="GRU"), "int8", shape=(6, 3))


@pytest.mark.slow
def test_an_lstm_is_one_operator_of_integers(tiny_module: Path) -> None:
    metadata, _ = export_built(tiny_module, RECURRENT.format(kind="LSTM"), "int8", shape=(6, 3))
    assert metadata["ops"]["builtin"]["UNIDIRECTIONAL_SEQUENCE_LSTM"] == 1
    assert metadata["float_ops"] == {}
    assert metadata["any_batch"] is False


def test_sizes_that_are_open(tiny_module: Path) -> None:
    build = """
def build_model():
    x = keras.Input([None, None, 3], name="x")
    found = keras.layers.PReLU(shared_axes=[1, 2], name="p1")(keras.layers.Conv2D(4, 3, name="c1")(x))
    heads = [keras.layers.Conv2D(2, 1, activation="softmax", name="face"), keras.layers.Conv2D(4, 1, name="box")]
    return keras.Model(x, [head(found) for head in heads])
"""
    metadata, _ = export_built(tiny_module, build, "int8", shape=(9, 7, 3), batch_size=4)
    assert metadata["inputs"][0]["shape"] == [-1, -1, -1, 3]
    assert metadata["any_batch"] is True
    assert metadata["parity"].keys() == {"face", "box"}


WAVE = """
class Wave(keras.layers.Layer):
    def call(self, x):
        return {formula}


def custom_objects():
    return {{"Wave": Wave}}


def build_model():
    layers = [keras.Input([4], name="x"), keras.layers.Dense(8, name="first"), Wave(name="wave")]
    return keras.Sequential([*layers, keras.layers.Dense(3, name="last")])
"""


def test_what_would_stay_float_is_refused(tiny_module: Path) -> None:
    with pytest.raises(
        ExportError, match=r"^int8 computes on integers alone, .*stayed float: SIN \(layer wave, tensor "
    ):
        export_built(tiny_module, WAVE.format(formula="tf.sin(x)"), "int8")


@pytest.mark.slow
def test_a_model_that_takes_no_batch_is_converted_for_one(tiny_module: Path) -> None:
    # its lowering has shapes of a batch that was not known
    metadata, _ = export_built(tiny_module, WAVE.format(formula="tf.math.lgamma(tf.abs(x) + 1.0)"), "float32")
    assert metadata["any_batch"] is False
    assert "(XNNPACK, batch 256)" in metadata["fixed_batch"]
    assert metadata["parity"]["last"]["relative"] < 1e-3


DETERMINANT = WAVE.format(formula="tf.reshape(tf.linalg.det(tf.reshape(x, [-1, 2, 2, 2])), [-1, 2])")


def test_operators_of_tensorflow_are_named(tiny_module: Path) -> None:
    message = r"not LiteRT's own: tf.MatrixDeterminant \(layer wave, allow_select_tf_ops\)\. Replace"
    with pytest.raises(ExportError, match=message):
        export_built(tiny_module, DETERMINANT, "float32")


def test_operators_of_tensorflow_are_converted_and_never_selected(tiny_module: Path) -> None:
    metadata, passport = export_built(tiny_module, DETERMINANT, "float32", allow_select_tf_ops=True)
    assert metadata["ops"]["flex"] == {"FlexMatrixDeterminant": 1}
    assert metadata["parity"] is metadata["parity_reference"] is metadata["peak_rss_bytes"] is None
    assert metadata["golden"] == 0
    assert passport.failure == {"step": "TFLiteExporter", "error": f"ExportError: {metadata['not_run']}"}
    assert metadata["not_run"].endswith("LiteRT alone has no FlexMatrixDeterminant; an app may bring them")


@pytest.mark.slow
def test_a_custom_operator_that_the_runtime_does_not_know(tiny_module: Path) -> None:
    metadata, passport = export_built(tiny_module, DETERMINANT, "float32", allow_custom_ops=True)
    assert metadata["ops"]["custom"] == {"MatrixDeterminant": 1}
    assert passport.failure is not None


DETECTION = """
OPTIONS = {"max_detections": "i: 3", "max_classes_per_detection": "i: 1", "num_classes": "i: 2",
           "nms_score_threshold": "f: 0.0", "nms_iou_threshold": "f: 0.5", "y_scale": "f: 10.0", "x_scale": "f: 10.0",
           "h_scale": "f: 5.0", "w_scale": "f: 5.0", "use_regular_nms": "b: false"}


class PostProcess(keras.layers.Layer):
    def call(self, inputs):
        options = " ".join('attr { key: "%s" value { %s } }' % option for option in OPTIONS.items())

        @tf.function(experimental_implements='name: "TFLite_Detection_PostProcess" ' + options)
        def post_process(boxes, scores, anchors):
            return tf.zeros([1, 3, 4]), tf.zeros([1, 3]), tf.zeros([1, 3]), tf.zeros([1])

        anchors = tf.constant([[0.2, 0.2, 0.1, 0.1], [0.2, 0.8, 0.1, 0.1], [0.8, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
        found = post_process(inputs[0], inputs[1], anchors)
        rows = tf.shape(inputs[0])[:1]
        return [tf.broadcast_to(part, tf.concat([rows, part.shape[1:]], 0)) for part in found]


def custom_objects():
    return {"PostProcess": PostProcess}


def build_model():
    x = keras.Input([4], name="x")
    boxes = keras.layers.Reshape([4, 4])(keras.layers.Dense(16, name="boxes")(x))
    scores = keras.layers.Reshape([4, 3])(keras.layers.Dense(12, activation="sigmoid", name="scores")(x))
    return keras.Model(x, PostProcess(name="post")([boxes, scores]))


def output_names():
    return ["boxes", "classes", "scores", "count"]
"""


def test_custom_operators_need_leave(tiny_module: Path) -> None:
    message = r"not LiteRT's own: TFLite_Detection_PostProcess \(layer post, .*allow_custom_ops"
    with pytest.raises(ExportError, match=message):
        export_built(tiny_module, DETECTION, "float32")


def test_a_custom_operator_that_the_runtime_knows(tiny_module: Path) -> None:
    metadata, passport = export_built(tiny_module, DETECTION, "float32", allow_custom_ops=True)
    assert metadata["ops"]["custom"] == {"TFLite_Detection_PostProcess": 1}
    assert passport.failure is metadata["not_run"] is None
    assert [port["name"] for port in metadata["outputs"]] == ["boxes", "classes", "scores", "count"]
    golden = files.read_arrays(tiny_module.parent / "artifact" / "serving" / "golden.npz")
    # Keras' stand-in finds nothing; the operator keeps those boxes that do not lie upon each other
    assert golden["outputs/count"].max() > 0
    assert metadata["parity"]["count"]["max_abs"] > 0
