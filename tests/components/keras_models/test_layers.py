from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.errors import UserError
from edgeline.keras_models import layers, promise_checks
from edgeline.keras_models.promise_checks import BrokenPromiseError, KeepZeros
from edgeline.keras_models.promise_kinds import KINDS, Kernel, UnknownPromiseError, kind_of
from edgeline.model_io import keras_file
from edgeline.passport import Promise
from edgeline.pruner.config import Prune


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


def select(
    net: tf_keras.Model, handled: list[str], share: float = 0.0, unfit: Any = lambda layer: None, **asked: Any
) -> dict[str, str | None]:
    kernels = {name: [net.get_layer(name).weights[0]] for name in handled}
    return layers.selection(
        net, kernels, Prune(**asked), share, values="layer_sparsity", unable="tool cannot handle", unfit=unfit
    )


def test_selection_says_why_a_layer_is_left_alone() -> None:
    net = model()
    assert select(net, ["conv", "wide"], 0.2) == {
        "conv": "holds 11.59% of the weights, under 20.00%",  # 8 / 69
        "wide": None,
        "head": "tool cannot handle Dense",
    }
    # exactly the share is enough, and 0 takes all
    assert select(net, ["conv", "wide"], 40 / 69)["wide"] is None
    assert select(net, ["conv", "wide"])["conv"] is None
    # a layer it knows but finds nothing in
    kernels: dict[str, list[Any]] = {"conv": [], "wide": [net.get_layer("wide").kernel]}
    found = layers.selection(net, kernels, Prune(), 0, values="layer_sparsity", unable="nothing in")
    assert found["conv"] == "nothing in Conv1D"


ALL = ["conv", "wide", "head"]


def test_of_many_small_layers_the_smallest_are_left_alone() -> None:
    widths = [20] * 10 + [30, 30] + [200]
    net = tf_keras.Sequential(
        [
            tf_keras.Input([10]),
            *(
                layer
                for number, width in enumerate(widths)
                for layer in (
                    tf_keras.layers.Dense(width, use_bias=False, name=f"layer_{number}"),
                    tf_keras.layers.Dense(10, use_bias=False, name=f"back_{number}"),
                )
            ),
        ]
    )
    names = [f"layer_{number}" for number in range(len(widths))]
    assert net.count_params() == 2 * 10 * sum(widths)
    # a layer of 20 holds 200 of 9,200 weights, 2.17%
    left = [name for name, why in select(net, names, 0.022).items() if why and "under" in why]
    assert left == [f"layer_{number}" for number in range(5)]  # 10.87%; a sixth would be over 5 * 2.2%
    # the larger ones are kept first
    left = [name for name, why in select(net, names[9:], 0.04).items() if why and "under" in why]
    assert left == ["layer_9", "layer_10", "layer_11"]
    assert not [why for why in select(net, names, 0.022, include=["layer_*"]).values() if why and "under" in why]


@pytest.mark.parametrize(
    ("asked", "chosen", "reasons"),
    [
        ({}, ["wide", "head"], {"conv": "holds 11.59% of the weights, under 20.00%"}),
        # what is asked for may be small
        ({"include": ["c*"]}, ["conv"], {"wide": "is not included"}),
        ({"include": ["Dense"]}, ["wide", "head"], {"conv": "is not included"}),
        ({"include": ["*"], "exclude": ["h?ad", "Conv*"]}, ["wide"], {"head": "is excluded", "conv": "is excluded"}),
        ({"layer_sparsity": {"conv": 0.3}}, ["conv", "wide", "head"], {}),
        ({"protect": "first"}, ["wide", "head"], {"conv": "is protected as first layer"}),
        ({"protect": "last"}, ["wide"], {"head": "is protected as last layer"}),
        ({"protect": "both"}, ["wide"], {"conv": "is protected as first layer", "head": "is protected as last layer"}),
    ],
)
def test_layers_by_pattern(asked: dict[str, Any], chosen: list[str], reasons: dict[str, str]) -> None:
    found = select(model(), ALL, 0.2, **asked)
    assert [name for name, why in found.items() if why is None] == chosen
    assert {name: found[name] for name in reasons} == reasons


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_the_layers(field: str) -> None:
    expected = (
        f"Prune.{field}: 'hed' matches no layer with weights; the model has conv (Conv1D), wide (Dense), head (Dense)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        select(model(), ALL, **{field: ["wide", "hed"]})
    with pytest.raises(UserError, match=r"^Prune.layer_sparsity: 'dense' matches no layer"):
        select(model(), ALL, layer_sparsity={"dense": 0.5})


def test_layers_that_are_named_in_full_must_be_had() -> None:
    with pytest.raises(
        UserError,
        match=r"^Prune: layers that are named cannot be had: wide is too wide; head tool cannot handle Dense$",
    ):
        select(
            model(), ["conv", "wide"], unfit=lambda layer: "is too wide" if layer.name == "wide" else None,
            include=["wide", "head", "c*"],
        )  # fmt: skip
    with pytest.raises(UserError, match=r"cannot be had: wide is excluded$"):
        select(model(), ALL, exclude=["Dense"], layer_sparsity={"wide": 0.3})
    # of what globs and types match, the layers that cannot be had are left alone
    assert select(model(), ["conv", "wide"], include=["*"])["head"] == "tool cannot handle Dense"


def test_first_and_last_are_those_at_every_input_and_output() -> None:
    left, right = tf_keras.Input([3], name="left"), tf_keras.Input([3], name="right")
    a = tf_keras.layers.Dense(3, name="a")(left)
    b = tf_keras.layers.Dense(3, name="b")(right)
    middle = tf_keras.layers.Dense(3, name="middle")(tf_keras.layers.Concatenate(name="both")([a, b]))
    c = tf_keras.layers.Dense(1, name="c")(tf_keras.layers.ReLU(name="relu")(middle))
    d = tf_keras.layers.Dense(1, name="d")(middle)
    net = tf_keras.Model([left, right], [c, d])
    names = ["a", "b", "middle", "c", "d"]
    assert [n for n, why in select(net, names, protect="both").items() if why is None] == ["middle"]
    assert select(net, names, protect="first")["c"] is None
    # what the technique cannot handle is no end
    assert select(net, ["middle", "c"], protect="first")["middle"] == "is protected as first layer"


def test_models_within_the_model_are_left_alone() -> None:
    inner = tf_keras.Sequential([tf_keras.Input([3]), tf_keras.layers.Dense(3)], name="inner")
    net = tf_keras.Sequential([tf_keras.Input([3]), inner, tf_keras.layers.Dense(1, name="head")])
    assert select(net, ["head"]) == {"inner": "is a Sequential within the model", "head": None}


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


def holds(promise: Promise, zero: np.ndarray, values: np.ndarray | None = None) -> bool:
    """Whether a weight with zeros at these places keeps a promise; its values are 0 and 1 unless given."""
    return kind_of(promise).in_keras(promise, Kernel(np.where(zero, 0, 1) if values is None else values, zero))


@pytest.mark.parametrize(
    ("zeros", "size", "kept"),
    [(2, 4, True), (3, 4, True), (1, 4, True), (0, 4, False), (49, 100, True), (48, 100, False)],
)
def test_a_sparsity_promise_is_kept_but_for_one_weight(zeros: int, size: int, kept: bool) -> None:
    zero = np.arange(size) < zeros
    assert holds(Promise("sparsity", "l", (size,), 0.5), zero) is kept


@pytest.mark.parametrize(("values", "kept"), [(1, True), (16, True), (17, False)])
def test_a_clusters_promise_allows_no_value_more(values: int, kept: bool) -> None:
    assert holds(Promise("clusters", "l", (100,), 16), np.zeros(100, bool), np.arange(100) % values) is kept


@pytest.mark.parametrize(
    ("rows", "pattern", "value", "kept"),
    [
        (["0000", "0000", "1111", "1111"], "2x4", 0.5, True),
        (["0000", "0000", "1111", "1111"], "1x2", 0.5, True),
        (["0101", "0101", "1010", "1010"], "2x1", 0.5, True),
        # as many zeros in all, but across the blocks: 4 of 8 zero blocks are promised, there are none
        (["0101", "1010", "0101", "1010"], "2x1", 0.5, False),
        (["0011", "1111", "1100", "1111"], "1x2", 0.5, False),  # 2 of 8
        (["0011", "1111", "0000", "1111"], "1x2", 0.5, True),  # 3 of 8: one block less is rounding
        # the last block of each column is cut off at the edge
        (["000", "000", "001"], "2x2", 0.75, True),
        (["111", "111", "111"], "2x2", 0.0, True),
    ],
)
def test_blocks_by_hand(rows: list[str], pattern: str, value: float, kept: bool) -> None:
    zero = np.array([[c == "0" for c in row] for row in rows])
    assert holds(Promise("blocks", "l", zero.shape, value, "kernel", pattern), zero) is kept


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        ("0011", True),
        ("0010", True),  # more zeros than promised
        ("0111", False),
        ("00110101", True),
        ("00011101", False),  # half are zero, but not of each four
        ("001111", True),  # the last group has two weights only
        ("0011111", False),  # or three
    ],
)
def test_patterns_run_along_the_inputs(column: str, kept: bool) -> None:
    zero = np.array([c == "0" for c in column])
    promise = Promise("m_by_n", "l", (len(column), 1), 0.5, "kernel", "2x4")
    assert holds(promise, zero[:, None]) is kept
    assert holds(promise, np.stack([np.ones_like(zero), zero], axis=-1)) is kept
    # of a convolution along its input channels too: height, width, inputs, outputs
    assert holds(promise, np.tile(zero[:, None], [3, 2, 1, 5])) is kept


def test_weights_are_named_as_far_as_it_takes() -> None:
    net = tf_keras.Sequential([tf_keras.Input([3, 4]), tf_keras.layers.LSTM(4, name="memory")])
    memory = net.get_layer("memory")
    assert [promise_checks.weight_name(weight, memory) for weight in memory.weights] == [
        "kernel",
        "recurrent_kernel",
        "bias",
    ]
    attention = tf_keras.layers.MultiHeadAttention(2, 3, name="attend")
    attention(tf_keras.Input([5, 6]), tf_keras.Input([5, 6]))
    names = [promise_checks.weight_name(weight, attention) for weight in attention.weights if "kernel" in weight.name]
    assert names == ["query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"]


def test_of_two_weights_of_one_shape_each_keeps_its_own_promise() -> None:
    net = tf_keras.Sequential([tf_keras.Input([3, 4]), tf_keras.layers.LSTM(4, name="memory")])
    kernel, recurrent, _ = net.get_layer("memory").weights
    assert kernel.shape == recurrent.shape == (4, 16)
    kernel.assign(np.zeros([4, 16]))
    both = [Promise("sparsity", "memory", (4, 16), 0.5, name) for name in ("kernel", "recurrent_kernel")]
    with pytest.raises(BrokenPromiseError, match=r"for 1 layers: memory/recurrent_kernel \(sparsity 0.5, found 0.0000"):
        promise_checks.check_promises(net, both, "Pruner")
    # an older passport names no weight
    promise_checks.check_promises(net, [Promise("sparsity", "memory", (4, 16), 0.5)], "Pruner")


def test_zeros_of_layers_that_are_only_trained_are_kept() -> None:
    net = model()
    net.get_layer("wide").set_weights([np.float32([[0] * 10 + [1] * 10, [0] * 8 + [1] * 12])])
    net.compile("sgd", "mse")
    x, y = np.ones([8, 4, 1], np.float32), np.ones([8, 1], np.float32)
    before = [w.numpy() for w in net.weights]
    net.fit(x, y, verbose=0, callbacks=[KeepZeros(net, [Promise("sparsity", "wide", (2, 20), 0.45)])])
    wide = net.get_layer("wide").kernel.numpy()
    np.testing.assert_array_equal(wide == 0, before[1] == 0)
    assert not np.array_equal(wide, before[1])


def test_promises_that_hold() -> None:
    net = model()
    net.get_layer("wide").set_weights([np.float32([[0] * 10 + [1, 2] * 5, [0] * 10 + [1] * 10])])
    promise_checks.check_promises(
        net, [Promise("sparsity", "wide", (2, 20), 0.5), Promise("clusters", "wide", (2, 20), 3)], "Step"
    )
    promise_checks.check_promises(net, [], "Step")


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
        promise_checks.check_promises(net, promises, "Pruner")


def test_a_promise_of_an_unknown_kind_is_never_taken_for_another() -> None:
    promise = Promise("multiples", "wide", (2, 20), 64)
    known = "sparsity, blocks, m_by_n, clusters"
    message = (
        f"^layer wide was promised multiples 64, which cannot be checked: the known kinds are {known}. Use the ver"
    )
    net = model()
    with pytest.raises(UnknownPromiseError, match=message):
        promise_checks.check_promises(net, [promise], "Step")
    with pytest.raises(UnknownPromiseError, match=message):
        KeepZeros(net, [promise])
    assert {name for name, kind in KINDS.items() if kind.of_zeros} == {"sparsity", "blocks", "m_by_n"}


def test_promises_of_a_model_wrapped_for_quantization() -> None:
    net = tf_keras.Sequential([tf_keras.Input([2]), tf_keras.layers.Dense(2, use_bias=False, name="wide")])
    net.set_weights([np.float32([[0, 0], [1, 2]])])  # two values in each output channel, three in all
    wrapped = keras_file.quantization_aware(net, {"layers": ["wide"]})
    promise_checks.check_promises(
        wrapped, [Promise("sparsity", "wide", (2, 2), 0.5), Promise("clusters", "wide", (2, 2), 2)], "Quantizer"
    )
    with pytest.raises(BrokenPromiseError, match=r"wide \(sparsity 0.9, found 0.5000 zeros and 2 values\)"):
        promise_checks.check_promises(wrapped, [Promise("sparsity", "wide", (2, 2), 0.9)], "Quantizer")
    with pytest.raises(BrokenPromiseError, match=r"wide \(clusters 2, found 0.5000 zeros and 3 values\)"):
        promise_checks.check_promises(net, [Promise("clusters", "wide", (2, 2), 2)], "Clusterer")
