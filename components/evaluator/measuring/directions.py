"""Whether more or less of a compiled metric is better, by its class."""

from __future__ import annotations

from typing import Any

import tf_keras

from edgeline.budget import direction_of

_METRICS = tf_keras.metrics

#: Of Keras' own classes, and of those that are derived from them and compute the same.
_KINDS: dict[str, tuple[Any, ...]] = {
    "max": (
        *(_METRICS.AUC, _METRICS.Precision, _METRICS.Recall, _METRICS.FBetaScore, _METRICS.IoU, _METRICS.R2Score),
        *(_METRICS.PrecisionAtRecall, _METRICS.RecallAtPrecision),
        *(_METRICS.SensitivityAtSpecificity, _METRICS.SpecificityAtSensitivity),
        *(_METRICS.TopKCategoricalAccuracy, _METRICS.SparseTopKCategoricalAccuracy),
        *(_METRICS.TruePositives, _METRICS.TrueNegatives),
    ),
    "min": (
        *(_METRICS.FalsePositives, _METRICS.FalseNegatives),
        *(_METRICS.MeanRelativeError, _METRICS.RootMeanSquaredError),
    ),
}


def _result(metric: Any) -> Any:
    return type(metric).result


def of_metric(metric: tf_keras.metrics.Metric) -> str | None:
    """Returns `max` if more of a metric is better, `min` if less is; None where its class does not tell.

    A mean of a function (`metrics=["mae"]`, `MeanAbsoluteError`) goes by the function, whatever the metric is called.
    """
    for direction, kinds in _KINDS.items():
        # one that computes something else of it, such as its complement, is nobody's
        if any(isinstance(metric, kind) and _result(metric) is kind.result for kind in kinds):
            return direction
    function = getattr(metric, "_fn", None) if isinstance(metric, _METRICS.MeanMetricWrapper) else None
    return direction_of(getattr(function, "__name__", "")) if function is not None else None
