"""What a classifier gets right, confuses and how sure it is of it, as counts that add up over batches and shards."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.report.schema import CalibrationBin, ClassificationReport, ClassReport, TagReport

#: Above this many classes nobody reads a confusion matrix, and its square would be most of a state.
MAX_CONFUSION_CLASSES = 200

#: A label counts as a top-k hit for these k, as far as they are below the number of classes.
TOP_K = (1, 2, 3, 5)

#: Equal-width bins of the calibration error, as many as in Guo et al.
BINS = 15

#: Keras' epsilon: the least probability whose logarithm is taken.
EPSILON = 1e-7

Kind = Literal["sparse", "categorical", "binary"]

#: How labels are written, by the loss.
KINDS: dict[Any, Kind] = {
    tf_keras.losses.sparse_categorical_crossentropy: "sparse",
    tf_keras.losses.categorical_crossentropy: "categorical",
    tf_keras.losses.categorical_focal_crossentropy: "categorical",
    tf_keras.losses.binary_crossentropy: "binary",
    tf_keras.losses.binary_focal_crossentropy: "binary",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """How to read a classifier's labels and scores.

    Attributes:
      classes: how many, at least 2.
      kind: of the labels: class numbers ("sparse"), one-hot ("categorical"), or 0 and 1 beside one score ("binary").
      from_logits: whether the scores are logits; probabilities otherwise.
      output: name of the model's only output.
    """

    classes: int
    kind: Kind
    from_logits: bool
    output: str

    @classmethod
    def of(cls, model: tf_keras.Model, output_names: list[str]) -> Task | None:
        """Returns how to read a compiled model as a classifier, judged by its loss; None if it is not one.

        A classifier has exactly one output: [n, classes] under a (sparse) categorical cross-entropy, or [n, 1] under a
        binary one; focal losses count alike. Where the loss expects logits of a model that ends in a softmax or
        sigmoid, the scores are probabilities: Keras too then takes the logits from in front of it.

        Args:
          model: with defined outputs, compiled.
          output_names: under which the outputs are known, in the model's order.
        """
        losses = tf.nest.flatten(model.loss)
        if len(output_names) != 1 or len(model.outputs) != 1 or len(losses) != 1:
            return None
        return cls.of_output(tf_keras.losses.get(losses[0]), model.outputs[0], output_names[0])

    @classmethod
    def of_output(cls, loss: Any, output: Any, name: str) -> Task | None:
        """Returns how to read one output of a model as classes of whole examples; None if it is none; see `of`.

        Args:
          loss: of the output, Keras' own object or function.
          output: the model's symbolic tensor.
          name: under which it is known.
        """
        config = loss.get_config() if isinstance(loss, tf_keras.losses.Loss) else {}
        # Keras' own losses are such functions, wrapped
        function = getattr(loss, "fn", loss)
        kind = next((kind for known, kind in KINDS.items() if known is function), None)
        shape = output.shape
        # with a class to ignore not every example has a label: segmentation
        if kind is None or config.get("ignore_class") is not None or shape.rank != 2 or shape[1] is None:
            return None
        if (shape[1] == 1) != (kind == "binary"):
            return None
        from_logits = takes_logits(loss) and not ends_in_probabilities(output, kind)
        return cls(2 if kind == "binary" else int(shape[1]), kind, from_logits, name)

    def read(self, label: Any, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the labels, int64 [n], the probabilities, float64 [n, classes], and the predicted classes, int64 [n].

        The prediction is the class of the highest score, the first of several; of a binary score the second class from
        above a probability of 0.5. Probabilities are scaled to a sum of 1, as Keras does: those of quantized models are
        a little off. Where all are zero, every class is as likely.

        Args:
          label: as `preprocess` returns it, batched: [n] or [n, 1], one-hot [n, classes]; also alone in a dict or list.
            Soft labels mean the likeliest class.
          scores: the output, finite, [n, classes] or [n, 1].

        Raises:
          ValueError: labels and scores do not go together, or a label is not one of the classes.
        """
        scores = np.asarray(scores)
        if self.kind == "binary":
            score = scores.astype(np.float64)
            # softmax over (0, x) is sigmoid of x
            scores = np.concatenate([np.zeros_like(score) if self.from_logits else 1 - score, score], axis=1)
        labels = self.labels(label, len(scores))
        predicted = scores.argmax(axis=1)
        probabilities = scores.astype(np.float64)
        if self.from_logits:
            probabilities -= np.take_along_axis(probabilities, predicted[:, None], axis=1)
            np.exp(probabilities, out=probabilities)
        else:
            np.maximum(probabilities, 0, out=probabilities)
        total = probabilities.sum(axis=1, keepdims=True)
        if not total.all():
            probabilities[total[:, 0] == 0] = 1
            total[total == 0] = self.classes
        probabilities /= total
        return labels, probabilities, predicted.astype(np.int64, copy=False)

    def labels(self, label: Any, rows: int) -> np.ndarray:
        """Returns the labels as class numbers, int64 [n]; see `read`, of which it is a part."""
        while isinstance(label, dict | list | tuple):
            (label,) = label.values() if isinstance(label, dict) else label
        values = np.asarray(label)
        shapes = [(rows, self.classes)] if self.kind == "categorical" else [(rows,), (rows, 1)]
        if values.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"labels of {self.output} have shape {list(values.shape)}, expected {expected}")
        if self.kind == "categorical":
            return values.argmax(axis=1).astype(np.int64, copy=False)
        values = values.reshape(-1)
        # this way round NaN is found as well
        outside = ~((values >= 0) & (values <= self.classes - 1))
        if outside.any():
            raise ValueError(f"label {values[outside][0]} of {self.output} is not in [0, {self.classes})")
        return (values > 0.5 if self.kind == "binary" else values).astype(np.int64)


def takes_logits(loss: Any) -> bool:
    """Returns whether a loss takes logits for probabilities."""
    config = loss.get_config() if isinstance(loss, tf_keras.losses.Loss) else {}
    return bool(config.get("from_logits", False))


def ends_in_probabilities(output: Any, kind: Kind) -> bool:
    """Returns whether a symbolic output comes straight from a softmax, or sigmoid for binary labels."""
    history = output._keras_history
    # into nested models, but not into subclassed ones: these do not know their layers' order
    while getattr(history.layer, "outputs", None):
        history = history.layer.outputs[history.tensor_index]._keras_history
    layer = history.layer
    if kind == "binary":
        return getattr(layer, "activation", None) in (tf_keras.activations.sigmoid, tf.sigmoid)
    softmax = (tf_keras.activations.softmax, tf.nn.softmax)
    return isinstance(layer, tf_keras.layers.Softmax) or getattr(layer, "activation", None) in softmax


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """What one classifier did on some examples. Every example counts once: weights of examples play no part here.

    Attributes:
      confusion: int64 [classes, classes], rows are labels, columns predictions; None above `MAX_CONFUSION_CLASSES`.
      examples: of each label, int64 [classes].
      predicted: how often each class was predicted, int64 [classes].
      hits: how often rightly, int64 [classes].
      top_hits: of each of `TOP_K` below the number of classes, int64.
      log_loss: sum of the examples' -log p(label), no p below `EPSILON`.
      bin_examples: by the predicted class's probability, int64 [BINS]; bin b holds (b / BINS, (b + 1) / BINS].
      bin_confidence: sum of those probabilities, float64 [BINS].
      bin_hits: how many predictions in the bin were right, int64 [BINS].
    """

    confusion: np.ndarray | None
    examples: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    top_hits: np.ndarray
    log_loss: float
    bin_examples: np.ndarray
    bin_confidence: np.ndarray
    bin_hits: np.ndarray

    @classmethod
    def of(cls, task: Task, labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> Classification:
        """Returns the state of one batch, also of an empty one.

        The label is a top-k hit if fewer than k classes are strictly more probable, the rule of `tf.math.in_top_k` and
        Keras' top-k accuracies. So of equal classes all are hits, and top-1 can exceed the accuracy.

        Args:
          task: of the model.
          labels: int64 [n], and the rest as `Task.read` returns them, or the same rows of each.
          probabilities: float64 [n, classes].
          predicted: int64 [n].
        """
        classes, rows = task.classes, np.arange(len(labels))
        confusion = None
        if classes <= MAX_CONFUSION_CLASSES:
            pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
            confusion = pairs.reshape(classes, classes)
        right = labels == predicted
        of_label = probabilities[rows, labels]
        better = np.count_nonzero(probabilities > of_label[:, None], axis=1)
        confidence = probabilities[rows, predicted]
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        return cls(
            confusion=confusion,
            examples=np.bincount(labels, minlength=classes),
            predicted=np.bincount(predicted, minlength=classes),
            hits=np.bincount(labels[right], minlength=classes),
            top_hits=np.array([np.count_nonzero(better < k) for k in _top_k(classes)]),
            log_loss=-float(np.log(np.maximum(of_label, EPSILON)).sum()),
            bin_examples=np.bincount(bins, minlength=BINS),
            bin_confidence=np.bincount(bins, confidence, minlength=BINS),
            bin_hits=np.bincount(bins[right], minlength=BINS),
        )

    def __add__(self, other: Classification) -> Classification:
        total: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            total[field.name] = None if mine is None else mine + theirs
        return Classification(**total)

    def report(self, task: Task) -> ClassificationReport:
        """Returns what the report says of it.

        The expected calibration error is ECE = sum over bins of |B| / n * |accuracy(B) - confidence(B)| (Naeini et al.,
        Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015; with the predicted class's probability as
        confidence: Guo et al., On Calibration of Modern Neural Networks, 2017).

        Raises:
          ValueError: no examples went into it.
        """
        count = int(self.examples.sum())
        if not count:
            raise ValueError("no examples were evaluated")
        per_class = zip(self.hits.tolist(), self.predicted.tolist(), self.examples.tolist(), strict=True)
        bins = zip(self.bin_confidence.tolist(), self.bin_hits.tolist(), self.bin_examples.tolist(), strict=True)
        return ClassificationReport(
            output=task.output,
            classes=task.classes,
            confusion=None if self.confusion is None else tuple(map(tuple, self.confusion.tolist())),
            top_k={str(k): int(hits) / count for k, hits in zip(_top_k(task.classes), self.top_hits, strict=True)},
            per_class=tuple(
                ClassReport(
                    precision=hits / predicted if predicted else None,
                    recall=hits / examples if examples else None,
                    examples=examples,
                )
                for hits, predicted, examples in per_class
            ),
            log_loss=self.log_loss / count,
            ece=float(np.abs(self.bin_hits - self.bin_confidence).sum()) / count,
            bins=tuple(
                CalibrationBin(confidence=confidence / size, accuracy=hits / size, count=size)
                for confidence, hits, size in bins
                if size
            ),
        )


def _top_k(classes: int) -> list[int]:
    return [k for k in TOP_K if k < classes]


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
