"""`edgeline kubeflow compile`: what the user gives, gets and reads."""

from pathlib import Path

import pytest
import yaml

from edgeline.pipelines import cli

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
    return cli.main(["kubeflow", "compile", *(part for pair in given.items() for part in pair if pair[1]), *more])


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
        ({"settings": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"output": "nowhere/pipeline.yaml"}, "the folder nowhere does not exist"),
    ],
)
def test_mistakes(changed: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_with(tmp_path, **changed) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pipeline.yaml").exists()
