"""Which examples become calibration samples: a function of the examples' contents and the seed alone.

Every example has a key, a pseudo-random number made of its content and the seed. All that is kept of some examples is
kept by the smallest keys (a bottom-k sketch: Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007),
so that what is kept of two parts, put together and cut again, is what would be kept of the whole: neither order, nor
shards, nor bundles, nor workers matter. Equal examples have equal keys, so each content counts once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np

#: Keys are below this.
KEYS = 2**62

#: Examples whose extremes are compared for the `diverse` strategy, at least; as many more as 4 times the samples. The
#: share of examples beyond the percentile of 0.1 is then known to 0.025 percentage points (one standard deviation,
#: sqrt(p (1 - p) / n)), and exactly in a split that is no larger.
POOL = 16_384


def keys(fingerprints: np.ndarray, seed: int) -> np.ndarray:
    """Returns each example's key: its fingerprint, mixed with the seed by the finalizer of SplitMix64.

    Args:
      fingerprints: of the examples' contents, int64 in [0, KEYS), shape [examples].
      seed: another one gives unrelated keys.
    """
    with np.errstate(over="ignore"):
        offset = np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = fingerprints.astype(np.uint64) + offset
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An example that may become a sample.

    Attributes:
      key: below `KEYS`.
      digest: hexadecimal SHA-256 of the serialized example.
      stratum: what it is drawn from an equal share of; "" where there is one stratum.
      label: class number; None where labels are none.
      inputs: by the model's input names, shapes without the batch dimension.
      copies: how often this content was met.
      serialized: the `tf.train.Example`.
    """

    key: int
    digest: str
    stratum: str
    label: int | None
    inputs: dict[str, np.ndarray]
    copies: int = 1
    serialized: bytes = b""


def lowest(samples: int, drawn: Iterable[Drawn]) -> list[Drawn]:
    """Returns the samples: equal shares per stratum as far as they reach, of each stratum those of the smallest keys.

    In each stratum the examples are ranked by key; those of the smallest (rank, key) over all strata are kept, in that
    order. So all strata give one example before any gives two, and what does not divide goes by the key. Of one stratum
    this is a uniform sample without replacement.

    It may be done to parts of the examples and again to what is left of them: an example's rank among a part is at most
    its rank among all, and for each example before it in the part there is one in its place before it among all. So
    what is kept of all is kept of its part, and `samples` examples per part are enough.

    Args:
      samples: how many to keep at most.
      drawn: examples; equal ones become one, with their copies added up.
    """
    unique: dict[tuple[int, str], Drawn] = {}
    for item in drawn:
        same = unique.get((item.key, item.digest))
        unique[item.key, item.digest] = (
            item if same is None else dataclasses.replace(same, copies=same.copies + item.copies)
        )
    ranks: Counter[str] = Counter()
    ranked = []
    for identity in sorted(unique):
        stratum = unique[identity].stratum
        ranked.append((ranks[stratum], identity))
        ranks[stratum] += 1
    return [unique[identity] for _, identity in sorted(ranked)[:samples]]


def limits(kept: list[Drawn], samples: int) -> tuple[dict[str, int], int]:
    """Returns by stratum the largest key with which a further example can change what is kept, and that of all others.

    Args:
      kept: what `lowest` returned.
      samples: as for `lowest`.
    """
    if len(kept) < samples:
        return {}, KEYS
    counts = Counter(item.stratum for item in kept)
    highest: dict[str, int] = {}
    for item in kept:
        highest[item.stratum] = max(item.key, highest.get(item.stratum, 0))
    last = kept[-1]
    rank = counts[last.stratum] - 1
    # the next one of a stratum has the rank `count`: it is in if (count, key) is before the last one kept
    by_stratum = {
        stratum: KEYS if count < rank else max(highest[stratum], last.key) if count == rank else highest[stratum]
        for stratum, count in counts.items()
    }
    return by_stratum, KEYS if rank else last.key


@dataclasses.dataclass(frozen=True)
class Pool:
    """What is known of the examples of the smallest keys, without their tensors; sorted by key, each content once.

    Attributes:
      keys: int64, shape [examples].
      labels: class numbers, int64, shape [examples]; all 0 where labels are none.
      lows: smallest value of each numeric input, float64, shape [examples, inputs].
      highs: largest, likewise.
    """

    keys: np.ndarray
    labels: np.ndarray
    lows: np.ndarray
    highs: np.ndarray


def pooled(pools: list[Pool], size: int) -> Pool:
    """Returns the examples of the smallest keys of some pools, at least one, together."""
    columns = zip(*((p.keys, p.labels, p.lows, p.highs) for p in pools), strict=True)
    together = [np.concatenate(column) for column in columns]
    _, rows = np.unique(together[0], return_index=True)
    return Pool(*(column[rows[:size]] for column in together))


def pool_size(samples: int) -> int:
    """Returns how many examples are compared to choose so many samples among them."""
    return max(POOL, 4 * samples)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `diverse` chose of a pool.

    Attributes:
      keys: of the chosen examples, int64, sorted.
      ranges: (low, high) of each input without outliers, float64, shape [2, inputs].
      outliers: examples of the pool below and above that range, shape [2, inputs].
      left_out: examples of the pool that are outliers in at least one input.
      pool: examples of the pool.
    """

    keys: np.ndarray
    ranges: np.ndarray
    outliers: np.ndarray
    left_out: int
    pool: int


def diverse(pool: Pool, samples: int, winsor_percent: float) -> Choice:
    """Chooses samples that cover the inputs' ranges and the classes.

    The range of an input goes from the percentile `winsor_percent` of the examples' smallest values to the percentile
    100 - `winsor_percent` of their largest (percentile calibration: Wu et al., "Integer Quantization for Deep Learning
    Inference", arXiv:2004.09602). Examples beyond are left out: clipped ones would be none of the data's.
    Both percentiles are values of examples, such that at most that share lies beyond.

    Of the rest the examples at the ends of each range are taken first. Then the class with the fewest samples gives the
    example that is farthest from all chosen ones, by the smallest and largest values of all inputs, each on the scale
    of its range (greedy k-center: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985); the
    smaller key decides between equals, so that of equal ranges it is a uniform sample of each class.

    Args:
      pool: a uniform sample of the examples.
      samples: how many to choose at most.
      winsor_percent: at each end, at least 0 and below 50.
    """
    count, inputs = pool.lows.shape
    beyond = int(count * winsor_percent / 100)
    low = np.sort(pool.lows, axis=0)[beyond]
    high = np.sort(pool.highs, axis=0)[count - 1 - beyond]
    below, above = pool.lows < low, pool.highs > high
    rows = np.flatnonzero(~(below | above).any(axis=1))
    lows, highs = pool.lows[rows], pool.highs[rows]
    span = np.where(high > low, high - low, 1)
    points = np.concatenate([lows - low, highs - low], axis=1) / np.concatenate([span, span])

    queues: dict[int, np.ndarray] = {
        label: np.flatnonzero(pool.labels[rows] == label) for label in dict.fromkeys(pool.labels[rows].tolist())
    }
    distance = np.full(len(rows), np.inf)
    chosen: list[int] = []
    taken = dict.fromkeys(queues, 0)

    def take(row: int) -> None:
        chosen.append(row)
        np.minimum(distance, ((points - points[row]) ** 2).sum(axis=1), out=distance)
        distance[chosen] = -1  # never again
        taken[int(pool.labels[rows[row]])] += 1

    if inputs and len(rows):
        ends = [end for pair in zip(lows.argmin(axis=0), highs.argmax(axis=0), strict=True) for end in pair]
        for row in list(dict.fromkeys(int(end) for end in ends))[:samples]:
            take(row)
    while len(chosen) < min(samples, len(rows)):
        label = min((label for label in queues if taken[label] < len(queues[label])), key=taken.__getitem__)
        take(int(queues[label][distance[queues[label]].argmax()]))
    return Choice(
        np.sort(pool.keys[rows[chosen]]),
        np.stack([low, high]),
        np.stack([below.sum(axis=0), above.sum(axis=0)]),
        count - len(rows),
        count,
    )
