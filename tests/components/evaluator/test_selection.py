from __future__ import annotations

import math

import pytest

from edgeline.evaluator import selection
from edgeline.evaluator.config import Budget
from edgeline.evaluator.selection import Measured

ACCURACY = Budget(metric="accuracy", direction="max", max_drop=0.01)
MAE = Budget(metric="mae", direction="min", max_drop=0.5)


def make(
    name: str = "a", quality: float = 0.9, size: int = 1000, zlib_bytes: int = 500, latency_ms: float = 1.0
) -> Measured:
    return Measured(name, quality, size, zlib_bytes, latency_ms)


@pytest.mark.parametrize(
    ("budget", "baseline", "quality", "lost"),
    [
        (ACCURACY, 0.75, 0.5, 0.25),
        (ACCURACY, 0.5, 0.75, -0.25),
        (ACCURACY, 0.5, 0.5, 0.0),
        (MAE, 2.0, 1.5, -0.5),
        (MAE, 1.5, 2.0, 0.5),
    ],
)
def test_drop(budget: Budget, baseline: float, quality: float, lost: float) -> None:
    assert selection.drop(budget, baseline, quality) == lost


# reasons --------------------------------------------------------------------------------------------------------------


def test_a_candidate_that_fits_has_no_reasons() -> None:
    budget = Budget(max_drop=0.01, max_bytes=1000, max_zlib_bytes=500, max_latency_ms=1.0)
    assert selection.reasons(budget, 0.9, make()) == []  # exactly at every limit but the drop
    assert selection.reasons(budget, 0.5, make(quality=0.9)) == []  # better than the baseline
    # exactly at the drop, which in binary is a little more than 0.01
    assert 0.97 - 0.96 > 0.01
    assert selection.reasons(budget, 0.97, make(quality=0.96)) == []
    assert selection.reasons(Budget(max_drop=0.0), 0.9, make(quality=0.9)) == []


def test_every_miss_is_a_reason() -> None:
    budget = Budget(max_drop=0.01, max_bytes=999, max_zlib_bytes=10, max_latency_ms=0.5)
    assert selection.reasons(budget, 0.95, make(size=1_234_567)) == [
        "accuracy drop 0.05 exceeds 0.01",
        "1,234,567 bytes exceed 999",
        "500 zlib bytes exceed 10",
        "median latency 1 ms exceeds 0.5 ms",
    ]


def test_no_limits_are_no_reasons() -> None:
    huge = make(quality=0.895, size=10**9, zlib_bytes=10**9, latency_ms=1e6)
    assert selection.reasons(ACCURACY, 0.9, huge) == []


def test_one_example_less_than_allowed() -> None:
    # 173 examples, 0.01 is 1.73 of them: one may be lost, two may not
    budget = Budget(max_drop=0.01)
    assert selection.reasons(budget, 170 / 173, make(quality=169 / 173)) == []
    assert selection.reasons(budget, 170 / 173, make(quality=168 / 173)) == ["accuracy drop 0.01156 exceeds 0.01"]


def test_a_quality_that_is_no_number_never_fits() -> None:
    [reason] = selection.reasons(ACCURACY, 0.9, make(quality=math.nan))
    assert reason == "accuracy drop nan exceeds 0.01"
    [reason] = selection.reasons(MAE, 1.0, make(quality=math.inf))
    assert reason == "mae drop inf exceeds 0.5"


def test_less_is_better_for_an_error() -> None:
    assert selection.reasons(MAE, 1.0, make(quality=1.5)) == []
    assert selection.reasons(MAE, 1.0, make(quality=0.1)) == []
    assert selection.reasons(MAE, 1.0, make(quality=1.75)) == ["mae drop 0.75 exceeds 0.5"]


# Pareto ---------------------------------------------------------------------------------------------------------------


def test_pareto() -> None:
    candidates = [
        make("small", 0.80, zlib_bytes=100),
        make("middle", 0.90, zlib_bytes=200),
        make("large", 0.95, zlib_bytes=400),
        make("beaten", 0.85, zlib_bytes=300),  # by middle, in both
        make("worse", 0.80, zlib_bytes=150),  # by small, in size
        make("fatter", 0.95, zlib_bytes=401),  # by large, in size
        make("nan", math.nan, zlib_bytes=1),
    ]
    assert selection.pareto(ACCURACY, candidates) == {"small", "middle", "large"}
    # where less is better, size and error are both wanted small
    assert selection.pareto(MAE, candidates) == {"small"}


def test_equals_are_both_on_the_front() -> None:
    twins = [make("a", 0.9, zlib_bytes=100), make("b", 0.9, zlib_bytes=100), make("c", 0.9, zlib_bytes=101)]
    assert selection.pareto(ACCURACY, twins) == {"a", "b"}
    assert selection.pareto(ACCURACY, []) == set()


# select ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "best"), [("zlib_bytes", "packs"), ("bytes", "small"), ("latency_ms", "fast")])
def test_select_by_objective(objective: str, best: str) -> None:
    candidates = [
        make("packs", size=300, zlib_bytes=10, latency_ms=3),
        make("small", size=100, zlib_bytes=30, latency_ms=2),
        make("fast", size=200, zlib_bytes=20, latency_ms=1),
    ]
    assert selection.select(Budget(objective=objective), candidates) == best


def test_ties_go_to_the_better_quality_and_then_to_the_name() -> None:
    assert selection.select(ACCURACY, [make("a", 0.90), make("b", 0.91), make("c", 0.90)]) == "b"
    assert selection.select(MAE, [make("a", 0.90), make("b", 0.91), make("c", 0.89)]) == "c"
    for order in (["x", "b", "m"], ["m", "x", "b"]):
        assert selection.select(ACCURACY, [make(name) for name in order]) == "b"
    assert selection.select(ACCURACY, []) is None


# closest --------------------------------------------------------------------------------------------------------------


def test_closest_sums_relative_excesses() -> None:
    budget = Budget(max_drop=0.02, max_zlib_bytes=100, max_latency_ms=2.0)
    candidates = [
        make("drops", 0.86, zlib_bytes=100, latency_ms=1),  # 0.04 lost: (0.04 - 0.02) / 0.02 = 1.0
        make("fat", 0.90, zlib_bytes=160, latency_ms=1),  # 60 / 100 = 0.6
        make("slow", 0.90, zlib_bytes=50, latency_ms=3),  # 1 / 2 = 0.5
        make("both", 0.87, zlib_bytes=110, latency_ms=1),  # 0.5 + 0.1 = 0.6
        make("nan", math.nan, zlib_bytes=1, latency_ms=1),
    ]
    assert selection.closest(budget, 0.90, candidates) == "slow"
    assert selection.closest(budget, 0.90, candidates[:2]) == "fat"
    # small size does not make up for what is missed
    assert selection.closest(budget, 0.90, [candidates[1], make("tiny", 0.80, zlib_bytes=1)]) == "fat"


def test_closest_with_no_drop_allowed_measures_in_points() -> None:
    budget = Budget(max_drop=0.0, max_bytes=1000)
    candidates = [make("a", 0.89), make("b", 0.90, size=1900)]  # 0.01 / 0.01 = 1.0 and 900 / 1000
    assert selection.closest(budget, 0.90, candidates) == "b"
    assert selection.closest(budget, 0.90, [make("a", 0.895), candidates[1]]) == "a"


def test_closest_of_none() -> None:
    assert selection.closest(ACCURACY, 0.9, []) is None
    assert selection.closest(ACCURACY, 0.9, [make(quality=math.nan)]) is None
