from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.clusterer import clustering
from edgeline.clusterer.config import CENTROID_INITIALIZATIONS, Cluster
from edgeline.conversion import checks, converter
from edgeline.errors import UserError
from edgeline.keras_models import promise_checks
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport, Promise
from edgeline.tflite_exporter import conversion
from edgeline.training import loop


def values(model: Any) -> dict[str, int]:
    return {
        layer.name: len(np.unique(layer.kernel)) for layer in model.layers if getattr(layer, "kernel", None) is not None
    }


def cluster(small: Any, config: Cluster, log_dir: Path, model: Any = None) -> loop.Outcome:
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    return clustering.cluster(model or small.load(), small.module, splits, config, (), str(log_dir))


def test_every_chosen_kernel_has_few_values_and_small_layers_are_left_alone(clustered: Any) -> None:
    assert values(clustered.outcome.model) == {"conv1": 18, "conv2": 8, "hidden": 8, "logits": 8}
    assert clustered.outcome.promises == (
        Promise("clusters", "conv2", (3, 3, 2, 8), 8, "kernel"),
        Promise("clusters", "hidden", (128, 16), 8, "kernel"),
        Promise("clusters", "logits", (16, 3), 8, "kernel"),
    )
    assert {fact["name"]: fact["note"] for fact in clustered.outcome.layers} == {
        "conv1": "holds 0.78% of the weights, under 1.00%",
        "norm": "tfmot has nothing to cluster in BatchNormalization",
        "conv2": "clustered to 8 values",
        "hidden": "clustered to 8 values",
        "logits": "clustered to 8 values",
    }


def test_the_result_is_the_plain_model_and_still_works(small: Any, clustered: Any) -> None:
    assert [layer.name for layer in clustered.outcome.model.layers] == [layer.name for layer in small.load().layers]
    assert clustered.outcome.model.count_params() == 2293
    assert clustered.outcome.metrics["accuracy"] > 0.8
    assert values(clustered.load())["hidden"] == 8


def test_the_shared_values_are_trained(small: Any, clustered: Any) -> None:
    # not only rounded: the bias and the untouched layers moved as well
    before, after = small.load(), clustered.outcome.model
    assert not np.array_equal(before.get_layer("logits").bias, after.get_layer("logits").bias)


def test_zeros_stay_zero_after_a_pruning(pruned: Any, pruned_and_clustered: Any) -> None:
    before, after = pruned.outcome.model, pruned_and_clustered.outcome.model
    for name in ("conv2", "hidden", "logits"):
        was, is_now = before.get_layer(name).kernel.numpy() == 0, after.get_layer(name).kernel.numpy() == 0
        assert is_now[was].all(), name
    assert values(after)["hidden"] <= 8
    assert pruned_and_clustered.outcome.metrics["accuracy"] > 0.6


@pytest.mark.slow  # each training takes seconds; the default is that of the fixture too
@pytest.mark.parametrize("initialization", CENTROID_INITIALIZATIONS)
def test_all_initializations(small: Any, tmp_path: Path, initialization: str) -> None:
    # half the layers, to be quick
    outcome = cluster(small, Cluster(4, initialization, epochs=1, batch_size=64, min_layer_share=0.5), tmp_path)
    found = values(outcome.model)
    assert found["hidden"] <= 4
    assert found["hidden"] > 1
    assert found["conv2"] == 144


@pytest.mark.slow
def test_a_layer_with_few_values_already_is_left_alone(small: Any, tmp_path: Path) -> None:
    model = small.load()
    kernel = model.get_layer("hidden").kernel
    kernel.assign(np.float32([0, 0.25, -0.25, 0.5])[np.arange(2048).reshape(128, 16) % 4])
    outcome = cluster(small, Cluster(4, epochs=1, batch_size=64, min_layer_share=0.02), tmp_path, model)
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["hidden"] == "has 4 distinct values already"
    assert notes["conv2"] == "clustered to 4 values"
    assert {promise.layer for promise in outcome.promises} == {"conv2", "logits"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("initialization", "sparse"), [("kmeans_plus_plus", True), ("kmeans_plus_plus", False), ("density_based", True)]
)
def test_one_value_more_than_clusters(small: Any, tmp_path: Path, initialization: str, sparse: bool) -> None:
    model = small.load()
    kernel = model.get_layer("hidden").kernel
    # with zero: 5 distinct values, 4 other than zero
    kernel.assign(np.float32([0, 0.25, -0.25, 0.5, 0.125])[np.arange(2048).reshape(128, 16) % 5])
    config = Cluster(4, initialization, epochs=1, batch_size=64, min_layer_share=0.5)
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    promises = (Promise("sparsity", "hidden", (128, 16), 0.2),) if sparse else ()
    outcome = clustering.cluster(model, small.module, splits, config, promises, str(tmp_path))
    assert values(outcome.model)["hidden"] <= 4


def test_nothing_to_cluster(small: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Clusterer: no layer can be clustered: conv1: holds 0.78%.*; norm: tfmot has noth"
    ):
        cluster(small, Cluster(4, min_layer_share=0.95, epochs=1), tmp_path)


# what is asked for by layer and by channel ----------------------------------------------------------------------------


def per_channel(kernel: Any) -> list[int]:
    return [len(np.unique(channel)) for channel in np.moveaxis(np.asarray(kernel), -1, 0)]


def test_values_by_channel_and_by_layer(small: Any, tmp_path: Path) -> None:
    # conv1 has no bias: tfmot's own function leaves such layers alone where it clusters by channel
    config = Cluster(
        4, epochs=1, batch_size=64, per_channel=True, include=["conv*", "logits"], layer_clusters={"logits": 3}
    )
    outcome = cluster(small, config, tmp_path)
    model = outcome.model
    assert max(per_channel(model.get_layer("conv1").kernel)) <= 4
    assert max(per_channel(model.get_layer("conv2").kernel)) <= 4
    assert values(model) == {"conv1": 8, "conv2": 32, "hidden": 2048, "logits": 3}
    assert [(p.layer, p.value, p.pattern) for p in outcome.promises] == [
        ("conv1", 4, "channel"),
        ("conv2", 4, "channel"),
        ("logits", 3, ""),
    ]
    content = conversion.convert(
        model, Passport(keras_file.describe_io(model, small.module), scheme={"scheme": "float32"}), {}
    )
    checks.check_promises(content, outcome.promises)
    kernel = model.get_layer("conv2").kernel
    kernel.assign(kernel + np.linspace(0, 1, kernel.shape.num_elements()).reshape(kernel.shape))
    with pytest.raises(
        BrokenPromiseError, match=r"conv2/kernel \(clusters channel 4, found 0.0000 zeros and 18 values"
    ):
        promise_checks.check_promises(model, outcome.promises, "Clusterer")


def plan(kernel: Any, clusters: int, *, sparse: bool = False, **asked: Any) -> Any:
    layer = tf_keras.layers.Conv2D(kernel.shape[-1], kernel.shape[:2], name="conv")
    layer.build([None, 8, 8, kernel.shape[2]])
    layer.kernel.assign(kernel)
    return clustering._plan(layer, [layer.kernel], clusters, Cluster(**asked), {"conv"} if sparse else set())


def test_a_channel_of_few_values_shares_the_kernels() -> None:
    kernel = np.random.default_rng(0).normal(size=[3, 3, 2, 2])
    assert plan(kernel, 4, per_channel=True).per_channel
    kernel[..., 1] = 0.5
    found = plan(kernel, 4, per_channel=True)
    assert not found.per_channel
    assert found.note == " (one set for all channels, since one has 1 distinct values)"


def test_too_few_values_to_draw_from_begin_as_linear() -> None:
    # 16 negative weights of one value, 2 positive ones: of 3 values beside zero, tfmot would draw all of the negative
    kernel = np.float32([[-1] * 8, [-1] * 8, [0] * 8, [1, 2] + [0] * 6]).reshape(2, 2, 4, 2)
    for sparse, name in ((True, "linear"), (False, "kmeans_plus_plus")):
        assert plan(kernel, 4, sparse=sparse).initialization == name
    assert plan(kernel, 4, sparse=True, centroid_initialization="random").initialization == "random"


@pytest.mark.slow
def test_too_few_values_to_draw_from_are_trained_as_linear(small: Any, tmp_path: Path) -> None:
    model = small.load()
    hidden = np.zeros([128, 16], np.float32)
    hidden[:60] = -0.5
    hidden[60] = np.linspace(0.1, 0.9, 16)
    model.get_layer("hidden").kernel.assign(hidden)
    loop.start(0)
    config = Cluster(8, epochs=1, batch_size=64, min_layer_share=0.5)
    splits = loop.open_splits(small.examples, small.module, config)
    promises = (Promise("sparsity", "hidden", (128, 16), 0.5),)
    outcome = clustering.cluster(model, small.module, splits, config, promises, str(tmp_path))
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["hidden"] == (
        "clustered to 8 values (begun as linear, since the weights of one sign have too few distinct values)"
    )
    assert values(outcome.model)["hidden"] <= 8


def test_a_pruned_layer_that_is_not_clustered_keeps_its_zeros(small: Any, pruned: Any, tmp_path: Path) -> None:
    config = Cluster(8, epochs=1, batch_size=64, exclude=["conv2", "logits"])
    loop.start(0)
    splits = loop.open_splits(small.examples, small.module, config)
    outcome = clustering.cluster(pruned.load(), small.module, splits, config, pruned.outcome.promises, str(tmp_path))
    before, after = pruned.outcome.model.get_layer("conv2").kernel, outcome.model.get_layer("conv2").kernel
    np.testing.assert_array_equal(before.numpy() == 0, after.numpy() == 0)
    assert not np.array_equal(before, after)


def test_what_cannot_be_clustered_as_asked(small: Any, pruned: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be had: logits has 48 weights, fewer than 64 clusters$"):
        cluster(small, Cluster(8, layer_clusters={"logits": 64}), tmp_path)
    with pytest.raises(
        UserError, match=r"^Cluster.include: 'dense_1' matches no layer with weights; the model has conv1"
    ):
        cluster(small, Cluster(8, include=["dense_1"]), tmp_path)
    config = Cluster(2)
    splits = loop.open_splits(small.examples, small.module, config)
    with pytest.raises(
        UserError,
        match=r"^Cluster.clusters must be at least 3 for pruned layers, one of them zero: conv2, hidden, logi",
    ):
        clustering.cluster(pruned.load(), small.module, splits, config, pruned.outcome.promises, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sparse"), [("LSTM", True), ("GRU", False), ("GRU", True)])
def test_embeddings_and_recurrent_kernels(tmp_path: Path, write_split: Any, kind: str, sparse: bool) -> None:
    path = tmp_path / "words.py"
    path.write_text(
        f"""
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {{"words": tf.io.FixedLenFeature([6], tf.int64), "label": tf.io.FixedLenFeature([], tf.int64)}}


def preprocess(features):
    return tf.cast(features["words"], tf.float32), features["label"]


def build_model():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input([6], name="words"),
            layers.Embedding(20, 8, mask_zero=True, name="embed"),
            layers.{kind}(8, name="memory"),
            layers.Dense(1, activation="sigmoid", name="head"),
        ]
    )


def compile_model(model):
    model.compile("adam", "binary_crossentropy")
"""
    )
    module = hooks.load(str(path))
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = random.integers(0, 20, [32, 6])
        write_split(tmp_path, split, [{"words": row, "label": int(row[0] > 9)} for row in rows])
    config = Cluster(4, epochs=1, include=["embed", "memory"])
    loop.start(0)
    splits = loop.open_splits(str(tmp_path), module, config)
    model, zeros = module.build_model(), []
    if sparse:
        for weight in (*model.get_layer("embed").weights, *model.get_layer("memory").weights[:2]):
            weight.assign(np.where(np.abs(weight) < np.quantile(np.abs(weight), 0.6), 0, weight))
            layer = weight.name.split("/")[0]
            zeros.append(Promise("sparsity", layer, tuple(weight.shape), 0.6, weight.name.split("/")[-1][:-2]))
    outcome = clustering.cluster(model, module, splits, config, tuple(zeros), str(tmp_path / "logs"))
    assert [promise.weight for promise in outcome.promises] == ["embeddings", "kernel", "recurrent_kernel"]
    io = converter.for_one_example(keras_file.describe_io(outcome.model, module))
    content = conversion.convert(outcome.model, Passport(io, scheme={"scheme": "float32"}), {})
    checks.check_promises(content, (*zeros, *outcome.promises))


@pytest.mark.slow
def test_several_ports_layers_of_ones_own_and_a_model_within(ports: Any, tmp_path: Path) -> None:
    module, examples = ports
    config = Cluster(4, "linear", epochs=1, batch_size=16, layer_clusters={"gate": 3}, protect="last", exclude=["body"])
    loop.start(0)
    splits = loop.open_splits(examples, module, config)
    outcome = clustering.cluster(module.build_model(), module, splits, config, (), str(tmp_path / "logs"))
    assert [(p.layer, p.weight, p.value) for p in outcome.promises] == [("within", "kernel", 4), ("gate", "mix", 3)]
    gate = outcome.model.get_layer("gate")
    assert len(np.unique(gate.mix)) == 3
    assert len(np.unique(gate.free)) == 64
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["plain"] == "tfmot has nothing to cluster in Plain"
    assert notes["body"] == "is excluded"
    assert notes["a"] == notes["b"] == "is protected as last layer"
    io = keras_file.describe_io(outcome.model, module)
    content = conversion.convert(outcome.model, Passport(io, scheme={"scheme": "float32"}), {})
    checks.check_promises(content, outcome.promises)
