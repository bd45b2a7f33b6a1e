"""What is measured of each output beside the metrics: classes, numbers, tags or the classes of pixels, by its loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tf_keras

from edgeline.evaluator.measuring.chance import MOST_NUMBERS
from edgeline.evaluator.measuring.classification import (
    KINDS,
    Classification,
    Kind,
    Tags,
    Task,
    ends_in_probabilities,
    takes_logits,
)
from edgeline.evaluator.measuring.metrics import CompiledMetrics
from edgeline.evaluator.measuring.regression import Regression
from edgeline.evaluator.measuring.segmentation import MASKS, MOST_CLASSES, Mask, Segmentation, smaller
from edgeline.report.schema import MaskReport, OutputReport, SegmentationReport

#: What one model did at one output.
Part = Classification | Regression | Segmentation | Tags

_LOSSES = tf_keras.losses
#: Losses of numbers.
_OF_NUMBERS = (
    *(_LOSSES.mean_squared_error, _LOSSES.mean_absolute_error, _LOSSES.mean_absolute_percentage_error),
    *(_LOSSES.mean_squared_logarithmic_error, _LOSSES.huber, _LOSSES.log_cosh, _LOSSES.poisson),
)


@dataclasses.dataclass(frozen=True)
class Output:
    """An output of which more is measured than the metrics.

    Attributes:
      place: among the model's outputs.
      name: of it.
      kind: what its labels say.
      task: of a classifier of whole examples; else None.
      labels: how class numbers are written, of pixels.
      classes: how many there are, of pixels; of tags, their number.
      from_logits: whether tags and pixels of two classes have logits for scores.
      ignored: the label of pixels that do not count; None without one.
    """

    place: int
    name: str
    kind: Literal["classes", "numbers", "tags", "pixels"]
    task: Task | None = None
    labels: Kind = "sparse"
    classes: int = 0
    from_logits: bool = False
    ignored: int | None = None

    def measure(self, label: np.ndarray, scores: np.ndarray, digests: np.ndarray, mask: np.ndarray | None) -> Part:
        """Returns what a model did on a batch.

        Args:
          label: of this output, as Keras matches it to the output.
          scores: the output, finite.
          digests: of the records, int64, shape [examples].
          mask: which pixels count; None: all.

        Raises:
          ValueError: labels and scores do not go together.
        """
        if self.task is not None:
            return Classification.of(self.task, *self.task.read(label, scores))
        if self.kind == "numbers":
            return Regression.of(label, scores, digests)
        if self.kind == "tags":
            return Tags.of(label, scores, self.from_logits)
        labels = self.pixels(label)
        counts = np.ones(labels.shape, bool) if mask is None else np.broadcast_to(mask, labels.shape).astype(bool)
        if self.ignored is not None:
            counts = counts & (labels != self.ignored)
        return Segmentation.of(labels, self.decided(scores), counts, self.classes)

    def pixels(self, label: np.ndarray) -> np.ndarray:
        """Returns the class numbers of a batch's labels, int64, shape [examples, height, width]."""
        if self.labels == "categorical":
            return label.argmax(axis=-1)
        label = label[..., 0] if label.ndim == 4 else label
        return (label > 0.5 if self.labels == "binary" else label).astype(np.int64)

    def decided(self, scores: np.ndarray) -> np.ndarray:
        """Returns the class numbers that a model decides for, int64, shape [examples, height, width]."""
        if self.labels == "binary":
            return (scores[..., 0] > (0.0 if self.from_logits else 0.5)).astype(np.int64)
        return scores.argmax(axis=-1)

    def with_masks(
        self,
        part: Part,
        label: np.ndarray,
        scores: np.ndarray,
        baseline: np.ndarray,
        digests: np.ndarray,
        image: Callable[[int], np.ndarray | None],
    ) -> Part:
        """Returns the part with masks of the examples where a model differs most from the baseline.

        Args:
          part: that `measure` returned.
          label: of the batch.
          scores: the output.
          baseline: the baseline's output.
          digests: of the records.
          image: makes the picture of an example.
        """
        if not isinstance(part, Segmentation) or scores.shape != baseline.shape:
            return part
        labels, own, other = self.pixels(label), self.decided(scores), self.decided(baseline)
        differing = (own != other).mean(axis=(1, 2))
        if self.ignored is not None:
            labels = np.where(labels == self.ignored, 255, labels)
        masks = tuple(
            Mask(
                float(differing[row]),
                int(digests[row]),
                image(row),
                *(smaller(each[row]) for each in (labels, other, own)),
            )
            for row in np.lexsort((digests, -differing))[:MASKS]
        )
        return dataclasses.replace(part, masks=masks)

    def report(self, part: Part, draw: Callable[[np.ndarray], str]) -> OutputReport:
        """Returns what the report says of a part.

        Args:
          part: of this output.
          draw: makes a data URI of a picture, uint8, shape [height, width] or [height, width, 3].
        """
        if isinstance(part, Classification) and self.task is not None:
            return OutputReport(output=self.name, classification=part.report(self.task))
        if isinstance(part, Regression):
            return OutputReport(output=self.name, regression=part.report())
        if isinstance(part, Tags):
            return OutputReport(output=self.name, tags=part.report())
        if not isinstance(part, Segmentation):
            raise TypeError(f"{part!r} is no part of {self.name}")
        masks = tuple(
            MaskReport(
                differing=mask.differing,
                image=None if mask.image is None else draw(mask.image),
                label=draw(_colored(mask.label)),
                baseline=draw(_colored(mask.baseline)),
                candidate=draw(_colored(mask.predicted)),
            )
            for mask in part.masks
        )
        return OutputReport(output=self.name, segmentation=SegmentationReport(per_class=part.report(), masks=masks))


def find(metrics: CompiledMetrics, names: list[str]) -> dict[str, Output]:
    """Returns the outputs of which more is measured than the metrics, by name.

    A classifier with one output is not among them: it is measured on its own, with slices and flips.

    Args:
      metrics: that have seen a batch.
      names: of the outputs, in the model's order.
    """
    outputs = {}
    for place, loss, label, predicted in metrics.compiled_outputs():
        name = names[place]
        if len(names) == 1 and Task.of_output(loss, metrics.model.outputs[place], name) is not None:
            continue
        output = _output(place, name, loss, metrics.model.outputs[place], tuple(label), tuple(predicted))
        if output is not None:
            outputs[name] = output
    return outputs


def _output(
    place: int, name: str, loss: Any, tensor: Any, label: tuple[Any, ...], predicted: tuple[Any, ...]
) -> Output | None:
    function = getattr(loss, "fn", loss)
    if any(known is function for known in _OF_NUMBERS):
        numbers = math.prod(size or MOST_NUMBERS + 1 for size in predicted[1:])
        return Output(place, name, "numbers") if label[1:] == predicted[1:] and numbers <= MOST_NUMBERS else None
    kind = next((kind for known, kind in KINDS.items() if known is function), None)
    if kind is None:
        return None
    task = Task.of_output(loss, tensor, name)
    if task is not None:
        return Output(place, name, "classes", task=task)
    from_logits = takes_logits(loss) and not ends_in_probabilities(tensor, kind)
    if kind == "binary" and len(predicted) == 2 and label[1:] == predicted[1:]:
        return Output(place, name, "tags", classes=int(predicted[1]), from_logits=from_logits)
    classes = 2 if kind == "binary" else int(predicted[-1])
    if len(predicted) == 4 and classes <= MOST_CLASSES and (predicted[-1] == 1) == (kind == "binary"):
        config = loss.get_config() if isinstance(loss, _LOSSES.Loss) else {}
        ignored = config.get("ignore_class")
        return Output(place, name, "pixels", labels=kind, classes=classes, from_logits=from_logits, ignored=ignored)
    return None


def _colored(mask: np.ndarray) -> np.ndarray:
    """Returns class numbers as colours that are far apart, uint8, shape [height, width, 3]: those of PASCAL VOC."""
    numbers = np.arange(256)
    palette = np.zeros([256, 3], np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette[mask]
