from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline import training
from edgeline.clusterer import clustering
from edgeline.clusterer.config import CENTROID_INITIALIZATIONS, Cluster
from edgeline.passport import Promise


def values(model: Any) -> dict[str, int]:
    return {
        layer.name: len(np.unique(layer.kernel)) for layer in model.layers if getattr(layer, "kernel", None) is not None
    }


def cluster(small: Any, config: Cluster, log_dir: Path, model: Any = None) -> training.Outcome:
    training.start(config.seed)
    splits = training.open_splits(small.examples, small.module, config)
    return clustering.cluster(model or small.load(), small.module, splits, config, (), str(log_dir))


def test_every_chosen_kernel_has_few_values_and_small_layers_are_left_alone(clustered: Any) -> None:
    assert values(clustered.outcome.model) == {"conv1": 18, "conv2": 8, "hidden": 8, "logits": 8}
    assert clustered.outcome.promises == (
        Promise("clusters", "conv2", (3, 3, 2, 8), 8),
        Promise("clusters", "hidden", (128, 16), 8),
        Promise("clusters", "logits", (16, 3), 8),
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


@pytest.mark.parametrize(
    "initialization",
    # each training takes seconds; the default is that of the fixture too
    [pytest.param(name, marks=[] if name == "linear" else pytest.mark.slow) for name in CENTROID_INITIALIZATIONS],
)
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


@pytest.mark.parametrize(
    ("initialization", "sparse"),
    [
        ("kmeans_plus_plus", True),
        pytest.param("kmeans_plus_plus", False, marks=pytest.mark.slow),
        pytest.param("density_based", True, marks=pytest.mark.slow),
    ],
)
def test_one_value_more_than_clusters(small: Any, tmp_path: Path, initialization: str, sparse: bool) -> None:
    model = small.load()
    kernel = model.get_layer("hidden").kernel
    # with zero: 5 distinct values, 4 other than zero
    kernel.assign(np.float32([0, 0.25, -0.25, 0.5, 0.125])[np.arange(2048).reshape(128, 16) % 5])
    config = Cluster(4, initialization, epochs=1, batch_size=64, min_layer_share=0.5)
    training.start(config.seed)
    splits = training.open_splits(small.examples, small.module, config)
    promises = (Promise("sparsity", "hidden", (128, 16), 0.2),) if sparse else ()
    outcome = clustering.cluster(model, small.module, splits, config, promises, str(tmp_path))
    assert values(outcome.model)["hidden"] <= 4


def test_nothing_to_cluster(small: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Clusterer: no layer can be clustered: conv1: holds 0.78%.*; norm: tfmot has noth"
    ):
        cluster(small, Cluster(4, min_layer_share=0.95, epochs=1), tmp_path)
