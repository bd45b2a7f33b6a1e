from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.data.reading import ExampleParser
from edgeline.errors import UserError
from edgeline.model_module import hooks
from edgeline.representative_dataset import findings, selection
from edgeline.representative_dataset.config import Sample
from edgeline.representative_dataset.findings import EvalFilter, Summary
from edgeline.representative_dataset.selection import Choice, Drawn


def variant(tiny_module: Path, code: str) -> hooks.ModelModule:
    tiny_module.write_text(tiny_module.read_text() + "\n\n" + code)
    return hooks.load(str(tiny_module))


# check ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "outside"),
    [
        ({0: 5, 1: 5, 2: 5}, 3, None),
        ({0: 5, 1: 5, 2: 5}, 2, r"5 training examples have labels outside \[0, 2\), .* of m.py: 2; correct"),
        ({-1: 2, 0: 5, 7: 1}, 3, r"3 training examples have labels outside \[0, 3\), .*: -1, 7; correct"),
        ({0: 5, 99: 1}, None, None),
        ({}, 3, None),
        (dict.fromkeys(range(100), 1), 50, r"50 training .* 50, 51, 52, 53, 54, 55, 56, 57, 58, 59; correct"),
    ],
)
def test_labels_outside_the_classes(labels: dict[int, int], classes: int | None, outside: str | None) -> None:
    summary = Summary(examples=15, labels=Counter(labels))
    if outside is None:
        findings.check(summary, classes, "m.py")
    else:
        with pytest.raises(UserError, match=outside):
            findings.check(summary, classes, "m.py")


def test_an_empty_split() -> None:
    with pytest.raises(UserError, match="the training split is empty: 0 examples"):
        findings.check(Summary(), 3, "m.py")


@pytest.mark.parametrize(("bad", "allowed"), [(1, 0.1), (10, 0.1), (0, 0)])
def test_a_share_of_nan_and_inf_may_be_allowed(bad: int, allowed: float) -> None:
    findings.check(Summary(100, not_finite=Counter({"x": bad}), rejected=bad), None, "m.py", allowed)


def test_more_nan_and_inf_than_allowed() -> None:
    # one example is bad in both inputs
    summary = Summary(100, not_finite=Counter({"x": 8, "a": 4}), rejected=11)
    expected = r"NaN or infinite values after preprocess of m.py: 4 in input 'a', 8 in input 'x' \(of 100 training "
    with pytest.raises(UserError, match=expected + r"examples; at most 10.000% may be\); clean the data"):
        findings.check(summary, None, "m.py", 0.1)
    with pytest.raises(UserError, match=expected + r"examples\); clean the data"):
        findings.check(summary, None, "m.py")


def test_none_left_to_draw() -> None:
    with pytest.raises(UserError, match="of 10, 9 are in the eval split too and 1 hold NaN"):
        findings.check(Summary(10, rejected=1, in_eval=9), None, "m.py", 0.5)


# strata ---------------------------------------------------------------------------------------------------------------


FEATURES = """
def feature_spec():
    return {
        "x": tf.io.FixedLenFeature([4], tf.float32),
        "y": tf.io.FixedLenFeature([], tf.int64),
        "camera": tf.io.FixedLenFeature([1], tf.string),
        "words": tf.io.VarLenFeature(tf.string),
    }
"""


@pytest.mark.parametrize("by", ["label", "y", "camera"])
def test_strata_by_label_or_a_feature(tiny_module: Path, by: str) -> None:
    module = variant(tiny_module, FEATURES)
    findings.check_strata(Sample(strategy="stratified", by=by), module, ExampleParser(module))


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "camra",
            r"cannot be stratified by 'camra' \(did you mean 'camera'\?\): feature_spec\(\) of .* has camera, wo",
        ),
        ("x", r"by 'x', which must be a FixedLenFeature\(\[\], tf.string or tf.int64\) .*; received FixedLenFeature"),
        ("words", "by 'words', which must be"),
    ],
)
def test_strata_by_what_tells_nothing_apart(tiny_module: Path, by: str, message: str) -> None:
    module = variant(tiny_module, FEATURES)
    with pytest.raises(UserError, match=message):
        findings.check_strata(Sample(strategy="stratified", by=by), module, ExampleParser(module))
    findings.check_strata(Sample(strategy="uniform", by=by), module, ExampleParser(module))


@pytest.mark.parametrize(
    "label", ["tf.one_hot(features['y'], 3, dtype=tf.int64)", "tf.cast(features['y'], tf.float32)", "{}"]
)
def test_strata_by_labels_that_are_no_classes(tiny_module: Path, label: str) -> None:
    module = variant(tiny_module, f"def preprocess(features):\n    return features['x'], {label}\n")
    with pytest.raises(UserError, match=r"cannot be stratified by label: preprocess of .* one integer per example"):
        findings.check_strata(Sample(strategy="stratified"), module, ExampleParser(module))


# how many classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        ("keras.losses.SparseCategoricalCrossentropy(from_logits=True)", 3),
        ("'sparse_categorical_crossentropy'", 3),
        ("keras.losses.sparse_categorical_crossentropy", 3),
        ("'mse'", None),
        ("keras.losses.CategoricalCrossentropy()", None),
    ],
)
def test_the_number_of_classes_is_the_width_of_a_sparse_classifier(
    tiny_module: Path, loss: str, classes: int | None
) -> None:
    module = variant(tiny_module, f"def compile_model(model):\n    model.compile('adam', {loss})\n")
    assert findings.class_count(module, module.build_model()) == classes


def test_class_names_say_the_number_of_classes(tiny_module: Path) -> None:
    code = "def class_names():\n    return ['no', 'yes']\n"
    module = variant(tiny_module, code + "def compile_model(model):\n    model.compile('adam', 'mse')\n")
    assert findings.class_count(module, module.build_model()) == 2


def test_several_outputs_have_no_one_number_of_classes(tiny_module: Path) -> None:
    code = (
        "def build_model():\n    x = keras.Input([4])\n"
        "    return keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)])\n"
    )
    module = variant(tiny_module, code)
    assert findings.class_count(module, module.build_model()) is None


# adding up ------------------------------------------------------------------------------------------------------------


def item(key: int, label: int | None = None, stratum: str = "", copies: int = 1) -> Drawn:
    return Drawn(key, f"{key:064}", stratum, label, {"x": np.float32([key])}, copies)


def test_summaries_add_up_in_any_grouping() -> None:
    parts = [
        Summary(3, Counter({0: 2, 1: 1}), Counter({"a": 3}), Counter({"x": 1}), 1, 0, [item(1), item(4)]),
        Summary(2, Counter({1: 2}), Counter({"b": 2}), Counter(), 0, 1, [item(2)]),
        Summary(1, Counter({5: 1}), Counter({"a": 1}), Counter({"x": 1, "z": 1}), 1, 0, [item(0), item(3)]),
    ]
    whole = findings.add_up(parts, 3)
    assert whole == findings.add_up([parts[2], findings.add_up(parts[:2], 3)], 3)
    assert (whole.examples, whole.rejected, whole.in_eval) == (6, 2, 1)
    assert whole.labels == {0: 2, 1: 3, 5: 1}
    assert whole.strata == {"a": 4, "b": 2}
    assert whole.not_finite == {"x": 2, "z": 1}
    assert [drawn.key for drawn in whole.drawn] == [0, 1, 2]
    assert findings.add_up([], 3) == Summary()
    assert parts[0].examples == 3  # what went in is as it was


def test_the_filter_knows_what_is_in_it() -> None:
    known = EvalFilter(np.int64([3, 8, 2**61]), 5)
    assert known.holds(np.int64([0, 3, 5, 8, 2**61, 2**61 + 1])).tolist() == [False, True, False, True, True, False]
    assert known.false_positive_rate == 3 / 2**62
    assert EvalFilter(np.zeros([0], np.int64), 0).holds(np.int64([1, 2])).tolist() == [False, False]


# the manifest ---------------------------------------------------------------------------------------------------------


def test_examples_of_different_shapes_cannot_be_stacked() -> None:
    drawn = [Drawn(i, "d", "", None, {"x": np.zeros([i])}) for i in (2, 3)]
    with pytest.raises(UserError, match="different shapes"):
        findings.stack(drawn)


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ([0, 0, 4, 4], 1.0),  # both halves from 0 to 4
        ([0, 1, 4, 3], 0.5),  # [0, 4] and [1, 3]: 2 of 4
        ([0, 2, 4, 8], 0.25),  # [0, 4] and [2, 8]: 2 of 8
        ([0, 5, 4, 9], 0.0),
        ([7, 7, 7], 1.0),
        ([0, 7], 0.0),  # one in each half
    ],
)
def test_the_halves_ranges_are_compared(values: list[float], score: float) -> None:
    assert findings.stability({"x": np.float32(values)[:, None]}) == {"x": score}


def test_stability_needs_two_samples_of_numbers() -> None:
    assert findings.stability({"x": np.float32([[1]]), "y": np.array([b"a", b"b"])}) == {}


def about(config: Sample, summary: Summary, choice: Choice | None = None, known: list[int] | None = None) -> Any:
    filtered = EvalFilter(np.int64(known or [100, 200]), 3)
    return findings.about(config, summary, findings.stack(summary.drawn), filtered, choice, "source")


def test_what_the_manifest_says() -> None:
    summary = Summary(
        20, Counter({1: 12, 0: 8}), rejected=2, in_eval=4, drawn=[item(5, 1), item(8, 0, copies=3), item(9, 1)]
    )
    config = Sample(samples=5, seed=7, max_bad_fraction=0.5)
    assert about(config, summary) == {
        "strategy": "uniform",
        "seed": 7,
        "asked": config.parameters(),
        "examples": 20,
        "source": "source",
        "digests": [f"{key:064}" for key in (5, 8, 9)],
        "label_histogram": {"0": 8, "1": 12},
        "sample_label_histogram": {"0": 1, "1": 2},
        "left_out": {"not_finite": 2, "in_eval": 4, "duplicates": 2},
        "eval_split": {"examples": 3, "distinct": 2, "false_positive_rate": 2 / 2**62, "samples_in_it": 0},
        "stability": {"score": 0.0, "inputs": {"x": 0.0}},  # 5 and 9 in one half, 8 in the other: 0 of 4
    }


def test_the_manifest_counts_samples_that_are_in_the_eval_split() -> None:
    # were the draw to let one through, the manifest would say so
    leaked = int(selection.keys(np.int64([100]), 7)[0])
    summary = Summary(2, drawn=[item(5), item(leaked)])
    assert about(Sample(seed=7), summary)["eval_split"]["samples_in_it"] == 1


def test_the_manifest_counts_strata() -> None:
    drawn = [item(1, stratum="front"), item(2, stratum="rear"), item(3, stratum="front")]
    summary = Summary(9, strata=Counter(rear=2, front=6, side=1), drawn=drawn)
    facts = about(Sample(strategy="stratified", by="camera"), summary)
    assert facts["strata"] == {
        "front": {"examples": 6, "samples": 2},
        "rear": {"examples": 2, "samples": 1},
        "side": {"examples": 1, "samples": 0},
    }


def test_the_manifest_counts_outliers() -> None:
    choice = Choice(np.int64([1]), np.float64([[-1], [2]]), np.int64([[3], [4]]), 6, 100)
    facts = about(Sample(strategy="diverse"), Summary(100, drawn=[item(1)]), choice)
    assert facts["left_out"] == {"not_finite": 0, "in_eval": 0, "duplicates": 0, "outliers": 6}
    assert facts["winsorised"] == {"x": {"range": [-1.0, 2.0], "below": 3, "above": 4}}
    assert facts["pool"] == 100
    assert facts["stability"] == {"score": None, "inputs": {}}
