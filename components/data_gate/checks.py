"""Reads what TFX's validator has found, and measures how far the data have moved.

TensorFlow Data Validation compares numbers by their distribution (a feature of several numbers as one heap of them) and
categories by their shares. Of other bytes, such as images and texts, it knows presence, count and size only: they are
checked against the schema, but never drift.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tensorflow as tf
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from edgeline import files

STATISTICS_FILE = "FeatureStats.pb"
ANOMALIES_FILE = "SchemaDiff.pb"

_MEASURES = {
    anomalies_pb2.DriftSkewInfo.Measurement.JENSEN_SHANNON_DIVERGENCE: "Jensen-Shannon divergence",
    anomalies_pb2.DriftSkewInfo.Measurement.L_INFTY: "largest difference of a share",
    anomalies_pb2.DriftSkewInfo.Measurement.NORMALIZED_ABSOLUTE_DIFFERENCE: "normalized absolute difference",
}


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far a feature of the training split is from what it is compared with.

    Attributes:
      feature: its name.
      since: `the last run` (drift) or `the eval split` (skew).
      measure: in words.
      value: of the measure.
      allowed: the most that it may be.
    """

    feature: str
    since: str
    measure: str
    value: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.feature}: {self.measure} from {self.since} {self.value:.3f}, allowed {self.allowed:g}"


def breaches(anomalies_uri: str) -> list[str]:
    """Returns what TFX's ExampleValidator has found, `feature (split): what`; its mere warnings are left out."""
    lines = []
    for folder in sorted(Path(anomalies_uri).glob("Split-*")):
        split = folder.name.removeprefix("Split-")
        anomalies = anomalies_pb2.Anomalies.FromString((folder / ANOMALIES_FILE).read_bytes())
        if anomalies.data_missing:
            lines.append(f"all features ({split}): the split has no examples")
        for info in (*anomalies.anomaly_info.values(), anomalies.dataset_anomaly_info):
            if info.reason and info.severity != anomalies_pb2.AnomalyInfo.WARNING:
                reasons = "; ".join(reason.description.strip().rstrip(".") for reason in info.reason)
                lines.append(f"{'.'.join(info.path.step) or 'all features'} ({split}): {reasons}")
    return sorted(lines)


def distances(
    statistics_uri: str,
    schema: schema_pb2.Schema,
    max_drift: float | None,
    last: statistics_pb2.DatasetFeatureStatisticsList | None,
) -> tuple[list[Distance], anomalies_pb2.Anomalies]:
    """Measures how far the training split is from the eval split and from the last run's.

    Args:
      statistics_uri: of TFX's StatisticsGen.
      schema: its comparators count; is changed: features that may have some, and have none, get one.
      max_drift: of those; None: they get none.
      last: the last run's statistics of the training split; None: there was none.

    Returns:
      Every distance that is larger than allowed, and all that was measured, as TensorFlow Data Validation says it.
    """
    if max_drift is not None:
        _add_comparators(schema, max_drift)
    measured = tfdv.validate_statistics(
        read(statistics_uri, "train"),
        schema,
        previous_statistics=last,
        serving_statistics=read(statistics_uri, "eval"),
    )
    found = [
        Distance(".".join(info.path.step), since, _MEASURES.get(m.type, "distance"), m.value, m.threshold)
        for info in measured.drift_skew_info
        for since, measurements in (
            ("the last run", info.drift_measurements),
            ("the eval split", info.skew_measurements),
        )
        for m in measurements
        if m.value > m.threshold
    ]
    return found, measured


def _add_comparators(schema: schema_pb2.Schema, threshold: float) -> None:
    for feature in schema.feature:
        is_category = bool(feature.domain) or feature.HasField("string_domain") or feature.int_domain.is_categorical
        if not is_category and feature.type not in (schema_pb2.INT, schema_pb2.FLOAT):
            continue
        for comparator in (feature.drift_comparator, feature.skew_comparator):
            if not comparator.ListFields():
                measure = comparator.infinity_norm if is_category else comparator.jensen_shannon_divergence
                measure.threshold = threshold


def read(statistics_uri: str, split: str) -> statistics_pb2.DatasetFeatureStatisticsList:
    """Returns the statistics of a split from an artifact of TFX's StatisticsGen."""
    content = Path(statistics_uri, f"Split-{split}", STATISTICS_FILE).read_bytes()
    return statistics_pb2.DatasetFeatureStatisticsList.FromString(content)


def read_last(folder: str | None) -> statistics_pb2.DatasetFeatureStatisticsList | None:
    """Returns the statistics that were kept last, None where there are none."""
    if folder is None:
        return None
    try:
        content = files.read_bytes(f"{folder}/{STATISTICS_FILE}")
    except FileNotFoundError:
        return None
    return statistics_pb2.DatasetFeatureStatisticsList.FromString(content)


def keep(statistics: statistics_pb2.DatasetFeatureStatisticsList, folder: str | None) -> None:
    """Keeps statistics for the next run to compare with, at once; does nothing where no folder is given."""
    if folder is None:
        return
    tf.io.gfile.makedirs(folder)
    files.write_bytes(f"{folder}/{STATISTICS_FILE}", statistics.SerializeToString(deterministic=True))
