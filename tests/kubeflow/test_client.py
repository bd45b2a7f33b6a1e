"""Submitting and scheduling, by the real kfp client against a server that checks as the real one does."""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeline.errors import UserError
from edgeline.kubeflow import compiled_file, cron, kfp_server
from edgeline.kubeflow.cli import scheduling
from edgeline.kubeflow.compiled_file import Parameter

pytest.importorskip("kfp")
pytestmark = pytest.mark.kubeflow

# tests are no packages, so a helper beside them is loaded by its path
_spec = importlib.util.spec_from_file_location("fake_api", Path(__file__).with_name("fake_api.py"))
assert _spec is not None
assert _spec.loader is not None
fake_api = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_api)

VERSION = importlib.metadata.version("edgeline")
HEADER = f"# digits, compiled by edgeline {VERSION} for --target oss\n# Parameters:\n#   epochs: NUMBER_INTEGER\n"
IMAGE = "registry.example/edgeline@sha256:" + "ab" * 32
Json = dict[str, Any]


def pipeline(image: str = IMAGE, **changes: Any) -> Json:
    """A pipeline as the compiler writes them: Examples (imported) → Trainer → Evaluator, the last two in a sub-DAG."""
    declared = {
        "data": {"parameterType": "STRING"},
        "epochs": {"parameterType": "NUMBER_INTEGER", "defaultValue": 4},
        "max_drop": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 0.01},
        "fast": {"parameterType": "BOOLEAN", "isOptional": True},
    }
    examples = {"artifactType": {"schemaTitle": "tfx.Examples", "schemaVersion": "0.0.1"}}

    def task(name: str, **more: Any) -> Json:
        return {"componentRef": {"name": f"comp-{name}"}, "taskInfo": {"name": name}, **more}

    return {
        "schemaVersion": "2.1.0",
        "sdkVersion": "tfx-1.21.0",
        "pipelineInfo": {"name": "digits"},
        "defaultPipelineRoot": "minio://models/digits",
        "root": {
            "inputDefinitions": {"parameters": declared},
            "dag": {
                "tasks": {"tfx-dag": task("tfx-dag", dependentTasks=["Examples"]), "Examples": task("Examples")},
            },
        },
        "components": {
            "comp-tfx-dag": {
                "dag": {
                    "tasks": {
                        "Evaluator": task("Evaluator", dependentTasks=["Trainer"]),
                        "Trainer": task("Trainer"),
                    }
                }
            },
            "comp-Examples": {
                "executorLabel": "exec-Examples",
                "outputDefinitions": {"artifacts": {"examples": examples}},
            },
            "comp-Trainer": {"executorLabel": "exec-Trainer"},
            "comp-Evaluator": {"executorLabel": "exec-Evaluator"},
        },
        "deploymentSpec": {
            "executors": {
                "exec-Examples": {
                    "importer": {"artifactUri": {"runtimeParameter": "data"}, "typeSchema": {}, "reimport": True}
                },
                "exec-Trainer": {"container": {"image": image, "command": ["python"]}},
                "exec-Evaluator": {"container": {"image": image, "command": ["python"]}},
            }
        },
        **changes,
    }


PLATFORM: Json = {
    "platforms": {
        "kubernetes": {"deploymentSpec": {"executors": {"exec-Trainer": {"nodeSelector": {"labels": {"a": "b"}}}}}}
    }
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*documents: Json, header: str = HEADER) -> Path:
        path = tmp_path / "pipeline.yaml"
        path.write_text(header + yaml.safe_dump_all(documents or [pipeline()]))
        return path

    return write


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kfp.client import Client

    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KUBERNETES_SERVICE_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def api() -> Iterator[Any]:
    with fake_api.FakeApi() as server:
        yield server


class Cli:
    """Runs `edgeline kubeflow ...` as the command line does."""

    def __init__(self, api: Any, capsys: pytest.CaptureFixture[str]):
        self.api = api
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object, host: bool = True) -> int:
        self._capsys.readouterr()
        parser = argparse.ArgumentParser()
        scheduling.add_commands(parser.add_subparsers(required=True), argparse.ArgumentParser(add_help=False))
        asked = parser.parse_args([str(a) for a in (*arguments, *(("--host", self.api.url) if host else ()))])
        asked.interval = 0.01
        code = int(asked.command(asked))
        self.out, self.err = self._capsys.readouterr()
        return code

    def refused(self, *arguments: object, **options: bool) -> str:
        with pytest.raises(UserError) as refusal:
            self(*arguments, **options)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)


@pytest.fixture
def cli(api: Any, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(api, capsys)


# ---------------------------------------------------------------- cron, durations, parameters


@pytest.mark.parametrize(
    ("unix", "six"),
    [
        ("30 2 * * *", "0 30 2 * * *"),
        ("*/15 * * * *", "0 */15 * * * *"),
        ("0 9-17 * * mon-fri", "0 0 9-17 * * 1-5"),
        ("0 9-17/2 * * *", "0 0 9-17/2 * * *"),
        ("0 0 1 JAN,jul *", "0 0 0 1 1,7 *"),
        ("0 0 1 mar-may *", "0 0 0 1 3-5 *"),
        ("5 4 * * sun", "0 5 4 * * 0"),
        ("5 4 * * 7", "0 5 4 * * 0"),
        ("5 4 * * 5-7", "0 5 4 * * 5,6,0"),
        ("5 4 * * fri-sun", "0 5 4 * * 5,6,0"),
        ("5 4 * * 0-7", "0 5 4 * * 0,1,2,3,4,5,6"),
        ("5 4 * * 1-7/2", "0 5 4 * * 1,3,5,0"),
        ("5 4 * * sun-tue", "0 5 4 * * 0-2"),
        ("5 4 * * 0,7", "0 5 4 * * 0"),
        ("5 4 ? * *", "0 5 4 * * *"),
        ("10/20 * * * *", "0 10-59/20 * * * *"),
        ("00 02 01 02 *", "0 0 2 1 2 *"),
        ("  0   2 * * *  ", "0 0 2 * * *"),
        ("0 0 31 2 mon", "0 0 0 31 2 1"),  # the 31st or a Monday: Mondays come
        ("0 0 29 2 *", "0 0 0 29 2 *"),
        ("15 30 2 * * *", "15 30 2 * * *"),
        ("0 0/30 9 ? * MON", "0 0-59/30 9 * * 1"),
        ("@daily", "0 0 0 * * *"),
        ("@midnight", "0 0 0 * * *"),
        ("@hourly", "0 0 * * * *"),
        ("@weekly", "0 0 0 * * 0"),
        ("@monthly", "0 0 0 1 * *"),
        ("@Yearly", "0 0 0 1 1 *"),
    ],
)
def test_cron_becomes_the_six_fields_of_the_server(unix: str, six: str) -> None:
    assert cron.to_kfp_cron(unix) == six
    fake_api.parse_cron(six)  # which its parser reads


def test_cron_means_the_same_to_the_server() -> None:
    second, minute, hour, day, month, weekday = fake_api.parse_cron(cron.to_kfp_cron("30 2 1-7 * fri-sun"))
    assert (second, minute, hour) == ({0}, {30}, {2})
    assert (day, month, weekday) == ({1, 2, 3, 4, 5, 6, 7}, set(range(1, 13)), {5, 6, 0})
    # why five fields must never be sent: the server would take the hour for the minute
    assert fake_api.parse_cron("0 9 * * *")[:3] == [{0}, {9}, set(range(24))]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("0 2 * *", "has 4 fields; expected five"),
        ("0 0 2 * * * 2027", "has 7 fields; expected five"),
        ("", "has 0 fields"),
        ("60 2 * * *", "'60' is no minute; expected 0 to 59"),
        ("0 24 * * *", "'24' is no hour; expected 0 to 23"),
        ("0 2 0 * *", "'0' is no day of the month; expected 1 to 31"),
        ("0 2 * 13 *", "'13' is no month; expected 1 to 12 or jan, feb"),
        ("0 2 * juli *", "'juli' is no month"),
        ("0 2 * * 8", "'8' is no day of the week; expected 0 to 7 or sun, mon"),
        ("0 2 * mon *", "'mon' is no month"),
        ("0 22-2 * * *", "the range '22-2' goes backwards"),
        ("*/0 * * * *", r"cannot read '\*/0' as the minute"),
        ("1,,2 * * * *", "cannot read '' as the minute"),
        ("-5 * * * *", "cannot read '-5' as the minute"),
        ("0 2 * * fri#1", "cannot read 'fri#1' as the day of the week"),
        ("0 2 L * *", "'L' is no day of the month"),
        ("0 0 31 2,4 *", "never comes: no month it names has 31 days"),
        ("0 0 30 feb *", "never comes"),
        ("@reboot", "no such shorthand; known are @yearly"),
        ("@every 6h", "--every is for intervals"),
    ],
)
def test_cron_refuses(expression: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cron.to_kfp_cron(expression)


@pytest.mark.parametrize(
    ("text", "seconds"), [("6h", 21600), ("90m", 5400), ("1d12h", 129600), ("45s", 45), ("1D2H3M4S", 93784)]
)
def test_durations(text: str, seconds: int) -> None:
    assert cron.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "0h", "-6h", "6h30", "1.5h", "12h1d", "6 h", "1w"])
def test_durations_refuse(text: str) -> None:
    with pytest.raises(UserError, match="is no duration; expected days"):
        cron.parse_duration(text)


def declared(**types: str) -> dict[str, Parameter]:
    return {name: Parameter(kind, required=False) for name, kind in types.items()}


def test_parameters_get_the_declared_types() -> None:
    kinds = declared(s="STRING", i="NUMBER_INTEGER", d="NUMBER_DOUBLE", b="BOOLEAN", items="LIST", o="STRUCT")
    given = ["s=a=b, c", "i=-7", "d=1e-3", "b=True", 'items=[1, "x"]', 'o={"k": null}']
    values = compiled_file.coerce_parameters(kinds, given)
    assert values == {"s": "a=b, c", "i": -7, "d": 0.001, "b": True, "items": [1, "x"], "o": {"k": None}}
    assert [type(value) for value in values.values()] == [str, int, float, bool, list, dict]
    assert compiled_file.coerce_parameters(declared(s="STRING", d="NUMBER_DOUBLE"), ["s=", "d=3"]) == {
        "s": "",
        "d": 3.0,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("i=1.5", "i is a NUMBER_INTEGER; expected a whole number"),
        ("i=9007199254740993", "expected a whole number"),
        ("d=nan", "d is a NUMBER_DOUBLE; expected a number"),
        ("d=ten", "expected a number"),
        ("b=1", "b is a BOOLEAN; expected true or false"),
        ("items={}", "items is a LIST; expected a JSON list"),
        ("o=[", "o is a STRUCT; expected a JSON object"),
        ("item=[]", "no parameter 'item'; did you mean items?"),
        ("zzz=1", "no parameter 'zzz'; known are b, d, i, items, o"),
        ("i", "expected NAME=VALUE"),
    ],
)
def test_parameters_refuse(given: str, message: str) -> None:
    kinds = declared(i="NUMBER_INTEGER", d="NUMBER_DOUBLE", b="BOOLEAN", items="LIST", o="STRUCT")
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        compiled_file.coerce_parameters(kinds, [given])


def test_parameters_given_twice_or_not_at_all() -> None:
    with pytest.raises(UserError, match="'i' is given twice"):
        compiled_file.coerce_parameters(declared(i="NUMBER_INTEGER"), ["i=1", "i=2"])
    needed = {"data": Parameter("STRING", required=True), "n": Parameter("STRING", required=False)}
    with pytest.raises(UserError, match="needs a value for data: give --param data=VALUE"):
        compiled_file.coerce_parameters(needed, ["n=1"])


# ---------------------------------------------------------------- the compiled file


def test_what_a_compiled_file_says(write: Callable[..., Path]) -> None:
    compiled = compiled_file.read_compiled(write(pipeline(), PLATFORM))
    assert (compiled.name, compiled.root) == ("digits", "minio://models/digits")
    assert compiled.tasks == ("Examples", "Trainer", "Evaluator")  # each after those it needs
    assert compiled.images == {IMAGE: ["exec-Evaluator", "exec-Trainer"]}
    assert {name for name, parameter in compiled.parameters.items() if parameter.required} == {"data"}
    assert compiled.version.startswith(f"{VERSION}-")
    assert not compiled.fixed_data
    same = compiled_file.read_compiled(write(pipeline(), PLATFORM))
    other = compiled_file.read_compiled(write(pipeline()))
    assert compiled.version == same.version != other.version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("", "holds no pipeline"),
        ("- 1", "holds no pipeline"),
        (yaml.safe_dump(pipeline()), "was not compiled by Edgeline"),
        (
            "# digits, compiled by edgeline 0.0.7 for --target oss\n" + yaml.safe_dump(pipeline()),
            "by Edgeline 0.0.7, this is",
        ),
        (HEADER.replace("oss", "vertex") + yaml.safe_dump(pipeline()), "was compiled for --target vertex"),
        (json.dumps({"pipelineSpec": pipeline(), "displayName": "digits"}), "is a Vertex AI job"),
        (HEADER + yaml.safe_dump(pipeline(schemaVersion="2.0.0")), r"no pipeline of schema 2.1.0 \(it says 2.0.0\)"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        compiled_file.read_compiled(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; compile it with: edgeline kubeflow compile"):
        compiled_file.read_compiled(tmp_path / "none.yaml")


# ---------------------------------------------------------------- submit


def test_submit_uploads_once_and_runs(cli: Cli, write: Callable[..., Path]) -> None:
    path = write(pipeline(), PLATFORM)
    assert (
        cli("submit", path, "--param", "data=s3://b/data", "--param", "epochs=7", "--service-account", "trainer") == 0
    )
    [run], [version], [experiment] = cli.api.runs, cli.api.versions, cli.api.experiments
    assert run["runtime_config"] == {
        "parameters": {"data": "s3://b/data", "epochs": 7},
        "pipeline_root": "minio://models/digits",
    }
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert version["pipeline_spec"] == {"pipeline_spec": pipeline(), "platform_spec": PLATFORM}
    assert experiment["display_name"] == cli.api.pipelines[0]["display_name"] == "digits"
    assert run["service_account"] == "trainer"
    assert f"{cli.api.url}/#/runs/details/{run['run_id']}" in cli.out

    # the same file is the same version, another one a new version of the same pipeline
    options = (
        "--param",
        "data=s3://b/data",
        "--pipeline-root",
        "s3://other/",
        "--experiment",
        "tries",
        "--name",
        "second",
    )
    cli("submit", path, *options)
    assert len(cli.api.versions) == len(cli.api.pipelines) == 1
    assert cli.api.runs[1]["runtime_config"]["pipeline_root"] == "s3://other"
    assert cli.api.runs[1]["display_name"] == "second"
    assert [entry["display_name"] for entry in cli.api.experiments] == ["digits", "tries"]
    cli("submit", write(pipeline()), *options)
    assert (len(cli.api.pipelines), len(cli.api.versions), len(cli.api.runs)) == (1, 2, 3)


def test_submit_checks_before_it_asks_the_server(cli: Cli, write: Callable[..., Path]) -> None:
    data = ("--param", "data=s3://b/data")
    assert "needs a value for data" in cli.refused("submit", write())
    assert "epochs is a NUMBER_INTEGER" in cli.refused("submit", write(), *data, "--param", "epochs=x")
    without_root = pipeline()
    del without_root["defaultPipelineRoot"]
    assert "--pipeline-root must be gs://BUCKET/PATH" in cli.refused("submit", write(without_root), *data)
    assert "received /tmp/root" in cli.refused("submit", write(), *data, "--pipeline-root", "/tmp/root")
    tagged = write(pipeline(image="registry.example/edgeline:latest"))
    assert "edgeline:latest of exec-Evaluator is named by a tag" in cli.refused("submit", tagged, *data)
    assert cli.api.requests == []
    assert cli("submit", tagged, *data, "--allow-mutable-tag") == 0


def test_what_the_compiler_writes_is_accepted(cli: Cli, tmp_path: Path) -> None:
    from edgeline.kubeflow.cli import compiling as compiler

    parser = argparse.ArgumentParser()
    compiler.add_commands(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    (tmp_path / "settings.yaml").write_text("steps: {Trainer: {node_selector: {gpu: 'yes'}}}")
    where = ["--image", IMAGE, "--pipeline-root", "s3://models/digits", "--data", "s3://data/digits"]
    what = ["--module", "edgeline.pipelines.examples.digits.model", "--recipe", "prune80_int8", "--recipe", "int8"]
    files = ["--settings", str(tmp_path / "settings.yaml"), "--output", str(tmp_path / "pipeline.yaml")]
    asked = parser.parse_args(["compile", *where, *what, *files])
    assert asked.command(asked) == 0

    for wrong in ("max_bytes=-1", "max_latency_ms=fast"):
        message = cli.refused("submit", tmp_path / "pipeline.yaml", "--param", wrong)
        assert f"--param: Budget.{wrong.partition('=')[0]} must be " in message
        assert "in a pipeline's parameters None is the word none" in message
    message = cli.refused("submit", tmp_path / "pipeline.yaml", "--param", 'metric=["loss:max", "accuracy"]')
    assert "--param: Budget.metric: loss cannot be max: less of it is better" in message
    given = ("--param", "epochs=7", "--param", "max_drop=0", "--param", "max_bytes=1000")
    given += ("--param", 'metric=["loss:min:0.5", "accuracy"]')
    assert cli("submit", tmp_path / "pipeline.yaml", *given) == 0
    assert cli.api.runs[0]["runtime_config"]["pipeline_root"] == "s3://models/digits"
    assert cli.api.runs[0]["runtime_config"]["parameters"]["metric"] == '["loss:min:0.5", "accuracy"]'
    assert "platform_spec" in cli.api.versions[0]["pipeline_spec"]
    compiled = compiled_file.read_compiled(tmp_path / "pipeline.yaml")
    order = [compiled.tasks.index(name) for name in ("Examples", "Trainer", "Pruner-prune80", "Evaluator", "Pusher")]
    assert order == sorted(order)
    assert not compiled.fixed_data
    assert cli("schedule", tmp_path / "pipeline.yaml", "--cron", "@daily") == 0


def task(name: str, state: str, **more: Any) -> Json:
    times = {"start_time": "2027-01-01T00:00:00Z", "end_time": "1970-01-01T00:00:00Z"}
    return {"display_name": name, "state": state, "task_id": f"task-{name}", **times, **more}


def poll(state: str, *tasks: Json, **more: Any) -> Json:
    root = [task("root", state), task("root-driver", "SUCCEEDED"), task("executor", state)]
    return {"state": state, "run_details": {"task_details": [*root, *tasks]}, **more}


def test_wait_shows_each_step_until_it_succeeds(cli: Cli, write: Callable[..., Path]) -> None:
    ended = {"end_time": "2027-01-01T00:01:05Z"}
    examples, trained = task("Examples", "SUCCEEDED", **ended), task("Trainer", "SUCCEEDED", **ended)
    cli.api.polls = [
        {"state": "PENDING"},
        poll("RUNNING", examples, task("Trainer", "PENDING")),
        poll("RUNNING", examples, task("Trainer", "RUNNING")),
        poll("RUNNING", examples, trained, task("Evaluator", "RUNNING")),
        poll("SUCCEEDED", examples, trained, task("Evaluator", "SKIPPED")),
    ]
    assert cli("submit", write(), "--param", "data=s3://b/data", "--wait") == 0
    shown = [line.strip() for line in cli.out.splitlines()]
    assert shown[2:] == [
        "[1/3] done    Examples 1m 05s",
        "[2/3] done    Trainer 1m 05s",
        "[3/3] skipped Evaluator",
        f"run {cli.api.runs[0]['run_id']} succeeded",
    ]


def test_wait_says_which_step_failed_and_where_to_look(cli: Cli, write: Callable[..., Path]) -> None:
    error = {"code": 2, "message": "main: Error\n(exit code 1)"}
    cli.api.polls = [
        poll("RUNNING", task("Trainer", "RUNNING")),
        poll(
            "FAILED", task("Trainer", "FAILED", error=error), task("Evaluator", "PENDING"), error={"message": "no luck"}
        ),
    ]
    assert cli("submit", write(), "--param", "data=s3://b/data", "--wait", "--output", "json") == 3
    run_id = cli.api.runs[0]["run_id"]
    url = f"{cli.api.url}/#/runs/details/{run_id}"
    assert json.loads(cli.out) == {"exit_code": 3, "run_id": run_id, "url": url, "state": "failed"}
    assert "[1/3] failed  Trainer 0.0 s: main: Error (exit code 1)" in cli.err
    assert f"run {run_id} failed: no luck" in cli.err
    assert f"the logs of Trainer: kubectl get pods -n kubeflow -l pipeline/runid={run_id} -o name " in cli.err
    assert "--field-selector status.phase=Failed | xargs -I POD kubectl logs -n kubeflow -c main " in cli.err


@pytest.mark.parametrize("first", ["driver", "step"])
def test_wait_names_the_step_whose_driver_failed(cli: Cli, write: Callable[..., Path], first: str) -> None:
    # seen on 2.16.1: errors are empty, the step itself is left out or omitted
    ended = {"end_time": "2027-01-01T00:00:07Z"}
    trained = [task("Trainer-driver", "SUCCEEDED", **ended), task("Trainer", "SUCCEEDED", **ended)]
    failed = [task("Evaluator-driver", "FAILED", **ended), task("Evaluator", "SKIPPED")]
    cli.api.polls = [poll("RUNNING", *trained), poll("FAILED", *trained, *failed[:: 1 if first == "driver" else -1])]
    assert cli("submit", write(), "--param", "data=s3://b/data", "--wait") == 3
    assert "failed  Evaluator 7.0 s: Evaluator-driver failed, before the step" in cli.out
    assert "the logs of Evaluator: kubectl get pods " in cli.out
    assert "driver" not in cli.out.replace("Evaluator-driver failed", "")  # others are the server's own affair


def test_wait_says_that_the_run_did_not_begin(cli: Cli, write: Callable[..., Path]) -> None:
    started = {"task_details": [task("root-driver", "FAILED")]}
    cli.api.polls = [{"state": "FAILED", "run_details": started}]
    assert cli("submit", write(), "--param", "data=s3://b/data", "--wait") == 3
    assert "failed: root-driver failed, which reads the run's parameters and pipeline root" in cli.out


def test_wait_ends_when_the_run_is_cancelled(cli: Cli, write: Callable[..., Path]) -> None:
    cli.api.polls = [poll("CANCELING", task("Trainer", "CANCELING")), poll("CANCELED", task("Trainer", "CANCELED"))]
    assert cli("submit", write(), "--param", "data=s3://b/data", "--wait") == 3
    assert "run id-4 canceled" in cli.out


def test_wait_outlives_a_broken_connection(api: Any, write: Callable[..., Path]) -> None:
    server = kfp_server.Server(kfp_server.Connection(host=api.url))
    compiled = compiled_file.read_compiled(write())
    run_id = server.submit(compiled, {"data": "s3://b/data"}, "s3://b")
    api.polls = [poll("RUNNING", task("Trainer", "RUNNING"))]
    api.failures["GET", f"/runs/{run_id}"] = (502, "<html>Bad Gateway</html>")
    seen: list[kfp_server.Step] = []

    def listener(step: kfp_server.Step) -> None:
        seen.append(step)

    with pytest.raises(UserError, match="could not show the run: an error of its own"):
        server.wait(run_id, compiled.tasks, listener, interval=0.001, patience=3)
    assert sum(request.path.endswith(run_id) for request in api.requests) == 3

    def mend(step: kfp_server.Step) -> None:
        seen.append(step)
        if len(seen) == 6:  # all are shown as waiting, then the questions fail
            api.polls = [poll("SUCCEEDED", task("Trainer", "SUCCEEDED"))]
            del api.failures["GET", f"/runs/{run_id}"]

    assert server.wait(run_id, compiled.tasks, mend, interval=0.001) == (True, "succeeded")
    assert seen[-1] == kfp_server.Step("Trainer", "done")


# ---------------------------------------------------------------- schedule, list, pause, resume, delete

DATA = ("--param", "data=s3://b/data")


def test_a_schedule_is_made_once(cli: Cli, write: Callable[..., Path]) -> None:
    assert cli("schedule", write(), *DATA, "--cron", "30 2 * * 1-5") == 0
    [made] = cli.api.recurring
    assert made["display_name"] == "digits"
    assert made["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * 1-5"}}
    assert (made["max_concurrency"], made["no_catchup"], made["status"]) == ("1", True, "ENABLED")
    assert made["runtime_config"] == {"parameters": {"data": "s3://b/data"}, "pipeline_root": "minio://models/digits"}
    assert "schedule digits created: cron 0 30 2 * * 1-5 (seconds first; the server's time zone, UTC unless" in cli.out

    cli("schedule", write(), *DATA, "--cron", "30 2 * * 1-5")
    assert "schedule digits unchanged" in cli.out
    assert [entry["recurring_run_id"] for entry in cli.api.recurring] == [made["recurring_run_id"]]


def test_a_second_schedule_of_a_name_replaces_the_first(cli: Cli, write: Callable[..., Path]) -> None:
    cli("schedule", write(), *DATA, "--cron", "@daily", "--name", "nightly")
    cli("schedule", write(), *DATA, "--every", "1d12h", "--name", "nightly", "--catchup", "--max-concurrency", "3")
    assert "schedule nightly updated: every 1d12h;" in cli.out
    [now] = cli.api.recurring
    assert now["trigger"] == {"periodic_schedule": {"interval_second": "129600"}}
    assert (now["max_concurrency"], now["no_catchup"]) == ("3", False)
    changes = [
        (request.method, request.path.rpartition(":")[2].rpartition("/")[2])
        for request in cli.api.requests
        if "recurringruns" in request.path and request.method != "GET"
    ]
    assert [method for method, _ in changes] == ["POST", "POST", "POST", "DELETE"]
    assert changes[1][1] == "disable"  # before the new one is made: at no time do two run
    # each thing that may change makes a new one, and never two
    for options in (("--every", "2h"), ("--every", "2h", "--param", "epochs=9"), ("--every", "2h", "--catchup")):
        cli("schedule", write(), *DATA, "--name", "nightly", *options)
        assert "updated" in cli.out
        assert len(cli.api.recurring) == 1
    cli("schedule", write(pipeline(), PLATFORM), *DATA, "--name", "nightly", "--every", "2h", "--catchup")
    assert "updated" in cli.out
    assert (
        cli.api.recurring[0]["pipeline_version_reference"]["pipeline_version_id"]
        == (cli.api.versions[-1]["pipeline_version_id"])
    )


def test_a_paused_schedule_stays_paused(cli: Cli, write: Callable[..., Path]) -> None:
    cli("schedule", write(), *DATA, "--cron", "@daily")
    assert cli("pause", "digits") == 0
    assert cli.out == "schedule digits paused\n"
    assert cli.api.recurring[0]["status"] == "DISABLED"
    cli("schedule", write(), *DATA, "--cron", "@weekly")
    assert "it is paused, as before (edgeline kubeflow resume digits)" in cli.out
    assert [entry["status"] for entry in cli.api.recurring] == ["DISABLED"]
    assert cli("resume", "digits") == 0
    assert cli.api.recurring[0]["status"] == "ENABLED"
    assert cli("delete", "digits") == 0
    assert cli.api.recurring == []
    assert "has no schedule 'digits'; there is none" in cli.refused("delete", "digits")


def test_a_refused_change_leaves_the_old_schedule(cli: Cli, write: Callable[..., Path]) -> None:
    cli("schedule", write(), *DATA, "--cron", "@daily")
    cli.api.failures["POST", "/recurringruns"] = (500, json.dumps({"message": "database is locked"}))
    assert "database is locked" in cli.refused("schedule", write(), *DATA, "--cron", "@weekly")
    assert [(e["status"], e["trigger"]["cron_schedule"]["cron"]) for e in cli.api.recurring] == [
        ("ENABLED", "0 0 0 * * *")
    ]


def test_what_an_interrupted_change_left_is_put_in_order(cli: Cli, write: Callable[..., Path]) -> None:
    cli("schedule", write(), *DATA, "--cron", "@daily")
    cli.api.recurring.append({**cli.api.recurring[0], "recurring_run_id": "id-99", "status": "DISABLED"})
    cli("schedule", write(), *DATA, "--cron", "@daily")
    assert [entry["status"] for entry in cli.api.recurring] == ["ENABLED"]


def test_list(cli: Cli, write: Callable[..., Path]) -> None:
    cli("list")
    assert cli.out.startswith("no schedules")
    for number in range(103):  # more than the server gives at once
        name = f"nightly-{number}"
        cli.api.recurring.append(
            {"display_name": name, "recurring_run_id": name, "namespace": "", "status": "DISABLED"}
        )
    cli("schedule", write(), *DATA, "--cron", "0 2 * * *", "--name", "weekly")
    cli("list")
    [row] = [line for line in cli.out.splitlines() if "weekly" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    expected = ["weekly", "enabled", "cron 0 0 2 * * *", "1", "left out", "data=s3://b/data", "minio://models/digits"]
    assert cells == expected
    assert "server's time zone (UTC unless" in cli.out
    cli("list", "--output", "json")
    listed = json.loads(cli.out)
    assert len(listed) == 104
    assert listed[-1]["trigger"] == {"cron": "0 0 2 * * *", "every": None}
    assert "no schedule 'weekli'; did you mean weekly?" in cli.refused("pause", "weekli")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cron", "0 2 * *"), "has 4 fields"),
        (("--every", "soon"), "'soon' is no duration"),
        (("--every", "6h", "--max-concurrency", "11"), "--max-concurrency 11: expected 1 to 10"),
    ],
)
def test_schedule_refuses(options: tuple[str, ...], message: str, cli: Cli, write: Callable[..., Path]) -> None:
    assert message in cli.refused("schedule", write(), *DATA, *options)
    assert cli.api.requests == []


DATED = "s3://b/{YYYY}/{MM}-{DD}"


def test_a_date_is_that_of_the_runs_creation(cli: Cli, write: Callable[..., Path]) -> None:
    dated = pipeline()
    dated["root"]["inputDefinitions"]["parameters"]["data"]["defaultValue"] = DATED
    for document, given in ((dated, ()), (pipeline(), ("--param", f"data={DATED}"))):
        options = (write(document), *given)
        cli.api.recurring.clear()
        assert cli("schedule", *options, "--cron", "@daily") == 0
        [made] = cli.api.recurring
        # a catch-up has no other time than that at which it was made
        for day in (datetime.datetime(2026, 11, 27, 2, 30), datetime.datetime(2027, 1, 5, 23, 59)):
            assert cli.api.fire(made, day) == {"data": f"s3://b/{day:%Y}/{day:%m-%d}"}
        assert cli("submit", *options, "--date", "2026-03-04") == 0
        assert cli("submit", *options) == 0
        *_, named, today = (run["runtime_config"]["parameters"]["data"] for run in cli.api.runs)
        assert named == "s3://b/2026/03-04"
        assert today in {f"s3://b/{now:%Y}/{now:%m-%d}" for now in (datetime.datetime.now(datetime.UTC),)}


@pytest.mark.parametrize("version", ["2.5.0", "2.17.0", "unknown"])
def test_a_date_in_a_schedule_of_a_server_that_was_never_tried(
    version: str, cli: Cli, write: Callable[..., Path]
) -> None:
    cli.api.version = version
    said = cli.refused("schedule", write(), "--param", f"data={DATED}", "--cron", "@daily")
    assert f"what a server of version {version} fills in as the date" in said
    assert "(known: 2.16)" in said
    assert "edgeline kubeflow submit --date YYYY-MM-DD" in said
    assert not cli.api.recurring
    if version != "unknown":
        assert cli("submit", write(), "--param", f"data={DATED}", "--date", "2026-03-04") == 0
        assert cli.api.runs[0]["runtime_config"]["parameters"]["data"] == "s3://b/2026/03-04"
    assert cli("schedule", write(), *DATA, "--cron", "@daily") == 0  # without a date any will do


def test_what_the_server_never_fills_in(cli: Cli, write: Callable[..., Path]) -> None:
    def given(text: str) -> tuple[Any, ...]:
        return write(), "--param", f"data=s3://b/{text}"

    for command in (("submit",), ("schedule", "--cron", "@daily")):
        said = cli.refused(command[0], *given("[[ScheduledTime.2006-01-02]]"), *command[1:])
        assert "never fills in [[ScheduledTime]]" in said
        assert "write {YYYY}-{MM}-{DD}" in said
        assert "{HH} is no field of a date" in cli.refused(command[0], *given("{YYYY}{HH}"), *command[1:])
    for macro in ("[[CurrentTime.2006-01-02]]", "[[RunUUID]]", "[[Index]]"):
        said = cli.refused("schedule", *given(macro), "--cron", "@daily")
        assert f"never fills in {macro} in a schedule" in said
    assert not cli.api.recurring
    # a run that is submitted has a time
    assert cli("submit", *given("[[CurrentTime.2006-01-02]]")) == 0
    assert cli.api.runs[-1]["runtime_config"]["parameters"]["data"].startswith("s3://b/20")
    assert "not known that it fills in [[Index]]" in cli.refused("submit", *given("[[Index]]"))
    cli.api.version = "2.5.0"
    assert "of a server of version 2.5.0" in cli.refused("submit", *given("[[CurrentTime.2006-01-02]]"))


def test_schedule_warns_when_no_run_would_see_new_data(cli: Cli, write: Callable[..., Path]) -> None:
    fixed = pipeline()
    del fixed["deploymentSpec"]["executors"]["exec-Examples"]["importer"]["reimport"]
    cli("schedule", write(fixed), *DATA, "--cron", "@daily")
    assert "every run will be served from the cache" in cli.err
    cli("schedule", write(fixed), "--param", f"data={DATED}", "--cron", "@daily")
    assert cli.err == ""
    cli("schedule", write(), *DATA, "--cron", "@daily")
    assert cli.err == ""


# ---------------------------------------------------------------- who one is, and what the server may say


def test_token_and_cookies(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.api.token, cli.api.cookies = "secret", "authservice_session=abc"
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "cookies").write_text("authservice_session=abc\n")
    logged_in = ("--token-file", tmp_path / "token", "--cookies-file", tmp_path / "cookies")
    assert cli("list", *logged_in) == 0
    assert "it wants a login. Give a token (--token-file)" in cli.refused("list")
    assert len(cli.api.requests) == 4  # refused at once, where kfp itself would ask for half a minute
    # in a pod: the token that is mounted
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert cli("list", "--cookies-file", tmp_path / "cookies") == 0
    (tmp_path / "empty").write_text("")
    assert "expected one line, found 0" in cli.refused("list", "--token-file", tmp_path / "empty")
    assert "none cannot be read: No such file" in cli.refused("list", "--cookies-file", tmp_path / "none")
    assert "ca cannot" not in cli.refused("list", "--ca-cert", tmp_path / "ca")


def test_namespace(cli: Cli, write: Callable[..., Path]) -> None:
    cli.api.multi_user = True
    assert "keeps its users apart: say whose runs these are with --namespace" in cli.refused("list")
    for namespace in ("ana", "ben"):
        cli("schedule", write(), *DATA, "--cron", "@daily", "--namespace", namespace)
        assert "created" in cli.out
        cli("submit", write(), *DATA, "--namespace", namespace)
    for entries in (cli.api.pipelines, cli.api.experiments, cli.api.recurring):
        assert [entry["namespace"] for entry in entries] == ["ana", "ben"]
    cli("delete", "digits", "--namespace", "ana")
    assert [entry["namespace"] for entry in cli.api.recurring] == ["ben"]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, '{"message": "bad\\nvalue"}', "the server refuses what was asked (400 bad value)"),
        (401, "{}", "it wants a login. Give a token (--token-file) or the browser's session cookie"),
        (403, '{"message": "no create"}', "this account may not. Ask for the role kubeflow-edit"),
        (404, "<html>", "it is not there. Check --host"),
        (409, '{"message": "taken"}', "something of that name is there already"),
        (
            500,
            '{"message": "pq: deadlock"}',
            "an error of its own. See: kubectl logs -n kubeflow deployment/ml-pipeline (500 pq",
        ),
        (503, "upstream connect error", "(503 Service Unavailable)"),
    ],
)
def test_server_errors_are_one_line(status: int, body: str, message: str, cli: Cli, write: Callable[..., Path]) -> None:
    cli.api.failures["POST", "/runs"] = (status, body)
    text = cli.refused("submit", write(), *DATA)
    assert text.startswith(f"{cli.api.url} could not start the run: ")
    assert message in text


def test_the_server_refuses_the_pipeline(cli: Cli, write: Callable[..., Path]) -> None:
    unknown = pipeline(surprise=1)
    assert "could not upload pipeline.yaml: the server refuses" in cli.refused("submit", write(unknown), *DATA)
    resolving = pipeline()
    resolving["deploymentSpec"]["executors"]["exec-Trainer"] = {"resolver": {}}
    assert "resolver not implemented yet" in cli.refused("submit", write(resolving), *DATA)


def test_no_server(cli: Cli) -> None:
    with socket.socket() as taken:  # a port at which nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        text = cli.refused("list", "--host", url, host=False)
    assert text.startswith(f"cannot reach {url} (")
    assert "refused" in text
    assert "kubectl port-forward" in text
    assert "no server: give --host URL" in cli.refused("list", host=False)
    assert "expected a URL that begins with http" in cli.refused("list", "--host", "localhost:8080", host=False)


def test_a_login_page_is_no_server(cli: Cli, write: Callable[..., Path]) -> None:
    cli.api.login_page = True
    assert "answers with a web page where the API should be" in cli.refused("submit", write(), *DATA)
