"""How well each tag of a multi-label model is told, as counts that add up."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgeline.report.schema import TagReport


@dataclasses.dataclass(frozen=True, eq=False)
class Tags:
    """What one model tagged on some examples. Every example counts once: weights play no part.

    Attributes:
      examples: how many.
      labelled: how many have the tag, int64, shape [tags].
      predicted: to how many the model gives it, likewise.
      hits: to how many of those that have it, likewise.
    """

    examples: int
    labelled: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, scores: np.ndarray, from_logits: bool) -> Tags:
        """Returns the state of one batch.

        Args:
          labels: from 0 to 1, shape [examples, tags]; above 0.5 an example has the tag.
          scores: probabilities or logits, likewise; above a probability of 0.5 the model gives it.
          from_logits: whether they are logits.
        """
        labelled, predicted = labels > 0.5, scores > (0.0 if from_logits else 0.5)
        return cls(len(labels), labelled.sum(0), predicted.sum(0), (labelled & predicted).sum(0))

    def __add__(self, other: Tags) -> Tags:
        return Tags(
            self.examples + other.examples,
            self.labelled + other.labelled,
            self.predicted + other.predicted,
            self.hits + other.hits,
        )

    def report(self) -> tuple[TagReport, ...]:
        """Returns what the report says of each tag.

        >>> has, scores = np.array([[1, 0], [1, 0], [0, 0]]), np.array([[0.9, 0.1], [0.2, 0.6], [0.7, 0.1]])
        >>> first, second = Tags.of(has, scores, from_logits=False).report()
        >>> first.precision, first.recall, first.f1, second.recall
        (0.5, 0.5, 0.5, None)
        """
        rows = zip(self.labelled.tolist(), self.predicted.tolist(), self.hits.tolist(), strict=True)
        return tuple(
            TagReport(
                precision=hits / predicted if predicted else None,
                recall=hits / labelled if labelled else None,
                f1=2 * hits / (labelled + predicted) if labelled + predicted else None,
                examples=labelled,
                predicted=predicted,
            )
            for labelled, predicted, hits in rows
        )
