from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeline.representative_dataset import selection
from edgeline.representative_dataset.selection import KEYS, Drawn, Pool

# keys -----------------------------------------------------------------------------------------------------------------


def test_keys_are_below_their_bound_and_differ() -> None:
    fingerprints = np.concatenate([np.arange(10_000), [KEYS - 1]])
    keys = selection.keys(fingerprints, 2**31 - 1)
    assert keys.dtype == np.int64
    assert keys.min() >= 0
    assert keys.max() < KEYS
    assert len(np.unique(keys)) == len(keys)


def test_keys_are_those_of_splitmix64() -> None:
    # the published first outputs of the generator started at 0 and at 1234567, without their last two bits
    first = {0: 0xE220A8397B1DCDAF, 1_234_567: 6_457_827_717_110_365_317}
    for start, expected in first.items():
        assert selection.keys(np.int64([start]), 0)[0] == expected >> 2


def test_every_example_is_as_likely() -> None:
    # 300 seeds draw 5 of 20 each: 75 times on average, with a standard deviation of 7.5
    drawn: Counter[int] = Counter()
    for seed in range(300):
        drawn.update(np.argsort(selection.keys(np.arange(20), seed))[:5].tolist())
    assert len(drawn) == 20
    assert all(45 <= count <= 105 for count in drawn.values())


# equal shares ---------------------------------------------------------------------------------------------------------


def item(key: int, stratum: str = "", copies: int = 1) -> Drawn:
    return Drawn(key, f"digest of {key}", stratum, None, {}, copies)


def summary(drawn: list[Drawn]) -> list[tuple[str, int, int]]:
    return [(d.stratum, d.key, d.copies) for d in drawn]


def test_one_stratum_gives_the_smallest_keys() -> None:
    assert [d.key for d in selection.lowest(3, map(item, [7, 2, 9, 4, 1]))] == [1, 2, 4]
    assert [d.key for d in selection.lowest(9, map(item, [7, 2]))] == [2, 7]
    assert selection.lowest(3, []) == []


def test_equal_examples_become_one_and_equal_keys_of_others_do_not() -> None:
    other = Drawn(2, "a digest", "", None, {})
    kept = selection.lowest(3, [item(5), item(2), other, item(2, copies=3)])
    assert [(d.key, d.digest, d.copies) for d in kept] == [
        (2, "a digest", 1),
        (2, "digest of 2", 4),
        (5, "digest of 5", 1),
    ]


def test_strata_get_equal_shares_as_far_as_they_reach() -> None:
    # a has one example, b two, c many: 7 = 1 + 2 + 4
    drawn = [item(50, "a"), item(60, "b"), item(70, "b"), *(item(key, "c") for key in range(10))]
    kept = selection.lowest(7, drawn)
    assert Counter(d.stratum for d in kept) == {"a": 1, "b": 2, "c": 4}
    assert [d.key for d in kept] == [0, 50, 60, 1, 70, 2, 3]  # first, second, third, ... of each


def test_the_remainder_goes_by_the_key() -> None:
    drawn = [item(1, "a"), item(8, "a"), item(3, "b"), item(5, "b"), item(4, "c"), item(6, "c")]
    assert summary(selection.lowest(4, drawn)) == [("a", 1, 1), ("b", 3, 1), ("c", 4, 1), ("b", 5, 1)]
    assert summary(selection.lowest(2, drawn)) == [("a", 1, 1), ("b", 3, 1)]  # more strata than samples


examples = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=60)


def unlike(pairs: list[tuple[int, int]]) -> list[Drawn]:
    """Examples with small strata and large ones; equal keys are equal examples."""
    strata = {key: "abcc"[stratum % 4] for key, stratum in pairs}
    return [item(key, strata[key]) for key, _ in pairs]


@given(examples, st.integers(1, 12), st.data())
@settings(deadline=None)
def test_what_is_kept_of_parts_and_of_these_together_is_what_is_kept_of_all(
    pairs: list[tuple[int, int]], samples: int, data: st.DataObject
) -> None:
    drawn = unlike(pairs)
    part_of = data.draw(st.lists(st.integers(0, 3), min_size=len(drawn), max_size=len(drawn)))
    parts = [[d for d, own in zip(drawn, part_of, strict=True) if own == part] for part in range(4)]
    kept = [selection.lowest(samples, part) for part in parts]
    assert all(len(part) <= samples for part in kept)
    merged = selection.lowest(samples, [*selection.lowest(samples, kept[0] + kept[2]), *kept[3], *kept[1]])
    assert merged == selection.lowest(samples, drawn)


@given(examples, st.integers(1, 12))
@settings(deadline=None)
def test_what_is_beyond_the_limits_changes_nothing(pairs: list[tuple[int, int]], samples: int) -> None:
    drawn = unlike(pairs)
    half = len(drawn) // 2
    kept = selection.lowest(samples, drawn[:half])
    by_stratum, other = selection.limits(kept, samples)
    within = [d for d in drawn[half:] if d.key <= by_stratum.get(d.stratum, other)]
    assert selection.lowest(samples, kept + within) == selection.lowest(samples, drawn)


def test_limits() -> None:
    assert selection.limits([item(3)], 2) == ({}, KEYS)
    assert selection.limits([item(3), item(5)], 2) == ({"": 5}, KEYS)
    # c may give one more while it has fewer than b; a new stratum is before any second one
    kept = selection.lowest(3, [item(2, "b"), item(6, "b"), item(9, "b"), item(4, "c")])
    assert selection.limits(kept, 3) == ({"b": 6, "c": 6}, KEYS)
    # each gave one, the last has key 4: a new stratum or any of these is in with a smaller key
    kept = selection.lowest(2, [item(2, "b"), item(4, "c"), item(9, "c")])
    assert selection.limits(kept, 2) == ({"b": 2, "c": 4}, 4)


# diverse --------------------------------------------------------------------------------------------------------------


def pool(lows: list[list[float]], highs: list[list[float]], labels: list[int] | None = None) -> Pool:
    count = len(lows)
    return Pool(
        np.arange(count) * 10,
        np.int64(labels or [0] * count),
        np.float64(lows).reshape(count, -1),
        np.float64(highs).reshape(count, -1),
    )


def test_the_ends_of_every_range_are_chosen_first() -> None:
    # two inputs: the first from -3 (example 1) to 4 (example 3), the second from 0 (example 4) to 9 (example 2)
    made = pool(
        [[0, 1], [-3, 1], [0, 1], [0, 1], [0, 0], [0, 1]],
        [[1, 2], [1, 2], [1, 9], [4, 2], [1, 2], [1, 2]],
    )
    choice = selection.diverse(made, 4, 0)
    assert choice.keys.tolist() == [10, 20, 30, 40]
    assert choice.ranges.tolist() == [[-3, 0], [4, 9]]
    assert choice.outliers.tolist() == [[0, 0], [0, 0]]
    assert (choice.left_out, choice.pool) == (0, 6)


def test_then_those_that_are_farthest_from_the_chosen() -> None:
    # on a line from 0 to 8: the ends, then 4, then the first of 2 and 6, which are as far
    highs = [[8.0], [6.0], [0.0], [2.0], [4.0], [3.9]]
    made = pool([[0.0]] * 6, highs)
    assert selection.diverse(made, 3, 0).keys.tolist() == [0, 20, 40]
    assert selection.diverse(made, 4, 0).keys.tolist() == [0, 10, 20, 40]


def test_classes_take_turns() -> None:
    highs = [[float(i)] for i in range(10)]
    made = pool([[0.0]] * 10, highs, [0] * 6 + [1] * 3 + [2])
    labels = made.labels[selection.diverse(made, 7, 0).keys // 10]
    assert Counter(labels.tolist()) == {0: 3, 1: 3, 2: 1}


def test_equal_ranges_leave_the_smallest_keys_of_each_class() -> None:
    made = pool([[0.0]] * 8, [[1.0]] * 8, [0, 0, 0, 0, 0, 0, 1, 1])
    assert selection.diverse(made, 4, 0).keys.tolist() == [0, 10, 60, 70]
    # nor is anything known of inputs that are no numbers
    assert selection.diverse(Pool(made.keys, made.labels, *np.zeros([2, 8, 0])), 4, 5).keys.tolist() == [0, 10, 60, 70]


def test_outliers_are_left_out_and_counted_and_do_not_set_the_scale() -> None:
    # 200 examples; at 1% the two smallest lows and the two largest highs are beyond the range
    lows = [[-float(i % 50)] for i in range(200)]
    highs = [[float(i % 50)] for i in range(200)]
    lows[7], lows[9], highs[7], highs[11] = [-1e6], [-1e5], [1e6], [1e5]
    choice = selection.diverse(pool(lows, highs), 50, 1)
    assert choice.ranges.tolist() == [[-49], [49]]
    assert choice.outliers.tolist() == [[2], [2]]
    assert (choice.left_out, choice.pool) == (3, 200)
    assert not {70, 90, 110} & set(choice.keys.tolist())
    # without the percentile, one of them is the end of the range
    assert 70 in selection.diverse(pool(lows, highs), 50, 0).keys


@pytest.mark.parametrize(("count", "percent", "beyond"), [(999, 0.1, 0), (1000, 0.1, 1), (50, 10, 5), (3, 49, 1)])
def test_at_most_the_percentile_is_left_out_at_each_end(count: int, percent: float, beyond: int) -> None:
    values = [[float(i)] for i in range(count)]
    choice = selection.diverse(pool(values, values), count, percent)
    assert choice.outliers.tolist() == [[beyond], [beyond]]
    assert len(choice.keys) == count - 2 * beyond


def test_all_may_be_outliers_somewhere() -> None:
    # one of four at each end: the first and the last by the first input, the two others by the second
    values = [[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [3.0, 2.0]]
    choice = selection.diverse(pool(values, values), 2, 25)
    assert not len(choice.keys)
    assert choice.left_out == 4


def test_a_pool_is_the_smallest_keys_once() -> None:
    one = Pool(np.int64([2, 5, 9]), np.int64([0, 1, 2]), *np.float64([[[2], [5], [9]]] * 2))
    two = Pool(np.int64([5, 1]), np.int64([1, 3]), *np.float64([[[5], [1]]] * 2))
    for parts in ([one, two], [two, one]):
        merged = selection.pooled(parts, 3)
        assert merged.keys.tolist() == [1, 2, 5]
        assert merged.labels.tolist() == [3, 0, 1]
        assert merged.lows.tolist() == merged.highs.tolist() == [[1], [2], [5]]
    assert selection.pool_size(1) == 16_384
    assert selection.pool_size(5000) == 20_000
