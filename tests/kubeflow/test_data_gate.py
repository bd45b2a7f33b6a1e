"""The checks of the data in a compiled pipeline: TFX's own steps and the gate behind them, run as on a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from launcher import Cluster
from tfx.dsl.components.common.importer import Importer
from tfx.orchestration.pipeline import Pipeline
from tfx.types.standard_artifacts import Examples, Schema

from edgeline.data_gate.config import Gate
from edgeline.errors import UserError
from edgeline.kubeflow import compile as compiler
from edgeline.kubeflow.deployment import Deployment
from edgeline.model_module import module_source
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.job import Job
from edgeline.pipelines.run.local_runner import BEAM_ARGS

pytestmark = pytest.mark.kubeflow

IMAGE = "registry.example/edgeline@sha256:" + "a" * 64
ROOT = "minio://mlpipeline/v2/artifacts"

SCHEMA = """
feature { name: "label" type: INT int_domain { min: 0 max: 2 } presence { min_fraction: 1 } shape { dim { size: 1 } } }
"""


def compiled(last_statistics: Path) -> str:
    """The checks of a whole pipeline, without what comes after."""
    examples = Importer(
        source_uri="minio://mlpipeline/data",
        artifact_type=Examples,
        properties={"split_names": json.dumps(["train", "eval"])},
        custom_properties={"file_format": "tfrecords_gzip", "payload_format": "FORMAT_TF_EXAMPLE"},
        output_key="examples",
    ).with_id("Examples")
    uri = "minio://mlpipeline/schema"
    schema = Importer(source_uri=uri, artifact_type=Schema, output_key="schema").with_id("Schema")
    run = Job(
        module_source.locate("edgeline.pipelines.examples.digits.model"),
        (recipes.float16(),),
        gate=Gate(last_statistics=str(last_statistics)),
    )
    nodes = compression.create_components(
        "digits", run, examples=examples, schema=schema, push_to="/tmp/none", beam_args=BEAM_ARGS
    )
    checks = nodes[: [node.id for node in nodes].index("DataGate") + 1]
    pipeline = Pipeline(pipeline_name="digits", pipeline_root=ROOT, components=checks)
    return compiler.compile_pipeline(pipeline, Deployment("oss", IMAGE, ROOT))


def run(folder: Path, labels: list[int]) -> Any:
    cluster = Cluster(folder / f"cluster{len(list(folder.iterdir()))}")
    for split in ("train", "eval"):
        shards = cluster.path("minio://mlpipeline/data") / f"Split-{split}"
        shards.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(shards / "data.tfrecord.gz"), "GZIP") as writer:
            for label in labels:
                feature = {"label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))}
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    schema = cluster.path("minio://mlpipeline/schema")
    schema.mkdir(parents=True)
    (schema / "schema.pbtxt").write_text(SCHEMA)
    return cluster.run(compiled(folder / "last"), ROOT).artifacts["DataGate"]["drift"]


@pytest.mark.slow
def test_the_checks_run_on_a_cluster(tmp_path: Path) -> None:
    drift = run(tmp_path, [0, 1, 2] * 20)
    assert drift.metadata["drifted"] == "[]"
    assert (tmp_path / "last" / "FeatureStats.pb").is_file()
    with pytest.raises(UserError, match="the data have moved, in label:"):
        run(tmp_path, [0] * 60)
    with pytest.raises(UserError, match=r"the data break the schema, in label:\n  label \(eval\): .*large value: 7"):
        run(tmp_path, [0, 1, 7] * 20)
