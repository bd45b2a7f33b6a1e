"""Intervals of a difference, and how far outputs are apart: published and hand-worked values, and simulations."""

from __future__ import annotations

import functools
import itertools
import operator

import numpy as np
import pytest

from edgeline.evaluator.measuring.comparison import GROUPS, Comparison, OutputError, Paired, jackknife
from edgeline.report.dataclass_json import to_json


def right_or_wrong(neither: int, only_first: int, only_second: int, both: int) -> Paired:
    """Two models' hits on so many examples of each kind."""
    first = np.repeat([0.0, 1.0, 0.0, 1.0], [neither, only_first, only_second, both])
    second = np.repeat([0.0, 0.0, 1.0, 1.0], [neither, only_first, only_second, both])
    return Paired.of(first, second, np.ones(len(first)))


def plain(values: list[float], reference: list[float] | None = None, weights: list[float] | None = None) -> Paired:
    zeros, ones = [0.0] * len(values), [1.0] * len(values)
    return Paired.of(np.array(values), np.array(reference or zeros), np.array(weights or ones))


# right or wrong -------------------------------------------------------------------------------------------------------


def test_published_examples() -> None:
    # Bonett's own package statpsych, documentation of ci.prop.ps(.05, 12, 4, 26, 6): 0.2548067 to 0.6251933
    assert right_or_wrong(12, 26, 4, 6).interval() == pytest.approx((0.2548067, 0.6251933), abs=1e-6)
    assert right_or_wrong(12, 4, 26, 6).interval() == pytest.approx((-0.6251933, -0.2548067), abs=1e-6)
    # and of ci.pairs.prop1(.05, c(125, 82, 92)), the same method: its three pairs of classes
    for first, second, interval in [
        (125, 82, (0.05011508, 0.23559920)),
        (125, 92, (0.01407230, 0.20519680)),
        (82, 92, (-0.11952594, 0.05308076)),
    ]:
        assert right_or_wrong(0, first, second, 299 - first - second).interval() == pytest.approx(interval, abs=1e-6)


def test_no_difference_has_a_width_all_the_same() -> None:
    # 98 examples: 1/100 is added on both sides; sqrt(0.02 / 100) = 0.01414214, times 1.959964 = 0.02771808
    for paired in (right_or_wrong(8, 0, 0, 90), right_or_wrong(0, 0, 0, 98)):
        assert paired.interval() == pytest.approx((-0.02771808, 0.02771808), abs=1e-8)


def test_shares_are_not_beyond_all_examples() -> None:
    # n = 2: (3 - 1) / 4 = 0.5 and sqrt((1 - 0.25) / 4) = 0.4330127, times 1.959964 = 0.8486893
    assert right_or_wrong(0, 2, 0, 0).interval() == pytest.approx((0.5 - 0.8486893, 1.0), abs=1e-7)
    assert right_or_wrong(0, 0, 2, 0).interval() == pytest.approx((-1.0, 0.8486893 - 0.5), abs=1e-7)


def test_coverage_of_right_and_wrong() -> None:
    random = np.random.default_rng(1)
    for examples, only_first, only_second in [(150, 0.03, 0.08), (400, 0.02, 0.02)]:
        shares = [0.1, only_first, only_second, 0.9 - only_first - only_second]
        intervals = [right_or_wrong(*counts).interval() for counts in random.multinomial(examples, shares, 2000)]
        covered = [found[0] <= only_first - only_second <= found[1] for found in intervals if found]
        assert len(covered) == 2000
        assert 0.93 < np.mean(covered) < 0.97


# any other number -----------------------------------------------------------------------------------------------------


def test_differences_of_a_loss() -> None:
    # differences 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, by 3 and by 4: 7/6; its root is 1.0801234
    values, reference = [1.5, 4.0, 3.25, 8.0], [0.5, 2.0, 0.25, 2.0]
    assert plain(values, reference).interval() == pytest.approx((3 - 2.117003, 3 + 2.117003), abs=1e-6)


def test_weights() -> None:
    # differences 1, 0, 2 of weight 1, 2, 1: mean (1 + 0 + 2) / 4 = 0.75
    # w**2 (d - mean)**2: 0.0625, 4 * 0.5625 = 2.25, 1.5625, in all 3.875; times 3/2 = 5.8125; its root 2.4109127, by 4
    values, reference = [1.0, 2 * 0.5, 3.0], [0.0, 2 * 0.5, 1.0]
    half = 1.959964 * 2.4109127 / 4
    found = plain(values, reference, [1.0, 2.0, 1.0]).interval()
    assert found == pytest.approx((0.75 - half, 0.75 + half), abs=1e-6)
    # a weight of 0 takes an example out of the mean
    assert plain([1.0, 0.0], [0.0, 0.0], [0.0, 0.0]).interval() is None


def test_a_loss_that_does_not_differ_has_no_width() -> None:
    # it is no share of right examples, whose interval would be as wide as its unit is large
    assert plain([0.25, 3.5, 0.125], [0.25, 3.5, 0.125]).interval() == (0.0, 0.0)
    # nor is one that differs by exactly 1 on some
    assert plain([0.25, 3.5], [1.25, 2.5]).interval() == pytest.approx((-1.959964, 1.959964), abs=1e-6)


def test_coverage_of_weighted_differences() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        weights = random.uniform(0.2, 3, 150)
        reference = random.gamma(2.0, size=150)
        found = Paired.of(weights * (reference + random.normal(0.1, 0.5, 150)), weights * reference, weights).interval()
        assert found is not None
        covered += found[0] <= 0.1 <= found[1]
    assert 0.93 < covered / 2000 < 0.97


def test_too_few() -> None:
    assert Paired().interval() is None
    assert plain([1.0], [0.0]).interval() is None
    assert plain([0.5], [0.1]).interval() is None
    assert plain([1.0, 0.0]).interval() is not None


def test_sums_add_up_in_any_order() -> None:
    random = np.random.default_rng(3)
    values, reference, weights = random.integers(0, 9, 30) / 8, random.integers(0, 9, 30) / 8, random.integers(1, 5, 30)
    whole = Paired.of(values * weights, reference * weights, weights)
    parts = [Paired.of((values * weights)[r], (reference * weights)[r], weights[r]) for r in np.split(np.arange(30), 3)]
    for order in itertools.permutations([*parts, Paired()]):
        assert functools.reduce(operator.add, order) == whole  # eighths: no rounding


# the jackknife --------------------------------------------------------------------------------------------------------


def test_jackknife_of_a_mean_is_that_of_the_group_means() -> None:
    # 20 groups of means 0 and 1, ten each: leaving out a 0 gives 10/19, a 1 gives 9/19; all 1/38 from their mean 1/2
    # 19/20 * 20 / 38**2 = 19 / 1444, its root 0.11470787; t of 19 degrees of freedom: 2.093024 (any table)
    half = 2.093024 * 0.11470787
    assert jackknife(0.5, [10 / 19] * 10 + [9 / 19] * 10) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert jackknife(0.25, [0.25] * GROUPS) == (0.25, 0.25)
    # two groups at -1 and 1: sqrt(1/2 * 2) = 1
    assert jackknife(0.0, [-1.0, 1.0]) == pytest.approx((-2.093024, 2.093024))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in order, by Mann and Whitney."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positive = int(labels.sum())
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def test_coverage_of_a_difference_of_aucs() -> None:
    # two normal scores of the same noise, 1.5 and 1.2 apart between the labels: AUC is Phi(d / sqrt(2)), so
    # Phi(1.060660) - Phi(0.848528) = 0.855578 - 0.801928
    difference = 0.855578 - 0.801928
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(1000):
        labels = random.random(400) < 0.4
        shared = random.normal(0, np.sqrt(0.7), 400)
        first, second = (shared + random.normal(0, np.sqrt(0.3), 400) + apart * labels for apart in (1.5, 1.2))
        groups = random.integers(0, GROUPS, 400)
        without = [auc(labels[k], first[k]) - auc(labels[k], second[k]) for k in (groups != g for g in range(GROUPS))]
        low, high = jackknife(auc(labels, first) - auc(labels, second), without)
        covered += low <= difference <= high
    assert 0.93 < covered / 1000 < 0.97


# outputs and predictions ----------------------------------------------------------------------------------------------


def test_output_errors_by_hand() -> None:
    # errors 1, 0, 2, 1 beside 3, 4, 0, 5: the signal is 9 + 16 + 25 = 50, the noise 1 + 4 + 1 = 6
    facts = OutputError.of(np.array([[4, 4], [-2, 6]], np.float32), np.array([[3, 4], [0, 5]], np.float32)).report()
    expected = {"max_abs_error": 2.0, "mean_abs_error": 1.0, "sqnr_db": pytest.approx(9.208188, abs=1e-6)}
    assert to_json(facts) == expected


def test_output_errors_without_noise_or_signal_have_no_ratio() -> None:
    same = OutputError.of(np.ones([2, 3], np.float32), np.ones([2, 3], np.float32))
    assert to_json(same.report()) == {"max_abs_error": 0.0, "mean_abs_error": 0.0, "sqnr_db": None}
    silent = OutputError.of(np.array([0.5, 0.0], np.float32), np.zeros(2, np.float32))
    assert to_json(silent.report()) == {"max_abs_error": 0.5, "mean_abs_error": 0.25, "sqnr_db": None}
    nothing = OutputError.of(np.zeros([0, 3], np.float32), np.zeros([0, 3], np.float32))
    assert to_json(nothing.report()) == {"max_abs_error": 0.0, "mean_abs_error": None, "sqnr_db": None}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.float32, np.bool_])
def test_output_errors_of_any_dtype_are_not_wrapped(dtype: type) -> None:
    low: np.ndarray = np.zeros(3, dtype)
    high: np.ndarray = np.array([1, 1, 1 if dtype == np.bool_ else 100], dtype)
    assert OutputError.of(low, high).largest == OutputError.of(high, low).largest == high[2]
    assert OutputError.of(low, high).total == 2 + high[2]


def test_comparison_facts() -> None:
    error = OutputError(0.5, 2.0, 1.0, 100.0, 8)
    assert to_json(Comparison(8, {"y": error}, True, 6, 1, 2).report()) == {
        "examples": 8,
        "agreement": 0.75,
        "flips": {"right_to_wrong": 1, "wrong_to_right": 2},
        "outputs": {"y": {"max_abs_error": 0.5, "mean_abs_error": 0.25, "sqnr_db": 20.0}},
    }
    assert to_json(Comparison(8).report()) == {"examples": 8, "agreement": None, "flips": None, "outputs": {}}
    assert Comparison(classified=True).report().agreement is None


def test_comparisons_merge_in_any_order() -> None:
    parts = [
        Comparison(),
        Comparison(2, {"a": OutputError(1.0, 1.5, 2.5, 4.0, 2)}, True, 1, 1, 0),
        Comparison(
            3, {"a": OutputError(3.0, 4.0, 9.5, 1.0, 3), "b": OutputError(2.0, 2.0, 4.0, 1.0, 1)}, True, 2, 0, 1
        ),
        Comparison(1, {"b": OutputError(0.5, 0.5, 0.25, 2.0, 1)}, True, 1, 0, 0),
    ]
    expected = Comparison(
        6,
        {"a": OutputError(3.0, 5.5, 12.0, 5.0, 5), "b": OutputError(2.0, 2.5, 4.25, 3.0, 2)},
        classified=True,
        agreed=4,
        broken=1,
        mended=1,
    )
    for order in itertools.permutations(parts):
        assert functools.reduce(operator.add, order) == expected
    assert parts[1].outputs == {"a": OutputError(1.0, 1.5, 2.5, 4.0, 2)}  # what went in is as it was
