"""What `edgeline gc` deletes and keeps, on runs of a small pipeline with the real runner, ML Metadata and Pusher."""

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2
from tfx.types import Channel, ComponentSpec, component_spec
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation

from edgeline.pipelines.cli import main
from edgeline.pipelines.records import cleaning as collector
from edgeline.pipelines.records import events, lineage
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.local_runner import BEAM_ARGS, LocalRunner
from edgeline.pusher.component import Pusher

KINDS = {"examples": Examples, "model": Model, "evaluation": ModelEvaluation, "blessing": ModelBlessing}


def write_model(folder: Path, content: bytes) -> str:
    serving = folder / "Format-Serving"
    serving.mkdir()
    (serving / "model.tflite").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (serving / "metadata.json").write_text(json.dumps({"sha256": sha256, "inputs": [], "outputs": []}))
    return sha256


class Work(base_executor.BaseExecutor):
    """Data, training, export and evaluation as far as lineage sees them: 1,000 bytes of data, models of a few."""

    def Do(self, input_dict, output_dict, exec_properties):  # noqa: N802
        name, asked = exec_properties["name"], json.loads(exec_properties["asked"])
        made = {key: artifacts[0] for key, artifacts in output_dict.items()}
        if name == "Data":
            Path(made["examples"].uri, "data").write_bytes(b"x" * 1000)
        elif name == "Evaluator":
            self.evaluate(input_dict, made, asked)
        else:
            # reads what it is made of, as a real step would: a deleted input must show
            parts = sorted(
                str(path) for [a] in input_dict.values() for path in Path(a.uri).rglob("*") if path.is_file()
            )
            assert parts
            sha256 = write_model(Path(made["model"].uri), f"{name} {asked['night']}".encode())
            if name.startswith("Export"):
                made["model"].set_string_custom_property("sha256", sha256)

    def evaluate(self, input_dict, made, asked):
        chosen = input_dict[asked["selected"]][0] if asked["selected"] else None
        Path(made["evaluation"].uri, "report.json").write_text("{}")
        made["blessing"].set_int_custom_property("blessed", int(chosen is not None))
        Path(made["blessing"].uri, "BLESSED" if chosen else "NOT_BLESSED").touch()
        if chosen:
            shutil.copytree(Path(chosen.uri), Path(made["model"].uri), dirs_exist_ok=True)
            made["model"].set_string_custom_property("candidate", asked["selected"])
            made["model"].set_string_custom_property("sha256", chosen.get_string_custom_property("sha256"))
            made["blessing"].set_int_custom_property("current_model_id", chosen.id)


class Step(base_component.BaseComponent):
    SPEC_CLASS = ComponentSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Work)

    def __init__(self, name: str, asked: dict[str, Any], outputs: tuple[str, ...], **inputs: Channel):
        class Spec(ComponentSpec):
            PARAMETERS = {  # noqa: RUF012
                "name": component_spec.ExecutionParameter(type=str),
                "asked": component_spec.ExecutionParameter(type=str),
            }
            INPUTS = {key: component_spec.ChannelParameter(type=made.type) for key, made in inputs.items()}  # noqa: RUF012
            OUTPUTS = {key: component_spec.ChannelParameter(type=KINDS[key]) for key in outputs}  # noqa: RUF012

        made = {key: Channel(KINDS[key]) for key in outputs}
        super().__init__(Spec(name=name, asked=json.dumps(asked), **inputs, **made))
        self.with_id(name)


Night = Callable[..., dict[str, str]]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Runs Data → Train → {Export.small, Export.big} → Evaluator → Pusher; returns the nodes' states."""

    def run(number: int, selected: str = "small") -> dict[str, str]:
        asked = {"night": number}
        data = Step("Data", asked, ("examples",))
        train = Step("Train", {"night": number}, ("model",), examples=data.outputs["examples"])
        exports = {n: Step(f"Export.{n}", asked, ("model",), source=train.outputs["model"]) for n in ("small", "big")}
        judged = Step(
            "Evaluator", asked | {"selected": selected}, ("evaluation", "model", "blessing"),
            examples=data.outputs["examples"], **{n: export.outputs["model"] for n, export in exports.items()},
        )  # fmt: skip
        filesystem = pusher_pb2.PushDestination.Filesystem(base_directory=str(tmp_path / "pushed"))
        pusher = Pusher(
            model=judged.outputs["model"],
            model_blessing=judged.outputs["blessing"],
            push_destination=pusher_pb2.PushDestination(filesystem=filesystem),
        )
        log = tmp_path / "logs" / f"{number}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("log")
        result = LocalRunner().run(
            Pipeline(
                "p",
                str(tmp_path / "artifacts"),
                components=[data, train, *exports.values(), judged, pusher],
                enable_cache=True,
                beam_pipeline_args=list(BEAM_ARGS),
                metadata_connection_config=metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db")),
            )
        )
        # as a run that writes to its log until it ends
        os.utime(log)
        return {node_id: node.state for node_id, node in result.nodes.items()}

    return run


def gc(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main.main(["gc", str(root), "--output", "json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def folders(root: Path) -> list[str]:
    """`<node>/<port>/<number of the run's execution>` of all artifacts that are there."""
    found = (root / "artifacts").glob("[!.]*/[!.]*/*")
    return sorted(str(path.relative_to(root / "artifacts")) for path in found)


def live(root: Path) -> int:
    with lineage.open_store(Root(root)) as store:
        return sum(a.state == metadata_store_pb2.Artifact.LIVE for a in store.get_artifacts())


ALL = {"Data", "Train", "Export.small", "Export.big", "Evaluator", "Pusher"}


def test_what_old_runs_left(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert night(1, selected="") == dict.fromkeys(ALL, "done")
    night(2)  # executions 7 to 12
    night(3, selected="")  # 13 to 18
    before, count = folders(tmp_path), live(tmp_path)

    planned = gc(tmp_path, capsys, "--keep", "1", "--dry-run")
    assert (folders(tmp_path), live(tmp_path), planned["dry_run"]) == (before, count, True)
    assert not (tmp_path / "events.jsonl").exists()

    done = gc(tmp_path, capsys, "--keep", "1")
    assert {**planned, "dry_run": False} == done
    assert (done["runs"], done["kept"]) == (3, 1)
    gone = sorted(set(before) - set(folders(tmp_path)))
    # of the first night all, of the second what the pushed model does not need
    assert gone == sorted([
        "Data/examples/1", "Train/model/2", "Export.big/model/3", "Export.small/model/4", "Evaluator/evaluation/5",
        "Evaluator/model/5", "Evaluator/blessing/5", "Pusher/pushed_model/6", "Export.big/model/9",
    ])  # fmt: skip
    assert sorted(done["paths"]) == sorted(
        [*(str(tmp_path / "artifacts" / path) for path in gone), *(str(tmp_path / f"logs/{n}.log") for n in (1, 2))]
    )
    assert (done["folders"], done["logs"]) == (9, 2)
    assert done["bytes"] > 1000
    assert live(tmp_path) == count - 9
    [event] = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["folders"], event["bytes"]) == ("gc", 9, done["bytes"])

    assert gc(tmp_path, capsys, "--keep", "1")["bytes"] == 0
    assert [p.destination for p in lineage.trace(next((tmp_path / "pushed").glob("*/model.tflite"))).pushes]


def test_the_newest_run_is_kept_where_the_clock_was_set_back(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night(1, selected="")
    night(2, selected="")
    with sqlite3.connect(tmp_path / "metadata.db") as database:
        hour = 3_600_000
        database.execute(
            "UPDATE Context SET create_time_since_epoch = create_time_since_epoch - ? WHERE id = (SELECT MAX(c.id) "
            "FROM Context c JOIN Type t ON c.type_id = t.id WHERE t.name = 'pipeline_run')",
            (hour,),
        )
    database.close()
    with lineage.open_store(Root(tmp_path)) as store:
        names = [c.name for c in sorted(store.get_contexts_by_type("pipeline_run"), key=lambda c: c.id)]
    for number, name in enumerate(names, 1):
        events.append(Root(tmp_path), "finished", str(number), exit_code=1, seconds=1.0, error=None, mlmd_run=name)
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "logs" / "2.log", (an_hour_ago, an_hour_ago))
    done = gc(tmp_path, capsys, "--keep", "1")
    assert {path.rsplit("/", 1)[1] for path in done["paths"]} == {"1.log", *(str(n) for n in range(1, 7))}
    assert set(night(2, selected="").values()) == {"cached"}


def test_left_overs_of_killed_commands_go(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night(1)
    left = [tmp_path / "pushed" / ".pushing-1", tmp_path / f".metrics.prom.{'0' * 32}"]
    for path in left:
        path.mkdir()
    gc(tmp_path, capsys, "--keep", "1", "--dry-run")
    assert all(path.exists() for path in left)
    gc(tmp_path, capsys, "--keep", "1")
    assert not any(path.exists() for path in left)


def test_a_run_makes_anew_what_was_deleted(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night(1, selected="")
    night(2, selected="")
    gc(tmp_path, capsys, "--keep", "1")
    assert set(night(2, selected="").values()) == {"cached"}
    assert night(1, selected="") == dict.fromkeys(ALL, "done")
    assert set(night(1, selected="").values()) == {"cached"}


def test_what_a_cached_run_refers_to_is_kept(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night(1, selected="")
    night(2, selected="")
    assert set(night(1, selected="").values()) == {"cached"}
    done = gc(tmp_path, capsys, "--keep", "1")
    assert {path.rsplit("/", 1)[1] for path in done["paths"] if "artifacts" in path} == {str(n) for n in range(7, 13)}
    assert set(night(1, selected="").values()) == {"cached"}


@pytest.mark.slow
def test_blessed_models_are_kept_unless_forgotten(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night(1)
    night(2)
    [old, new] = sorted((tmp_path / "pushed").glob("*/"))
    night(3, selected="")
    assert gc(tmp_path, capsys, "--keep", "1")["folders"] == 2  # Export.big, twice
    shutil.rmtree(old)
    assert gc(tmp_path, capsys, "--keep", "1")["folders"] == 0
    done = gc(tmp_path, capsys, "--keep", "1", "--forget-blessed")
    assert done["folders"] == 7  # of the first night: data, training, export, three of the Evaluator, the Pusher's
    with lineage.open_store(Root(tmp_path)) as store:
        kept = [a.uri for a in store.get_artifacts_by_type("Examples") if a.state == metadata_store_pb2.Artifact.LIVE]
    assert [Path(uri).name for uri in kept] == ["7", "13"]
    (new / "model.tflite").unlink()  # still a version, though a broken one
    assert gc(tmp_path, capsys, "--keep", "1", "--forget-blessed")["folders"] == 0


def test_a_killed_call_is_finished_by_the_next(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    night(1, selected="")
    night(2, selected="")
    planned = gc(tmp_path, capsys, "--keep", "1", "--dry-run")
    rmtree, left = shutil.rmtree, [2]

    def killed(path: Path) -> None:
        if not left[0]:
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()  # half of a folder is gone
            raise KeyboardInterrupt
        left[0] -= 1
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        collector.delete(Root(tmp_path), 1)
    monkeypatch.undo()
    # a run between the two knows nothing of what is half deleted
    assert night(1, selected="") == dict.fromkeys(ALL, "done")
    night(2, selected="")
    finished = gc(tmp_path, capsys, "--keep", "2")
    rest = [path for path in planned["paths"] if "artifacts" in path and Path(path).exists()]
    assert rest == []
    assert len(finished["paths"]) > 0
    assert set(night(2, selected="").values()) == {"cached"}


def test_a_run_in_progress_is_left_alone(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night(1, selected="")
    night(2, selected="")
    before = folders(tmp_path)
    with (tmp_path / "artifacts" / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main.main(["gc", str(tmp_path), "--keep", "1"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "Another run (process " in error
        assert "what it needs must not be deleted" in error
        assert (
            gc(tmp_path, capsys, "--keep", "1", "--dry-run")["folders"] == 8
        )  # six nodes, of which the Evaluator gives three
    assert folders(tmp_path) == before


def test_what_is_no_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ([tmp_path, "--keep", "1"], "There is no"),
        ([tmp_path, "--keep", "0"], "--keep must be at least 1, received 0"),
        ([tmp_path / "nowhere", "--keep", "1"], "There is no"),
    ):
        assert main.main(["gc", *map(str, options)]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nothing_outside_is_deleted(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night(1, selected="")
    time.sleep(0.01)
    night(2, selected="")
    outside = tmp_path.parent / f"{tmp_path.name}-data"
    outside.mkdir()
    with lineage.open_store(Root(tmp_path), write=True) as store:
        [first, _] = sorted(store.get_artifacts_by_type("Examples"), key=lambda artifact: artifact.id)
        first.uri = str(outside)
        store.put_artifacts([first])
    gc(tmp_path, capsys, "--keep", "1")
    assert outside.is_dir()
