"""Compiled pipelines, run as a cluster would: toy steps in all combinations, and the whole digits pipeline once."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kfp")

import recorder
import toysteps
import yaml
from launcher import Cluster, Json, RefusedError, Result, in_container, in_process, stock
from ml_metadata.errors import AlreadyExistsError
from tfx.components import Pusher
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.experimental.conditionals import conditional
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2
from tfx.types.standard_artifacts import Examples

from edgeline.budget import Budget
from edgeline.config import FineTuning
from edgeline.errors import UserError
from edgeline.evaluator.config import Evaluation
from edgeline.kubeflow import compile as compiler
from edgeline.kubeflow import convert, entrypoint
from edgeline.kubeflow.deployment import SCRATCH, Deployment
from edgeline.kubeflow.settings import Settings
from edgeline.model_module import module_source
from edgeline.model_module.module_source import Source
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.job import Job
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import published_files
from edgeline.recipe import Recipe
from edgeline.report import report_file
from edgeline.report.schema import Report
from edgeline.trainer.config import Train

pytestmark = pytest.mark.kubeflow

PREPARE = entrypoint.prepare
IMAGE = "registry.example/edgeline@sha256:" + "a" * 64
ROOTS = {"minio": "minio://mlpipeline/v2/artifacts", "s3": "s3://bucket/edgeline", "gs": "gs://bucket/edgeline"}


def toy_pipeline(root: str, *, bless: int = 1) -> Pipeline:
    """Importer → Count → Score if there are two words or more → Pusher, if it is blessed."""
    examples = Importer(
        source_uri=RuntimeParameter("data", str, f"{root}/data"), artifact_type=Examples, output_key="examples"
    ).with_id("Examples")
    count = toysteps.Count(
        examples=examples.outputs["examples"],
        text=RuntimeParameter("text", str, "one two three"),
        upper=True,
        weights={"one": 1},
        stop=["two"],
    ).with_id("Count.all_words")
    with conditional.Cond(count.outputs["stats"].future()[0].property("words") > 1):
        score = toysteps.Score(
            stats=count.outputs["stats"], words=count.outputs["words"].future()[0].value, upper=False, bless=bless
        )
    pusher = Pusher(
        model=score.outputs["model"],
        model_blessing=score.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=SCRATCH)
        ),
    )
    return Pipeline(
        pipeline_name="toy", pipeline_root=root, components=[examples, count, score, pusher], enable_cache=True
    )


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture
def make_cluster(tmp_path: Path) -> Callable[..., Cluster]:
    def make(root: str, **options: object) -> Cluster:
        cluster = Cluster(tmp_path, **options)
        data = cluster.path(f"{root}/data") / "Split-train"
        data.mkdir(parents=True)
        (data / "data").write_text("train")
        return cluster

    return make


def seen(cluster: Cluster, result: Result) -> dict[str, object]:
    path = cluster.path(result.artifacts["Score"]["model"].uri) / "Format-Serving" / "seen.txt"
    return eval(path.read_text())


@pytest.mark.parametrize("scheme", ROOTS)
@pytest.mark.parametrize("publish_logs", [True, False], ids=["logs", "no-logs"])
@pytest.mark.parametrize("version", ["2.5", "2.16"])
def test_everything_arrives(
    version: str, publish_logs: bool, scheme: str, make_cluster: Callable[..., Cluster]
) -> None:
    root = ROOTS[scheme]
    cluster = make_cluster(root, version=version, publish_logs=publish_logs)
    result = cluster.run(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)), root)
    arrived = seen(cluster, result)
    assert type(arrived["words"][1]) is int
    assert arrived == {
        "words": (2, 2),
        "mean": 4.0,
        "first": "one",
        "sorted": (True, False),
        "lengths": [3.0, 5.0],
        "weights": {"one": 1.0},
        "upper": False,
        "text": "(True, {'one': 1.0}, ['two'])",
    }
    stats = result.artifacts["Count-all-words"]["stats"]
    assert (stats.title, stats.metadata["words"], stats.metadata["where"]) == ("toysteps.WordStats", 2, stats.uri)
    blessing = result.artifacts["Score"]["blessing"]
    assert blessing.metadata["current_model_id"] == str(stats.id)
    assert blessing.metadata["current_model"] == stats.uri
    assert (cluster.path(blessing.uri) / "BLESSED").is_file()
    assert ("executor-logs" in result.artifacts["Score"]) == publish_logs


@pytest.mark.parametrize("bless", [1, 0])
def test_what_is_blessed_is_pushed_into_the_artifact(bless: int, make_cluster: Callable[..., Cluster]) -> None:
    root = ROOTS["minio"]
    cluster = make_cluster(root)
    text = compiler.compile_pipeline(toy_pipeline(root, bless=bless), Deployment("oss", IMAGE, root))
    pushed = cluster.run(text, root).artifacts["Pusher"]["pushed_model"]
    assert pushed.metadata["pushed"] == bless
    assert (cluster.path(pushed.uri) / "seen.txt").is_file() == bool(bless)
    # the Pusher's own folder is gone with its container
    assert pushed.metadata.get("pushed_destination") == (pushed.uri if bless else None)


def test_parameters_and_conditions_are_obeyed(make_cluster: Callable[..., Cluster]) -> None:
    root = ROOTS["s3"]
    cluster = make_cluster(root)
    text = compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root))
    result = cluster.run(text, root, {"text": "alone"})
    assert result.artifacts["Count-all-words"]["stats"].metadata["words"] == 1
    assert "Score" not in result.artifacts


def test_the_stock_entrypoint_dies(make_cluster: Callable[..., Cluster]) -> None:
    root = ROOTS["minio"]
    cluster = make_cluster(root, step=stock)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'get'"):  # the type that is not there
        cluster.run(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)), root)


def _keeping_logs(request: Json, declaration: Json, paths: dict[str, Path]) -> Json:
    logs = request["outputs"]["artifacts"]["executor-logs"]
    prepared = PREPARE(request, declaration, paths)
    prepared["outputs"]["artifacts"]["executor-logs"] = logs
    return prepared


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("prepare", lambda request, declaration, paths: PREPARE(request, {}, paths), "has no attribute 'get'"),
        ("prepare", _keeping_logs, "Could not import system.Artifact"),
        ("prepare", lambda request, declaration, paths: PREPARE(request, declaration, {}), "Split-train"),
        ("to_uri", lambda path, paths: path, "unsupported storage scheme"),
        ("restore", lambda result, paths: result, "unsupported storage scheme"),
        ("_tfx_patched", contextlib.nullcontext, "No such file or directory"),
    ],
    ids=["types", "logs", "paths", "uris", "restore", "patches"],
)
def test_without_a_rule_of_the_entrypoint_it_dies(
    name: str,
    broken: Callable[..., Any],
    message: str,
    make_cluster: Callable[..., Cluster],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrypoint, name, broken)
    root = ROOTS["minio"]
    cluster = make_cluster(root)
    text = compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root))
    with pytest.raises(Exception, match=message):
        cluster.run(text, root)


@pytest.mark.parametrize(
    ("name", "broken", "arrives"),
    [
        (
            "_encode",
            lambda value, paths: value if not isinstance(value, str) else entrypoint.to_uri(value, paths),
            {"list": [3.0, 5.0]},
        ),
        ("_decode", lambda value: value, "json:[3.0, 5.0]"),
    ],
)
def test_without_its_codec_json_arrives_as_something_else(
    name: str,
    broken: Callable[..., Any],
    arrives: object,
    make_cluster: Callable[..., Cluster],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrypoint, name, broken)
    root = ROOTS["minio"]
    cluster = make_cluster(root)
    result = cluster.run(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)), root)
    assert seen(cluster, result)["lengths"] == arrives


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        ("restore_defaults", "parameter data is required"),
        ("fix_producers", "Score asks for the task 'Count.all_words_task'"),
        ("fix_conditions", "Score asks for the condition's input '_Count.all_words.stats'"),
    ],
)
def test_without_a_repair_it_does_not_run(
    repair: str, message: str, make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, repair, lambda *_: None)
    root = ROOTS["s3"]
    cluster = make_cluster(root)
    with pytest.raises(Exception, match=message):
        cluster.run(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)), root)


@pytest.mark.parametrize("repair", ["restore_types", "bake_declarations"])
def test_without_their_types_parameters_arrive_as_others(
    repair: str, make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, repair, lambda *_: None)
    root = ROOTS["s3"]
    cluster = make_cluster(root)
    result = cluster.run(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)), root)
    assert seen(cluster, result)["upper"] is not False


def test_without_names_argo_refuses(make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "rename_nodes", lambda spec: {})
    root = ROOTS["s3"]
    cluster = make_cluster(root)
    text = compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root))
    with pytest.raises(RefusedError, match=r"Count\.all_words is no name"):
        cluster.run(text, root)


def test_an_exit_handler_gets_its_parameters(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ROOTS["s3"]
    cluster = make_cluster(root)

    def compiled() -> str:
        handler = toysteps.Report(text="over")
        return compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root), exit_handler=handler)

    result = cluster.run(compiled(), root, {"text": "one two three four"})
    assert result.artifacts["Count-all-words"]["stats"].metadata["words"] == 3
    assert "Report" in result.artifacts
    monkeypatch.setattr(convert, "forward_parameters", lambda *_: None)
    with pytest.raises(Exception, match="asks for the parameter 'text'"):
        compiled()


def whole_run(recipe_names: tuple[str, ...]) -> Job:
    source = module_source.locate("edgeline.pipelines.examples.digits.model")
    chosen: tuple[Recipe, ...] = tuple(recipes.RECIPES[name] for name in recipe_names)
    budget = Budget(max_drop=0.5)  # so that something is selected after one epoch
    return Job(source, chosen, Train(epochs=1), FineTuning(epochs=1), budget)


def what_matters(seen: dict[str, Json]) -> dict[str, Json]:
    """Returns what executors were given without what only the orchestrators write, and no executor reads."""
    written_by_tfx = ("is_external", "tfx_version", "span", "input_fingerprint")
    written_by_kfp = ("display_name", "store_session_info")
    read_by_the_local_cache = (published_files.SHA256, published_files.BYTES)
    unread = {*written_by_tfx, *written_by_kfp, *read_by_the_local_cache}
    for given in (
        artifact for node in seen.values() for artifacts in node["inputs"].values() for artifact in artifacts
    ):
        custom = {k: v for k, v in given["custom"].items() if k not in unread}
        if custom.pop("current_model_id", None):  # a number here, a name there; both have the path too
            custom["current_model"] = recorder.node_of(custom["current_model"])
        given["custom"] = custom
    properties = without_what_may_differ({node: given["exec_properties"] for node, given in seen.items()})
    return {node: {**given, "exec_properties": properties[node]} for node, given in seen.items()}


def without_what_may_differ(properties: Json) -> Json:
    """Returns the parameters of nodes without those that are absent on a cluster (None) or say where models go."""
    places = ("deployed", "push_destination")
    return {
        node: {name: value for name, value in given.items() if name not in places and value != ["NoneType", None]}
        for node, given in properties.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_pipeline_is_that_of_the_local_run(digits_data: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from edgeline.pipelines.run import session
    from edgeline.pipelines.run.live_view import LiveView

    run = whole_run(("int8", "prune80_int8"))
    with recorder.recording(tmp_path / "seen"):
        view = LiveView(Console(quiet=True), False)
        local = session.run(run, Root(tmp_path / "digits"), compression.import_examples(digits_data), view).report
    assert local is not None

    cluster = Cluster(tmp_path / "cluster", step=in_container)
    root, data = ROOTS["minio"], "minio://mlpipeline/data/digits"
    [ingested] = (tmp_path / "digits" / "artifacts" / "ImportExampleGen" / "examples").iterdir()
    shutil.copytree(ingested, cluster.path(data))
    text = compiler.compile_run(run, data, Deployment("oss", IMAGE, root), name="digits")
    result = cluster.run(text, root)
    report = report_file.read(cluster.path(result.artifacts["Evaluator"]["evaluation"].uri) / "report.json")

    def facts(report: Report) -> dict:
        models = (report.baseline, *report.candidates)
        files = {model.name: (model.bytes, model.zlib_bytes, model.sha256) for model in models}
        return files | {"selected": report.selected, "examples": report.dataset.examples}

    def metrics(report: Report) -> dict[str, float]:
        models = (report.baseline, *report.candidates)
        return {f"{model.name} {key}": value for model in models for key, value in model.metrics.items()}

    assert facts(report) == facts(local)
    # sums differ in their last bit with the order of the bundles
    assert metrics(report) == pytest.approx(metrics(local), abs=1e-9)
    pushed = result.artifacts["Pusher"]["pushed_model"]
    assert pushed.metadata["pushed_destination"] == pushed.uri
    selected = report.candidate(report.selected)
    model = (cluster.path(pushed.uri) / "model.tflite").read_bytes()
    assert hashlib.sha256(model).hexdigest() == selected.sha256

    here = what_matters(recorder.read(tmp_path / "seen"))
    there: Json = {}
    for pod in (tmp_path / "cluster" / "pods").iterdir():
        there |= what_matters(recorder.read(pod / "seen"))
    assert set(here) - set(there) == {"ImportExampleGen"}  # there the data is imported, and nothing executed
    for node, seen in there.items():
        for part in ("exec_properties", "inputs", "outputs"):
            assert seen[part] == here[node][part], f"{part} of {node}"


def given_to_executors(run: Job, text: str, folder: Path, values: Json) -> tuple[Result, Json, Json]:
    """Runs a compiled file without doing anything.

    Returns:
      The run, the parameters that executors were given, and those that a local run would give; by node, with types.
    """
    with recorder.recording(folder / "seen", work=False):
        result = Cluster(folder).run(text, ROOTS["s3"], values)
    given = {node: seen["exec_properties"] for node, seen in recorder.read(folder / "seen").items()}
    examples = Importer(source_uri="none", artifact_type=Examples, output_key="examples")
    local = {
        re.sub("[._]", "-", node.id): {k: [type(v).__name__, v] for k, v in node.exec_properties.items()}
        for node in compression.create_components("digits", run, examples=examples, push_to=SCRATCH)[1:]
    }
    return result, given, without_what_may_differ(local)


def test_parameters_arrive_as_in_a_local_run(tmp_path: Path) -> None:
    budget = Budget(max_drop=0.5, max_slice_drops={"label=7": 1, "label": 0.03}, max_cold_start_ms=50.0)
    run = dataclasses.replace(
        whole_run(("int8", "qat8", "prune80_int8")),
        budget=budget,
        evaluation=Evaluation(max_bad_records=3, check_keras=True, allow_chance_level=True),
    )
    text = compiler.compile_run(run, "s3://bucket/none", Deployment("oss", IMAGE, ROOTS["s3"]), name="digits")
    result, given, local = given_to_executors(run, text, tmp_path / "defaults", {})
    assert without_what_may_differ(given) == local
    assert given["Evaluator"]["max_slice_drops"] == ["str", '{"label": 0.03, "label=7": 1.0}']
    assert given["Evaluator"]["check_keras"] == given["Evaluator"]["allow_chance_level"] == ["bool", True]
    assert result.artifacts["Examples"]["examples"].uri == "s3://bucket/none"

    # a run that is given other parameters is as a local run that is asked for these
    other = dataclasses.replace(
        run,
        module=Source("mine.model", Path("none"), "d"),
        train=Train(epochs=7),
        finetune=FineTuning(epochs=5),
        budget=Budget(
            metric="loss", direction="min", max_drop=2.0, drop_bound="upper", max_deployed_drop=None,
            max_slice_drops={"label": 1}, min_slice_examples=7, max_bytes=2**40, max_zlib_bytes=9, max_latency_ms=1.5,
            max_latency_p90_ms=2.0, max_latency_p99_ms=3.0, max_latency_all_threads_ms=4.0,
            max_latency_without_xnnpack_ms=5.0, max_cold_start_ms=6.0, max_peak_rss_bytes=8, objective="bytes",
            target="gpu", value_threshold=0.5,
        ),
    )  # fmt: skip
    values = {
        "data": "s3://other/digits", "module": "mine.model", "module_digest": "d", "epochs": 7, "finetune_epochs": 5,
        **other.budget.encoded(),
    }  # fmt: skip
    spec, *_ = yaml.safe_load_all(text)
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == set(values)
    assert not [name for name, value in run.budget.encoded().items() if values[name] == value]  # each is another
    result, given, local = given_to_executors(other, text, tmp_path / "others", values)
    assert without_what_may_differ(given) == local
    assert result.artifacts["Examples"]["examples"].uri == "s3://other/digits"
    # one that trains nothing must stay the same, or the cache would not serve it
    names = ("Trainer", "Pruner-prune80", "Quantizer-qat8", "Quantizer-int8")
    assert [given[name]["epochs"][1] for name in names] == [7, 5, 5, 2]


def test_candidates_of_one_file_are_one_input(tmp_path: Path) -> None:
    """ML Metadata records an artifact once as the input of a step, by how many names it may be known."""
    twice = dataclasses.replace(recipes.RECIPES["int8"], name="again")
    run = whole_run(("float32", "int8"))
    run = dataclasses.replace(run, recipes=(*run.recipes, twice))
    text = compiler.compile_run(run, "s3://bucket/none", Deployment("oss", IMAGE, ROOTS["s3"]), name="digits")
    result, given, local = given_to_executors(run, text, tmp_path, {})
    assert without_what_may_differ(given) == local
    assert set(result.inputs["Evaluator"]["inputs"]["artifacts"]) == {"examples", "baseline", "keras", "int8"}
    named = {"float32": "baseline", "int8": "int8", "again": "int8"}
    assert json.loads(given["Evaluator"]["candidates"][1]) == named


def test_the_simulated_driver_records_an_artifact_once(make_cluster: Callable[..., Cluster]) -> None:
    root = ROOTS["s3"]
    cluster = make_cluster(root)
    spec = yaml.safe_load(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)))
    given = spec["root"]["dag"]["tasks"]["Score"]["inputs"]["artifacts"]
    given["again"] = given["stats"]
    with pytest.raises(AlreadyExistsError):
        cluster.run(yaml.safe_dump(spec), root)


@pytest.mark.parametrize("retries", [2, {"count": 1, "backoff_max_seconds": 1}, 0])
def test_a_step_that_was_killed_is_tried_again(retries: int | Json, make_cluster: Callable[..., Cluster]) -> None:
    begun: list[str] = []

    def killed_once(command: list[str], arguments: list[str], mounts: Path) -> None:
        begun.append(mounts.name)
        if begun == ["1-Count-all-words"]:
            (mounts / "half-written").touch()
            raise ConnectionResetError
        assert not (mounts / "half-written").exists()
        in_process(command, arguments, mounts)

    root = ROOTS["s3"]
    settings = Settings(default={"retries": retries})
    text = compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root, settings))
    if not retries:
        with pytest.raises(ConnectionResetError):
            make_cluster(root, step=killed_once).run(text, root)
        return
    result = make_cluster(root, step=killed_once).run(text, root)
    assert set(result.artifacts) == {"Examples", "Count-all-words", "Score", "Pusher"}


def test_retries_without_durations_are_none(make_cluster: Callable[..., Cluster]) -> None:
    """What KFP fills in for them leaves Argo no time: so it was in each compiled file once."""

    def killed(command: list[str], arguments: list[str], mounts: Path) -> None:
        begun.append(mounts.name)
        raise ConnectionResetError

    begun: list[str] = []
    root = ROOTS["s3"]
    spec = yaml.safe_load(compiler.compile_pipeline(toy_pipeline(root), Deployment("oss", IMAGE, root)))
    spec["root"]["dag"]["tasks"]["Count-all-words"]["retryPolicy"] = {"maxRetryCount": 2}
    with pytest.raises(ConnectionResetError):
        make_cluster(root, step=killed).run(yaml.safe_dump(spec), root)
    assert begun == ["1-Count-all-words"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"module": "no.such.module"}, "model module no.such.module cannot be imported: No module named 'no'"),
        ({"module_digest": "f" * 64}, "is not the one this run began with .* or another version is installed here"),
    ],
)
def test_what_the_image_has_not_is_said_by_the_first_step(given: Json, message: str, tmp_path: Path) -> None:
    run = whole_run(("int8",))
    text = compiler.compile_run(run, "s3://bucket/none", Deployment("oss", IMAGE, ROOTS["s3"]), name="digits")
    with pytest.raises(UserError, match=message):
        Cluster(tmp_path).run(text, ROOTS["s3"], given)
