"""The schema of a data folder, inferred by TensorFlow Data Validation."""

from __future__ import annotations

from pathlib import Path

from edgeline.data import data_folder
from edgeline.data.data_folder import SHARD_SUFFIX
from edgeline.deployed import contract

#: Longer values on average are no names of anything: images, texts.
_LONGEST_CATEGORY = 64


def infer_schema(data: Path) -> tuple[str, list[str]]:
    """Returns a schema for the examples of a data folder, as text, and the names of its features.

    It is what TensorFlow Data Validation infers from all splits, but for two things: long values, and
    those that are no text, are no categories, even if there are few of them; and whole numbers get a range: `label`
    that of the classes where the folder has a labels.txt, else the one that was found.
    """
    import tensorflow_data_validation as tfdv
    from apache_beam.options.pipeline_options import PipelineOptions
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    statistics = tfdv.generate_statistics_from_tfrecord(
        str(data / "*" / f"*{SHARD_SUFFIX}"), pipeline_options=PipelineOptions(["--runner=FnApiRunner"])
    )
    schema = tfdv.infer_schema(statistics)
    by_name = {feature.path.step[0]: feature for feature in statistics.datasets[0].features}
    names = {domain.name: domain.value for domain in schema.string_domain}
    classes = data / data_folder.LABELS_FILE
    for feature in schema.feature:
        found = by_name[feature.name]
        values = names.get(feature.domain, [])
        if found.string_stats.avg_length > _LONGEST_CATEGORY or not all(map(str.isprintable, values)):
            feature.ClearField("domain")
        elif feature.type == schema_pb2.INT and feature.name == "label" and classes.is_file():
            feature.int_domain.min, feature.int_domain.max = 0, len(contract.read_labels(classes.read_bytes())) - 1
        elif feature.type == schema_pb2.INT:
            feature.int_domain.min, feature.int_domain.max = int(found.num_stats.min), int(found.num_stats.max)
    used = {feature.domain for feature in schema.feature}
    domains = [domain for domain in schema.string_domain if domain.name in used]
    del schema.string_domain[:]
    schema.string_domain.extend(domains)
    return text_format.MessageToString(schema), [feature.name for feature in schema.feature]
