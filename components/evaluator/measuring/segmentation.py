"""How well the classes of pixels are told, as counts that add up, and a few masks to look at."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgeline.report.schema import IoUReport

#: Above this many classes the square of counts would be most of a state.
MOST_CLASSES = 200

#: Examples whose masks are kept: those where the model differs most from the baseline.
MASKS = 4

#: Longer side of a kept mask, in pixels.
_SIDE = 96


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """The masks of an example: class numbers, uint8, shape [height, width].

    Attributes:
      differing: fraction of the pixels that the model decides otherwise than the baseline.
      digest: of the record.
      image: the input if it is one, smaller, uint8, shape [height, width] or [height, width, 3]; else None.
      label: the truth; 255 where it does not count.
      baseline: what the baseline predicts.
      predicted: what the model predicts.
    """

    differing: float
    digest: int
    image: np.ndarray | None
    label: np.ndarray
    baseline: np.ndarray
    predicted: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What one model did on some examples. Every pixel that counts does so once: weights play no part.

    Attributes:
      confusion: int64 [classes, classes], rows are labels, columns predictions.
      masks: of the examples where the model differs most from the baseline.
    """

    confusion: np.ndarray
    masks: tuple[Mask, ...] = ()

    @classmethod
    def of(cls, labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, classes: int) -> Segmentation:
        """Returns the state of one batch, without masks.

        Args:
          labels: class numbers, shape [examples, height, width].
          predicted: likewise.
          counts: which pixels count, bool, likewise.
          classes: how many there are.
        """
        inside = counts & (labels >= 0) & (labels < classes)
        pairs = labels[inside].astype(np.int64) * classes + predicted[inside]
        return cls(np.bincount(pairs, minlength=classes * classes).reshape(classes, classes))

    def __add__(self, other: Segmentation) -> Segmentation:
        masks = sorted([*self.masks, *other.masks], key=lambda mask: (-mask.differing, mask.digest))
        return Segmentation(self.confusion + other.confusion, tuple(masks[:MASKS]))

    def report(self) -> tuple[IoUReport, ...]:
        """Returns the intersection over union of each class; None where it is neither there nor predicted.

        Of 4 pixels 3 are of class 0, of which one is taken for class 1; the one of class 1 is told:

        >>> labels, predicted = np.array([[[0, 0, 0, 1]]]), np.array([[[0, 0, 1, 1]]])
        >>> [each.iou for each in Segmentation.of(labels, predicted, labels >= 0, 3).report()]
        [0.6666666666666666, 0.5, None]
        """
        hits, labelled, predicted = np.diag(self.confusion), self.confusion.sum(1), self.confusion.sum(0)
        rows = zip(hits.tolist(), labelled.tolist(), predicted.tolist(), strict=True)
        return tuple(
            IoUReport(iou=hit / union if (union := label + guess - hit) else None, pixels=label)
            for hit, label, guess in rows
        )


def smaller(mask: np.ndarray) -> np.ndarray:
    """Returns every n-th pixel of class numbers, so that the longer side has at most 96."""
    step = -(-max(mask.shape) // _SIDE)
    return np.clip(mask[::step, ::step], 0, 255).astype(np.uint8)
