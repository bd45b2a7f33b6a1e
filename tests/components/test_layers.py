from __future__ import annotations

import re

import numpy as np
import pytest
import tf_keras

from edgeline import keras_io, layers
from edgeline.layers import BrokenPromiseError
from edgeline.passport import Promise


def model() -> tf_keras.Model:
    """Kernels of 8, 40 and 10 weights and biases of 10 and 1: 69 parameters."""
    return tf_keras.Sequential(
        [
            tf_keras.Input([4, 1]),
            tf_keras.layers.Conv1D(2, 4, use_bias=False, name="conv"),
            tf_keras.layers.Flatten(name="flatten"),
            tf_keras.layers.Dense(20, use_bias=False, name="wide"),
            tf_keras.layers.Dropout(0.5, name="dropout"),
            tf_keras.layers.Dense(1, name="head"),
        ]
    )


def test_share() -> None:
    net = model()  # 8 + 40 + 21
    assert net.count_params() == 69
    assert layers.share([net.get_layer("wide").kernel], net) == 40 / 69
    assert layers.share(net.weights, net) == 1.0
    assert layers.share([], net) == 0.0


def test_selection_says_why_a_layer_is_left_alone() -> None:
    net = model()
    kernels = {"conv": [net.get_layer("conv").kernel], "wide": [net.get_layer("wide").kernel]}
    assert layers.selection(net, kernels, 0.2, "tool cannot handle") == {
        "conv": "holds 11.59% of the weights, under 20.00%",  # 8 / 69
        "wide": None,
        "head": "tool cannot handle Dense",
    }
    # exactly the share is enough, and 0 takes all
    assert layers.selection(net, kernels, 40 / 69, "-")["wide"] is None
    assert layers.selection(net, kernels, 0.0, "-")["conv"] is None
    # a layer it knows but finds nothing in
    assert layers.selection(net, kernels | {"head": []}, 0.0, "nothing in")["head"] == "nothing in Dense"


def test_facts() -> None:
    net = model()
    net.get_layer("wide").set_weights([np.float32([[0, 0, 1, 2, 3] * 4, [0] * 10 + [1] * 10])])
    facts = layers.facts(net, {"wide": "pruned to 0.45", "flatten": "has no weights"})
    assert [fact["name"] for fact in facts] == ["conv", "wide", "head"]
    assert facts[1] == {
        "name": "wide",
        "type": "Dense",
        "parameters": 40,
        "sparsity": 18 / 40,
        "unique_values": 4,
        "note": "pruned to 0.45",
    }
    # of the kernel, not of the bias
    assert facts[2]["parameters"] == 21
    assert facts[2]["unique_values"] == 20
    assert facts[2]["note"] == ""


def test_facts_do_not_count_very_many_values() -> None:
    net = tf_keras.Sequential([tf_keras.Input([256]), tf_keras.layers.Dense(257, use_bias=False)])
    net.set_weights([np.arange(256 * 257, dtype=np.float32).reshape(256, 257)])
    assert layers.facts(net, {})[0]["unique_values"] is None
    net.set_weights([np.minimum(np.arange(256 * 257, dtype=np.float32), 65_535).reshape(256, 257)])
    assert layers.facts(net, {})[0]["unique_values"] == 65_536


@pytest.mark.parametrize(
    ("zeros", "size", "kept"),
    [(0.5, 4, True), (0.75, 4, True), (0.25, 4, True), (0.0, 4, False), (0.49, 100, True), (0.48, 100, False)],
)
def test_a_sparsity_promise_is_kept_but_for_one_weight(zeros: float, size: int, kept: bool) -> None:
    assert layers.holds(Promise("sparsity", "l", (size,), 0.5), zeros, 10**6, size) is kept


@pytest.mark.parametrize(("values", "kept"), [(1, True), (16, True), (17, False)])
def test_a_clusters_promise_allows_no_value_more(values: int, kept: bool) -> None:
    assert layers.holds(Promise("clusters", "l", (100,), 16), 0.0, values, 100) is kept


def test_promises_that_hold() -> None:
    net = model()
    net.get_layer("wide").set_weights([np.float32([[0] * 10 + [1, 2] * 5, [0] * 10 + [1] * 10])])
    layers.check_promises(
        net, [Promise("sparsity", "wide", (2, 20), 0.5), Promise("clusters", "wide", (2, 20), 3)], "Step"
    )
    layers.check_promises(net, [], "Step")


def test_broken_promises_name_all_layers_and_what_is_there() -> None:
    net = model()
    net.get_layer("wide").set_weights([np.float32([[0] * 10 + [1, 2] * 5, [0] * 8 + [1] * 12])])
    promises = [
        Promise("sparsity", "wide", (2, 20), 0.5),  # 18 of 40: two fewer
        Promise("clusters", "wide", (2, 20), 2),
        Promise("clusters", "wide", (2, 20), 3),  # holds
        Promise("sparsity", "head", (20, 1), 0.8),
        Promise("sparsity", "gone", (2, 2), 0.5),
        Promise("sparsity", "wide", (20, 2), 0.1),
    ]
    expected = (
        "Pruner broke what was promised for 5 layers: wide (sparsity 0.5, found 0.4500 zeros and 3 values); "
        "wide (clusters 2, found 0.4500 zeros and 3 values); head (sparsity 0.8, found 0.0000 zeros and 20 values); "
        "gone (sparsity 0.5, found no such layer); wide (sparsity 0.1, found no such layer)"
    )
    with pytest.raises(BrokenPromiseError, match=f"^{re.escape(expected)}$"):
        layers.check_promises(net, promises, "Pruner")


def test_promises_of_a_model_wrapped_for_quantization() -> None:
    net = tf_keras.Sequential([tf_keras.Input([2]), tf_keras.layers.Dense(2, use_bias=False, name="wide")])
    net.set_weights([np.float32([[0, 0], [1, 2]])])  # two values in each output channel, three in all
    wrapped = keras_io.quantization_aware(net, {"layers": ["wide"], "scheme": "default"})
    layers.check_promises(
        wrapped, [Promise("sparsity", "wide", (2, 2), 0.5), Promise("clusters", "wide", (2, 2), 2)], "Quantizer"
    )
    with pytest.raises(BrokenPromiseError, match=r"wide \(sparsity 0.9, found 0.5000 zeros and 2 values\)"):
        layers.check_promises(wrapped, [Promise("sparsity", "wide", (2, 2), 0.9)], "Quantizer")
    with pytest.raises(BrokenPromiseError, match=r"wide \(clusters 2, found 0.5000 zeros and 3 values\)"):
        layers.check_promises(net, [Promise("clusters", "wide", (2, 2), 2)], "Clusterer")


def test_what_a_wrapper_keeps_beside_the_kernel_keeps_no_promise() -> None:
    net = tf_keras.Sequential([tf_keras.Input([2]), tf_keras.layers.Dense(2, use_bias=False, name="wide")])
    net.set_weights([np.float32([[0, 0], [1, 2]])])
    wrapped = keras_io.quantization_aware(net, {"layers": ["wide"], "scheme": "keep_clusters_and_zeros"})
    # indices, 0 to 2, and the weights before the clustering
    assert [w.shape for w in wrapped.get_layer("quant_wide").weights].count([2, 2]) == 3
    [kernel] = [w for w in wrapped.get_layer("quant_wide").weights if w.name == "wide/kernel:0"]
    kernel.assign([[1, 2], [3, 4]])
    with pytest.raises(BrokenPromiseError, match=r"found 0\.0000 zeros and 2 values"):
        layers.check_promises(wrapped, [Promise("sparsity", "wide", (2, 2), 0.5)], "Quantizer")
