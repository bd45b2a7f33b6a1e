"""When a metric has no value: Keras says 0.0 where it divides nothing by nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

#: Why a mean has no value.
NOTHING_COUNTS = "no example counts: all have weight 0, or are masked or ignored"

_NO_POSITIVE = "no example has a positive label"
_NO_NEGATIVE = "no example has a negative label"


def reason(metric: tf_keras.metrics.Metric) -> str | None:
    """Returns why a metric that is no mean has no value after what it was updated with; None: it has one.

    Only Keras' own metrics, and what is derived from them, are known; all others count as defined.
    """
    for kind, why in _KINDS.items():
        if isinstance(metric, kind):
            return why(metric)
    return None


def _counts(*variables: Any) -> np.ndarray:
    """Returns a sum of counts, float64, shape [thresholds], [thresholds, labels], [classes] or []."""
    return np.asarray(sum(variable.numpy().astype(np.float64) for variable in variables))


def _positives(metric: Any) -> np.ndarray:
    """Returns how many examples (by weight) have a positive label, of each label."""
    # at every threshold there are as many
    return np.atleast_1d(_counts(metric.true_positives, metric.false_negatives))[0]


def _negatives(metric: Any) -> np.ndarray:
    return np.atleast_1d(_counts(metric.true_negatives, metric.false_positives))[0]


def _of_labels(which: np.ndarray, why: str) -> str | None:
    """Returns a reason with the labels it is true of, where there are several."""
    if not which.any():
        return None
    return why if which.ndim == 0 else f"{why} of tag {', '.join(map(str, np.flatnonzero(which)))}"


def _auc(metric: Any) -> str | None:
    no_positive = _of_labels(_positives(metric) == 0, _NO_POSITIVE)
    if no_positive is not None or metric.curve.value == "PR":
        return no_positive
    return _of_labels(_negatives(metric) == 0, _NO_NEGATIVE)


def _both(metric: Any) -> str | None:
    if _positives(metric) == 0:
        return _NO_POSITIVE
    return _NO_NEGATIVE if _negatives(metric) == 0 else None


def _recall(metric: Any) -> str | None:
    return _NO_POSITIVE if (_counts(metric.true_positives, metric.false_negatives) == 0).any() else None


def _precision(metric: Any) -> str | None:
    no_prediction = (_counts(metric.true_positives, metric.false_positives) == 0).any()
    return "no example is predicted to be positive" if no_prediction else None


def _f_beta(metric: Any) -> str | None:
    counts = _counts(metric.true_positives, metric.false_positives, metric.false_negatives)
    return "no example has a positive label or is predicted to be positive" if (counts == 0).all() else None


def _iou(metric: Any) -> str | None:
    matrix = metric.total_cm.numpy()
    seen = (matrix.sum(axis=0) + matrix.sum(axis=1))[list(metric.target_class_ids)]
    return None if seen.any() else "no element has one of the classes or is predicted to have one"


def _r2(metric: Any) -> str | None:
    count = metric.count.numpy()
    if not count.all():
        return NOTHING_COUNTS
    spread = metric.squared_sum.numpy() - metric.sum.numpy() ** 2 / count
    return "all labels are equal" if (spread <= 0).any() else None


_METRICS = tf_keras.metrics
#: By the class of a metric, what says why it has no value; the first that fits.
_KINDS: dict[type, Callable[[Any], str | None]] = {
    _METRICS.AUC: _auc,
    _METRICS.PrecisionAtRecall: _recall,
    _METRICS.RecallAtPrecision: _recall,
    _METRICS.SensitivityAtSpecificity: _both,
    _METRICS.SpecificityAtSensitivity: _both,
    _METRICS.Recall: _recall,
    _METRICS.Precision: _precision,
    _METRICS.FBetaScore: _f_beta,
    _METRICS.IoU: _iou,
    _METRICS.R2Score: _r2,
}
