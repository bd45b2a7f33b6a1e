"""What a model that ignores its inputs would have of a metric: always the commonest class, or always the mean."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from edgeline.report.schema import ChanceReport

#: Labels with more numbers than this are pictures or sequences: their mean is no guess that anybody would make.
MOST_NUMBERS = 64

#: Examples that a guess of the mean is compared on, at most.
MOST_EXAMPLES = 4096

_NORMAL_95 = 1.96  # quantile 0.975 of the normal distribution


@dataclasses.dataclass(frozen=True, eq=False)
class CommonestClass:
    """How much each class counts among the labels; what answering the commonest would have of an accuracy.

    Attributes:
      weights: of the examples of each class, added up, float64, shape [classes].
      squares: of all these weights, added up.
    """

    weights: np.ndarray
    squares: float

    @classmethod
    def of(cls, labels: np.ndarray, weights: np.ndarray, classes: int) -> CommonestClass:
        """Counts a batch: class numbers in [0, classes) and what each example counts, both of shape [examples]."""
        return cls(np.bincount(labels, weights, classes), float(np.square(weights).sum()))

    def __add__(self, other: CommonestClass) -> CommonestClass:
        return CommonestClass(self.weights + other.weights, self.squares + other.squares)

    def report(self, accuracy: float) -> ChanceReport | None:
        """Returns the accuracy of the guess beside a model's; None where nothing counts.

        Answering the commonest class, whose share is m, has m + 1.96 sqrt(m (1 - m) / n) by luck; of weighted examples
        n is (sum w)**2 / sum w**2 (Kish, Survey Sampling, 1965). Of 100 labels with 20 of the commonest class that is
        0.2 + 1.96 * 0.04 = 0.2784:

        >>> labels = np.repeat(np.arange(9), [20] + 8 * [10])
        >>> guess = CommonestClass.of(labels, np.ones(100), 9).report(0.27)
        >>> guess.answer, guess.value, round(guess.margin, 4), guess.beaten
        (0, 0.2, 0.0784, False)
        """
        total = float(self.weights.sum())
        if not total > 0:
            return None
        answer = int(self.weights.argmax())
        share = float(self.weights[answer]) / total
        margin = _NORMAL_95 * math.sqrt(share * (1 - share) * self.squares) / total
        beaten = accuracy > share + margin
        return ChanceReport(guess="commonest class", answer=answer, value=share, margin=margin, beaten=beaten)


@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
    """Labels and a model's errors at them, of some examples; what answering the labels' mean would have.

    The examples are those with the smallest digests, so that their choice depends on the data alone.

    Attributes:
      squared: whether errors are squared; absolute otherwise.
      digests: of the examples, rising, int64, shape [examples].
      labels: float64, shape [examples, numbers].
      errors: of the model, the mean over an example's numbers, float64, shape [examples].
    """

    squared: bool
    digests: np.ndarray
    labels: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, squared: bool, digests: np.ndarray, labels: np.ndarray, errors: np.ndarray) -> Mean:
        """Returns the state of a batch; see the attributes, but in any order and of any number of examples."""
        rows = np.argsort(digests, kind="stable")[:MOST_EXAMPLES]
        return cls(squared, digests[rows], labels[rows], errors[rows])

    def __add__(self, other: Mean) -> Mean:
        parts = ((getattr(self, name), getattr(other, name)) for name in ("digests", "labels", "errors"))
        return Mean.of(self.squared, *(np.concatenate(pair) for pair in parts))

    def report(self, error: float) -> ChanceReport | None:
        """Returns the mean error of the guess beside a model's; None where it cannot be said of one example.

        Both errors are taken of each example, and so is their difference, whose mean has a standard error: a model
        beats the guess if it is better by more than 1.96 of these. Labels 0, 0, 2, 2 have the mean 1, and the guess
        has the squared error 1 at each. A model with errors 0.5, 0.5, 0.5 and 1.5 is better by 0.25 on average, with
        a standard error of sqrt(3 * 0.25**2 + 0.75**2) / sqrt(3) / sqrt(4) = 0.25: that may be luck.

        >>> state = Mean.of(True, np.arange(4), np.array([[0.0], [0], [2], [2]]), np.array([0.5, 0.5, 0.5, 1.5]))
        >>> guess = state.report(0.75)
        >>> guess.value, round(guess.margin, 4), guess.beaten
        (1.0, 0.49, False)

        Args:
          error: of the model on all examples.
        """
        count = len(self.errors)
        distances = np.abs(self.labels - self.labels.mean(axis=0)) if count else np.zeros([0, 1])
        guessed = (np.square(distances) if self.squared else distances).mean(axis=1)
        better = guessed - self.errors
        if not count or not np.isfinite(better).all():
            return None
        gain = float(better.mean())
        # of one example nothing can be said
        margin = _NORMAL_95 * float(better.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        return ChanceReport(
            guess="mean",
            value=error + gain,
            margin=margin if math.isfinite(margin) else None,
            beaten=gain > margin,
        )


#: What a guess would have of a metric, as a state that adds up.
Chance = CommonestClass | Mean
