"""The model modules that are shipped: what they build, and that the pipeline takes them."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from edgeline.conversion import checks
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.pipelines.cli import main
from edgeline.pipelines.datasets import imdb as imdb_data
from edgeline.pruner import pruning
from edgeline.pruner.config import Prune
from edgeline.tflite import inspection
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion
from edgeline.training import loop as training_loop

EXAMPLES = "edgeline.pipelines.examples"


def load(name: str) -> hooks.ModelModule:
    return hooks.load(f"{EXAMPLES}.{name}")


def run(*arguments: object) -> int:
    return main.main(["run", *map(str, arguments)])


def report_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "report" / "report.json").read_text())


@pytest.mark.parametrize(
    ("name", "parameters", "inputs", "outputs"),
    [
        ("fashion_mnist.model", 20_410, (28, 28), 10),
        ("fashion_mnist.large", 3_274_762, (28, 28), 10),
        ("imdb_gru.model", 1_290_497, (100,), 1),
        ("imdb_lstm.model", 1_293_505, (100,), 1),
    ],
)
def test_size_and_shapes(name: str, parameters: int, inputs: tuple[int, ...], outputs: int) -> None:
    module = load(name)
    model = module.build_model()
    assert model.count_params() == parameters
    assert f"{parameters:,} parameters" in module._code.build_model.__doc__
    assert (model.input_shape, model.output_shape) == ((None, *inputs), (None, outputs))
    module.compile_model(model)


# Fashion-MNIST --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_large_network_is_pruned_from_50_to_90_percent(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        (tmp_path / f"Split-{split}").mkdir()
        with tf.io.TFRecordWriter(str(tmp_path / f"Split-{split}" / "data-00000-of-00001.gz"), "GZIP") as writer:
            for label in range(64):
                image = random.integers(0, 256, 784, dtype=np.uint8).tobytes()
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label % 10])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    module = load("fashion_mnist.large")
    config = Prune(0.9, initial_sparsity=0.5, epochs=2, batch_size=16)
    training_loop.start(config.seed)
    splits = training_loop.open_splits(str(tmp_path), module, config)
    outcome = pruning.prune(module.build_model(), module, splits, config, (), str(tmp_path / "logs"))
    # the first convolution has 800 weights, the second 51,200, the wide layer 3,211,264, the last one 10,240
    assert [(promise.layer, promise.value) for promise in outcome.promises] == [("conv2d_1", 0.9), ("dense", 0.9)]
    found = {w.name: float(np.mean(w.numpy() == 0)) for w in outcome.model.weights if "kernel" in w.name}
    assert found["dense/kernel:0"] == pytest.approx(0.9, abs=1e-6)
    assert found["conv2d_1/kernel:0"] == pytest.approx(0.9, abs=1e-6)
    assert found["conv2d/kernel:0"] == found["logits/kernel:0"] == 0
    passport = Passport(keras_file.describe_io(outcome.model, module), scheme={"scheme": "dynamic_range"})
    content = conversion.convert(outcome.model, passport, {})
    checks.check_promises(content, outcome.promises)
    assert len(zlib.compress(content)) < outcome.model.count_params() * 4 / 15


# IMDB -----------------------------------------------------------------------------------------------------------------


#: Numbers of words far below the vocabulary's, as they are in the file and in the records.
FIRST, SECOND = 41, 42


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_imdb_reads_what_the_loader_writes(imdb: Path, tmp_path: Path, kind: str) -> None:
    imdb_data.write_imdb(tmp_path / "data", source=imdb, shards=1)
    module = load(f"imdb_{kind}.model")
    [shard] = (tmp_path / "data" / "eval").glob("*.gz")
    records = next(iter(tf.data.TFRecordDataset(str(shard), "GZIP").batch(4)))
    tokens, labels = module.preprocess(tf.io.parse_example(records, module.feature_spec()))
    assert (tokens.shape, tokens.dtype) == ((4, 100), tf.int32)
    assert module.build_model()(tokens).shape == (4, 1)
    assert set(labels.numpy()) <= {0, 1}


@pytest.fixture(scope="module")
def imdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like tf-keras's, of short reviews: positive where one word comes before another."""
    random = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, count in (("train", 1600), ("test", 200)):
        reviews, labels = np.empty(count, object), random.integers(0, 2, count)
        for number, label in enumerate(labels):
            words = random.integers(50, 60, 8)
            early, late = sorted(random.choice(8, 2, replace=False))
            words[early], words[late] = (FIRST, SECOND) if label else (SECOND, FIRST)
            reviews[number] = [int(word) for word in words]
        parts |= {f"x_{part}": reviews, f"y_{part}": labels}
    path = tmp_path_factory.mktemp("imdb") / "imdb.npz"
    np.savez(path, **parts)
    return path


RECIPES = '''
from edgeline.recipe import Recipe
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize


def prune30to70_dynamic_range():
    """From 30% to 70% zeros in every kernel, those of the recurrent layer too, in a few updates: each takes a while."""
    prune = Prune(0.7, initial_sparsity=0.3, min_layer_share=0, frequency=8)
    return Recipe("prune30to70_dynamic_range", (prune, Quantize("dynamic_range")))
'''


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_imdb_through_the_pipeline(imdb: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "recipes.py").write_text(RECIPES)
    assert main.main(["data", "imdb", str(tmp_path / "data"), "--source", str(imdb)]) == 0
    code = run(
        "--module", f"{EXAMPLES}.imdb_{kind}.model", "--data", tmp_path / "data", "--root", tmp_path / "root",
        "--recipes-file", tmp_path / "recipes.py", "--epochs", 3, "--finetune-epochs", 1,
    )  # fmt: skip
    assert code == 0
    report = report_of(tmp_path / "root")
    assert report["baseline"]["metrics"]["accuracy"] >= 0.95
    [candidate] = report["candidates"]
    assert candidate["metrics"]["accuracy"] >= 0.95
    assert {layer["name"]: layer["note"] for layer in candidate["layers"]} == dict.fromkeys(
        ["embedding", kind, "dense", "positive"], "pruned to 0.7"
    )
    [pushed] = (tmp_path / "root" / "pushed").glob("*/model.tflite")
    model = TFLiteModel(pushed)  # TFLite's own operators only: nothing else is linked
    assert [port.name for port in model.inputs] == ["tokens"]
    assert [port.name for port in model.outputs] == ["positive"]
    facts = inspection.facts(pushed.read_bytes())
    assert (facts["ops"]["custom"], facts["ops"]["flex"]) == ({}, {})
    # of the GRU two matrices in a loop, of the LSTM eight in one operator
    loop = [w for w in facts["weights"] if len(w["shape"]) == 2 and (w["shape"][0] == 96 or "LSTM" in w["op"])]
    assert {w["dtype"] for w in loop} == {"int8"}
    assert sum(w["bytes"] for w in loop) == {"gru": 96 * (64 + 32), "lstm": 128 * (64 + 32)}[kind]
    assert sum(w["zeros"] * w["bytes"] for w in loop) / sum(w["bytes"] for w in loop) >= 0.7 - 1e-3
    assert candidate["zlib_bytes"] < report["baseline"]["zlib_bytes"] / 8


# flowers --------------------------------------------------------------------------------------------------------------

SMALL_FLOWERS = """
from edgeline.pipelines.examples.flowers_mobilenet import model as flowers
from edgeline.pipelines.examples.flowers_mobilenet.model import *


def preprocess(features):
    return flowers.preprocess(features, size=32)


def build_model():
    return flowers.build_model(size=32, classes=3, weights={weights!r}, alpha=0.35)


def phases():
    [(top, _, freeze), (fine_tuning, *rest)] = flowers.phases()
    return [(top, 2, freeze), (fine_tuning, *rest)]


def compile_model(model, phase=None):
    flowers.compile_model(model, phase)
    model.optimizer.learning_rate = 1e-2 if phase == "top" else 1e-4


def class_names():
    return ["green", "red", "yellow"]
"""


def photo(random: np.random.Generator, kind: int) -> bytes:
    """Returns a noisy JPEG photo of a coloured square."""
    pixels = random.integers(0, 120, [40, 48, 3], dtype=np.uint8)
    left, top = random.integers(0, 16, 2)
    for channel in ((1,), (0,), (0, 1))[kind]:
        pixels[top : top + 24, left : left + 24, channel] = 250
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind, name in enumerate(("green", "red", "yellow")):
        (folder / name).mkdir()
        for number in range(40):
            (folder / name / f"{number}.jpg").write_bytes(photo(random, kind))
    return folder


def test_flowers_decodes_photos_of_any_size() -> None:
    random = np.random.default_rng(0)
    module = load("flowers_mobilenet.model")
    features = {"image": tf.constant([photo(random, 0), photo(random, 1)]), "label": tf.constant([0, 1])}
    photos, _ = module.preprocess(features)
    assert (photos.shape, photos.dtype) == ((2, 160, 160, 3), tf.float32)
    assert -1 <= float(tf.reduce_min(photos)) < -0.9 < 0.9 < float(tf.reduce_max(photos)) <= 1
    assert [(phase.name, phase.epochs) for phase in module.phases()] == [("top", 5), ("fine_tuning", None)]
    assert len(module.class_names()) == 5


@pytest.mark.slow
def test_flowers_through_the_pipeline(photos: Path, tmp_path: Path) -> None:
    # stands for pretraining, which no test can do: what is looked at is what is trained, not how well
    base = tf_keras.applications.MobileNetV2([32, 32, 3], 0.35, include_top=False, weights=None)
    random = np.random.default_rng(1)
    images = tf.stack([tf.image.resize(tf.io.decode_jpeg(photo(random, i % 3)), [32, 32]) for i in range(60)])
    for layer in base.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):
        base(images / 127.5 - 1.0, training=True)
    base.save_weights(tmp_path / "base.h5")
    (tmp_path / "flowers.py").write_text(SMALL_FLOWERS.format(weights=str(tmp_path / "base.h5")))
    assert main.main(["data", "images", str(photos), str(tmp_path / "data"), "--shards", "2"]) == 0
    code = run(
        "--module", tmp_path / "flowers.py", "--data", tmp_path / "data", "--root", tmp_path / "root",
        "--recipe", "int8", "--epochs", 1, "--samples", 20, "--max-accuracy-drop", 1, "--allow-chance-level",
    )  # fmt: skip
    assert code == 0
    report = report_of(tmp_path / "root")
    [training] = report["training"]
    assert training["phases"] == [{"name": "top", "epochs": 2}, {"name": "fine_tuning", "epochs": 1}]
    assert len(training["history"]["val_loss"]) == 3
    assert "fine_tuning, 1 epoch" in (tmp_path / "root" / "report" / "report.html").read_text()
    # what was pretrained and frozen is what came out
    [path] = (tmp_path / "root" / "artifacts" / "Trainer").glob("model/*/Format-Keras/model.keras")
    trained = tf_keras.models.load_model(path, compile=False).layers[1]
    changed = [
        any(not np.array_equal(a, b) for a, b in zip(old.get_weights(), new.get_weights(), strict=True))
        for old, new in zip(base.layers, trained.layers, strict=True)
    ]
    assert not any(changed[:100])
    assert sum(changed[100:]) > 10
    for old, new in zip(base.layers, trained.layers, strict=True):
        if isinstance(old, tf_keras.layers.BatchNormalization):
            np.testing.assert_array_equal(old.moving_mean, new.moving_mean)
