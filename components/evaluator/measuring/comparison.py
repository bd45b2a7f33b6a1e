"""Two models on the same examples: how far their outputs are apart, and how sure the difference of a metric is."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np
from scipy import stats

from edgeline.report.schema import ComparisonReport, FlipCounts, OutputDifference

#: Examples are dealt into this many groups by a hash of their content, for metrics that are no means.
GROUPS = 20


def level(chosen_among: int = 1) -> float:
    """Returns the confidence level of an interval that holds with 95% for the best of several models.

    Of the drops of k models one is taken since it looks good, so that its own 95% interval is too hopeful. That all k
    intervals hold at once has a probability of at least 95% if each is of the level 0.95**(1/k), however the models'
    errors hang together (Sidak, 1967, "Rectangular Confidence Regions for the Means of Multivariate Normal
    Distributions", JASA 62).

    >>> [round(level(k), 5) for k in (1, 2, 13)]
    [0.95, 0.97468, 0.99606]

    Args:
      chosen_among: k, at least 1.
    """
    return math.pow(0.95, 1 / chosen_among)


def _normal(chosen_among: int) -> float:
    """Returns the two-sided quantile of the normal distribution; 1.959964 for one model, 2.884 for one of 13."""
    return statistics.NormalDist().inv_cdf((1 + level(chosen_among)) / 2)


def _student(chosen_among: int) -> float:
    """Returns the two-sided quantile of Student's t with GROUPS - 1 degrees of freedom; 2.093024 for one model."""
    return float(stats.t.ppf((1 + level(chosen_among)) / 2, GROUPS - 1))


@dataclasses.dataclass
class Paired:
    """The difference of one metric, example by example: sums that add up.

    Attributes:
      examples: how many.
      lower, higher: examples that only the reference has right, or only the other model: 0 beside 1, of weight 1.
      between: examples with any other value than 0 and 1, or any other weight than 1.
      weight, difference: sums of the weights w and of w * d.
      weight2, cross, difference2: sums of w**2, w**2 * d and (w * d)**2.
    """

    examples: int = 0
    lower: int = 0
    higher: int = 0
    between: int = 0
    weight: float = 0.0
    difference: float = 0.0
    weight2: float = 0.0
    cross: float = 0.0
    difference2: float = 0.0

    @staticmethod
    def of(values: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> Paired:
        """Compares a column of two models' Scores: values (times weight) and weights, float64, shape [examples]."""
        d = values - reference
        plain = np.isin(values, (0, 1)) & np.isin(reference, (0, 1)) & (weights == 1)
        lower, higher = int(((d == -1) & plain).sum()), int(((d == 1) & plain).sum())
        return Paired(
            len(d),
            lower,
            higher,
            int((~plain).sum()),
            float(weights.sum()),
            float(d.sum()),
            float((weights * weights).sum()),
            float((weights * d).sum()),
            float((d * d).sum()),
        )

    def __add__(self, other: Paired) -> Paired:
        return Paired(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def interval(self, chosen_among: int = 1) -> tuple[float, float] | None:
        """Returns the 95% interval of the mean difference; None with fewer than two examples.

        Where examples are right or wrong, it is the adjusted Wald interval for paired proportions (Bonett and Price,
        2012, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data"): the
        plain one (McNemar's) has no width where no example differs. Else it is the normal interval of a weighted mean,
        with the variance sum(w**2 * (d - mean)**2) / sum(w)**2.

        Of 100 examples 4 are right in the reference alone and 1 in the other model: the middle is -3/102, half the
        width 1.96 * sqrt((7/102 - (3/102)**2) / 102) = 0.05052, and 2.884 / 1.96 times that for the best of 13:

        >>> state = Paired(100, lower=4, higher=1, weight=100)
        >>> [[round(end, 4) for end in state.interval(k) or ()] for k in (1, 13)]
        [[-0.0799, 0.0211], [-0.1037, 0.0449]]

        Args:
          chosen_among: of how many models the model is the best, see `level`.
        """
        if self.examples < 2 or self.weight <= 0:
            return None
        quantile = _normal(chosen_among)
        if not self.between:
            n = self.examples + 2
            lower, higher = (self.lower + 1) / n, (self.higher + 1) / n
            mean = higher - lower
            error = math.sqrt((higher + lower - mean * mean) / n)
            return max(mean - quantile * error, -1.0), min(mean + quantile * error, 1.0)
        mean = self.difference / self.weight
        squares = self.difference2 - 2 * mean * self.cross + mean * mean * self.weight2
        # of n squared deviations from their own mean n - 1 are free
        error = math.sqrt(max(squares, 0.0) * self.examples / (self.examples - 1)) / self.weight
        return mean - quantile * error, mean + quantile * error


def jackknife(difference: float, without: list[float], chosen_among: int = 1) -> tuple[float, float]:
    """Returns the 95% interval of a difference by the delete-a-group jackknife (Kott, 2001).

    Args:
      difference: of a metric between two models on all examples.
      without: the same on all but one of the groups, for each group; at least 2.
      chosen_among: of how many models the model is the best, see `level`.
    """
    groups = len(without)
    mean = sum(without) / groups
    error = math.sqrt((groups - 1) / groups * sum((value - mean) ** 2 for value in without))
    quantile = _student(chosen_among)
    return difference - quantile * error, difference + quantile * error


@dataclasses.dataclass
class OutputError:
    """How far one output of two models is apart; errors are absolute, in the output's own unit.

    Attributes:
      largest: the largest error.
      total: sum of all.
      squares: sum of their squares.
      signal: sum of the reference's squares.
      count: of numbers.
    """

    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    signal: float = 0.0
    count: int = 0

    @staticmethod
    def of(values: np.ndarray, reference: np.ndarray) -> OutputError:
        """Compares two arrays of the same shape."""
        wide = reference.astype(np.float64).ravel()
        errors = np.abs(values.ravel() - wide)
        return OutputError(
            float(errors.max(initial=0.0)),
            float(errors.sum()),
            # no dot products: BLAS would wake its threads for each of these small ones
            float(np.square(errors).sum()),
            float(np.square(wide).sum()),
            errors.size,
        )

    def __add__(self, other: OutputError) -> OutputError:
        return OutputError(
            max(self.largest, other.largest),
            self.total + other.total,
            self.squares + other.squares,
            self.signal + other.signal,
            self.count + other.count,
        )

    def report(self) -> OutputDifference:
        """Returns what the report says of it.

        >>> OutputError(largest=0.5, total=1.0, squares=0.5, signal=50.0, count=4).report()
        OutputDifference(max_abs_error=0.5, mean_abs_error=0.25, sqnr_db=20.0)
        """
        is_noisy = self.squares > 0 and self.signal > 0
        return OutputDifference(
            max_abs_error=self.largest,
            mean_abs_error=self.total / self.count if self.count else None,
            sqnr_db=10 * math.log10(self.signal / self.squares) if is_noisy else None,
        )


@dataclasses.dataclass
class Comparison:
    """A candidate beside the baseline.

    Attributes:
      examples: how many.
      outputs: by name, where the shapes agree.
      classified: whether the model is a classifier, so that the counts below mean something.
      agreed: examples with the same predicted class.
      broken: examples that the baseline has right and the candidate wrong.
      mended: the other way round.
    """

    examples: int = 0
    outputs: dict[str, OutputError] = dataclasses.field(default_factory=dict)
    classified: bool = False
    agreed: int = 0
    broken: int = 0
    mended: int = 0

    def __add__(self, other: Comparison) -> Comparison:
        names = [*self.outputs, *(name for name in other.outputs if name not in self.outputs)]
        nothing = OutputError()
        return Comparison(
            self.examples + other.examples,
            {name: self.outputs.get(name, nothing) + other.outputs.get(name, nothing) for name in names},
            self.classified or other.classified,
            self.agreed + other.agreed,
            self.broken + other.broken,
            self.mended + other.mended,
        )

    def report(self) -> ComparisonReport:
        """Returns what the report says of it."""
        flips = FlipCounts(right_to_wrong=self.broken, wrong_to_right=self.mended)
        return ComparisonReport(
            examples=self.examples,
            agreement=self.agreed / self.examples if self.classified and self.examples else None,
            flips=flips if self.classified else None,
            outputs={name: error.report() for name, error in self.outputs.items()},
        )
