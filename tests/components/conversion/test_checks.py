from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.conversion import checks
from edgeline.conversion.checks import ExportError
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.keras_models.promise_kinds import UnknownPromiseError
from edgeline.passport import Passport, Promise
from edgeline.tflite_exporter import conversion

# parity ---------------------------------------------------------------------------------------------------------------


def test_parity_by_hand() -> None:
    expected = {"y": np.float32([[3, 0], [0, 4], [1, 2]])}
    received = {"y": np.float32([[3, 0], [0.5, 4], [2, 1]]), "other": np.float32([1])}
    facts = checks.parity(expected, received)
    # dot 9 + 16 + 2 + 2, norms sqrt(9 + 16 + 5) and sqrt(9 + 16.25 + 5)
    assert facts == {
        "y": {
            "max_abs": 1.0,
            "relative": 0.25,
            "cosine": pytest.approx(29 / math.sqrt(30 * 30.25)),
            "agreement": pytest.approx(2 / 3),
        }
    }


@pytest.mark.parametrize(
    ("expected", "received", "facts"),
    [
        ([[0.0], [0.0]], [[0.0], [0.0]], {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "agreement": 1.0}),
        ([[0.0], [0.0]], [[0.0], [0.5]], {"max_abs": 0.5, "relative": 0.5e12, "cosine": 0.0, "agreement": 1.0}),
        ([[1.0], [2.0]], [[-1.0], [-2.0]], {"max_abs": 4.0, "relative": 2.0, "cosine": -1.0, "agreement": 1.0}),
        ([1.0, 2.0], [1.0, 2.0], {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "agreement": 1.0}),
    ],
)
def test_parity_of_zeros_opposites_and_scalars(expected: Any, received: Any, facts: dict[str, float]) -> None:
    found = checks.parity({"y": np.float32(expected)}, {"y": np.float32(received)})
    assert found["y"] == pytest.approx(facts)


def test_parity_over_positions() -> None:
    # segmentation: the argmax of every position counts
    want = np.float32([[[1, 0], [0, 1]], [[1, 0], [0, 1]]])
    got = np.float32([[[1, 0], [0, 1]], [[1, 0], [1, 0]]])
    assert checks.parity({"y": want}, {"y": got})["y"]["agreement"] == 0.75


@pytest.mark.parametrize(
    ("expected", "received", "message"),
    [
        ([[1.0]], None, r"output 'y' has shape None, expected \(1, 1\); outputs: \[\]"),
        ([[1.0]], [[1.0, 2.0]], r"output 'y' has shape \(1, 2\), expected \(1, 1\); outputs: \['y'\]"),
        ([[1.0, 2.0]], [[math.nan, math.inf]], "output 'y' has 2 values that are NaN or infinite"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "output 'y' of the source model has 1 values that are NaN or infinite"),
    ],
)
def test_outputs_that_cannot_be_compared(expected: Any, received: Any, message: str) -> None:
    got = {} if received is None else {"y": np.float32(received)}
    with pytest.raises(ExportError, match=message):
        checks.parity({"y": np.float32(expected)}, got)


@pytest.mark.parametrize(
    ("scheme", "fact", "message"),
    [
        ("float32", {"relative": 2e-3}, r"'y' differs from the source model's by 0.5, 0.20% of its largest value, "
         r"with k; float32 may differ by 0.10%"),
        ("float16", {"relative": 0.03}, "float16 may differ by 2.00%"),
        ("dynamic_range", {"cosine": 0.97}, r"'y' has little to do with the source model's, with k: their cosine is "
         r"0.970, dynamic_range needs at least 0.98"),
        ("int16x8", {"cosine": 0.97}, "int16x8 needs at least 0.98"),
        ("int8", {"cosine": 0.89}, "int8 needs at least 0.9"),
        ("qat8", {"cosine": -0.99}, "qat8 needs at least 0.9"),
    ],
)  # fmt: skip
def test_outputs_that_are_too_far_off(scheme: str, fact: dict[str, float], message: str) -> None:
    closeness = {"y": {"max_abs": 0.5, "relative": 0.0, "cosine": 1.0, "agreement": 1.0, **fact}}
    with pytest.raises(ExportError, match=message):
        checks.check_parity(scheme, closeness, {}, "k")
    # what two steps of the output's quantization amount to is no fault
    checks.check_parity(scheme, closeness, {"y": 0.25}, "k")
    with pytest.raises(ExportError, match=message):
        checks.check_parity(scheme, closeness, {"y": 0.24}, "k")


def test_outputs_that_are_close_enough() -> None:
    for scheme, fact in (("float32", {"relative": 9e-4}), ("int8", {"relative": 0.5, "cosine": 0.91})):
        facts = {"max_abs": 0.5, "relative": 0.0, "cosine": 1.0, "agreement": 0.0, **fact}
        checks.check_parity(scheme, {"y": facts}, {}, "k")


# operators ------------------------------------------------------------------------------------------------------------


def op(name: str, layer: str = "", kind: str = "builtin") -> dict[str, str]:
    return {"op": name, "layer": layer, "tensor": f"model/{layer}/{name}", "kind": kind}


def file_with(*foreign: dict[str, str], **facts: Any) -> dict[str, Any]:
    kinds = ("builtin", "custom", "flex")
    counts = {kind: {o["op"]: 1 for o in foreign if o["kind"] == kind} for kind in kinds}
    return {"foreign_ops": list(foreign), "ops": counts, "float_ops": [], "inputs": [], "outputs": [], **facts}


def test_foreign_operators_need_leave() -> None:
    flex, custom = op("FlexErf", "act", "flex"), op("Mine", "own", "custom")
    with pytest.raises(ExportError, match=r"not LiteRT's own: FlexErf \(layer act, tensor .*allow_select_tf_ops"):
        checks.check_operators(file_with(flex, custom), allow_select_tf_ops=False, allow_custom_ops=True)
    with pytest.raises(ExportError, match=r"not LiteRT's own: Mine \(layer own, tensor .*allow_custom_ops"):
        checks.check_operators(file_with(flex, custom), allow_select_tf_ops=True, allow_custom_ops=False)
    checks.check_operators(file_with(flex, custom), allow_select_tf_ops=True, allow_custom_ops=True)
    checks.check_operators(file_with(), allow_select_tf_ops=False, allow_custom_ops=False)


FLOATS = [op("DEQUANTIZE", "before"), op("SIN", "wave"), op("ADD", "sum"), op("ADD", "sum"), op("QUANTIZE", "wave")]


@pytest.mark.parametrize(
    ("scheme", "io_type"), [("int8", "float32"), ("int8", "uint8"), ("int16x8", "float32"), ("qat8", "int8")]
)
def test_float_operators_in_an_integer_model(scheme: str, io_type: str) -> None:
    named = r"stayed float: SIN \(layer wave, tensor model/wave/SIN\), 2 ADD \(layer sum, tensor model/sum/ADD\)\. Rep"
    with pytest.raises(ExportError, match=f"^{scheme} computes on integers alone, but these operators {named}"):
        checks.check_integers(file_with(float_ops=FLOATS), {"scheme": scheme, "io_type": io_type})
    # conversions that convert nothing at the ends
    with pytest.raises(ExportError, match=r"stayed float: QUANTIZE \(layer a"):
        checks.check_integers(file_with(float_ops=[op("QUANTIZE", "a")]), {"scheme": scheme, "io_type": io_type})


@pytest.mark.parametrize(
    "scheme",
    [
        {"scheme": "float32", "io_type": "float32"},
        {"scheme": "dynamic_range", "io_type": "float32"},
        {"scheme": "float16", "io_type": "float32"},
        # its training said which layers it leaves float
        {"scheme": "qat8", "io_type": "float32"},
        {"scheme": "int8", "io_type": "float32", "keep_float": {"layers": ["wave"], "ops": []}},
    ],
)
def test_schemes_that_may_have_float_operators(scheme: dict[str, Any]) -> None:
    checks.check_integers(file_with(float_ops=FLOATS), scheme)


def test_integer_ports_that_stayed_float() -> None:
    ports = {"inputs": [{"name": "ids", "dtype": "int32"}], "outputs": [{"name": "y", "dtype": "float32"}]}
    with pytest.raises(ExportError, match=r"^inputs and outputs must be int8, but y stayed float32$"):
        checks.check_integers(file_with(**ports), {"scheme": "int8", "io_type": "int8"})
    checks.check_integers(file_with(**ports), {"scheme": "int8", "io_type": "float32"})


def test_long_lists_are_cut() -> None:
    many = [op("SIN", f"layer{i}") for i in range(10)]
    with pytest.raises(ExportError, match=r"layer7, tensor model/layer7/SIN\) and 2 more\. Replace"):
        checks.check_integers(file_with(float_ops=many), {"scheme": "int8", "io_type": "float32"})
    with pytest.raises(ExportError, match=r"specification: a: wrong; b: wrong$"):
        checks.check_quantization({"violations": ["a: wrong", "b: wrong"]})
    with pytest.raises(ExportError, match=r"v7; and 1 more$"):
        checks.check_quantization({"violations": [f"v{i}" for i in range(9)]})
    checks.check_quantization({"violations": []})


def test_bytes_by_technique() -> None:
    def weight(name: str, shape: list[int], dtype: str, size: int) -> dict[str, Any]:
        return {"name": name, "shape": shape, "dtype": dtype, "bytes": size, "zlib_bytes": size // 2, "sparse": False}

    weights = [
        weight("model/a/MatMul", [16, 8], "int8", 128),
        weight("model/b/Conv2D", [4, 3, 3, 1], "int8", 36),
        weight("model/c/MatMul", [8, 16], "int8", 128),
        weight("model/a/BiasAdd", [16], "int32", 64),
    ]
    promises = (
        Promise("sparsity", "a", (8, 16), 0.5),
        Promise("sparsity", "b", (3, 3, 1, 4), 0.5),
        Promise("clusters", "b", (3, 3, 1, 4), 8),
        Promise("clusters", "a", (4, 4), 8),  # another of its weights
    )
    assert checks.techniques({"weights": weights}, promises) == {
        "int8": {"tensors": 1, "bytes": 128, "zlib_bytes": 64},
        "int8 pruned": {"tensors": 1, "bytes": 128, "zlib_bytes": 64},
        "int32": {"tensors": 1, "bytes": 64, "zlib_bytes": 32},
        "int8 pruned clustered": {"tensors": 1, "bytes": 36, "zlib_bytes": 18},
    }


# promises -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense_pair() -> bytes:
    """Two kernels of one shape: `first` is half zeros, `second` has two values in each output channel."""
    random = np.random.default_rng(0)
    model = tf_keras.Sequential(
        [
            tf_keras.Input([8], name="x"),
            tf_keras.layers.Dense(8, use_bias=False, activation="relu", name="first"),
            tf_keras.layers.Dense(8, use_bias=False, name="second"),
        ]
    )
    half = random.uniform(1, 2, [8, 8]).astype(np.float32)
    half[:4] = 0
    model.set_weights([half, np.repeat(np.float32([[1]] * 4 + [[2]] * 4), 8, axis=1)])
    port = {"name": "x", "shape": [None, 8], "dtype": "float32"}
    io = {"inputs": [port], "outputs": [{"name": "y"}], "labels": []}
    return conversion.convert(model, Passport(io, scheme={"scheme": "float32"}), {})


def test_promises_are_checked_in_the_file(dense_pair: bytes) -> None:
    kept = (Promise("sparsity", "first", (8, 8), 0.5), Promise("clusters", "second", (8, 8), 2))
    checks.check_promises(dense_pair, kept)
    # counted per output channel: of `first`, each has zero and four others
    checks.check_promises(dense_pair, (Promise("clusters", "first", (8, 8), 5),))


def test_each_promise_needs_a_weight_of_its_own(dense_pair: bytes) -> None:
    # as of a recurrent layer's two kernels of one shape; names of weights are not in the file
    first, other = (Promise("sparsity", "first", (8, 8), 0.5, name) for name in ("kernel", "recurrent_kernel"))
    checks.check_promises(dense_pair, (first, first))  # two steps that say the same
    with pytest.raises(
        BrokenPromiseError, match=r"first \(sparsity 0.5 in 2 weights, found 0.5000 zeros and 5 values\)$"
    ):
        checks.check_promises(dense_pair, (first, other))


def test_patterns_are_checked_in_the_file(dense_pair: bytes) -> None:
    # the first four inputs of `first` are zero
    checks.check_promises(dense_pair, (Promise("blocks", "first", (8, 8), 0.5, "kernel", "4x1"),))
    with pytest.raises(BrokenPromiseError, match=r"first \(m_by_n 2x4 0.5, found"):
        checks.check_promises(dense_pair, (Promise("m_by_n", "first", (8, 8), 0.5, "kernel", "2x4"),))


def test_an_unknown_kind_is_never_taken_for_another(dense_pair: bytes) -> None:
    promise = Promise("multiples", "first", (8, 8), 64)
    with pytest.raises(UnknownPromiseError, match=r"^layer first was promised multiples 64, which cannot be checked"):
        checks.check_promises(dense_pair, (promise,))
    weight = {"name": "model/first/MatMul", "shape": [8, 8]}
    with pytest.raises(UnknownPromiseError):
        checks.techniques({"weights": [weight]}, (promise,))


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        (Promise("sparsity", "first", (8, 8), 0.9), r"first \(sparsity 0.9, found 0.5000 zeros and 5 values\)"),
        # another layer of the same shape would keep it
        (Promise("sparsity", "second", (8, 8), 0.5), r"second \(sparsity 0.5, found 0.0000 zeros and 2 values\)"),
        (Promise("clusters", "first", (8, 8), 2), r"first \(clusters 2, found 0.5000 zeros and 5 values\)"),
        (Promise("sparsity", "first", (4, 16), 0.5), r"first \(sparsity 0.5, found no such tensor\)"),
    ],
)
def test_a_broken_promise_names_the_layer(dense_pair: bytes, promise: Promise, message: str) -> None:
    with pytest.raises(BrokenPromiseError, match=f"^the conversion broke what was promised for 1 layers: {message}$"):
        checks.check_promises(dense_pair, (promise,))
