"""What is compiled: the golden file, parameters, caching, resources; what is refused and why."""

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kfp")

import toysteps
from tfx.components import CsvExampleGen, InfraValidator
from tfx.components import Trainer as StockTrainer
from tfx.dsl.component.experimental import container_component
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.input_resolution.strategies.latest_artifact_strategy import LatestArtifactStrategy
from tfx.orchestration.kubeflow.v2 import compiler_utils
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import infra_validator_pb2, trainer_pb2
from tfx.types import artifact, channel
from tfx.types.standard_artifacts import Examples, Model

from edgeline import kubeflow
from edgeline.errors import UserError
from edgeline.kubeflow import compile as compiler
from edgeline.kubeflow import settings
from edgeline.kubeflow.deployment import Deployment
from edgeline.model_module import module_source
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.job import Job

pytestmark = pytest.mark.kubeflow

IMAGE = "registry.example/edgeline@sha256:" + "a" * 64
ROOT = "gs://bucket/edgeline/digits"
DATA = "gs://bucket/data"
GOLDEN = Path(__file__).with_name("golden.yaml")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run whose versions and digests never change."""
    monkeypatch.setattr(compression, "toolchain", lambda module: "toolchain")
    source = module_source.locate("edgeline.pipelines.examples.digits.model")
    chosen = (recipes.int8(), recipes.prune80_int8())
    return Job(dataclasses.replace(source, digest="0" * 64), chosen)


def compiled(run: Job, target: str = "oss", fields: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    deployment = Deployment(target, IMAGE, ROOT, settings.Settings(steps=fields or {}))
    return list(yaml.safe_load_all(compiler.compile_run(run, DATA, deployment, name="digits", **options)))


_PLAIN: dict[str, list[Any]] = {}


@pytest.fixture
def plain(run: Job) -> Any:
    """What becomes of the run without further options, compiled once, for a test to change."""
    if not _PLAIN:
        _PLAIN["oss"] = compiled(run)
    [spec] = copy.deepcopy(_PLAIN["oss"])
    return spec


def executor(spec: Any, name: str) -> Any:
    return spec["deploymentSpec"]["executors"][f"exec-{name}"]


def test_golden(run: Job) -> None:
    """EDGELINE_UPDATE_GOLDEN=1 writes the file anew: read its diff before committing it."""
    needs = settings.Settings(
        {"cpu": 1, "retries": 1},
        {
            "Trainer": {"memory": {"request": "2Gi", "limit": "4Gi"}, "gpu": {"count": 1}},
            "Pusher": {"timeout_seconds": 60},
        },
    )
    text = compiler.compile_run(run, DATA, Deployment("oss", IMAGE, ROOT, needs), name="digits")
    if os.environ.get("EDGELINE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_equal_requests_give_equal_files(run: Job, plain: Any) -> None:
    assert compiled(run) == [plain]


@pytest.mark.parametrize("target", ["oss", "vertex"])
def test_every_parameter_has_its_default(target: str, run: Job, plain: Any) -> None:
    [spec] = [plain] if target == "oss" else compiled(run, target)
    found = {n: p["defaultValue"] for n, p in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert found == {
        "data": DATA, "module": "edgeline.pipelines.examples.digits.model", "module_digest": "0" * 64,
        "epochs": 4, "finetune_epochs": 2, "metric": "none", "direction": "none", "max_drop": 0.01,
        "max_bytes": "none", "max_zlib_bytes": "none", "max_latency_ms": "none",
        "objective": "zlib_bytes", "drop_bound": "point",
        "max_deployed_drop": "0.0", "max_slice_drops": "{}", "min_slice_examples": 20, "max_latency_p90_ms": "none",
        "max_latency_p99_ms": "none", "max_latency_all_threads_ms": "none", "max_latency_without_xnnpack_ms": "none",
        "max_cold_start_ms": "none", "max_peak_rss_bytes": "none", "target": "cpu",
        "value_threshold": "none",
    }  # fmt: skip
    assert spec["defaultPipelineRoot"] == ROOT
    assert spec["schemaVersion"] == "2.1.0"


def test_examples_are_imported(run: Job, plain: Any) -> None:
    importer = executor(plain, "Examples")["importer"]
    assert importer["metadata"] == {
        "split_names": '["train", "validation", "eval"]',
        "file_format": "tfrecords_gzip",
        "payload_format": "FORMAT_TF_EXAMPLE",
    }
    assert importer["reimport"] is True
    [fixed] = compiled(run, fixed_data=True)
    assert (
        "reimport" not in executor(fixed, "Examples")["importer"]
        or not executor(fixed, "Examples")["importer"]["reimport"]
    )


def test_everything_but_the_data_may_be_served_from_earlier_runs(run: Job, plain: Any) -> None:
    tasks = plain["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if "cachingOptions" in task} == set(tasks) - {"Examples"}
    [spec] = compiled(run, enable_cache=False)
    assert not any("cachingOptions" in task for task in spec["root"]["dag"]["tasks"].values())


def test_a_schema_is_imported_and_the_data_are_checked_before_the_training(run: Job, plain: Any) -> None:
    [spec] = compiled(run, schema="gs://bucket/schema")
    assert executor(spec, "Schema")["importer"]["reimport"] is True
    assert spec["root"]["inputDefinitions"]["parameters"]["schema"]["defaultValue"] == "gs://bucket/schema"
    tasks = spec["root"]["dag"]["tasks"]
    for step in ("Trainer", "RepresentativeDatasetGen"):
        assert "DataGate" in tasks[step]["dependentTasks"]
    assert {"StatisticsGen", "ExampleValidator", "Schema"} <= set(tasks["DataGate"]["dependentTasks"])
    assert not {"Schema", "StatisticsGen", "ExampleValidator", "DataGate"} & set(plain["root"]["dag"]["tasks"])


def test_where_the_pusher_pushes_and_the_evaluator_looks(run: Job, plain: Any) -> None:
    def folders(deployment: Deployment) -> tuple[str, str]:
        text = compiler.compile_run(run, DATA, deployment, name="digits")
        return folders_of(yaml.safe_load(text.split("\n---\n")[0]))

    def folders_of(spec: Any) -> tuple[str, str]:
        tasks = spec["root"]["dag"]["tasks"]
        destination, deployed = (
            tasks[task]["inputs"]["parameters"][name]["runtimeValue"]["constant"]
            for task, name in (("Pusher", "push_destination"), ("Evaluator", "deployed"))
        )
        return json.loads(destination)["filesystem"]["base_directory"], deployed

    volume = {"volumes": [{"claim": "models", "path": "/mnt/models"}]}
    mounted = settings.Settings(steps={"Pusher": volume, "Evaluator": volume})
    assert folders(Deployment("vertex", IMAGE, ROOT)) == (f"{ROOT}/pushed",) * 2
    assert folders_of(plain) == ("/tmp/edgeline-pushed", "")  # nothing lasts there
    assert folders(Deployment("oss", IMAGE, ROOT, mounted, "/mnt/models/digits")) == ("/mnt/models/digits",) * 2
    assert folders(Deployment("oss", IMAGE, ROOT, push_to="gs://other/models")) == ("gs://other/models",) * 2


def test_resources_of_a_cluster(run: Job) -> None:
    spec, platform = compiled(
        run,
        fields={
            "Trainer": {
                "cpu": {"request": "500m", "limit": 4},
                "memory": "8Gi",
                "gpu": {"count": 2},
                "retries": 3,
                "node_selector": {"pool": "gpu"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "secrets": [{"name": "store", "env": {"key": "STORE_KEY"}}, {"name": "tls", "path": "/etc/tls"}],
                "volumes": [{"claim": "checkpoints", "path": "/mnt/checkpoints"}],
                "timeout_seconds": 3600,
            },
            "Quantizer": {"cpu": 1},
            "Quantizer.int8": {"cpu": 2},
            "Evaluator": {"beam_args": ["--direct_num_workers=2"]},
        },
    )
    assert executor(spec, "Trainer")["container"]["resources"] == {
        "cpuRequest": 0.5, "cpuLimit": 4.0, "resourceCpuRequest": "500m", "resourceCpuLimit": "4",
        "memoryRequest": 8.589934592, "memoryLimit": 8.589934592,
        "resourceMemoryRequest": "8Gi", "resourceMemoryLimit": "8Gi",
        "accelerator": {
            "type": "nvidia.com/gpu", "count": "2", "resourceType": "nvidia.com/gpu", "resourceCount": "2",
        },
    }  # fmt: skip
    assert spec["root"]["dag"]["tasks"]["Trainer"]["retryPolicy"] == {
        "maxRetryCount": 3, "backoffDuration": "0s", "backoffFactor": 2.0, "backoffMaxDuration": "86400s"
    }  # fmt: skip
    assert platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"] == {
        "exec-Trainer": {
            "nodeSelector": {"labels": {"pool": "gpu"}},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "secretAsEnv": [{"secretName": "store", "keyToEnv": [{"secretKey": "key", "envVar": "STORE_KEY"}]}],
            "secretAsVolume": [{"secretName": "tls", "mountPath": "/etc/tls"}],
            "pvcMount": [{"constant": "checkpoints", "mountPath": "/mnt/checkpoints"}],
            "activeDeadlineSeconds": "3600",
        }
    }
    limits = [
        executor(spec, f"Quantizer-{n}")["container"]["resources"]["resourceCpuLimit"] for n in ("float32", "int8")
    ]
    assert limits == ["1", "2"]
    assert executor(spec, "Evaluator")["container"]["args"][-1] == "--direct_num_workers=2"
    assert "--direct_num_workers=2" not in executor(spec, "RepresentativeDatasetGen")["container"]["args"]


def test_resources_of_vertex(run: Job) -> None:
    [spec] = compiled(run, "vertex", {"Trainer": {"gpu": {"count": 1, "type": "NVIDIA_TESLA_T4"}, "cpu": 4}})
    resources = executor(spec, "Trainer")["container"]["resources"]
    assert (resources["accelerator"]["type"], resources["cpuLimit"]) == ("NVIDIA_TESLA_T4", 4)


def test_without_their_schemas_types_with_properties_are_refused(run: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(compiler, "_schemas_with_properties", nullcontext)
    with pytest.raises(KeyError, match="Actual property: samples not expected"):
        compiled(run)


def test_tfx_is_left_as_it_was(run: Job) -> None:
    before = compiler_utils.get_artifact_schema
    compiled(run)
    assert compiler_utils.get_artifact_schema is before


def test_another_tfx_is_refused(run: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow, "TFX_SERIES", "1.99.")
    with pytest.raises(UserError, match=r"TFX 1\.21\.0 is installed; .* mends TFX 1\.99\.x from within"):
        compiled(run)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"and lacks tfx\.nowhere\.f, tfx\.version\.g"):
        kubeflow.check_tfx("tfx.nowhere.f", "tfx.version.g", "tfx.version.__version__")


def test_a_module_of_this_machine_is_refused(run: Job, tiny_module: Path) -> None:
    local = dataclasses.replace(run, module=module_source.locate(str(tiny_module)))
    with pytest.raises(UserError, match=r"--module .*tiny_model\.py is a file of this machine"):
        compiled(local)


class Elsewhere(artifact.Artifact):
    TYPE_NAME = "nowhere.Elsewhere"


def _examples() -> channel.BaseChannel:
    return Importer(source_uri=DATA, artifact_type=Examples, output_key="examples").outputs["examples"]


def _csv() -> BaseNode:
    return CsvExampleGen(input_base="data")


def _resolver() -> BaseNode:
    return Resolver(strategy_class=LatestArtifactStrategy, model=channel.Channel(type=Model))


def _module_file() -> BaseNode:
    return StockTrainer(
        module_file="trainer.py",
        examples=_examples(),
        train_args=trainer_pb2.TrainArgs(),
        eval_args=trainer_pb2.EvalArgs(),
    )


def _infra_validator() -> BaseNode:
    return InfraValidator(
        model=channel.Channel(type=Model), serving_spec=infra_validator_pb2.ServingSpec(), examples=_examples()
    )


def _container() -> BaseNode:
    return container_component.create_container_component(name="Copy", image="busybox", command=["true"])()


def _in_main() -> BaseNode:
    node = toysteps.Report(text="x")
    node.executor_spec.executor_class = type("Executor", (), {"__module__": "__main__"})
    return node


def _unknown_type() -> BaseNode:
    return Importer(source_uri=DATA, artifact_type=Elsewhere)


def _union() -> BaseNode:
    both = channel.union([_examples(), _examples()])
    return toysteps.Count(examples=both, text="", upper=True, weights={}, stop=[])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_csv, "CsvExampleGen cannot run on Kubeflow: its driver, which finds the files, is never called"),
        (_resolver, "has no resolvers; import the artifact by its URI"),
        (_module_file, "Trainer cannot run on Kubeflow: module_file makes TFX build a wheel"),
        (_infra_validator, "TFX does not compile InfraValidator"),
        (_container, "container components need placeholders"),
        (_in_main, "it is defined in the script that is run"),
        (_unknown_type, "the artifact type Elsewhere is imported by its TYPE_NAME 'nowhere.Elsewhere'"),
        (_union, "its input examples is a union of channels"),
    ],
)
@pytest.mark.filterwarnings("ignore:Node .* depends on the output of node")
def test_what_cannot_work_is_refused(make: Callable[[], BaseNode], message: str) -> None:
    pipeline = Pipeline(pipeline_name="p", pipeline_root=ROOT, components=[make()])
    with pytest.raises(UserError, match=message):
        compiler.compile_pipeline(pipeline, Deployment("oss", IMAGE, ROOT))


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({"Trainr": {"cpu": 1}}, "oss", "steps.Trainr: the pipeline has no such step; did you mean Trainer?"),
        ({"Examples": {"cpu": 1}}, "oss", "steps.Examples: the pipeline has no such step"),
        (
            {"Trainer": {"beam_args": ["--x"]}},
            "oss",
            "this step does not use Beam; Evaluator, RepresentativeDatasetGen do",
        ),
        ({"Trainer": {"volumes": [], "secrets": []}}, "vertex", "Vertex has no secrets, volumes"),
        ({"Trainer": {"gpu": {"count": 1}}}, "vertex", "Vertex wants its own name, e.g. NVIDIA_TESLA_T4"),
        ({"Trainer": {"gpu": {"count": 1, "type": "T4"}}}, "oss", "Kubernetes wants the name of a resource"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], target: str, message: str, run: Job) -> None:
    with pytest.raises(UserError, match=message):
        compiled(run, target, fields)


@pytest.mark.parametrize("target", ["oss", "vertex"])
def test_a_memory_limit_holds_in_every_container(run: Job, target: str) -> None:
    deployment = Deployment(target, IMAGE, ROOT, memory_limit=6.5)
    text = compiler.compile_run(run, DATA, deployment, name="digits")
    spec, *_ = yaml.safe_load_all(text)
    executors = spec["deploymentSpec"]["executors"].values()
    limits = [executor["container"]["env"] for executor in executors if "container" in executor]
    assert len(limits) > 5
    assert all(env == [{"name": "EDGELINE_MEMORY_LIMIT", "value": "6.5"}] for env in limits)
    with pytest.raises(UserError, match="the memory limit must be at least 4 GiB, received 1"):
        Deployment(target, IMAGE, ROOT, memory_limit=1)


@pytest.mark.parametrize(
    ("document", "key", "value", "target", "reader"),
    [
        (0, "root", {"nonsense": 1}, "oss", "the strict parser of PipelineSpec"),
        (0, "pipelineInfo", {}, "oss", "KFP's loader"),
        (0, "schemaVersion", "3.0.0", "vertex", "Vertex' client"),
        (
            1,
            "platforms",
            {"kubernetes": {"deploymentSpec": {"executors": {"x": {"gpu": 1}}}}},
            "oss",
            "the strict parser of the platform's x",
        ),
    ],
)
def test_what_a_reader_refuses_is_said(document: int, key: str, value: Any, target: str, reader: str) -> None:
    documents = list(yaml.safe_load_all(GOLDEN.read_text()))
    documents[document][key] = value
    with pytest.raises(UserError, match=f"^{reader} refuses the compiled pipeline: "):
        compiler.validate(yaml.safe_dump_all(documents), target)
