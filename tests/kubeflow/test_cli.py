"""`edgeline kubeflow compile`: what the user gives, gets and reads."""

import json
from pathlib import Path

import pytest
import tensorflow as tf
import yaml

from edgeline.pipelines.cli import main

pytest.importorskip("kfp")
pytestmark = pytest.mark.kubeflow

GIVEN = {
    "--image": "registry.example/edgeline@sha256:" + "a" * 64,
    "--pipeline-root": "s3://bucket/edgeline/Digits_v2/",
    "--data": "s3://bucket/data",
    "--module": "edgeline.pipelines.examples.digits.model",
    "--recipe": "prune80_int8",
}


def compile_with(folder: Path, *more: str, **changed: str) -> int:
    given = {
        **GIVEN,
        "--output": str(folder / "pipeline.yaml"),
        **{f"--{k.replace('_', '-')}": v for k, v in changed.items()},
    }
    return main.main(["kubeflow", "compile", *(part for pair in given.items() for part in pair if pair[1]), *more])


def test_the_options_become_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.yaml").write_text("steps: {Trainer: {memory: 2Gi, timeout_seconds: 60}}")
    options = ("--epochs", "9", "--max-drop", "0.25", "--no-cache", "--settings", str(tmp_path / "settings.yaml"))
    assert compile_with(tmp_path, *options) == 0
    spec, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert (parameters["epochs"]["defaultValue"], parameters["max_drop"]["defaultValue"]) == (9, 0.25)
    assert spec["pipelineInfo"]["name"] == "digits-v2"  # the last part of the root, as for a local run
    assert spec["defaultPipelineRoot"] == GIVEN["--pipeline-root"]
    assert not any("cachingOptions" in task for task in spec["root"]["dag"]["tasks"].values())
    assert "exec-Trainer" in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert "pipeline digits-v2 for --target oss, 1 candidates" in capsys.readouterr().out


def test_the_budget_is_judged_by_several_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_with(tmp_path, "--metric", "loss:min:0.5", "--metric", "accuracy") == 0
    spec = yaml.safe_load((tmp_path / "pipeline.yaml").read_text().partition("\n---\n")[0])
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["metric"] == {"parameterType": "STRING", "defaultValue": '["loss:min:0.5", "accuracy"]'}
    (tmp_path / "pipeline.yaml").unlink()
    assert compile_with(tmp_path, "--metric", "accuracy", "--metric", "auc") == 2
    assert "the budget's metric 'auc' is not compiled by the model module" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "pipeline.yaml").exists()


def test_the_date_in_the_data_is_left_to_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dated = "s3://bucket/{YYYY}/{MM}-{DD}"
    assert compile_with(tmp_path, data=dated) == 0
    spec = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
    assert spec["root"]["inputDefinitions"]["parameters"]["data"]["defaultValue"] == dated
    for data, said in (
        ("s3://bucket/[[ScheduledTime.2006-01-02]]", "never fills in [[ScheduledTime]]"),
        ("s3://bucket/{SPAN}", "{SPAN} is no field of a date"),
    ):
        assert compile_with(tmp_path, data=data) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    vertex = {"target": "vertex", "pipeline_root": "gs://b/digits", "data": "gs://b/{YYYY}"}
    assert compile_with(tmp_path, **vertex) == 2
    assert "nothing fills in the date on Vertex" in " ".join(capsys.readouterr().err.split())


def test_where_the_model_runs_and_whose_place_it_takes(tmp_path: Path) -> None:
    """`--target` is the cluster here; of a file only its contract travels, as the file is not on the cluster."""
    model = tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(lambda x: {"y": x + 1.0}).get_concrete_function(tf.TensorSpec([1, 2], name="x"))], tf.Module()
    )
    (tmp_path / "old.tflite").write_bytes(model.convert())
    more = ("--runs-on", "micro", "--like", str(tmp_path / "old.tflite"))
    assert compile_with(tmp_path, *more, recipe="prune80_int8_io") == 0
    spec = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
    assert spec["root"]["inputDefinitions"]["parameters"]["target"]["defaultValue"] == "micro"
    tasks = spec["root"]["dag"]["tasks"]
    [evaluator] = [task["inputs"]["parameters"] for task in tasks.values() if "like" in task["inputs"]["parameters"]]
    like = json.loads(evaluator["like"]["runtimeValue"]["constant"])
    assert (like["of"], like["contract"]["inputs"]) == (
        "old.tflite", [{"name": "x", "shape": [1, 2], "dtype": "float32"}],
    )  # fmt: skip
    asked = [task["inputs"]["parameters"].get("one_example") for task in tasks.values()]
    exporters = [value["runtimeValue"]["constant"] for value in asked if value]
    assert exporters == [1, 1]


def test_where_the_gate_keeps_the_last_statistics(tmp_path: Path) -> None:
    def kept(*more: str, **changed: str) -> str:
        assert compile_with(tmp_path, *more, schema="gs://b/schema", **changed) == 0
        spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
        found = spec["root"]["dag"]["tasks"]["DataGate"]["inputs"]["parameters"]
        return str(found["last_statistics"]["runtimeValue"]["constant"])

    assert kept() == "none"
    assert kept(last_statistics="gs://b/last") == "gs://b/last"
    (tmp_path / "settings.yaml").write_text("steps: {DataGate: {volumes: [{claim: data, path: /mnt/data}]}}")
    assert kept("--settings", str(tmp_path / "settings.yaml"), last_statistics="/mnt/data/last") == "/mnt/data/last"
    vertex = {"target": "vertex", "pipeline_root": "gs://b/digits", "data": "gs://b/data"}
    assert kept(**vertex) == "gs://b/digits/last_statistics"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"module": "models/cnn.py"}, "--module models/cnn.py is a file of this machine"),
        ({"module": "no.such.module"}, "no.such.module"),
        ({"image": "edgeline:latest"}, "--image must name an image by digest"),
        ({"image": ""}, "--image must name an image by digest"),
        ({"pipeline_root": ""}, "--pipeline-root must be gs://BUCKET/PATH or s3://BUCKET/PATH"),
        ({"target": "vertex"}, "--pipeline-root must be gs://BUCKET/PATH for --target vertex"),
        ({"data": "data/digits"}, "--data must be"),
        ({"name": "My Pipeline"}, "--name must have small letters, digits and hyphens only"),
        ({"recipe": "prune80_int9"}, "did you mean prune80_int8?"),
        ({"epochs": "0"}, "Train.epochs must be at least 1"),
        ({"push_to": "/mnt/models"}, "no volume is mounted there"),
        ({"schema": "schema.pbtxt"}, "--schema must be gs://BUCKET/PATH or s3://BUCKET/PATH"),
        ({"max_drift": "0.5"}, "--max-drift and --allow-drift need --schema"),
        ({"last_statistics": "gs://b/last"}, "--last-statistics needs --schema"),
        (
            {"schema": "s3://b/schema", "last_statistics": "/mnt/last"},
            "must be a gs:// URI or a path in a volume that the settings file mounts for the DataGate, received '/mnt",
        ),
        ({"settings": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"output": "nowhere/pipeline.yaml"}, "the folder nowhere does not exist"),
    ],
)
def test_mistakes(changed: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_with(tmp_path, **changed) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pipeline.yaml").exists()


def test_weights_to_begin_with_travel_as_path_and_digest(tmp_path: Path) -> None:
    assert compile_with(tmp_path, "--warm-start", "gs://b/run/model@sha256:" + "c" * 64) == 0
    spec = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
    tasks = spec["root"]["dag"]["tasks"].values()
    [given] = [task["inputs"]["parameters"] for task in tasks if task["taskInfo"]["name"] == "Trainer"]
    constants = {name: given[name]["runtimeValue"]["constant"] for name in ("warm_start", "warm_start_digest")}
    assert constants == {"warm_start": "gs://b/run/model/Format-Keras/model.keras", "warm_start_digest": "c" * 64}


def test_a_cluster_does_not_know_the_latest_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_with(tmp_path, "--warm-start", "latest") == 2
    assert "give the path or URI of the Trainer's Model" in capsys.readouterr().err
