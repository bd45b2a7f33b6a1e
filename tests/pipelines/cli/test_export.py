from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tf_keras

from edgeline import layout, schemes
from edgeline.errors import UserError
from edgeline.keras_models.model_form import ModelForm
from edgeline.model_importer.config import GRAPHS
from edgeline.model_io import graph_model, keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.pipelines.cli import export, main, options
from edgeline.pipelines.examples.digits import model as digits
from edgeline.pipelines.recipes import RECIPES
from edgeline.pipelines.run import request
from edgeline.tflite import litert

MODULE = """
import tensorflow as tf


def feature_spec():
    return {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["y"]


def compile_model(model):
    model.compile("adam", "mse")
"""


class Case:
    """A model from elsewhere, a data folder, and a module that builds no model."""

    def __init__(self, root: Path):
        self.root = root
        (root / "module.py").write_text(MODULE)
        (root / "data" / "train").mkdir(parents=True)
        self.values = np.random.default_rng(0).normal(size=[40, 4]).astype(np.float32)
        with tf.io.TFRecordWriter(str(root / "data/train/a.tfrecord.gz"), "GZIP") as writer:
            for row in self.values:
                features = {
                    "x": tf.train.Feature(float_list=tf.train.FloatList(value=row)),
                    "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
        x = tf_keras.Input([4], name="x")
        self.model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="scores")(x))
        self.model.save(root / "m.keras")
        tf.saved_model.save(self.model, str(root / "with_keras"))
        holder = tf.Module()
        holder.model = self.model
        call = tf.function(lambda x: {"scores": self.model(x)}, input_signature=[tf.TensorSpec([None, 4], name="x")])
        tf.saved_model.save(holder, str(root / "sm"), signatures=call.get_concrete_function())
        concrete = call.get_concrete_function()
        self.lite = tf.lite.TFLiteConverter.from_concrete_functions([concrete], self.model).convert()
        (root / "m.tflite").write_bytes(self.lite)

    def run(self, *arguments: Any) -> int:
        parser = argparse.ArgumentParser()
        export.add_commands(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        common = ["--data", self.root / "data", "--module", self.root / "module.py"]
        parsed = parser.parse_args([str(a) for a in (*arguments, *common)])
        code: int = parsed.command(parsed)
        return code

    def refused(self, *arguments: Any) -> str:
        with pytest.raises(UserError) as error:
            self.run(*arguments)
        return str(error.value)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize(
    ("source", "scheme"),
    [
        ("m.keras", "int8"),
        pytest.param("sm", "dynamic_range", marks=pytest.mark.slow),
        ("sm", "float32"),
        ("m.tflite", "int8"),
    ],
)
def test_export(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, scheme: str) -> None:
    out = tmp_path / "out.tflite"
    assert case.run("export", case.root / source, "--scheme", scheme, "-o", out) == 0
    received = litert.TFLiteModel(out).run({"x": case.values})["scores"]
    expected = case.model(case.values).numpy()
    assert np.abs(received - expected).max() < 0.05 * np.abs(expected).max()
    printed = capsys.readouterr().out
    assert f"{out}: {out.stat().st_size:,} bytes" in printed
    assert "output scores: largest difference" in printed


def test_export_is_refused(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    assert "does not exist" in case.refused("export", tmp_path / "absent.keras", "-o", out)
    assert "--signature is for a SavedModel or a .tflite file, but" in case.refused(
        "export", case.root / "m.keras", "--signature", "a", "-o", out
    )
    assert "needs scheme int8" in case.refused(
        "export", case.root / "m.keras", "--scheme", "float16", "--io-type", "int8", "-o", out
    )
    assert "--samples must be at least 1" in case.refused("export", case.root / "m.keras", "--samples", "0", "-o", out)
    assert "does not exist" in case.refused("export", case.root / "m.keras", "-o", tmp_path / "no" / "out.tflite")
    other = tmp_path / "other.tflite"
    other.write_bytes(case.lite[: len(case.lite) // 2])
    assert str(other) in case.refused("export", other, "-o", out)
    assert case.run("export", case.root / "m.tflite", "--scheme", "int8", "-o", other) == 0
    assert "is quantized already" in case.refused("export", other, "-o", out)
    other = tmp_path / "other.keras"
    tf_keras.Sequential([tf_keras.Input([5]), tf_keras.layers.Dense(2)]).save(other)
    assert "returns input" in case.refused("export", other, "-o", out)
    assert not out.exists()


def test_export_for_a_target(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    refusal = case.refused("export", case.root / "m.keras", "--target", "edgetpu", "-o", out)
    assert refusal == (
        f"{case.root}/m.keras as int8: target edgetpu: inputs and outputs must be int8 or uint8, x is float32, scores "
        "is float32; choose int8_io. Nothing is written"
    )
    assert not out.exists()
    assert case.run("export", case.root / "m.keras", "--target", "edgetpu", "--io-type", "int8", "-o", out) == 0
    assert [port.shape for port in litert.TFLiteModel(out).inputs] == [(1, 4)]


def test_recipes_that_train_need_layers(case: Case) -> None:
    def check(source: str, *names: str) -> None:
        given = argparse.Namespace(model=case.root / source, signature=None, inputs=[], outputs=[], allow_lambda=False)
        request.check_recipes(options.imported(given), [RECIPES[name] for name in names])

    check("m.keras", "prune80_int8", "qat8")
    check("sm", *(name for name in schemes.post_training() if name in RECIPES))
    check("m.tflite", *(name for name in schemes.post_training() if name in RECIPES))
    for source, kind in (("sm", "SavedModel without Keras metadata"), ("m.tflite", r"\.tflite file")):
        with pytest.raises(UserError, match=rf"is a {kind}: its layers .* and qat8, prune80_int8 needs that"):
            check(source, "int8", "qat8", "prune80_int8")


@pytest.mark.slow  # tests/components/model_importer/test_importing.py chooses among signatures every time
def test_a_signature_is_chosen(case: Case, tmp_path: Path) -> None:
    holder = tf.Module()
    holder.model = case.model
    spec = tf.TensorSpec([None, 4], name="x")
    functions = {
        "serving_default": tf.function(lambda x: {"scores": case.model(x)}, input_signature=[spec]),
        "twice": tf.function(lambda x: {"doubled": 2 * case.model(x)}, input_signature=[spec]),
    }
    tf.saved_model.save(holder, str(tmp_path / "sm"), signatures=functions)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "sm"), signature_keys=list(functions))
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    out = tmp_path / "out.tflite"
    for source in ("sm", "m.tflite"):
        for given, name, factor in (([], "scores", 1), (["--signature", "twice"], "doubled", 2)):
            assert case.run("export", tmp_path / source, "--scheme", "float32", *given, "-o", out) == 0
            received = litert.TFLiteModel(out).run({"x": case.values})
            np.testing.assert_allclose(received[name], factor * case.model(case.values).numpy(), atol=1e-4)
        assert "has no signature 'thrice'; its signatures are serving_default, twice" in case.refused(
            "export", tmp_path / source, "--signature", "thrice", "-o", out
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf-keras saves no metrics, as there are none
        case.model.save(tmp_path / "keras", save_format="tf")
    # of a SavedModel with Keras metadata, the graph of a signature without the layers
    given = argparse.Namespace(
        model=tmp_path / "keras", signature="serving_default", inputs=[], outputs=[], allow_lambda=False
    )
    assert options.imported(given).kind in GRAPHS
    given.signature = None
    assert options.imported(given).kind not in GRAPHS


def test_nothing_slow_is_imported_early() -> None:
    import subprocess

    code = "import sys\nimport edgeline.pipelines.cli.export\nprint({'tensorflow', 'keras', 'h5py'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "set()"


# optimize: the whole pipeline -----------------------------------------------------------------------------------------


class Digits:
    """Trained models of the digits, and a module that builds none."""

    def __init__(self, root: Path, data: Path):
        self.root, self.data = root, data
        source = Path(digits.__file__).read_text()
        self.module = root / "module.py"
        self.module.write_text(re.sub(r"def build_model.*?(?=\ndef )", "", source, flags=re.DOTALL))
        self.out = ""

    def save(self, library: Any, path: Path) -> Path:
        """Trains a model for a moment; it has fewer layers than the example, and other names."""
        library.utils.set_random_seed(0)
        x = library.Input([8, 8, 1], name="pixels")
        hidden = library.layers.Conv2D(16, 3, activation="relu")(x)
        hidden = library.layers.Dense(64, activation="relu")(library.layers.Flatten()(hidden))
        model = library.Model(x, library.layers.Dense(10, name="scores")(hidden))
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(library.optimizers.Adam(5e-3), loss)
        bunch = sklearn.datasets.load_digits()
        images = bunch.images[..., None].astype(np.float32) / 16
        model.fit(images[:1400], bunch.target[:1400], epochs=4, verbose=0)
        if path.suffix == ".keras":
            model.save(path)
        else:
            spec = tf.TensorSpec([None, 8, 8, 1], name="pixels")
            call = tf.function(lambda pixels: {"scores": model(pixels)}, input_signature=[spec])
            holder = tf.Module()
            holder.model = model
            tf.saved_model.save(holder, str(path.with_suffix("")), signatures=call.get_concrete_function())
            if path.suffix == ".tflite":
                path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(path.with_suffix(""))).convert())
        return path

    def optimize(self, model: Path, *arguments: Any) -> int:
        root = ("--root", self.root / f"run-{model.stem}")
        asked = ("optimize", model, "--data", self.data, "--module", self.module, *root, "--finetune-epochs", 1)
        return main.main([str(a) for a in (*asked, "--max-accuracy-drop", 0.1, *arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits_data: Path) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"), digits_data)


def outcome_of(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    [line] = capfd.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name", "recipes"),
    [
        (tf_keras, "graph", ["int8"]),
        (tf_keras, "lite.tflite", ["int8", "dynamic_range"]),
        (tf_keras, "keras2.keras", ["int8", "prune80_int8"]),
        (keras, "keras3.keras", ["int8", "prune80_int8"]),
    ],
)
def test_optimize(
    trained: Digits, capfd: pytest.CaptureFixture[str], library: Any, name: str, recipes: list[str]
) -> None:
    model = trained.save(library, trained.root / name)
    has_layers = model.suffix == ".keras"
    asked = [part for recipe in recipes for part in ("--recipe", recipe)] + ["--check-keras"] * has_layers
    asked += ["--output", "json"]
    capfd.readouterr()
    assert trained.optimize(model, *asked) == 0, capfd.readouterr().err
    outcome = outcome_of(capfd)
    assert outcome["baseline"]["metrics"]["accuracy"] > 0.8
    assert [c["name"] for c in outcome["candidates"]] == recipes
    assert (outcome["candidates"][-1]["sparsity"] > 0.5) == ("prune80_int8" in recipes)
    report = json.loads(Path(outcome["report"]).read_text())
    assert report["dataset"]["examples"] == 173
    if has_layers:
        assert report["baseline"]["keras"]["max_abs_difference"] < 1e-3
    upstream = {node["id"]: node["upstream"] for node in report["run"]["nodes"]}
    assert "Trainer" not in upstream
    assert upstream["RepresentativeDatasetGen"] == ["ImportExampleGen", "ModelImporter"]

    pushed = Path(outcome["pushed"])
    assert [port.name for port in litert.TFLiteModel(pushed).inputs] == ["pixels"]
    assert Passport.read(pushed.parent).steps[0]["step"] == "ModelImporter"
    assert main.main(["lineage", str(pushed)]) == 0
    printed = capfd.readouterr().out
    assert "ModelImporter" in printed
    assert f"source {model}" in printed

    assert trained.optimize(model, *asked) == 0
    assert list(outcome_of(capfd)["steps"]) == ["cached"]

    # refused as soon as the model is there, before anything is made of it
    assert trained.optimize(model, "--recipe", "float16", "--metric", "acuracy") == 2
    assert "'acuracy' (did you mean 'accuracy'?) is not compiled by the model module" in capfd.readouterr().err
    artifacts = trained.root / f"run-{model.stem}" / "artifacts"
    assert not list(artifacts.glob("*float16*"))


def test_what_cannot_be_optimized_is_refused_before_the_run(
    case: Case, trained: Digits, capfd: pytest.CaptureFixture[str]
) -> None:
    assert trained.optimize(case.root / "sm", "--recipe", "prune80_int8") == 2
    assert "its layers are unknown, so it cannot be trained on, and prune80_int8 needs" in capfd.readouterr().err
    assert trained.optimize(case.root / "sm", "--recipe", "int8", "--check-keras") == 2
    assert "--check-keras needs a Keras model" in capfd.readouterr().err
    assert trained.optimize(case.root / "absent.keras") == 2
    assert "does not exist" in capfd.readouterr().err
    assert not (trained.root / "run-sm").exists()


# the form of an imported model ----------------------------------------------------------------------------------------


def test_a_form_is_built_instead_of_what_the_module_says(case: Case, tmp_path: Path) -> None:
    a, b = tf_keras.Input([4], name="a"), tf_keras.Input([4], name="b")
    probabilities = tf_keras.layers.Dense(3, activation="softmax", name="class")(a + b)
    model = tf_keras.Model([a, b], {"two": tf_keras.layers.Dense(2)(a), "one": probabilities})
    keras_file.save(model, str(tmp_path))
    module = hooks.load(str(case.root / "module.py"))
    form = pickle.loads(pickle.dumps(keras_file.form(str(tmp_path), keras_file.describe_io(model, module))))
    built = hooks.load(str(case.root / "module.py"), form=form).build_model()
    assert built.input_names == ["a", "b"]
    assert list(built.output) == list(model.output)
    assert [t.shape.as_list() for t in built.outputs] == [t.shape.as_list() for t in model.outputs]
    assert built.get_layer("class").activation is tf_keras.activations.softmax
    with pytest.raises(UserError, match="has no function build_model"):
        module.build_model()


def test_a_form_of_a_graph_has_its_ports() -> None:
    ports = {
        "inputs": [{"name": "x", "shape": [None, None, 3], "dtype": "float32"}],
        # a graph may call an input and an output alike
        "outputs": [
            {"name": "x", "shape": [None, None, 5], "dtype": "float32"},
            {"name": "ids", "shape": [None, 2], "dtype": "int64"},
        ],
    }
    built = ModelForm({**ports, "labels": []}).build({})
    assert built.input_names == ["x"]
    assert built.inputs[0].shape.as_list() == [None, None, 3]
    assert built.output_names == ["x", "ids"]
    assert [t.shape.as_list() for t in built.outputs] == [[None, None, 5], [None, 2]]
    assert [t.dtype.name for t in built.outputs] == ["float32", "int64"]
    built.compile("adam", {"x": "mse", "ids": None}, metrics={"x": "mae"})


def test_a_graph_has_no_keras_model_to_load(case: Case, tmp_path: Path) -> None:
    module = hooks.load(str(case.root / "module.py"))
    (tmp_path / layout.SERVING_FOLDER).mkdir()
    assert graph_model.is_one(str(tmp_path))
    with pytest.raises(UserError, match="was imported without its layers"):
        keras_file.load(str(tmp_path), module)
