"""How far the numbers that a model predicts are from the labels, as a state that adds up and does not grow."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from edgeline.report.schema import RegressionReport

#: Examples whose labels and predictions are kept to be drawn.
SAMPLES = 200

#: Quantiles of the absolute error that are reported; the last is the largest error.
QUANTILES = (0.5, 0.9, 0.99, 1.0)

# Errors are counted in buckets whose upper end is this many times the lower one: a quantile is at most 0.5% off.
_GROWTH = 1.01
_LOG_GROWTH = math.log(_GROWTH)
#: Bucket of errors of 0; every other one has a number far above.
_ZERO = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """What one model predicted on some examples, in float64. Every example counts once: weights play no part.

    Means and squared deviations are merged by the formula of Chan, Golub and LeVeque (1979, "Updating Formulae and a
    Pairwise Algorithm for Computing Sample Variances"), which loses no digits to a mean far from zero. Quantiles come
    from a sketch of buckets that grow by a constant factor (Masson, Rim and Lee, 2019, "DDSketch", VLDB 12).

    Attributes:
      examples: how many.
      mean: of the labels, shape [numbers].
      deviations: sum of squared deviations of the labels from their mean, shape [numbers].
      squares: sum of squared errors, shape [numbers].
      absolute: sum of absolute errors.
      largest: the largest absolute error.
      buckets: numbers of the buckets that hold absolute errors, rising, int64.
      counts: how many are in each, int64.
      digests: of the examples that are kept: those with the smallest; rising, int64.
      labels: of these, float64, shape [kept, numbers].
      predicted: likewise.
    """

    examples: int
    mean: np.ndarray
    deviations: np.ndarray
    squares: np.ndarray
    absolute: float
    largest: float
    buckets: np.ndarray
    counts: np.ndarray
    digests: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, predicted: np.ndarray, digests: np.ndarray) -> Regression:
        """Returns the state of one batch.

        Args:
          labels: shape [examples, ...].
          predicted: likewise, finite.
          digests: of the records, int64, shape [examples].
        """
        y, p = (values.reshape(len(values), -1).astype(np.float64) for values in (labels, predicted))
        errors = np.abs(p - y)
        mean = y.mean(axis=0)
        buckets, counts = np.unique(_bucket(errors.ravel()), return_counts=True)
        rows = np.argsort(digests, kind="stable")[:SAMPLES]
        return cls(
            examples=len(y),
            mean=mean,
            deviations=np.square(y - mean).sum(axis=0),
            squares=np.square(errors).sum(axis=0),
            absolute=float(errors.sum()),
            largest=float(errors.max(initial=0.0)),
            buckets=buckets,
            counts=counts,
            digests=digests[rows],
            labels=y[rows],
            predicted=p[rows],
        )

    def __add__(self, other: Regression) -> Regression:
        examples, shift = self.examples + other.examples, other.mean - self.mean
        buckets, places = np.unique(np.concatenate([self.buckets, other.buckets]), return_inverse=True)
        counts = np.zeros(len(buckets), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        rows = np.argsort(np.concatenate([self.digests, other.digests]), kind="stable")[:SAMPLES]
        digests, labels, predicted = (
            np.concatenate([getattr(self, name), getattr(other, name)])[rows]
            for name in ("digests", "labels", "predicted")
        )
        return Regression(
            examples=examples,
            mean=self.mean + shift * other.examples / examples,
            deviations=self.deviations + other.deviations + shift**2 * self.examples * other.examples / examples,
            squares=self.squares + other.squares,
            absolute=self.absolute + other.absolute,
            largest=max(self.largest, other.largest),
            buckets=buckets,
            counts=counts,
            digests=digests,
            labels=labels,
            predicted=predicted,
        )

    def report(self) -> RegressionReport:
        """Returns what the report says of it.

        R² is 1 - (sum of squared errors) / (sum of squared deviations of the labels), the mean over the numbers of an
        example, as Keras' R2Score has it; numbers that are the same in all labels take no part. Labels 1, 2, 3 and
        predictions 1, 2, 4 have the R² 1 - 1 / 2:

        >>> values = np.array([[1.0], [2.0], [3.0]])
        >>> round(Regression.of(values, values + [[0], [0], [1]], np.arange(3)).report().r2, 12)
        0.5
        """
        varied = self.deviations > 0
        drawn = np.isfinite(self.labels).all(axis=1)
        count = self.examples * len(self.mean)
        return RegressionReport(
            numbers=len(self.mean),
            r2=float((1 - self.squares[varied] / self.deviations[varied]).mean()) if varied.any() else None,
            mean_abs_error=self.absolute / count,
            rmse=math.sqrt(float(self.squares.sum()) / count),
            error_quantiles={f"{q:g}": self._quantile(q) for q in QUANTILES},
            labels=tuple(map(tuple, self.labels[drawn].tolist())),
            predicted=tuple(map(tuple, self.predicted[drawn].tolist())),
        )

    def _quantile(self, q: float) -> float:
        """Returns the smallest absolute error that a fraction q of all does not exceed, to 0.5%."""
        if q == 1.0:
            return self.largest
        place = int(np.searchsorted(np.cumsum(self.counts), q * self.counts.sum() - 1e-9))
        bucket = int(self.buckets[place])
        # the middle of the bucket in terms of ratios
        return 0.0 if bucket == _ZERO else min(math.exp((bucket - 0.5) * _LOG_GROWTH), self.largest)


def _bucket(errors: np.ndarray) -> np.ndarray:
    """Returns the number of each error's bucket; bucket b holds (growth**(b - 1), growth**b]."""
    numbers = np.full(errors.shape, _ZERO)
    above = (errors > 0) & np.isfinite(errors)
    numbers[above] = np.ceil(np.log(errors[above]) / _LOG_GROWTH).astype(np.int64)
    return numbers
