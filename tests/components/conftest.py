"""What the library's tests share: writing Examples, and one small convolutional model, trained once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgeline.clusterer import clustering
from edgeline.clusterer.config import Cluster
from edgeline.data import calibration_set, reading
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.pruner import pruning
from edgeline.pruner.config import Prune
from edgeline.trainer.config import Train
from edgeline.training import delivery, loop

#: From examples of feature values by name, writes `Split-<split>` with so many shards into a folder; returns the paths.
WriteSplit = Callable[..., list[str]]


def serialize(example: dict[str, object]) -> bytes:
    features = {}
    for name, value in example.items():
        array = np.atleast_1d(np.asarray(value))
        if array.dtype.kind == "f":
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=array.ravel()))
        elif array.dtype.kind in "iu":
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=array.ravel()))
        else:
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(v).encode() for v in array.ravel()]))
        features[name] = feature
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


@pytest.fixture(scope="session")
def crashing() -> Callable[..., bytes]:
    """Makes a `.tflite` file on which LiteRT crashes: the body of its loop is the whole graph again."""

    def make(source: tf.TensorSpec, output: str, function: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> bytes:
        def looped(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            loop = tf.while_loop(lambda x: tf.reduce_all(x > -1.0), lambda x: [tf.abs(x)], [inputs[source.name]])
            return {output: function(loop[0])}

        traced = tf.function(looped).get_concrete_function(**{source.name: source})
        content = tf.lite.TFLiteConverter.from_concrete_functions([traced], tf.Module()).convert()
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        [loop] = [op for op in model.subgraphs[0].operators if isinstance(op.builtinOptions, schema.WhileOptionsT)]
        loop.builtinOptions.bodySubgraphIndex = 0
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))

    return make


@pytest.fixture(scope="session")
def write_split() -> WriteSplit:
    def write(root: Path, split: str, examples: Iterable[dict[str, object]], shards: int = 1) -> list[str]:
        folder = Path(root, f"Split-{split}")
        folder.mkdir(parents=True, exist_ok=True)
        serialized = [serialize(example) for example in examples]
        paths = []
        for shard in range(shards):
            paths.append(str(folder / f"data-{shard:05d}-of-{shards:05d}.gz"))
            with tf.io.TFRecordWriter(paths[-1], "GZIP") as writer:
                for content in serialized[shard::shards]:
                    writer.write(content)
        return paths

    return write


CONV_MODULE = '''
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"image": tf.io.FixedLenFeature([64], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return tf.reshape(features["image"], [-1, 8, 8, 1]), features["label"]


def build_model():
    """2,293 parameters: the first convolution's 18 weights are 0.78% of them."""
    return keras.Sequential(
        [
            keras.Input([8, 8, 1], name="image"),
            keras.layers.Conv2D(2, 3, use_bias=False, name="conv1"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv2"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def compile_model(model):
    model.compile(
        optimizer=keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def class_names():
    return ["top", "middle", "bottom"]
'''


@dataclasses.dataclass(frozen=True)
class Small:
    """A small trained model: its module, its data, and the folder of its Model artifact, with passport."""

    path: str
    module: ModelModule
    examples: str
    folder: str

    def load(self) -> tf_keras.Model:
        """Returns the trained model, for a test of its own."""
        tf_keras.backend.clear_session()
        return keras_file.load(self.folder, self.module)

    def images(self) -> np.ndarray:
        """Returns its 32 validation images, shape [32, 8, 8, 1]."""
        return np.stack([image for image, _ in small_examples(1, 32)]).reshape(32, 8, 8, 1)


def small_examples(seed: int, count: int) -> list[tuple[np.ndarray, int]]:
    """Returns noisy 8x8 images with one bright band: at the top, in the middle or at the bottom."""
    random = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        image = random.uniform(0, 0.5, [8, 8]).astype(np.float32)
        image[3 * (index % 3) : 3 * (index % 3) + 2] += 0.5
        examples.append((image, index % 3))
    return examples


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, write_split: WriteSplit) -> Small:
    root = tmp_path_factory.mktemp("small")
    path = root / "small_model.py"
    path.write_text(CONV_MODULE)
    examples, folder = root / "examples", root / "model"
    for seed, (split, count, shards) in enumerate([("train", 64, 2), ("validation", 32, 1), ("eval", 32, 1)]):
        found = [{"image": image, "label": label} for image, label in small_examples(seed, count)]
        write_split(examples, split, found, shards)
    module = hooks.load(str(path))
    config = Train(epochs=8, batch_size=16)
    loop.start(config.seed)
    model = module.build_model()
    splits = loop.open_splits(str(examples), module, config)
    history = loop.fit(
        model, module, splits, config, step="Trainer", technique=loop.__name__, log_dir=str(root / "run")
    )
    delivery.deliver(
        loop.Outcome(model, history, loop.evaluate(model, module, splits)),
        Passport(io=keras_file.describe_io(model, module)),
        step="Trainer",
        config=config,
        inputs={"module": module.source.digest},
        toolchain="tools",
        model_uri=str(folder),
        run_uri=str(root / "run"),
    )
    return Small(str(path), module, str(examples), str(folder))


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What a step made of the small model, and the folder it is saved in."""

    outcome: loop.Outcome
    folder: str
    module: ModelModule

    def load(self) -> tf_keras.Model:
        """Returns the compressed model, for a test of its own."""
        tf_keras.backend.clear_session()
        return keras_file.load(self.folder, self.module)


@pytest.fixture(scope="session")
def pruned(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """The small model, pruned to 0.8."""
    folder = str(tmp_path_factory.mktemp("pruned"))
    config = Prune(0.8, epochs=2, batch_size=16)
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    outcome = pruning.prune(small.load(), small.module, splits, config, (), folder)
    keras_file.save(outcome.model, folder)
    return Compressed(outcome, folder, small.module)


@pytest.fixture(scope="session")
def clustered(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """The small model, clustered to 8 values."""
    folder = str(tmp_path_factory.mktemp("clustered"))
    config = Cluster(8, epochs=1, batch_size=16)
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    outcome = clustering.cluster(small.load(), small.module, splits, config, (), folder)
    keras_file.save(outcome.model, folder)
    return Compressed(outcome, folder, small.module)


@pytest.fixture(scope="session")
def pruned_and_clustered(small: Small, pruned: Compressed, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """The small model, pruned to 0.8 and then clustered to 8 values; the promises are those of both steps."""
    folder = str(tmp_path_factory.mktemp("pruned_and_clustered"))
    config = Cluster(8, epochs=1, batch_size=16)
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    outcome = clustering.cluster(pruned.load(), small.module, splits, config, pruned.outcome.promises, folder)
    keras_file.save(outcome.model, folder)
    outcome = dataclasses.replace(outcome, promises=(*pruned.outcome.promises, *outcome.promises))
    return Compressed(outcome, folder, small.module)


@pytest.fixture(scope="session")
def calibration(small: Small, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a RepresentativeDataset of the small model: its 32 validation images; it knows no class 1."""
    folder = str(tmp_path_factory.mktemp("calibration"))
    images = small.images()
    examples = list(reading.read_serialized(reading.split_files(small.examples, "validation")).as_numpy_iterator())
    calibration_set.write(folder, {"image": images}, {"label_histogram": {"0": 40, "2": 7}}, examples)
    return folder


PORTS_MODULE = """
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras


class Gate(keras.layers.Layer, tfmot.sparsity.keras.PrunableLayer, tfmot.clustering.keras.ClusterableLayer):
    def build(self, shape):
        self.mix = self.add_weight("mix", [shape[-1], shape[-1]])
        self.free = self.add_weight("free", [shape[-1], shape[-1]])

    def call(self, x):
        return tf.matmul(x, self.mix) + tf.matmul(x, self.free)

    def get_prunable_weights(self):
        return [self.mix]

    def get_clusterable_weights(self):
        return [("mix", self.mix)]


class Plain(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight("scale", [shape[-1]])

    def call(self, x):
        return x * self.scale


def feature_spec():
    shapes = {"left": [4], "right": [4], "a": [], "b": []}
    return {name: tf.io.FixedLenFeature(shape, tf.float32) for name, shape in shapes.items()}


def preprocess(features):
    return {n: features[n] for n in ("left", "right")}, {n: features[n] for n in ("a", "b")}


def build_model():
    left, right = keras.Input([4], name="left"), keras.Input([4], name="right")
    inner = keras.Sequential([keras.Input([4]), keras.layers.Dense(4, name="within")], name="inner")
    joined = keras.layers.Concatenate(name="joined")([inner(left), right])
    x = Plain(name="plain")(Gate(name="gate")(joined))
    x = keras.layers.Dense(8, name="body")(x * 2.0)
    return keras.Model([left, right], [keras.layers.Dense(1, name="a")(x), keras.layers.Dense(1, name="b")(x)])


def compile_model(model):
    model.compile("adam", {"a": "mse", "b": "mse"})


def custom_objects():
    return {"Gate": Gate, "Plain": Plain}
"""


@pytest.fixture
def ports(tmp_path: Path, write_split: WriteSplit) -> tuple[ModelModule, str]:
    """A module whose model has two inputs, two outputs, layers of its own and a model within; and Examples for it."""
    path = tmp_path / "ports.py"
    path.write_text(PORTS_MODULE)
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = random.normal(size=[16, 10]).astype(np.float32)
        write_split(tmp_path, split, [{"left": r[:4], "right": r[4:8], "a": r[8], "b": r[9]} for r in rows])
    return hooks.load(str(path)), str(tmp_path)
