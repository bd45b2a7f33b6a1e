"""Two models on the same examples: how far their outputs are apart, and how sure the difference of a metric is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from edgeline.report.schema import ComparisonReport, FlipCounts, OutputDifference

#: Examples are dealt into this many groups by a hash of their content, for metrics that are no means.
GROUPS = 20

_NORMAL_95 = 1.959964  # quantile 0.975 of the normal distribution
_STUDENT_95 = 2.093024  # and of Student's t with GROUPS - 1 degrees of freedom


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

    def interval(self) -> tuple[float, float] | None:
        """Returns the 95% interval of the mean difference; None with fewer than two examples.

        Where examples are right or wrong, it is the adjusted Wald interval for paired proportions (Bonett and Price,
        2012, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data"): the
        plain one (McNemar's) has no width where no example differs. Else it is the normal interval of a weighted mean,
        with the variance sum(w**2 * (d - mean)**2) / sum(w)**2.
        """
        if self.examples < 2 or self.weight <= 0:
            return None
        if not self.between:
            n = self.examples + 2
            lower, higher = (self.lower + 1) / n, (self.higher + 1) / n
            mean = higher - lower
            error = math.sqrt((higher + lower - mean * mean) / n)
            return max(mean - _NORMAL_95 * error, -1.0), min(mean + _NORMAL_95 * error, 1.0)
        mean = self.difference / self.weight
        squares = self.difference2 - 2 * mean * self.cross + mean * mean * self.weight2
        # of n squared deviations from their own mean n - 1 are free
        error = math.sqrt(max(squares, 0.0) * self.examples / (self.examples - 1)) / self.weight
        return mean - _NORMAL_95 * error, mean + _NORMAL_95 * error


def jackknife(difference: float, without: list[float]) -> tuple[float, float]:
    """Returns the 95% interval of a difference by the delete-a-group jackknife (Kott, 2001).

    Args:
      difference: of a metric between two models on all examples.
      without: the same on all but one of the groups, for each group; at least 2.
    """
    groups = len(without)
    mean = sum(without) / groups
    error = math.sqrt((groups - 1) / groups * sum((value - mean) ** 2 for value in without))
    return difference - _STUDENT_95 * error, difference + _STUDENT_95 * error


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
