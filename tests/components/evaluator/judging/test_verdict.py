from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from edgeline.budget import LIMITS, Budget, MetricBudget
from edgeline.errors import UserError
from edgeline.evaluator.judging import verdict
from edgeline.evaluator.judging.verdict import Measured, Misfit, Quality, SliceDrop

ACCURACY = Budget(metric="accuracy", direction="max", max_drop=0.01)
MAE = Budget(metric="mae", direction="min", max_drop=0.5)
BOTH = Budget(metric=["mae:min:0.5", "accuracy"], max_drop=0.01)

COMPILED = {"loss": "min", "accuracy": "max", "mae": "min"}


def make(
    name: str = "a",
    quality: float = 0.9,
    size: float | None = 1000,
    zlib_bytes: float | None = 500,
    latency_ms: float | None = 1.0,
    *,
    costs: dict[str, float | None] | None = None,
    misfits: Any = (),
    others: Sequence[Quality] = (),
    **more: Any,
) -> Measured:
    """Makes a candidate; of the first metric the functions below say which it is, and what the baseline has."""
    known = {"max_bytes": size, "max_zlib_bytes": zlib_bytes, "max_latency_ms": latency_ms, **(costs or {})}
    first = Quality(MetricBudget("none yet", None, 0.0), quality, math.nan, **more)
    return Measured(name, (first, *others), known, misfits)


def by(budget: Budget, baseline: float, *candidates: Measured) -> list[Measured]:
    """Returns the candidates beside a baseline that has this value of the budget's first metric."""
    metric = budget.judged(COMPILED)[0]
    return [
        dataclasses.replace(
            candidate,
            qualities=(
                dataclasses.replace(candidate.ranking, metric=metric, baseline=baseline),
                *candidate.qualities[1:],
            ),
        )
        for candidate in candidates
    ]


def reasons(budget: Budget, baseline: float, candidate: Measured) -> list[str]:
    return verdict.reasons(budget, *by(budget, baseline, candidate))


def closest(budget: Budget, baseline: float, candidates: Sequence[Measured]) -> str | None:
    return verdict.closest(budget, by(budget, baseline, *candidates))


def select(budget: Budget, candidates: Sequence[Measured]) -> str | None:
    return verdict.select(budget, by(budget, 0.9, *candidates))


def pareto(budget: Budget, candidates: Sequence[Measured]) -> set[str]:
    return verdict.pareto(by(budget, 0.9, *candidates))


def slice_drop(name: str, drop: float, limit: float = 0.05, examples: int = 20) -> SliceDrop:
    return SliceDrop(name, examples, drop, limit)


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
    [metric] = budget.metrics
    assert metric.drop(baseline, quality) == lost


# budgets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("loss", "max"),
        ("mae", "max"),
        ("rmse", "max"),
        ("mean_absolute_error", "max"),
        ("sparse_categorical_crossentropy", "max"),
        ("accuracy", "min"),
        ("SPARSE-TOP-K-ACCURACY", "min"),
        ("auc", "min"),
    ],
)
def test_a_direction_that_contradicts_the_metric(metric: str, direction: str) -> None:
    other, words = ("min", "less") if direction == "max" else ("max", "more")
    with pytest.raises(ValueError, match="contradicts") as error:
        Budget(metric=metric, direction=direction)
    assert str(error.value) == (
        f"Budget.direction is {direction}, which contradicts the metric {metric}: {words} of it is better "
        f"(--direction {other})"
    )
    assert Budget(metric=metric, direction=other).direction == other


def test_the_direction_follows_from_the_name() -> None:
    assert [Budget(metric=name).judged(COMPILED)[0].direction for name in COMPILED] == ["min", "max", "min"]


@pytest.mark.parametrize("metric", ["score", "accuracy_gap", "errors", "lossless", "auc_2"])
def test_a_metric_of_unknown_meaning_may_have_either_direction(metric: str) -> None:
    assert [Budget(metric=metric, direction=each).direction for each in ("max", "min")] == ["max", "min"]


def test_slice_drops_of_one_meaning_are_one_text() -> None:
    budgets = [Budget(max_slice_drops=drops) for drops in ({"label": 0.1, "a": 0.2}, {"a": 0.20, "label": 1e-1})]
    assert budgets[0] == budgets[1]
    assert budgets[0].max_slice_drops == {"label": 0.1, "a": 0.2}
    assert type(Budget(max_slice_drops={"label": 0}).max_slice_drops["label"]) is float


def test_limits_are_those_that_are_set() -> None:
    assert Budget().limits == {}
    assert Budget(max_bytes=3, max_cold_start_ms=2).limits == {"max_bytes": 3, "max_cold_start_ms": 2.0}


# reasons --------------------------------------------------------------------------------------------------------------


def test_a_candidate_that_fits_has_no_reasons() -> None:
    budget = Budget(max_drop=0.01, max_bytes=1000, max_zlib_bytes=500, max_latency_ms=1.0)
    assert reasons(budget, 0.9, make()) == []  # exactly at every limit but the drop
    assert reasons(budget, 0.5, make(quality=0.9)) == []  # better than the baseline
    # exactly at the drop, which in binary is a little more than 0.01
    assert 0.97 - 0.96 > 0.01
    assert reasons(budget, 0.97, make(quality=0.96)) == []
    assert reasons(Budget(max_drop=0.0), 0.9, make(quality=0.9)) == []


def test_every_miss_is_a_reason() -> None:
    limits: dict[str, Any] = {"max_bytes": 999, "max_zlib_bytes": 10, "max_latency_ms": 0.5, "max_latency_p90_ms": 1}
    more: dict[str, Any] = {
        "max_latency_p99_ms": 2,
        "max_latency_all_threads_ms": 0.25,
        "max_latency_without_xnnpack_ms": 8,
    }
    rest: dict[str, Any] = {"max_cold_start_ms": 1500, "max_peak_rss_bytes": 4_000_000}
    assert set(limits | more | rest) == LIMITS.keys()
    costs: dict[str, float | None] = {
        "max_latency_p90_ms": 1.25,
        "max_latency_p99_ms": 2.0001,
        "max_latency_all_threads_ms": 1 / 3,
        "max_latency_without_xnnpack_ms": 12.3456,
        "max_cold_start_ms": 2345.6,
        "max_peak_rss_bytes": 5_000_000,
    }
    budget = Budget(max_drop=0.01, **limits, **more, **rest)
    assert reasons(budget, 0.95, make(size=1_234_567, costs=costs)) == [
        "accuracy drop 0.05 exceeds 0.01",
        "file size 1,234,567 bytes exceeds 999 bytes",
        "size after zlib 500 bytes exceeds 10 bytes",
        "median latency 1 ms exceeds 0.5 ms",
        "90th percentile of latency 1.25 ms exceeds 1 ms",
        "99th percentile of latency 2 ms exceeds 2 ms",
        "median latency on all threads 0.333 ms exceeds 0.25 ms",
        "median latency without XNNPACK 12.3 ms exceeds 8 ms",
        "cold start 2,346 ms exceeds 1,500 ms",
        "peak memory 5 MB exceeds 4 MB",
    ]


@pytest.mark.parametrize(("name", "words"), [(name, limit.words) for name, limit in LIMITS.items()])
def test_a_cost_that_is_limited_must_be_known(name: str, words: str) -> None:
    limits: dict[str, Any] = {name: 10**9}
    budget = Budget(**limits)
    assert reasons(budget, 0.9, make(costs={name: 10**9})) == []
    assert reasons(budget, 0.9, make(costs={name: None})) == [
        f"{words} could not be measured, and the budget limits it"
    ]
    assert reasons(Budget(), 0.9, make(costs={name: None})) == []


def test_no_limits_are_no_reasons() -> None:
    huge = make(quality=0.895, size=10**9, zlib_bytes=10**9, latency_ms=1e6)
    assert reasons(ACCURACY, 0.9, huge) == []


def test_one_example_less_than_allowed() -> None:
    # 173 examples, 0.01 is 1.73 of them: one may be lost, two may not
    budget = Budget(max_drop=0.01)
    assert reasons(budget, 170 / 173, make(quality=169 / 173)) == []
    assert reasons(budget, 170 / 173, make(quality=168 / 173)) == ["accuracy drop 0.01156 exceeds 0.01"]


def test_a_quality_that_is_no_number_never_fits() -> None:
    [reason] = reasons(ACCURACY, 0.9, make(quality=math.nan))
    assert reason == "accuracy drop nan exceeds 0.01"
    [reason] = reasons(MAE, 1.0, make(quality=math.inf))
    assert reason == "mae drop inf exceeds 0.5"
    undefined = "accuracy has no value on the eval split: no example counts"
    threshold = dataclasses.replace(ACCURACY, value_threshold=0.5)
    assert reasons(threshold, 0.9, make(quality=math.nan, undefined=undefined)) == [undefined]


def test_a_metric_without_a_value_in_a_slice_or_of_the_deployed_model() -> None:
    [reason] = reasons(ACCURACY, 0.9, make(slices=[slice_drop("label=6", math.nan)]))
    assert reason == "accuracy has no value in label=6 (20 examples), where the budget limits its drop"
    [reason] = reasons(ACCURACY, 0.9, make(deployed_drop=math.nan))
    assert reason == "the deployed model's accuracy has no value on the eval split (--max-deployed-drop)"


def test_less_is_better_for_an_error() -> None:
    assert reasons(MAE, 1.0, make(quality=1.5)) == []
    assert reasons(MAE, 1.0, make(quality=0.1)) == []
    assert reasons(MAE, 1.0, make(quality=1.75)) == ["mae drop 0.75 exceeds 0.5"]


def test_the_upper_end_of_the_interval_must_be_within_the_drop() -> None:
    budget = Budget(max_drop=0.02, drop_bound="upper")
    wide, narrow = make(drop_interval=(-0.01, 0.03)), make(drop_interval=(-0.01, 0.02))
    assert reasons(budget, 0.91, narrow) == []
    assert reasons(budget, 0.91, wide) == [
        "accuracy drop 0.01 may be up to 0.03 (95% interval), which exceeds 0.02; more eval examples would narrow it"
    ]
    assert reasons(Budget(max_drop=0.02), 0.91, wide) == []
    # what is lost beyond doubt is said as plainly as ever
    assert reasons(budget, 0.95, wide) == ["accuracy drop 0.05 exceeds 0.02"]
    assert reasons(budget, 0.91, make()) == [
        "the interval of the accuracy drop, which --drop-bound upper asks for, is not known"
    ]


def test_slices_that_lose_too_much_are_named_worst_first_and_the_rest_counted() -> None:
    found = [
        slice_drop("label=0", 0.05),  # exactly what it may
        slice_drop("label=1", 0.25, examples=1234),
        slice_drop("label=2", -0.5),
        slice_drop("label=3", 0.10),
        slice_drop("label=4", 0.30, limit=0.2),  # 0.1 too much, and so less than label=1
    ]
    assert reasons(ACCURACY, 0.9, make(slices=found)) == [
        "accuracy drop 0.25 in label=1 (1,234 examples) exceeds 0.05",
        "accuracy drop 0.3 in label=4 (20 examples) exceeds 0.2",
        "accuracy drop 0.1 in label=3 (20 examples) exceeds 0.05",
    ]
    more = [*found, slice_drop("label=5", 0.06)]
    assert reasons(ACCURACY, 0.9, make(slices=more))[3:] == ["accuracy drop exceeds its limit in 1 more slice"]
    more += [slice_drop("label=6", math.nan), slice_drop("label=7", 0.06)]
    assert reasons(ACCURACY, 0.9, make(slices=more))[-1] == "accuracy drop exceeds its limit in 3 more slices"


def test_worse_than_the_deployed_model() -> None:
    worse = [slice_drop(f"label={i}", drop, 0.0) for i, drop in ((3, 0.5), (1, 0.25), (0, 0.125), (2, 0.0625))]
    plain, sliced = make(deployed_drop=0.03), make(deployed_drop=0.03, worse_slices=worse)
    text = "accuracy is 0.03 worse than the deployed model's, which exceeds"
    assert reasons(ACCURACY, 0.9, plain) == [f"{text} 0 (--max-deployed-drop)"]
    assert reasons(ACCURACY, 0.9, sliced) == [
        f"{text} 0 (--max-deployed-drop); worse in label=3 (0.5), label=1 (0.25), label=0 (0.125) and 1 more slice"
    ]
    [reason] = reasons(Budget(max_deployed_drop=0.02), 0.9, make(deployed_drop=0.03, worse_slices=worse[:2]))
    assert reason == f"{text} 0.02 (--max-deployed-drop); worse in label=3 (0.5), label=1 (0.25)"
    assert reasons(Budget(max_deployed_drop=0.03), 0.9, sliced) == []
    assert reasons(Budget(max_deployed_drop=None), 0.9, sliced) == []
    # worse slices alone are no reason
    assert reasons(ACCURACY, 0.9, make(deployed_drop=0.0, worse_slices=worse)) == []


# a threshold ----------------------------------------------------------------------------------------------------------


def test_a_threshold_holds_whatever_the_baseline_has() -> None:
    budget = Budget(value_threshold=0.85)
    assert reasons(budget, 0.1, make(quality=0.1)) == [
        "accuracy 0.1 is worse than 0.85 (--value-threshold); the baseline has 0.1"
    ]
    assert reasons(budget, 0.85, make(quality=0.85)) == []
    assert reasons(Budget(), 0.1, make(quality=0.1)) == []
    assert reasons(budget, 0.9, make(quality=math.nan))


def test_a_threshold_of_a_metric_of_which_less_is_better() -> None:
    budget = Budget(metric="loss", direction="min", value_threshold=0.5)
    assert reasons(budget, 0.6, make(quality=0.5)) == []
    assert reasons(budget, 0.6, make(quality=0.6)) == [
        "loss 0.6 is worse than 0.5 (--value-threshold); the baseline has 0.6"
    ]


def test_closest_counts_what_a_threshold_is_missed_by() -> None:
    candidates = [make("small", 0.80), make("better", 0.84)]
    assert closest(Budget(max_drop=0.5, value_threshold=0.85), 0.9, candidates) == "better"


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
    assert pareto(ACCURACY, candidates) == {"small", "middle", "large"}
    # where less is better, size and error are both wanted small
    assert pareto(MAE, candidates) == {"small"}


def test_equals_are_both_on_the_front() -> None:
    twins = [make("a", 0.9, zlib_bytes=100), make("b", 0.9, zlib_bytes=100), make("c", 0.9, zlib_bytes=101)]
    assert pareto(ACCURACY, twins) == {"a", "b"}
    assert pareto(ACCURACY, []) == set()


# select ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "best"), [("zlib_bytes", "packs"), ("bytes", "small"), ("latency_ms", "fast")])
def test_select_by_objective(objective: str, best: str) -> None:
    candidates = [
        make("packs", size=300, zlib_bytes=10, latency_ms=3),
        make("small", size=100, zlib_bytes=30, latency_ms=2),
        make("fast", size=200, zlib_bytes=20, latency_ms=1),
        make("unknown", size=None, zlib_bytes=None, latency_ms=None),
    ]
    assert select(Budget(objective=objective), candidates) == best


def test_ties_go_to_the_better_quality_and_then_to_the_name() -> None:
    assert select(ACCURACY, [make("a", 0.90), make("b", 0.91), make("c", 0.90)]) == "b"
    assert select(MAE, [make("a", 0.90), make("b", 0.91), make("c", 0.89)]) == "c"
    for order in (["x", "b", "m"], ["m", "x", "b"]):
        assert select(ACCURACY, [make(name) for name in order]) == "b"
    assert select(ACCURACY, []) is None


# closest --------------------------------------------------------------------------------------------------------------


def test_closest_sums_relative_excesses() -> None:
    budget = Budget(max_drop=0.02, max_zlib_bytes=100, max_latency_ms=2.0)
    candidates = [
        make("drops", 0.86, zlib_bytes=100, latency_ms=1),  # 0.04 lost: (0.04 - 0.02) / 0.02 = 1.0
        make("fat", 0.90, zlib_bytes=160, latency_ms=1),  # 60 / 100 = 0.6
        make("slow", 0.90, zlib_bytes=50, latency_ms=3),  # 1 / 2 = 0.5
        make("both", 0.87, zlib_bytes=110, latency_ms=1),  # 0.5 + 0.1 = 0.6
        make("nan", math.nan, zlib_bytes=1, latency_ms=1),
        make("unknown", 0.90, zlib_bytes=50, latency_ms=None),  # 1.0, as if it took twice the time
    ]
    assert closest(budget, 0.90, candidates) == "slow"
    assert closest(budget, 0.90, candidates[:2]) == "fat"
    assert closest(budget, 0.90, candidates[-2:]) == "unknown"
    # small size does not make up for what is missed
    assert closest(budget, 0.90, [candidates[1], make("tiny", 0.80, zlib_bytes=1)]) == "fat"


def test_closest_with_no_drop_allowed_measures_in_points() -> None:
    budget = Budget(max_drop=0.0, max_bytes=1000)
    candidates = [make("a", 0.89), make("b", 0.90, size=1900)]  # 0.01 / 0.01 = 1.0 and 900 / 1000
    assert closest(budget, 0.90, candidates) == "b"
    assert closest(budget, 0.90, [make("a", 0.895), candidates[1]]) == "a"


def test_closest_counts_the_worst_slice() -> None:
    budget = Budget(max_drop=0.02, max_slice_drops={"label": 0.05}, max_bytes=1000)
    two = make("two", slices=[slice_drop("label=0", 0.10), slice_drop("label=1", 0.10)])  # each 0.05 / 0.05 = 1.0
    one = make("one", slices=[slice_drop("label=0", 0.11), slice_drop("label=1", 0.00)])  # 1.2
    assert closest(budget, 0.9, [one, two]) == "two"
    assert closest(budget, 0.9, [one, two, make("fat", size=1990)]) == "fat"  # 0.99
    # what cannot be judged is closest only to nothing
    nan = make("nan", slices=[slice_drop("label=0", math.nan)])
    assert closest(budget, 0.9, [nan, one]) == closest(budget, 0.9, [one, nan]) == "one"


def test_closest_counts_the_interval_and_the_deployed_model() -> None:
    budget = Budget(max_drop=0.02, drop_bound="upper", max_deployed_drop=0.1)
    candidates = [
        make("unsure", 0.9, drop_interval=(-0.05, 0.05)),  # 0.03 / 0.02 = 1.5
        make("sure", 0.87, drop_interval=(0.02, 0.04)),  # 0.02 / 0.02 = 1.0
        make("behind", 0.9, drop_interval=(0.0, 0.0), deployed_drop=0.19),  # 0.09 / 0.1 = 0.9
    ]
    assert closest(budget, 0.9, candidates) == "behind"
    assert closest(budget, 0.9, candidates[:2]) == "sure"
    points = Budget(max_drop=0.02, max_deployed_drop=None)
    assert closest(points, 0.9, candidates) == "behind"  # 0, as "unsure", and first by name
    assert closest(points, 0.9, candidates[:2]) == "unsure"


def test_closest_of_none() -> None:
    assert closest(ACCURACY, 0.9, []) is None
    assert closest(ACCURACY, 0.9, [make(quality=math.nan)]) is None


# misfits --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_never_eligible() -> None:
    misfits = [
        Misfit("target", "target micro: it has no SQUEEZE"),
        Misfit("contract", "target: micro, deployed has cpu"),
    ]
    said = reasons(ACCURACY, 0.9, make(misfits=misfits))
    assert said == [misfits[0].text, misfits[1].text]
    assert verdict.misses(said, misfits) == ("target", "contract")
    said = reasons(ACCURACY, 0.9, make("b", 0.5, misfits=misfits[:1]))
    assert said == [misfits[0].text, "accuracy drop 0.4 exceeds 0.01"]
    assert verdict.misses(said, misfits[:1]) == ("target", "budget")
    assert verdict.misses([], []) == ()


def test_closest_ranks_by_the_kind_of_miss() -> None:
    budget = Budget(max_bytes=1000)
    fat = make("fat", size=9000)
    guess, contract, target = (make(kind, misfits=[Misfit(kind, "no")]) for kind in ("chance", "contract", "target"))
    assert closest(budget, 0.9, [target, contract, guess, fat]) == "fat"
    assert closest(budget, 0.9, [target, contract, guess]) == "chance"
    assert closest(budget, 0.9, [target, contract]) == "contract"
    # an app is not helped by what cannot run there
    assert closest(budget, 0.9, [target]) is None
    # of one kind the excess decides
    near = make("near", size=1100, misfits=[Misfit("contract", "no")])
    assert closest(budget, 0.9, [make("far", size=1200, misfits=contract.misfits), near]) == "near"


# several metrics ------------------------------------------------------------------------------------------------------


def accuracy(value: float, baseline: float = 0.9, **more: Any) -> Quality:
    return Quality(BOTH.judged(COMPILED)[1], value, baseline, **more)


def test_every_metric_must_hold() -> None:
    def of(mae: float, value: float, **more: Any) -> list[str]:
        return reasons(BOTH, 1.0, make(quality=mae, others=[accuracy(value)], **more))

    assert of(1.5, 0.89) == []
    assert of(1.75, 0.89) == ["mae drop 0.75 exceeds 0.5"]
    assert of(1.5, 0.88) == ["accuracy drop 0.02 exceeds 0.01"]
    assert of(1.75, 0.88, size=10) == ["mae drop 0.75 exceeds 0.5", "accuracy drop 0.02 exceeds 0.01"]


def test_the_threshold_is_the_first_metrics_and_all_else_everyones() -> None:
    budget = dataclasses.replace(BOTH, value_threshold=1.25, max_deployed_drop=0.05, drop_bound="upper")
    other = accuracy(
        0.895,
        drop_interval=(0.0, 0.02),
        deployed_drop=0.25,
        slices=[slice_drop("label=1", 0.25)],
        worse_slices=[slice_drop("label=1", 0.125, 0.0)],
    )
    candidate = make(quality=1.3, drop_interval=(0.2, 0.4), deployed_drop=0.0625, others=[other])
    assert reasons(budget, 1.0, candidate) == [
        "accuracy drop 0.005 may be up to 0.02 (95% interval), which exceeds 0.01; more eval examples would narrow it",
        "mae 1.3 is worse than 1.25 (--value-threshold); the baseline has 1",
        "accuracy drop 0.25 in label=1 (20 examples) exceeds 0.05",
        "mae is 0.0625 worse than the deployed model's, which exceeds 0.05 (--max-deployed-drop)",
        "accuracy is 0.25 worse than the deployed model's, which exceeds 0.05 (--max-deployed-drop); worse in "
        "label=1 (0.125)",
    ]


def test_the_first_metric_ranks() -> None:
    best, other = make("m", 1.0, others=[accuracy(0.5)]), make("a", 1.25, others=[accuracy(0.9)])
    assert select(BOTH, [other, best]) == "m"
    assert pareto(BOTH, [other, best]) == {"m"}


def test_closest_adds_what_every_metric_misses() -> None:
    candidates = [
        make("mae", 2.0, others=[accuracy(0.9)]),  # 1.0 lost: 0.5 / 0.5 = 1.0
        make("both", 1.75, others=[accuracy(0.883)]),  # 0.5 + 0.7
        make("accuracy", 1.0, others=[accuracy(0.882)]),  # 0.008 / 0.01 = 0.8
        make("nan", 1.0, others=[accuracy(math.nan)]),
    ]
    assert closest(BOTH, 1.0, candidates) == "accuracy"
    assert closest(BOTH, 1.0, candidates[:2]) == "mae"
    assert closest(BOTH, 1.0, candidates[3:]) is None


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("mae:less", r"Budget.metric must be NAME\[:max\|min\[:DROP\]\], .* received 'mae:less'"),
        ("mae:0.5", "received 'mae:0.5'"),
        (":max", "received ':max'"),
        ("mae:min:0.5:1", "received 'mae:min:0.5:1'"),
        ([" mae"], "received ' mae'"),
        ([""], "received ''"),
        ("", "Budget.metric must be .*received ''"),
        ("mae:min:", "the drop of mae must be a finite number of at least 0, received ''"),
        ("mae:min:-1", "must be a finite number of at least 0, received '-1'"),
        ("mae:min:inf", "must be a finite number of at least 0, received 'inf'"),
        ("mae:min:nan", "must be a finite number of at least 0, received 'nan'"),
        ("mae:min:some", "must be a finite number of at least 0, received 'some'"),
        (["mae", "accuracy", "mae:min:2"], "Budget.metric names mae 2 times; name it once"),
        ("mae:max", "mae cannot be max: less of it is better; write mae:min, or mae alone"),
        (["score:min", "accuracy:min:0.5"], "accuracy cannot be min: more of it is better; write accuracy:max"),
    ],
)
def test_metrics_that_are_none(metric: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(metric=metric)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("accuraci", r"metric 'accuraci' \(did you mean 'accuracy'\?\) is not compiled by the model module, which has"),
        ("iou:max:0.1", r"'iou' \(did you mean 'boxes_iou'\?\) is not compiled .* loss, accuracy, boxes_iou, .*score"),
        ("score", "whether more or less of the budget's metric 'score' is better, .* write --metric score:max or"),
        ("gap:max", "the budget's metric gap cannot be max: less of it is better; write gap:min"),
    ],
)
def test_metrics_that_the_module_does_not_have(metric: str, message: str) -> None:
    compiled = {"loss": "min", "accuracy": None, "boxes_iou": None, "gap": "min", "score": None}
    with pytest.raises(UserError, match=message):
        Budget(metric=metric).judged(compiled)


def test_which_metric_is_judged_where_none_is_named() -> None:
    for names, judged in [
        (["mae", "accuracy"], ("accuracy", "max")),
        (["mae", "acc"], ("acc", "max")),
        (["mae", "boxes_accuracy"], ("mae", "min")),
        ([], ("loss", "min")),
    ]:
        [metric] = Budget(max_drop=0.25).judged({"loss": "min", **dict.fromkeys(names)})
        assert (metric.name, metric.direction, metric.max_drop) == (*judged, 0.25)
    with pytest.raises(UserError, match="accuracy cannot be min"):
        Budget(direction="min").judged({"loss": "min", "accuracy": "max"})


def test_a_metric_without_its_own_takes_direction_and_drop_of_the_budget() -> None:
    budget = Budget(metric=["score", "gap:max:0.5", "mae"], direction="min", max_drop=0.125)
    compiled = {"loss": "min", **dict.fromkeys(("score", "gap", "mae"))}
    assert budget.judged(compiled) == (
        MetricBudget("score", "min", 0.125),
        MetricBudget("gap", "max", 0.5),
        MetricBudget("mae", "min", 0.125),
    )


def test_one_metric_has_one_spelling() -> None:
    assert Budget(metric=["mae"]) == Budget(metric="mae")
    assert Budget(metric=[]) == Budget()
    several = Budget(metric=["mae", "accuracy"])
    assert (Budget(metric="mae").encoded()["metric"], several.encoded()["metric"]) == ("mae", '["mae", "accuracy"]')
    assert Budget.decoded(several.encoded()) == several
    assert Budget.of(several.parameters()) == several
