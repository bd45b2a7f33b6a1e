"""The settings file and the deployment: every mistake is one clear message."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeline.errors import UserError
from edgeline.kubeflow import settings
from edgeline.kubeflow.deployment import Deployment, check_module, check_uri

DIGEST = "registry.example/edgeline@sha256:" + "a" * 64


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_the_documented_file_is_valid(tmp_path: Path) -> None:
    assert settings.__doc__ is not None
    loaded = settings.load(write(tmp_path, settings.__doc__.partition("\n\n")[2]))
    assert set(loaded.steps) == {"Trainer", "Evaluator"}
    assert loaded.of("Trainer")["cpu"] == {"request": 2, "limit": 4}
    assert loaded.of("Pruner.prune80") == {"cpu": 1, "memory": "4Gi", "retries": 2}


def test_the_nearest_field_wins() -> None:
    found = settings.Settings({"cpu": 1, "retries": 2}, {"Pruner": {"cpu": 2}, "Pruner.prune80": {"memory": "1Gi"}})
    assert found.of("Pruner.prune80") == {"cpu": 2, "retries": 2, "memory": "1Gi"}
    assert found.of("Pruner.prune50") == {"cpu": 2, "retries": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: {cpus: 1}", r"default: unknown key 'cpus'; did you mean cpu\?"),
        ("step: {}", r"unknown key 'step'; did you mean steps\?"),
        ("[1]", "must be a mapping with some of default, steps"),
        ("steps: [Trainer]", "steps must be a mapping from step to fields"),
        ("steps: {Trainer: 4Gi}", "steps.Trainer must be a mapping with some of cpu"),
        ("steps: {Trainer: {cpu: many}}", "steps.Trainer.cpu must be an amount like 2 or 500m"),
        ("steps: {Trainer: {cpu: {limits: 1}}}", "or a mapping of request and limit"),
        ("steps: {Trainer: {memory: 4GB}}", "memory must be an amount like 4Gi.*received '4GB'"),
        ("steps: {Trainer: {gpu: 1}}", "gpu must be a mapping like {count: 1, type: nvidia.com/gpu}, received 1"),
        ("steps: {Trainer: {cpu: {request: 1, limit: 500m}}}", "cpu must be a request that is not above its limit"),
        ("default: {memory: {request: 8Gi, limit: 4Gi}}", "default.memory must be a request that is not above"),
        ("default: {memory: {limit: 4000M, request: 4Gi}}", "default.memory must be a request that is not above"),
        ("steps: {Trainer: {retries: -1}}", "retries must be an integer of at least 0"),
        ("steps: {Trainer: {retries: {backoff_seconds: 3}}}", "retries must be .* a mapping like {count: 2"),
        (
            "steps: {Trainer: {retries: {count: 1, cap: 3}}}",
            r"\(of count, backoff_seconds, backoff_factor, backoff_max",
        ),
        ("steps: {Trainer: {retries: {count: 1, backoff_factor: 1.5}}}", "retries must be an integer"),
        ("default: {retries: {count: 1, backoff_seconds: 90000}}", "such that backoff_seconds is below"),
        ("steps: {Trainer: {timeout_seconds: 0}}", "timeout_seconds must be an integer of at least 1"),
        ("steps: {Trainer: {secrets: [{name: x}]}}", "secrets must be a list like"),
        ("steps: {Trainer: {volumes: [{claim: x, path: y}]}}", "volumes must be a list like"),
        ("steps: {Trainer: {tolerations: [{operator: exists}]}}", "tolerations must be a list like"),
        ("steps: {Trainer: {node_selector: {a: 1}}}", "node_selector must be a mapping from label to value"),
        ("steps: {Evaluator: {beam_args: [direct]}}", "beam_args must be a list like"),
        ("steps: {", "is not valid YAML"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        settings.load(write(tmp_path, text))


def test_retries_say_all_that_argo_needs() -> None:
    assert settings._retry_policy(0) is None
    assert settings._retry_policy({"count": 2, "backoff_seconds": 60, "backoff_max_seconds": 7200}) == {
        "maxRetryCount": 2,
        "backoffDuration": "60s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "7200s",
    }


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read: No such file"):
        settings.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("amount", "gigabytes"), [("1Gi", 1.073741824), ("500M", 0.5), ("2G", 2.0), ("1000000k", 1.0), ("1000000000", 1.0)]
)
def test_memory_in_gigabytes(amount: str, gigabytes: float) -> None:
    assert settings._gigabytes(amount) == pytest.approx(gigabytes)


def test_a_tag_needs_permission() -> None:
    with pytest.raises(UserError, match="--image must name an image by digest"):
        Deployment("oss", "registry.example/edgeline:latest", "s3://bucket/root")
    with pytest.raises(UserError, match="received ''"):
        Deployment("oss", "", "s3://bucket/root", allow_mutable_tag=True)
    assert Deployment("oss", "edgeline:latest", "s3://bucket/root", allow_mutable_tag=True).image == "edgeline:latest"


@pytest.mark.parametrize(
    ("target", "root", "message"),
    [
        ("oss", "", "--pipeline-root must be gs://BUCKET/PATH or s3://BUCKET/PATH or minio://BUCKET/PATH.*nothing"),
        ("oss", "/data/runs", "--pipeline-root must be .* received /data/runs"),
        ("oss", "s3://", "--pipeline-root must be"),
        ("vertex", "s3://bucket/root", "--pipeline-root must be gs://BUCKET/PATH for --target vertex"),
        ("cloud", "s3://bucket/root", "--target must be oss or vertex"),
    ],
)
def test_roots(target: str, root: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Deployment(target, DIGEST, root)


def test_pushing_where_it_would_be_lost() -> None:
    with pytest.raises(UserError, match="no volume is mounted there for the Pusher, so what is pushed would vanish"):
        Deployment("oss", DIGEST, "s3://bucket/root", push_to="/mnt/models")
    with pytest.raises(UserError, match="cannot write to other stores"):
        Deployment("oss", DIGEST, "s3://bucket/root", push_to="s3://bucket/models")
    with pytest.raises(UserError, match="must be a gs:// URI on Vertex"):
        Deployment("vertex", DIGEST, "gs://bucket/root", push_to="/mnt/models")


def test_the_evaluator_needs_the_volume_too() -> None:
    volumes = {"volumes": [{"claim": "models", "path": "/mnt/models"}]}

    def deployment(**steps: object) -> Deployment:
        return Deployment("oss", DIGEST, "s3://b/r", settings.Settings(steps=steps), "/mnt/models/digits")

    with pytest.raises(UserError, match=r"there for the Evaluator, so it would not find the model .* pushed last") as e:
        deployment(Pusher=volumes)
    assert "(steps: Evaluator: volumes: [{claim: NAME, path: /mnt/models/digits}])" in str(e.value)
    with pytest.raises(UserError, match=r"there for the Pusher, .* mount the same one for Pusher and Evaluator"):
        deployment(Evaluator=volumes)
    assert deployment(Pusher=volumes, Evaluator=volumes).deployed == "/mnt/models/digits"
    for_all = Deployment("oss", DIGEST, "s3://b/r", settings.Settings(default=volumes), "/mnt/models")
    assert for_all.deployed == "/mnt/models"


def test_modules_and_data() -> None:
    with pytest.raises(UserError, match="is a file of this machine"):
        check_module("models/cnn.py")
    check_module("mypackage.models.cnn")
    with pytest.raises(UserError, match="--data must be"):
        check_uri("--data", "data/digits", "oss")


def test_the_command_line_is_not_slowed_down() -> None:
    slow = ("kfp", "tfx", "tensorflow", "yaml")
    code = f"import sys, edgeline.kubeflow.cli.main; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
