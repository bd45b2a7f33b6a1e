"""The entrypoint's rules, one by one; test_cluster runs them together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeline.errors import UserError
from edgeline.kubeflow import entrypoint
from edgeline.kubeflow.deployment import SCRATCH

pytestmark = pytest.mark.kubeflow

PATHS = {scheme: Path("/", folder) for scheme, folder in entrypoint.MOUNTS.items()}
SCHEMA = {"instanceSchema": "title: tfx.Model\ntype: object\n"}


def listed(**artifact: Any) -> dict[str, Any]:
    return {"artifacts": [{"uri": "s3://bucket/key", **artifact}]}


def request(**inputs: Any) -> dict[str, Any]:
    outputs = {"model": listed(type=SCHEMA), "executor-logs": listed(type={"schemaTitle": "system.Artifact"})}
    return {"inputs": inputs, "outputs": {"artifacts": outputs, "outputFile": "/tmp/kfp_outputs/output_metadata.json"}}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no such module"), 2, "edgeline: no such module\n"),
        (OSError(28, "x"), 2, "edgeline: No space left on device; free some space"),
        (ModuleNotFoundError("No module named 'tensorflow'"), 3, "edgeline: ModuleNotFoundError: No module named"),
        (SystemExit(0), 3, "edgeline: something called sys.exit(0), which ends no command\n"),
        (SystemExit(1), 3, "edgeline: something called sys.exit(1), which ends no command\n"),
        (None, 0, ""),
    ],
)
def test_no_pod_ends_with_a_verdict_by_accident(
    error: BaseException | None, code: int, text: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def main() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(entrypoint, "main", main)
    assert entrypoint.run() == code
    said = capsys.readouterr().err
    assert text in said
    assert ("Traceback" in said) == (code == 3)


def test_arguments_that_it_lacks() -> None:
    ended = subprocess.run([sys.executable, "-m", "edgeline.kubeflow.entrypoint"], capture_output=True, check=False)
    assert ended.returncode == 2


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("gs://bucket/a/b", "/gcs/bucket/a/b"),
        ("minio://bucket/a", "/minio/bucket/a"),
        ("s3://bucket/a", "/s3/bucket/a"),
        ("hdfs://bucket/a", "hdfs://bucket/a"),
        ("/s3files/a", "/s3files/a"),
    ],
)
def test_uris_and_paths(uri: str, path: str) -> None:
    assert entrypoint.to_path(uri, PATHS) == path
    assert entrypoint.to_uri(path, PATHS) == uri


def test_types_come_from_the_declaration() -> None:
    given = request(
        artifacts={"model": listed(type={"instanceSchema": ""}), "other": listed(type={"instanceSchema": ""})}
    )
    found = entrypoint.prepare(given, {"artifacts": {"model": {"artifactType": SCHEMA}}}, PATHS)["inputs"]["artifacts"]
    assert found["model"]["artifacts"][0]["type"] == SCHEMA
    assert found["other"]["artifacts"][0]["type"] == {"instanceSchema": ""}


def test_the_launchers_logs_are_no_output() -> None:
    prepared = entrypoint.prepare(request(), {}, PATHS)
    assert prepared["outputs"]["artifacts"] == {"model": {"artifacts": [{"uri": "/s3/bucket/key", "type": SCHEMA}]}}


def test_parameters_that_were_not_given_are_absent() -> None:
    values = {"a": None, "b": 0, "c": "", "d": False}
    prepared = entrypoint.prepare(request(parameterValues=values), {}, PATHS)
    assert prepared["inputs"]["parameterValues"] == {"b": 0, "c": "", "d": False}


def test_metadata_survives_the_store() -> None:
    metadata = {"yes": True, "none": None, "list": [1, "a"], "dict": {"a": None}, "text": "x", "number": 1.5}
    stored = entrypoint.restore({"artifacts": {"m": listed(metadata=dict(metadata))}}, PATHS)
    kept = stored["artifacts"]["m"]["artifacts"][0]["metadata"]
    assert kept == {"yes": 1, "list": 'json:[1, "a"]', "dict": 'json:{"a": null}', "text": "x", "number": 1.5}
    assert type(kept["yes"]) is int
    back = entrypoint.prepare(request(artifacts={"m": listed(metadata=kept)}), {}, PATHS)
    read = back["inputs"]["artifacts"]["m"]["artifacts"][0]["metadata"]
    assert read == {"yes": 1, "list": [1, "a"], "dict": {"a": None}, "text": "x", "number": 1.5}


def test_paths_in_results_become_uris() -> None:
    result = {
        "artifacts": {
            "m": {"artifacts": [{"uri": "/minio/bucket/run/m", "metadata": {"source": "/gcs/bucket/x"}}]},
            "p": {"artifacts": [{"uri": "/minio/bucket/run/p", "metadata": {"pushed_destination": f"{SCRATCH}/17"}}]},
            "q": {"artifacts": [{"uri": "/minio/bucket/run/q", "metadata": {"pushed_destination": "/mnt/models/17"}}]},
        }
    }
    found = {name: a["artifacts"][0] for name, a in entrypoint.restore(result, PATHS)["artifacts"].items()}
    assert found["m"] == {"uri": "minio://bucket/run/m", "metadata": {"source": "gs://bucket/x"}}
    assert found["p"]["metadata"] == {"pushed_destination": "minio://bucket/run/p"}
    assert found["q"]["metadata"] == {"pushed_destination": "/mnt/models/17"}


def test_without_a_mount_on_vertex_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kfp")
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor

    output_file = f"file://{tmp_path}/output.json"  # a URI that TensorFlow can write, as it can gs://
    seen = []

    def run(arguments: Any, beam_args: list[str]) -> None:
        from tfx.dsl.io import fileio

        seen.append((json.loads(arguments.json_serialized_invocation_args), beam_args))
        with fileio.open(output_file, "w") as file:
            file.write(json.dumps({"artifacts": {"m": {"artifacts": [{"uri": "gs://b/run/m", "metadata": {}}]}}}))

    monkeypatch.setattr(kubeflow_v2_run_executor, "_run_executor", run)
    given = {
        "inputs": {"artifacts": {"m": {"artifacts": [{"uri": "gs://b/m", "type": SCHEMA}]}}},
        "outputs": {"artifacts": {}, "outputFile": output_file},
    }
    command = ["--executor_class_path", "a.B", "--json_serialized_invocation_args", json.dumps(given), "--runner=X"]
    entrypoint.main(command, mounts=tmp_path)
    assert seen[-1][0]["inputs"]["artifacts"]["m"]["artifacts"][0]["uri"] == "gs://b/m"
    assert seen[-1][1] == ["--runner=X"]
    (tmp_path / "gcs").mkdir()
    entrypoint.main(command, mounts=tmp_path)
    assert seen[-1][0]["inputs"]["artifacts"]["m"]["artifacts"][0]["uri"] == f"{tmp_path}/gcs/b/m"


def test_an_image_with_other_versions_is_refused() -> None:
    pruner = "edgeline.pruner.component"
    ours = entrypoint.toolchain(pruner)
    theirs = ours.replace("tensorflow==2.21.0", "tensorflow==2.99.0", 1)
    with pytest.raises(UserError, match=r"expected tensorflow==2\.99\.0, found tensorflow==2\.21\.0; compile with"):
        entrypoint._check_toolchain({"toolchain": theirs}, f"{pruner}.Pruner_Executor")
    entrypoint._check_toolchain({"toolchain": ours}, f"{pruner}.Pruner_Executor")
    with pytest.raises(UserError, match=r"expected sources=\w+, found .*sources=\w+ .*; compile with"):
        entrypoint._check_toolchain({"toolchain": ours}, "edgeline.evaluator.component.Executor")
    entrypoint._check_toolchain({}, "a.B")  # a step that is not Edgeline's


def test_the_environment_is_set_before_tensorflow_is_imported() -> None:
    code = (
        "import os, sys; from edgeline.kubeflow import entrypoint\n"
        "assert 'tensorflow' not in sys.modules\n"
        "entrypoint.check_tfx = lambda *_: sys.exit(f\"{os.environ['TF_USE_LEGACY_KERAS']} "
        "{os.environ['TF_CPP_MIN_LOG_LEVEL']} {'tensorflow' in sys.modules}\")\n"
        "entrypoint.main(sys.argv[1:])"
    )
    arguments = ["--executor_class_path", "a.B", "--json_serialized_invocation_args", json.dumps(request())]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={})
    assert done.stderr.strip() == "1 2 False"


def test_a_mistake_is_one_line() -> None:
    given = request(parameterValues={"toolchain": "tensorflow==1.0"})
    command = [sys.executable, "-m", "edgeline.kubeflow.entrypoint"]
    command += ["--executor_class_path", "edgeline.pruner.component.Pruner_Executor"]
    done = subprocess.run(
        [*command, "--json_serialized_invocation_args", json.dumps(given)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("edgeline: the image has not what this pipeline was compiled with")
    assert len(done.stderr.splitlines()) == 1
