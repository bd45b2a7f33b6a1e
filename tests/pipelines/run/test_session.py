"""What a run publishes and claims, with steps that take no time between the real runner, ML Metadata and Pusher."""

import dataclasses
import io
import json
import logging
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from power_cut import Disk, restore
from rich.console import Console
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2
from tfx.types import Channel, ComponentSpec, component_spec
from tfx.types.standard_artifacts import Model, ModelBlessing, ModelEvaluation

from edgeline.deployed import pointer_file, versions
from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import verdict
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import published_files, session
from edgeline.pipelines.run.live_view import LiveView
from edgeline.pipelines.run.local_runner import BEAM_ARGS
from edgeline.pipelines.run.outcome import Outcome
from edgeline.pusher.component import Pusher
from edgeline.report import rendering
from edgeline.report.dataclass_json import to_json
from edgeline.report.report_file import parse
from edgeline.report.schema import ChanceReport, ClassificationReport, ClassReport, Report

#: sha256 of the files' contents, by sha256sum
SHA256 = {
    "one": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
    "two": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    "three": "8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f",
}

Run = Callable[..., Outcome]


def write_report(folder: Path, content: str, name: str | None, version: int) -> None:
    candidate = {
        "name": name or "int8",
        "metrics": {"accuracy": 0.96},
        "drop": 0.01,
        "bytes": 3,
        "zlib_bytes": 11,
        "ratio": 2.0,
        "latency_ms": {"p50": 0.1, "p90": 0.2},
        "sparsity": 0.0,
        "blessed": name is not None,
        "reasons": [] if name else ["too large"],
        "failure": None,
        "sha256": SHA256[content],
    }
    report = {
        "schema_version": version,
        "created": "2026-11-22T02:00:00+00:00",
        "pipeline": "digits",
        "module": "digits.model",
        "dataset": {"split": "eval", "examples": 100, "fingerprint": "f", "label_names": None},
        "budget": {"metric": "accuracy", "direction": "max", "max_drop": 0.01, "objective": "zlib_bytes"},
        "baseline": {"metrics": {"accuracy": 0.97}, "bytes": 9, "zlib_bytes": 22, "latency_ms": None},
        "deployed": None,
        "candidates": [candidate],
        "selected": name,
        "closest": None,
        "versions": {},
        "machine": {},
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "report.html").write_text("the Evaluator's page")


class DataExecutor(base_executor.BaseExecutor):
    def Do(self, input_dict, output_dict, exec_properties):  # noqa: N802
        pass


class EvaluatorExecutor(base_executor.BaseExecutor):
    """Leaves what the Evaluator leaves; exec_properties["asked"] says of what."""

    def Do(self, input_dict, output_dict, exec_properties):  # noqa: N802
        asked = json.loads(exec_properties["asked"])
        if asked["fails"]:
            raise ValueError("no good")
        content, name = asked["content"], asked["name"]
        evaluation, model, blessing = (output_dict[key][0] for key in ("evaluation", "model", "blessing"))
        write_report(Path(evaluation.uri), content, name, asked["version"])
        blessing.set_int_custom_property("blessed", int(name is not None))
        Path(blessing.uri, "BLESSED" if name else "NOT_BLESSED").touch()
        serving = Path(model.uri, "Format-Serving")
        serving.mkdir()
        (serving / "model.tflite").write_bytes(content.encode())
        (serving / "metadata.json").write_text(json.dumps({"sha256": SHA256[content], "inputs": [], "outputs": []}))
        model.set_string_custom_property("candidate", name or "")


class DataSpec(ComponentSpec):
    PARAMETERS = {}  # noqa: RUF012
    INPUTS = {}  # noqa: RUF012
    OUTPUTS = {"model": component_spec.ChannelParameter(type=Model)}  # noqa: RUF012


class EvaluatorSpec(ComponentSpec):
    PARAMETERS = {"asked": component_spec.ExecutionParameter(type=str)}  # noqa: RUF012
    INPUTS = {"data": component_spec.ChannelParameter(type=Model)}  # noqa: RUF012
    OUTPUTS = {  # noqa: RUF012
        "evaluation": component_spec.ChannelParameter(type=ModelEvaluation),
        "model": component_spec.ChannelParameter(type=Model),
        "blessing": component_spec.ChannelParameter(type=ModelBlessing),
    }


class Data(base_component.BaseComponent):
    SPEC_CLASS = DataSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(DataExecutor)


class Evaluator(base_component.BaseComponent):
    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(EvaluatorExecutor)


def pipeline(root: Path, asked: dict[str, Any]) -> Pipeline:
    data = Data(DataSpec(model=Channel(Model)))
    outputs = {"evaluation": Channel(ModelEvaluation), "model": Channel(Model), "blessing": Channel(ModelBlessing)}
    evaluator = Evaluator(EvaluatorSpec(asked=json.dumps(asked), data=data.outputs["model"], **outputs))
    filesystem = pusher_pb2.PushDestination.Filesystem(base_directory=str(root / "pushed"))
    pusher = Pusher(
        model=evaluator.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(filesystem=filesystem),
    )
    return Pipeline(
        "digits",
        str(root / "artifacts"),
        components=[data, evaluator, pusher],
        enable_cache=True,
        beam_pipeline_args=list(BEAM_ARGS),
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root / "metadata.db")),
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a pipeline whose Evaluator selects a file of this content as the candidate of this name."""

    def go(content: str = "one", name: str | None = "int8", version: int = 2, fails: bool = False) -> Outcome:
        asked = {"content": content, "name": name, "version": version, "fails": fails}
        monkeypatch.setattr(session, "create_pipeline", lambda *args, **options: pipeline(tmp_path, asked))
        view = LiveView(Console(file=io.StringIO()), live=False)
        return session.run(
            None, Root(tmp_path), None, view
        )  # what is asked, and of which data, only the pipeline needs

    return go


def show(outcome: Outcome) -> tuple[int, str]:
    """The exit code, and what the terminal shows."""
    out = io.StringIO()
    terminal = console.Terminal(Console(file=out, width=200), Console(file=io.StringIO()))
    code = verdict.show(outcome, Path("a.log"), Namespace(debug=False, output="table"), terminal)
    return code, out.getvalue()


def test_the_table_fits_80_columns(run: Run) -> None:
    outcome = run(name="prune80_cluster16_int8")
    out = io.StringIO()
    terminal = console.Terminal(Console(file=out, width=80, force_terminal=True), Console(file=io.StringIO()))
    verdict.show(outcome, Path("a.log"), Namespace(debug=False, output="table"), terminal)
    assert "▶ prune80_cluster16_int8" in out.getvalue()
    assert "…" not in out.getvalue()
    assert "ratio" in out.getvalue()


def test_the_terminal_says_what_the_split_cannot_tell(run: Run) -> None:
    outcome = run()
    assert outcome.report is not None
    assert "note " not in show(outcome)[1]
    none, all_of = (ClassReport(precision=None, recall=None, examples=count) for count in (0, 100))
    scores = ClassificationReport(classes=2, per_class=(none, all_of))
    baseline = dataclasses.replace(outcome.report.baseline, classification=scores)
    guess = ChanceReport(guess="commonest class", answer=1, value=1.0, margin=0.0, beaten=False)
    candidates = tuple(dataclasses.replace(c, chance={"accuracy": guess}) for c in outcome.report.candidates)
    report = dataclasses.replace(outcome.report, baseline=baseline, candidates=candidates)
    outcome = dataclasses.replace(outcome, report=report)
    notes = [line for line in show(outcome)[1].splitlines() if line.startswith("note ")]
    assert notes == [
        "note      int8 is at chance level: accuracy 0.9600, where always to answer 1, the commonest class, has 1.0000 "
        "(0.0000 more may be luck). Train longer before compressing, or judge another metric with --metric.",
        "note      The eval split has no example of 1 of 2 classes (0): nothing here says what becomes of them.",
    ]


def test_the_published_report_has_the_run(run: Run, tmp_path: Path) -> None:
    outcome = run()
    published = json.loads((tmp_path / "report" / "report.json").read_text())
    assert published == to_json(outcome.report)
    nodes = published["run"]["nodes"]
    assert [(node["id"], node["state"], node["upstream"]) for node in nodes] == [
        ("Data", "done", []),
        ("Evaluator", "done", ["Data"]),
        ("Pusher", "done", ["Evaluator"]),
    ]
    assert all(node["seconds"] > 0 for node in nodes)
    assert published["run"]["seconds"] >= sum(node["seconds"] for node in nodes)
    assert outcome.report_path == tmp_path / "report" / "report.html"
    page = outcome.report_path.read_text()
    assert page.startswith("<!doctype html>")
    assert "Pusher" in page
    # what the Evaluator made is as it was: another run may be served it from the cache
    [made] = tmp_path.glob("artifacts/Evaluator/evaluation/*")
    assert "run" not in json.loads((made / "report.json").read_text())

    again = run()
    assert again.states == {"cached": 3}
    assert [node.state for node in again.report.run.nodes] == ["cached"] * 3
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json"]


def test_a_run_without_an_evaluation_publishes_nothing(run: Run, tmp_path: Path) -> None:
    outcome = run(fails=True)
    assert (outcome.report, outcome.report_path, outcome.pushed, outcome.not_pushed) == (None, None, None, None)
    assert not (tmp_path / "report").exists()
    run()
    before = (tmp_path / "report" / "report.json").read_bytes()
    run(fails=True)
    assert (tmp_path / "report" / "report.json").read_bytes() == before


def test_a_report_that_cannot_be_drawn_is_published(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(report: Report) -> str:
        raise ZeroDivisionError(f"no page of {report.pipeline}")

    monkeypatch.setattr(rendering, "render", render)
    with caplog.at_level(logging.ERROR):
        outcome = run()
    assert "could not be drawn" in caplog.text
    assert "no page of digits" in caplog.text
    assert json.loads((tmp_path / "report" / "report.json").read_text())["run"] == to_json(outcome.report.run)
    assert (tmp_path / "report" / "report.html").read_text() == "the Evaluator's page"
    assert outcome.pushed is not None
    assert show(outcome)[0] == 0


def test_a_report_of_another_version_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/report/report.json: has schema_version 99"):
        run(version=99)


def test_a_cached_push_is_claimed_while_its_model_is_deployed(run: Run, tmp_path: Path) -> None:
    first = run().pushed
    assert first is not None
    [version] = [path.name for path in (tmp_path / "pushed").iterdir() if path.is_dir()]
    assert first == tmp_path / "pushed" / version / "model.tflite"
    again = run()
    assert (again.pushed, again.not_pushed) == (first, None)
    assert f"pushed    {first}\n" in show(again)[1]


def test_a_cached_push_is_not_claimed_once_another_model_is_deployed(run: Run, tmp_path: Path) -> None:
    first = run().pushed
    second = run("two", "qat8").pushed
    assert second not in (None, first)
    outcome = run()
    assert outcome.pushed is None
    text = (
        f"qat8 (version {second.parent.name}) is deployed, int8 is not pushed again (cached); use --no-cache to push it"
    )
    assert outcome.not_pushed == text
    assert {key: outcome.summary()[key] for key in ("selected", "pushed", "not_pushed")} == {
        "selected": "int8", "pushed": None, "not_pushed": text,
    }  # fmt: skip
    code, shown = show(outcome)
    assert code == 0
    assert f"deployed  {text}\n" in shown
    assert "\npushed" not in shown

    pointer_file.point(str(tmp_path / "pushed"), first.parent.name)  # back to the first: now the second is not deployed
    again = run()
    assert (again.pushed, again.not_pushed) == (first, None)
    assert run("two", "qat8").not_pushed == (
        f"another model (version {first.parent.name}) is deployed, qat8 is not pushed again (cached); "
        "use --no-cache to push it"
    )


def test_what_was_rolled_back_is_not_pushed_again(run: Run, tmp_path: Path) -> None:
    first, second = run().pushed, run("two", "qat8").pushed
    assert first is not None
    assert second is not None
    push_to = str(tmp_path / "pushed")
    versions.roll_back(push_to, versions.previous(push_to), by="ann", why="grey pictures")
    text = (
        f"another model (version {first.parent.name}) is deployed, qat8 is version {second.parent.name}, which ann "
        "rolled back on "
    )
    cached = run("two", "qat8")
    anew = run("two", "qat8", version=1)  # the Evaluator runs again and selects the same file
    assert (cached.states, anew.states) == ({"cached": 3}, {"done": 2, "cached": 1})
    for outcome in (cached, anew, run("two", "qat8", version=1)):
        assert (outcome.pushed, outcome.pushed_now) == (None, False)
        assert outcome.not_pushed is not None
        assert outcome.not_pushed.startswith(text)
        assert outcome.not_pushed.endswith(
            f": grey pictures; `edgeline push --root {tmp_path} --rollback {second.parent.name}` deploys it again"
        )
    versions.roll_back(push_to, second.parent.name, by="ann", why="")
    for version in (1, 2):
        again = run("two", "qat8", version=version)
        assert (again.pushed, again.not_pushed) == (second, None)
    assert run("three").pushed_now


def test_the_same_content_under_another_version_is_deployed(run: Run) -> None:
    run()
    run("two", "qat8")
    third = run("one", "int8_io").pushed
    again = run()
    assert (again.pushed, again.not_pushed) == (third, None)


def test_a_pointer_that_cannot_be_read_is_a_failure(run: Run, tmp_path: Path) -> None:
    run()
    pointer = tmp_path / "pushed" / "latest.json"
    pointer.write_text("{}")
    outcome = run()
    assert outcome.pushed is None
    assert outcome.not_pushed.startswith(f"{pointer} is not the pointer of a push")
    assert outcome.not_pushed.endswith("int8 is not pushed again (cached); use --no-cache to push it")
    assert show(outcome)[0] == 3
    assert pointer.read_text() == "{}"


@pytest.mark.parametrize("lost", ["latest.json", "", "*/model.tflite"])
def test_what_is_no_longer_deployed_is_pushed_again(lost: str, run: Run, tmp_path: Path) -> None:
    first = run().pushed
    assert first is not None
    if lost:
        [path] = (tmp_path / "pushed").glob(lost)
        path.unlink()
    else:
        shutil.rmtree(tmp_path / "pushed")
    outcome = run()
    assert (outcome.states, outcome.failures) == ({"cached": 2, "done": 1}, ())
    found = pointer_file.latest(str(tmp_path / "pushed"))
    assert found is not None
    assert (found.name, found.sha256) == ("int8", SHA256["one"])
    assert outcome.pushed == Path(found.path)
    assert outcome.pushed_now
    # a version that is whole stays the only one
    assert len(list((tmp_path / "pushed").glob("*/model.tflite"))) == 1
    assert show(outcome)[0] == 0
    assert run().states == {"cached": 3}


def test_after_a_power_cut_all_that_was_lost_is_made_anew(run: Run, tmp_path: Path) -> None:
    """Whatever of a run a cut takes, the next run has no failure, and its model is deployed once and whole."""
    root = tmp_path
    disk = Disk(root, safe=("metadata.db", "metadata.db-journal"))
    with disk.watched():
        run()
        images = list(disk.images())
    pushed, safe = root / "pushed", (root / "metadata.db").read_bytes()
    assert len(images) > 5
    for number, image in enumerate(images):
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in image.items():
            restore(content, root / name) if isinstance(content, dict) else (root / name).write_bytes(content)
        (root / "metadata.db").write_bytes(safe)
        # what the run said was pushed is
        deployed = pointer_file.latest(str(pushed))
        assert deployed is not None
        if number < 2:  # all that was not synced is lost, or only what was in it
            with mock.patch.object(published_files, "_boot", return_value="after the cut"):
                outcome = run()
            assert outcome.failures == ()
            assert outcome.pushed == Path(deployed.path)
            assert pointer_file.latest(str(pushed)) == deployed
            assert json.loads((root / "report" / "report.json").read_text())["selected"] == "int8"
            assert [path.read_bytes() for path in pushed.glob("*/model.tflite")] == [b"one"]


def test_nothing_is_claimed_where_nothing_was_selected(run: Run) -> None:
    for _ in range(2):  # the second is served from the cache
        outcome = run(name=None)
        assert (outcome.pushed, outcome.not_pushed) == (None, None)
        assert outcome.summary()["not_pushed"] == "no candidate met the budget; int8: too large"
        code, shown = show(outcome)
        assert code == 1
        assert "nothing is pushed" in shown


OLD = {
    "version": "1790000000",
    "name": "qat8",
    "sha256": SHA256["two"],
    "metrics": {"accuracy": 0.9512},
    "zlib_bytes": 12345,
    "failure": None,
}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            {},
            {"deployed_drop": -0.0088, "deployed_drop_interval": [-0.02, 0.0024]},
            "accuracy 0.9512 → 0.9600 (drop -0.0088, 95% interval -0.0200 to +0.0024), zlib bytes 12,345 → 11",
        ),
        (
            {"metrics": {"accuracy": None}, "zlib_bytes": None},  # a diverged model, an old exporter
            {"deployed_drop": None, "deployed_drop_interval": [None, None]},
            "accuracy unknown → 0.9600, zlib bytes unknown → 11",
        ),
        ({"sha256": SHA256["one"]}, {}, "the same file"),
        ({"metrics": None, "failure": "other outputs"}, {}, "not comparable, other outputs"),
    ],
)
def test_the_selected_is_shown_beside_the_deployed(
    run: Run, old: dict[str, Any], new: dict[str, Any], line: str
) -> None:
    outcome = edited(run(), deployed=OLD | old, candidate=new)
    assert f"against   qat8 (version 1790000000), deployed before: {line}\n" in show(outcome)[1]


def test_every_metric_of_the_budget_is_shown(run: Run) -> None:
    judged = {"metric": "mae", "direction": "min", "max_drop": 0.5}
    mae = {"drop": 0.25, "deployed_drop": -0.5, "deployed_drop_interval": [-0.75, -0.25]}
    outcome = run()
    metrics = {"accuracy": 0.96, "mae": 1.25, "auc": 0.875, "loss": 3.5}
    content = to_json(outcome.report)
    outcome = edited(
        outcome,
        budget=content["budget"] | {"more_metrics": [judged]},
        baseline=content["baseline"] | {"metrics": metrics},
        deployed=OLD | {"metrics": {"accuracy": 0.9512, "mae": 1.75}},
        candidate={"metrics": metrics, "more_drops": {"mae": mae}},
    )
    shown = show(outcome)[1]
    rows = [line.split() for line in shown.splitlines()]
    [title] = [row for row in rows if row[:1] == ["candidate"]]
    assert title[1:6] == ["accuracy", "drop", "mae", "drop", "auc"]
    assert "loss" not in title
    [row] = [row for row in rows if row[:2] == ["▶", "int8"]]
    assert row[4:7] == ["1.2500", "+0.2500", "0.8750"]
    assert "metric    accuracy (more is better" in shown
    assert "mae (less is better; rise at most 0.5); the first ranks the candidates\n" in shown
    assert "mae 1.7500 → 1.2500 (drop -0.5000, 95% interval -0.7500 to -0.2500), zlib bytes" in shown


def edited(outcome: Outcome, *, candidate: dict[str, Any], **changes: Any) -> Outcome:
    """An outcome whose report says something else of its first candidate, and of itself."""
    content = to_json(outcome.report) | changes
    content["candidates"][0] |= candidate
    return dataclasses.replace(outcome, report=parse(content, "the report"))


def test_the_table_says_what_is_not_known(run: Run) -> None:
    failure = {"step": "Evaluator", "error": "the cost could not be measured"}
    outcome = edited(run(name=None), candidate={"latency_ms": None, "failure": failure})
    [candidate] = outcome.report.candidates
    other = dataclasses.replace(candidate, name="diverged", failure=None, metrics={"accuracy": None}, drop=None)
    outcome = dataclasses.replace(outcome, report=dataclasses.replace(outcome.report, candidates=(candidate, other)))
    rows = [line.split() for line in show(outcome)[1].splitlines()]
    assert ["int8", "failed"] in rows
    assert ["diverged", "3", "11", "2.0x", "0%", "rejected"] in rows
