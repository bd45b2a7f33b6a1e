import datetime
import hashlib
import io
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as pb
from rich.console import Console
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.types import Channel, ComponentSpec, component_spec, standard_artifacts

from edgeline.errors import UserError
from edgeline.pipelines.records import lineage
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.local_runner import BEAM_ARGS, LocalRunner

INT8, PRUNED = b"TFL3 int8", b"TFL3 pruned"
COMMON = {"module": "my.model", "module_digest": "d1g3s7", "toolchain": "edgeline==0.1.0 tfx==1.21.0"}
FINGERPRINT = "split:train,num_files:2,total_bytes:54145,xor_checksum:0,sum_checksum:7\nsplit:eval,num_files:1"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _set(proto, values):
    for name, value in values.items():
        field = {str: "string_value", int: "int_value", float: "double_value"}[type(value)]
        setattr(proto.custom_properties[name], field, value)


class Writer:
    """Writes a metadata.db as TFX 1.21 does (compared with what it wrote), without running anything."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(exist_ok=True)
        config = pb.ConnectionConfig()
        config.sqlite.filename_uri = str(root / "metadata.db")
        config.sqlite.connection_mode = pb.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self._store = metadata_store.MetadataStore(config)
        self._artifact_types: dict[str, int] = {}
        self._context_types = {
            name: self._store.put_context_type(pb.ContextType(name=name))
            for name in ("pipeline", "pipeline_run", "node", "execution_cache")
        }

    def _context(self, kind: str, name: str) -> pb.Context:
        return pb.Context(type_id=self._context_types[kind], name=name)

    def _artifact(self, kind: str, uri: str, properties: dict) -> pb.Artifact:
        if kind not in self._artifact_types:
            self._artifact_types[kind] = self._store.put_artifact_type(pb.ArtifactType(name=kind))
        made = pb.Artifact(type_id=self._artifact_types[kind], uri=uri, state=pb.Artifact.LIVE)
        _set(made, {"tfx_version": "1.21.0", "is_external": 0} | properties)
        return made

    def step(self, run, node, inputs=None, outputs=None, parameters=None, state=pb.Execution.COMPLETE, component=None):
        """Writes an execution; returns its id and the ids of its outputs by port.

        Args:
          run: id of the run.
          node: node id.
          inputs: artifact id by port.
          outputs: (type, properties) by port; or, of a cached execution, the artifact's id.
          parameters: as custom properties.
          state: of the execution.
          component: dotted name of the class.
        """
        component = component or f"edgeline.{node.split('.')[0].lower()}.component.{node.split('.')[0]}"
        execution = pb.Execution(
            type_id=self._store.put_execution_type(pb.ExecutionType(name=component)), last_known_state=state
        )
        _set(execution, parameters or {})
        pairs = []
        for artifact in self._store.get_artifacts_by_id(sorted(set((inputs or {}).values()))):
            ports = [port for port, artifact_id in inputs.items() if artifact_id == artifact.id]
            pairs.append((artifact, self._event(pb.Event.INPUT, *ports)))
        for port, made in (outputs or {}).items():
            if isinstance(made, int):
                [artifact] = self._store.get_artifacts_by_id([made])
            else:
                artifact = self._artifact(made[0], f"{self.root.absolute()}/artifacts/{node}/{port}", made[1])
            pairs.append((artifact, self._event(pb.Event.OUTPUT, port)))
        ports = list(outputs or {})
        contexts = [
            self._context("pipeline", "shop"),
            self._context("pipeline_run", run),
            self._context("node", f"shop.{node}"),
            self._context("execution_cache", "c0ffee"),
        ]
        execution_id, artifact_ids, _ = self._store.put_execution(
            execution, pairs, contexts, reuse_context_if_already_exist=True
        )
        return execution_id, dict(zip(ports, artifact_ids[len(pairs) - len(ports) :], strict=True))

    @staticmethod
    def _event(kind, *ports):
        steps = [step for port in ports for step in (pb.Event.Path.Step(key=port), pb.Event.Path.Step(index=0))]
        return pb.Event(type=kind, path=pb.Event.Path(steps=steps))


def _set_times(root: Path, statement: str, *rows) -> None:
    # MLMD sets times itself
    with sqlite3.connect(root / "metadata.db") as connection:
        connection.executemany(statement, rows)
    connection.close()


def _write_run(writer: Writer, run: str, *, push: bool = True) -> dict[str, int]:
    """Data -> train -> two candidates, of which int8 is blessed and pushed; returns the ids that are of interest."""
    ids = {}

    def step(node, inputs, outputs, parameters, **kind):
        execution_id, artifacts = writer.step(run, node, inputs, outputs, parameters, **kind)
        ids[node] = execution_id
        return artifacts

    data = step(
        "ImportExampleGen", {}, {"examples": ("Examples", {"span": 3, "input_fingerprint": FINGERPRINT})},
        {"input_base": "/data/shop", "span": 3, "input_fingerprint": FINGERPRINT, "output_config": "{}",
         "output_data_format": 6, "input_config": "{...}"},
        component="tfx.components.example_gen.import_example_gen.component.ImportExampleGen",
    )["examples"]  # fmt: skip
    model = step(
        "Trainer", {"examples": data}, {"model": ("Model", {"stage": "trained"}), "model_run": ("ModelRun", {})},
        {"epochs": 4, "seed": 0, **COMMON},
    )["model"]  # fmt: skip
    pruned = step("Pruner.prune80", {"examples": data, "model": model}, {"compressed": ("Model", {"stage": "pruned"})},
                  {"sparsity": 0.8, "seed": 0, **COMMON})["compressed"]  # fmt: skip
    exported = {}
    for name, source, content in (("int8", model, INT8), ("prune80", pruned, PRUNED)):
        properties = {"sha256": _sha256(content), "bytes": 45480, "zlib_bytes": 40869, "stage": "exported"}
        exported[name] = ids[name] = step(
            f"TFLiteExporter.{name}", {"model": source}, {"tflite": ("Model", properties)}, COMMON
        )["tflite"]
    judged = step(
        "Evaluator", {"examples": data, "baseline": exported["prune80"], **exported},
        {"selected": ("Model", {"candidate": "int8", "sha256": _sha256(INT8)}),
         "blessing": ("ModelBlessing", {"blessed": 1, "current_model_id": exported["int8"]})},
        {"max_drop": 0.01, "max_bytes": -1, "max_latency_ms": -1.0, **COMMON},
    )  # fmt: skip
    pushed = {"pushed": 1, "pushed_destination": "/srv/pushed/1"} if push else {"pushed": 0}
    step("Pusher", {"model": judged["selected"], "model_blessing": judged["blessing"]},
         {"pushed_model": ("PushedModel", pushed)}, {"custom_config": "null"})  # fmt: skip
    return ids | {"examples": data, "model": model, **judged}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shop"


def _file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _drawn(found: lineage.Trace, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(lineage.render(found))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_runs_newest_first(root):
    writer = Writer(root)
    ids = _write_run(writer, "monday")
    writer.step("tuesday", "ImportExampleGen", {}, {"examples": ids["examples"]}, state=pb.Execution.CACHED)
    writer.step("tuesday", "Trainer", {"examples": ids["examples"]}, state=pb.Execution.FAILED)
    cached = {"selected": ids["selected"], "blessing": ids["blessing"]}
    writer.step("wednesday", "Evaluator", {"int8": ids["int8"]}, cached, state=pb.Execution.CACHED)
    writer.step("wednesday", "Pusher", state=pb.Execution.CANCELED)
    start = 1_700_000_000_000
    _set_times(
        root, "UPDATE Context SET create_time_since_epoch=? WHERE name=?",
        (start, "monday"), (start + 1000, "tuesday"), (start + 2000, "wednesday"),
    )  # fmt: skip
    _set_times(root, "UPDATE Execution SET create_time_since_epoch=?, last_update_time_since_epoch=? WHERE id=?",
               *((start + 100 * i, start + 100 * i + 50, i) for i in range(1, 8)),
               (start + 1000, start + 1010, 8), (start + 1020, start + 1500, 9),
               (start + 2000, start + 2100, 10), (start + 2200, start + 99_000, 11))  # fmt: skip
    at = [datetime.datetime.fromtimestamp(start / 1000 + i).astimezone() for i in range(3)]
    assert lineage.runs(Root(root)) == [
        # cancelled by a later run, 97 seconds after it had been killed
        lineage.Run("wednesday", at[2], 0.2, steps=2, cached=1, failed=1, selected="int8"),
        lineage.Run("tuesday", at[1], 0.5, steps=2, cached=1, failed=1, selected=None),
        lineage.Run("monday", at[0], 0.75, steps=7, cached=0, failed=0, selected="int8"),
    ]


def test_no_runs(root):
    Writer(root)
    assert lineage.runs(Root(root)) == []


def test_trace_of_a_pushed_copy(root):
    ids = _write_run(Writer(root), "monday")
    file = _file(root / "pushed" / "1" / "model.tflite", INT8)
    found = lineage.trace(str(file))
    assert (found.root, found.file) == (Root(root), file)
    # the export, not the Evaluator's copy of it
    assert (found.artifact.id, found.artifact.properties["stage"]) == (ids["int8"], "exported")
    assert found.producer == ids["TFLiteExporter.int8"]
    assert [step.node for step in found.steps] == ["TFLiteExporter.int8", "Trainer", "ImportExampleGen"]
    export, train, data = found.steps
    assert [(i.port, i.artifact.id, i.artifact.type, i.producer) for i in export.inputs] == [
        ("model", ids["model"], "Model", train.id)
    ]
    assert train.inputs[0].artifact.uri == f"{root}/artifacts/ImportExampleGen/examples"
    assert train.inputs[0].artifact.properties == {"input_fingerprint": FINGERPRINT, "span": 3}
    assert (train.component, train.run) == ("Trainer", "monday")
    assert train.parameters == {"epochs": 4, "seed": 0, **COMMON}
    assert (data.component, data.inputs) == ("ImportExampleGen", ())
    assert data.parameters == {"input_base": "/data/shop", "span": 3}
    assert [(v.run, v.candidate, v.blessed) for v in found.verdicts] == [("monday", "int8", True)]
    assert [(p.run, p.destination) for p in found.pushes] == [("monday", "/srv/pushed/1")]
    assert found.same_content == ()


def test_times_of_a_step(root):
    ids = _write_run(Writer(root), "monday")
    _set_times(root, "UPDATE Execution SET create_time_since_epoch=?, last_update_time_since_epoch=? WHERE id=?",
               (1_700_000_000_000, 1_700_000_012_345, ids["TFLiteExporter.int8"]))  # fmt: skip
    step = lineage.trace(str(ids["int8"]), Root(root)).steps[0]
    assert (step.started.timestamp(), step.seconds) == (1_700_000_000, 12.345)


def test_trace_of_a_candidate_that_was_not_chosen(root):
    ids = _write_run(Writer(root), "monday", push=False)
    found = lineage.trace(ids["prune80"], Root(root))
    # shared ancestors once, each after all that needed it, although the Pruner and the Trainer both need the data
    assert [s.node for s in found.steps] == ["TFLiteExporter.prune80", "Pruner.prune80", "Trainer", "ImportExampleGen"]
    assert [i.port for i in found.steps[1].inputs] == ["model", "examples"]
    # it is the baseline too, as which it is not judged
    assert [(v.candidate, v.blessed) for v in found.verdicts] == [("prune80", False)]
    assert found.pushes == ()
    assert lineage.trace(ids["int8"], Root(root)).pushes == ()


def test_cached_executions_are_passed_over(root):
    writer = Writer(root)
    ids = _write_run(writer, "monday")
    cached = {"state": pb.Execution.CACHED}
    writer.step("tuesday", "ImportExampleGen", {}, {"examples": ids["examples"]}, **cached)
    writer.step("tuesday", "TFLiteExporter.int8", {"model": ids["model"]}, {"tflite": ids["int8"]}, **cached)
    judged = {"selected": ids["selected"], "blessing": ids["blessing"]}
    writer.step("tuesday", "Evaluator", {"int8": ids["int8"]}, judged, **cached)
    found = lineage.trace(ids["int8"], Root(root))
    assert {step.run for step in found.steps} == {"monday"}
    assert [verdict.run for verdict in found.verdicts] == ["monday"]


def test_same_bytes_made_twice(root, tmp_path):
    writer = Writer(root)
    first, second = (_write_run(writer, run)["int8"] for run in ("monday", "tuesday"))
    found = lineage.trace(_file(tmp_path / "copy.tflite", INT8), Root(root))
    assert (found.artifact.id, found.same_content) == (second, (first,))
    assert [verdict.run for verdict in found.verdicts] == ["monday", "tuesday"]
    assert [push.run for push in found.pushes] == ["monday", "tuesday"]
    # a file in the folder of an export is that export
    _set_times(root, "UPDATE Artifact SET uri=? WHERE id=?", (str(root / "first"), first))
    inside = _file(root / "first" / "Format-Serving" / "model.tflite", INT8)
    assert lineage.trace(inside).artifact.id == first
    assert f"also made as artifact {second}" in _drawn(lineage.trace(inside))


def test_what_came_from_outside(root):
    # an artifact without an execution, as of a pipeline whose metadata was lost
    writer = Writer(root)
    outside = writer._store.put_artifacts([writer._artifact("Model", "/elsewhere/model", {})])[0]
    _, made = writer.step("monday", "Quantizer.int8", {"model": outside}, {"compressed": ("Model", {})})
    found = lineage.trace(made["compressed"], Root(root))
    assert [(i.artifact.uri, i.producer) for i in found.steps[0].inputs] == [("/elsewhere/model", None)]
    assert "model ← made outside the recorded runs" in _drawn(found)
    alone = lineage.trace(outside, Root(root))
    assert (alone.producer, alone.steps) == (None, ())
    assert f"made outside the recorded runs\nModel {outside}: /elsewhere/model" in _drawn(alone)


def test_drawing(root):
    ids = _write_run(Writer(root), "monday")
    _set_times(root, "UPDATE Execution SET create_time_since_epoch=0, last_update_time_since_epoch=1500", ())
    _set_times(root, "UPDATE Artifact SET create_time_since_epoch=0", ())
    zero = f"{datetime.datetime.fromtimestamp(0):%Y-%m-%d %H:%M:%S}"
    assert (
        _drawn(lineage.trace(ids["prune80"], Root(root)), 200)
        == f"""\
root           {root}
artifact       {ids["prune80"]}, Model, artifacts/TFLiteExporter.prune80/tflite
sha256         {_sha256(PRUNED)}
size           45,480 bytes, 40,869 after zlib
selected       no, as prune80, {zero}, run monday
pushed         no
data           /data/shop, span 3
fingerprint    train, files 2, bytes 54145, xor 0, sum 7
fingerprint    eval, files 1
module         my.model
module digest  d1g3s7
toolchain      edgeline==0.1.0 tfx==1.21.0

TFLiteExporter.prune80  {zero}, 1.5 s
Model 6: artifacts/TFLiteExporter.prune80/tflite
└── model ← Pruner.prune80  {zero}, 1.5 s
    seed 0, sparsity 0.8
    Model 4: artifacts/Pruner.prune80/compressed
    ├── model ← Trainer  {zero}, 1.5 s
    │   epochs 4, seed 0
    │   Model 2: artifacts/Trainer/model
    │   └── examples ← ImportExampleGen  {zero}, 1.5 s
    │       input_base /data/shop, span 3
    │       Examples 1: artifacts/ImportExampleGen/examples
    └── examples ← ImportExampleGen (above)"""
    )
    drawn = _drawn(lineage.trace(ids["int8"], Root(root)), 200)
    assert f"selected       yes, blessed, as int8, {zero}, run monday" in drawn
    assert f"pushed         /srv/pushed/1, {zero}, run monday" in drawn


def test_drawing_of_a_budget_leaves_out_what_is_not_limited(root):
    ids = _write_run(Writer(root), "monday")
    assert lineage.trace(ids["blessing"], Root(root)).steps[0].parameters == {"max_drop": 0.01, **COMMON}


def test_steps_of_different_toolchains_each_show_theirs(root):
    writer = Writer(root)
    _, model = writer.step("monday", "Trainer", {}, {"model": ("Model", {})}, {"toolchain": "old"})
    _, made = writer.step("tuesday", "Pruner", {"model": model["model"]}, {"out": ("Model", {})}, {"toolchain": "new"})
    drawn = _drawn(lineage.trace(made["out"], Root(root)))
    assert "\ntoolchain new\n" in drawn
    assert "    toolchain old\n" in drawn


def test_root_is_found_above_the_file_even_through_a_link(root, tmp_path, monkeypatch):
    ids = _write_run(Writer(root), "monday")
    file = _file(root / "pushed" / "1" / "model.tflite", INT8)
    link = tmp_path / "elsewhere" / "latest.tflite"
    link.parent.mkdir()
    link.symlink_to(file)
    assert lineage.trace(link).artifact.id == ids["int8"]
    monkeypatch.chdir(file.parent)
    assert lineage.trace("model.tflite").artifact.id == ids["int8"]


def test_default_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    ids = _write_run(Writer(Path("runs/digits")), "monday")
    assert lineage.trace(_file(tmp_path / "model.tflite", INT8)).artifact.id == ids["int8"]
    assert lineage.trace(str(ids["model"])).artifact.id == ids["model"]


def test_mistakes_in_the_target(root, tmp_path):
    ids = _write_run(Writer(root), "monday")
    last = max(ids["selected"], ids["blessing"]) + 1
    with pytest.raises(UserError, match=f"no artifact 999 in .*metadata.db: its ids go up to {last}"):
        lineage.trace("999", Root(root))
    with pytest.raises(UserError, match="no artifact 99999999999999999999 "):
        lineage.trace("99999999999999999999", Root(root))
    with pytest.raises(UserError, match=r"nope\.tflite does not exist: give the path of a \.tflite file"):
        lineage.trace(tmp_path / "nope.tflite", Root(root))
    pushed = _file(root / "pushed" / "1" / "model.tflite", b"edited")
    with pytest.raises(UserError, match=r"pushed is a folder, expected a \.tflite file: give .*pushed/1/model\.tflite"):
        lineage.trace(root / "pushed")
    with pytest.raises(UserError, match=rf"(?s)content of .*{_sha256(b'edited')}.*--root.*changed after the export"):
        lineage.trace(pushed)


def test_empty_metadata(root):
    Writer(root)
    with pytest.raises(UserError, match=r"no artifact 1 in .*: it has none yet"):
        lineage.trace("1", Root(root))


def test_mistakes_in_the_root(tmp_path):
    with pytest.raises(UserError, match=rf"no {tmp_path}/metadata\.db, .*--root"):
        lineage.runs(Root(tmp_path))
    path = _file(tmp_path / "metadata.db", b"not a database")
    with pytest.raises(UserError, match=r"metadata\.db is not an sqlite database.*--root"):
        lineage.runs(Root(tmp_path))
    with pytest.raises(UserError, match=r"no .*metadata\.db/metadata\.db"):
        lineage.trace("1", Root(path))
    path.unlink()
    _set_times(tmp_path, "CREATE TABLE t (x)", ())
    with pytest.raises(UserError, match=r"cannot be read as ML Metadata \(attempt to write a readonly database\)"):
        lineage.runs(Root(tmp_path))


def test_reads_without_writing(root):
    ids = _write_run(Writer(root), "monday")
    before = (root / "metadata.db").read_bytes()
    lineage.runs(Root(root))
    lineage.trace(ids["int8"], Root(root))
    assert (root / "metadata.db").read_bytes() == before
    assert [path.name for path in root.iterdir()] == ["metadata.db"]


@pytest.mark.parametrize("command", [["runs"], ["lineage", "1"]])
def test_command_is_quiet_and_imports_neither_tfx_nor_tensorflow(root, command):
    _write_run(Writer(root), "monday")
    code = (
        "import sys; from edgeline.pipelines.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or any(name in sys.modules for name in ('tfx', 'tensorflow', 'apache_beam')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--root", str(root)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "monday" in done.stdout or "ImportExampleGen" in done.stdout
    assert "ZetaSQL" not in done.stdout


class _Executor(base_executor.BaseExecutor):
    def Do(self, input_dict, output_dict, exec_properties):  # noqa: N802
        if exec_properties["name"] == "two":
            _file(Path(output_dict["model"][0].uri, "model.tflite"), INT8)
            output_dict["model"][0].set_string_custom_property("sha256", _sha256(INT8))


class _Step(base_component.BaseComponent):
    SPEC_CLASS = ComponentSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(_Executor)

    def __init__(self, name, **inputs):
        model = component_spec.ChannelParameter(type=standard_artifacts.Model)
        spec = type(
            "Spec",
            (ComponentSpec,),
            {
                "PARAMETERS": {"name": component_spec.ExecutionParameter(type=str)},
                "INPUTS": dict.fromkeys(inputs, model),
                "OUTPUTS": {"model": model},
            },
        )
        super().__init__(spec(name=name, model=Channel(standard_artifacts.Model), **inputs))
        self.with_id(f"Step.{name}")


def test_what_tfx_writes(tmp_path):
    connection = metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db"))

    def run() -> str:
        one = _Step("one")
        pipeline = Pipeline(
            "real",
            str(tmp_path / "artifacts"),
            components=[one, _Step("two", left=one.outputs["model"], right=one.outputs["model"])],
            enable_cache=True,
            metadata_connection_config=connection,
            beam_pipeline_args=list(BEAM_ARGS),
        )
        return LocalRunner().run(pipeline).run_id

    first, second = run(), run()
    listed = lineage.runs(Root(tmp_path))
    assert [(r.run_id, r.steps, r.cached, r.failed) for r in listed] == [(second, 2, 2, 0), (first, 2, 0, 0)]
    assert all(0 < r.seconds < 60 for r in listed)
    [file] = (tmp_path / "artifacts").rglob("model.tflite")
    found = lineage.trace(file)
    two, one = found.steps
    assert (two.node, two.component, two.run, two.parameters) == ("Step.two", "_Step", first, {"name": "two"})
    assert [(i.port, i.producer) for i in two.inputs] == [("left", one.id), ("right", one.id)]
    assert (one.node, one.run, one.inputs) == ("Step.one", first, ())
    assert f"left ← Step.one (_Step)  {one.started:%Y-%m-%d}" in _drawn(found)
