import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx.dsl.compiler import compiler
from tfx.dsl.components.base import base_beam_executor, base_component, base_executor, executor_spec
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.experimental.conditionals.conditional import Cond
from tfx.dsl.input_resolution.strategies.latest_artifact_strategy import LatestArtifactStrategy
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline, RunOptions
from tfx.types import Channel, ComponentSpec, component_spec, standard_artifacts
from tfx.types.channel import UnionChannel
from tfx.utils import dependency_utils

from edgeline.errors import UserError
from edgeline.pipelines import stopping
from edgeline.pipelines.run.local_runner import BEAM_ARGS, LocalRunner
from edgeline.pipelines.run.node_events import Event, RunResult

Model = standard_artifacts.Model

# What the steps did, and what they are to do: in this process, so that neither is part of the cache key.
RAN: list[tuple[str, dict[str, list[str]]]] = []
ACTIONS: dict[str, Callable[[], Any]] = {}


def _work(input_dict, output_dict, name):
    inputs = {key: [artifact.uri for artifact in artifacts] for key, artifacts in input_dict.items()}
    RAN.append((name, inputs))
    ACTIONS.get(name, lambda: None)()
    for [artifact] in output_dict.values():
        (Path(artifact.uri) / "model.txt").write_text(name)
        artifact.set_string_custom_property("stage", name)


class Executor(base_executor.BaseExecutor):
    def Do(self, input_dict, output_dict, exec_properties):  # noqa: N802
        _work(input_dict, output_dict, exec_properties["name"])


class BeamExecutor(base_beam_executor.BaseBeamExecutor):
    def Do(self, input_dict, output_dict, exec_properties):  # noqa: N802
        with self._make_beam_pipeline() as pipeline:
            _ = pipeline | beam.Create([1]) | beam.Map(lambda _: ACTIONS.get(exec_properties["name"], lambda: None)())
        _work(input_dict, output_dict, "beam")


class Step(base_component.BaseComponent):
    SPEC_CLASS = ComponentSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, name, required=None, optional=None):
        required, optional = required or {}, optional or {}

        class Spec(ComponentSpec):
            PARAMETERS = {"name": component_spec.ExecutionParameter(type=str)}  # noqa: RUF012
            INPUTS = {key: component_spec.ChannelParameter(type=Model) for key in required} | {
                key: component_spec.ChannelParameter(type=Model, optional=True) for key in optional
            }
            OUTPUTS = {"model": component_spec.ChannelParameter(type=Model)}  # noqa: RUF012

        super().__init__(Spec(name=name, model=Channel(Model), **required, **optional))
        self.with_id(name)


class BeamStep(Step):
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(BeamExecutor)


class Recorder:
    def __init__(self):
        self.events: list[Event] = []

    def __call__(self, event):
        self.events.append(event)


@pytest.fixture(autouse=True)
def _fresh():
    RAN.clear()
    ACTIONS.clear()


def _fail():
    raise ValueError("no good\nsecond line")


def _pipeline(root: Path, steps, beam_args=BEAM_ARGS):
    return Pipeline(
        "test",
        str(root),
        components=steps,
        enable_cache=True,
        beam_pipeline_args=list(beam_args),
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root / "mlmd.db")),
    )


def _chain() -> list[Step]:
    one = Step("one")
    two = Step("two", {"source": one.outputs["model"]})
    return [one, two, Step("three", {"source": two.outputs["model"]})]


def _evaluation() -> list[Step]:
    """data -> {left, right} -> evaluate (both optional, data required) -> push."""
    data = Step("data")
    left = Step("left", {"source": data.outputs["model"]})
    right = Step("right", {"source": data.outputs["model"]})
    evaluate = Step(
        "evaluate", {"data": data.outputs["model"]}, {"left": left.outputs["model"], "right": right.outputs["model"]}
    )
    return [data, left, right, evaluate, Step("push", {"source": evaluate.outputs["model"]})]


def test_what_a_check_raises_ends_the_run(tmp_path):
    seen = []

    def check(so_far, node_id):
        [model] = so_far.outputs(node_id, "model")
        seen.append((node_id, model.type_name))
        if node_id == "two":
            raise UserError("no good")

    with pytest.raises(UserError, match="no good"):
        LocalRunner(check=check).run(_pipeline(tmp_path, _chain()))
    assert seen == [("one", "Model"), ("two", "Model")]
    assert [name for name, _ in RAN] == ["one", "two"]
    # what was finished is served from the cache, and checked again
    seen.clear()
    with pytest.raises(UserError, match="no good"):
        LocalRunner(check=check).run(_pipeline(tmp_path, _chain()))
    assert (len(seen), len(RAN)) == (2, 2)


def _states(result: RunResult) -> dict[str, str]:
    return {node_id: node.state for node_id, node in result.nodes.items()}


def test_events_states_and_outputs(tmp_path):
    recorder = Recorder()
    first = LocalRunner(recorder).run(_pipeline(tmp_path, _chain()))
    assert [(e.node_id, e.state) for e in recorder.events] == [
        ("one", "waiting"),
        ("two", "waiting"),
        ("three", "waiting"),
        ("one", "running"),
        ("one", "done"),
        ("two", "running"),
        ("two", "done"),
        ("three", "running"),
        ("three", "done"),
    ]
    assert all(0 < e.seconds < 60 for e in recorder.events if e.state == "done")
    assert first.failed == ()

    RAN.clear()
    second = LocalRunner().run(_pipeline(tmp_path, _chain()))
    assert _states(second) == {"one": "cached", "two": "cached", "three": "cached"}
    assert RAN == []
    assert second.run_id != first.run_id
    for result in (first, second):
        [model] = result.outputs("two", "model")
        assert isinstance(model, Model)
        assert model.get_string_custom_property("stage") == "two"
        assert (Path(model.uri) / "model.txt").read_text() == "two"
    assert first.outputs("two", "model")[0].uri == second.outputs("two", "model")[0].uri
    assert first.outputs("two", "other") == []
    with pytest.raises(KeyError, match="four"):
        first.outputs("four", "model")


def test_compiled_pipeline_can_be_run_again_and_stock_runner_continues(tmp_path):
    ir = compiler.Compiler().compile(_pipeline(tmp_path, _chain()))
    before = ir.SerializeToString(deterministic=True)
    assert _states(LocalRunner().run_with_ir(ir)) == {"one": "done", "two": "done", "three": "done"}
    assert ir.SerializeToString(deterministic=True) == before
    assert _states(LocalRunner().run_with_ir(ir)) == {"one": "cached", "two": "cached", "three": "cached"}
    RAN.clear()
    LocalDagRunner().run(_pipeline(tmp_path, _chain()))
    assert RAN == []


def test_what_is_no_longer_as_it_was_published_is_made_anew(tmp_path):
    first = LocalRunner().run(_pipeline(tmp_path, _chain()))
    spoiled = first.outputs("two", "model")[0]
    (Path(spoiled.uri) / "model.txt").write_bytes(b"")  # as a power cut leaves it
    RAN.clear()
    second = LocalRunner().run(_pipeline(tmp_path, _chain()))
    assert _states(second) == {"one": "cached", "two": "done", "three": "done"}
    assert [node_id for node_id, _ in RAN] == ["two", "three"]
    [anew] = second.outputs("two", "model")
    assert (anew.uri != spoiled.uri, (Path(anew.uri) / "model.txt").read_text()) == (True, "two")
    for runner in (LocalRunner, LocalDagRunner):  # nor does the stock runner get it
        RAN.clear()
        runner().run(_pipeline(tmp_path, _chain()))
        assert RAN == []
    (Path(anew.uri) / "model.txt").unlink()
    assert _states(LocalRunner().run(_pipeline(tmp_path, _chain())))["two"] == "done"


def test_what_is_of_no_use_is_made_anew(tmp_path):
    LocalRunner().run(_pipeline(tmp_path, _chain()))
    refused = []

    def is_of_use(artifact):
        refused.append((artifact.type, artifact.uri))
        return f"{tmp_path}/three/" not in artifact.uri

    states = _states(LocalRunner(is_of_use=is_of_use).run(_pipeline(tmp_path, _chain())))
    assert states == {"one": "cached", "two": "cached", "three": "done"}
    assert {kind for kind, _ in refused} == {"Model"}


def test_a_failure_skips_only_its_descendants(tmp_path):
    ACTIONS["two"] = _fail
    recorder = Recorder()
    result = LocalRunner(recorder).run(_pipeline(tmp_path, [*_chain(), Step("other")]))
    assert _states(result) == {"one": "done", "two": "failed", "three": "skipped", "other": "done"}
    assert isinstance(result.nodes["two"].exception, ValueError)
    assert result.nodes["two"].detail == "ValueError: no good"
    assert result.nodes["three"].detail == "needs two"
    assert result.failed == ("two",)
    assert result.outputs("two", "model") == result.outputs("three", "model") == []
    assert [e.state for e in recorder.events if e.node_id == "three"] == ["waiting", "skipped"]

    ACTIONS.clear()
    RAN.clear()
    again = LocalRunner().run(_pipeline(tmp_path, [*_chain(), Step("other")]))
    assert _states(again) == {"one": "cached", "two": "done", "three": "done", "other": "cached"}


@pytest.mark.parametrize("failing", ["left", "right"])
def test_a_lost_optional_input_does_not_stop_a_node(tmp_path, failing):
    # The first run leaves good artifacts of both candidates behind; the failing one's must not be taken in the second.
    LocalRunner().run(_pipeline(tmp_path, _evaluation()))
    RAN.clear()
    changed = _evaluation()
    changed[1].spec.exec_properties["name"] = "left 2"
    changed[2].spec.exec_properties["name"] = "right 2"
    ACTIONS[f"{failing} 2"] = _fail
    result = LocalRunner().run(_pipeline(tmp_path, changed))
    expected = {"data": "cached", "left": "done", "right": "done", "evaluate": "done", "push": "done"}
    assert _states(result) == expected | {failing: "failed"}
    other = "right" if failing == "left" else "left"
    inputs = dict(RAN)["evaluate"]
    assert inputs.pop(failing) == []
    assert inputs == {
        "data": [result.outputs("data", "model")[0].uri],
        other: [result.outputs(other, "model")[0].uri],
    }


def test_a_node_without_any_of_its_optional_inputs_is_skipped(tmp_path):
    ACTIONS["left"] = ACTIONS["right"] = _fail
    result = LocalRunner().run(_pipeline(tmp_path, _evaluation()))
    assert _states(result) == {
        "data": "done",
        "left": "failed",
        "right": "failed",
        "evaluate": "skipped",
        "push": "skipped",
    }
    assert result.nodes["evaluate"].detail == "needs left, right"


def test_a_lost_required_input_skips_a_node_in_spite_of_its_optional_ones(tmp_path):
    data, other = Step("data"), Step("other")
    node = Step("node", {"data": data.outputs["model"]}, {"other": other.outputs["model"]})
    ACTIONS["data"] = _fail
    result = LocalRunner().run(_pipeline(tmp_path, [data, other, node]))
    assert _states(result) == {"data": "failed", "other": "done", "node": "skipped"}
    assert result.nodes["node"].detail == "needs data"


def test_a_skipped_node_is_lost_to_an_optional_input_too(tmp_path):
    # root -> mid -> join(mid optional, free optional)
    root, free = Step("root"), Step("free")
    mid = Step("mid", {"source": root.outputs["model"]})
    join = Step("join", {}, {"mid": mid.outputs["model"], "free": free.outputs["model"]})
    ACTIONS["root"] = _fail
    result = LocalRunner().run(_pipeline(tmp_path, [root, free, mid, join]))
    assert _states(result) == {"root": "failed", "free": "done", "mid": "skipped", "join": "done"}


def test_inputs_made_optional_by_the_channel_and_unions(tmp_path):
    one, two, three = Step("one"), Step("two"), Step("three")
    optional = Step("optional", {"a": one.outputs["model"].as_optional(), "b": two.outputs["model"].as_optional()})
    merged = Step("union", {}, {"a": UnionChannel([one.outputs["model"], two.outputs["model"]])})
    strict = Step("strict", {"a": UnionChannel([one.outputs["model"], two.outputs["model"]])})
    after = Step("after", {}, {"b": three.outputs["model"]})
    after.add_upstream_node(one)
    ACTIONS["one"] = _fail
    result = LocalRunner().run(_pipeline(tmp_path, [one, two, three, optional, merged, strict, after]))
    assert _states(result) == {
        "one": "failed",
        "two": "done",
        "three": "done",
        "optional": "done",
        "union": "done",
        "strict": "skipped",
        "after": "skipped",
    }
    two_uri = result.outputs("two", "model")[0].uri
    assert dict(RAN)["optional"] == {"a": [], "b": [two_uri]}
    assert dict(RAN)["union"] == {"a": [two_uri]}


def test_inputs_that_cannot_be_resolved_are_a_failure(tmp_path):
    # Required, but from a pipeline that never ran: the launcher does not raise for it.
    elsewhere = Channel(Model, producer_component_id="nobody", output_key="model")
    result = LocalRunner().run(_pipeline(tmp_path, [Step("lonely", {"source": elsewhere}), Step("other")]))
    assert _states(result) == {"lonely": "failed", "other": "done"}
    assert "min_count has not met" in result.nodes["lonely"].detail


def test_condition_that_does_not_hold_skips(tmp_path):
    one = Step("one")
    with Cond(one.outputs["model"].future()[0].custom_property("stage") == "zero"):
        two = Step("two", {"source": one.outputs["model"]})
    result = LocalRunner().run(_pipeline(tmp_path, [one, two, Step("three", {"source": two.outputs["model"]})]))
    assert _states(result) == {"one": "done", "two": "skipped", "three": "skipped"}
    assert result.nodes["two"].detail == "its condition does not hold"


def _imported(given: Path) -> list:
    importer = Importer(source_uri=str(given), artifact_type=Model).with_id("importer")
    strategy = LatestArtifactStrategy
    latest = Resolver(strategy_class=strategy, model=Channel(type=Model)).with_id("latest")
    latest.add_upstream_node(importer)
    return [importer, latest, Step("step", {"source": latest.outputs["model"]})]


def test_outputs_of_importer_and_resolver_nodes(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    first = LocalRunner().run(_pipeline(tmp_path / "root", _imported(given)))
    assert _states(first) == {"importer": "done", "latest": "done", "step": "done"}
    second = LocalRunner().run(_pipeline(tmp_path / "root", _imported(given)))
    assert _states(second) == {"importer": "cached", "latest": "done", "step": "done"}
    for result in (first, second):
        assert [model.uri for model in result.outputs("importer", "result")] == [str(given)]
    assert [model.uri for model in first.outputs("latest", "model")] == [str(given)]
    # The newest model of the first run is its step's output.
    assert second.outputs("latest", "model")[0].uri == first.outputs("step", "model")[0].uri


def test_run_options_are_refused(tmp_path):
    options = RunOptions(from_nodes=["one"])
    with pytest.raises(ValueError, match="taken from the cache"):
        LocalRunner().run(_pipeline(tmp_path, _chain()), run_options=options)


def test_keyboard_interrupt_stops_and_the_next_run_goes_on(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    ACTIONS["two"] = interrupt
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        LocalRunner(recorder).run(_pipeline(tmp_path, _chain()))
    assert (recorder.events[-1].node_id, recorder.events[-1].state) == ("two", "failed")
    assert recorder.events[-1].detail == "interrupted"
    ACTIONS.clear()
    result = LocalRunner().run(_pipeline(tmp_path, _chain()))
    assert _states(result) == {"one": "cached", "two": "done", "three": "done"}


def _interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def _made_an_error_of() -> None:
    try:
        _interrupted()
    except KeyboardInterrupt:
        raise RuntimeError("a bundle failed") from None


def _swallowed() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        _interrupted()


@pytest.mark.parametrize(("signalled", "state"), [(_made_an_error_of, "done"), (_swallowed, "cached")])
def test_a_signal_stops_the_run_whatever_becomes_of_it_in_a_step(tmp_path, signalled, state):
    ACTIONS["two"] = signalled
    recorder = Recorder()
    with stopping.signals_raise(), pytest.raises(stopping.Stopped):
        LocalRunner(recorder).run(_pipeline(tmp_path, _chain()))
    assert (recorder.events[-1].node_id, recorder.events[-1].detail) == ("two", "interrupted")
    ACTIONS.clear()
    result = LocalRunner().run(_pipeline(tmp_path, _chain()))
    assert _states(result) == {"one": "cached", "two": state, "three": "done"}


def test_a_step_that_exits_has_failed(tmp_path):
    ACTIONS["two"] = lambda: sys.exit(0)
    result = LocalRunner().run(_pipeline(tmp_path, _chain()))
    assert _states(result) == {"one": "done", "two": "failed", "three": "skipped"}
    assert "sys.exit(0)" in str(result.nodes["two"].exception)


def stall_in_two(root: str) -> None:
    """Runs the chain and never comes back from its second step; for a child process."""

    def stall():
        (Path(root) / "stalled").touch()
        time.sleep(600)

    ACTIONS["two"] = stall
    LocalRunner().run(_pipeline(Path(root), _chain()))


def test_second_run_is_refused_and_a_killed_run_is_continued(tmp_path):
    # The child must know this module, and so the executors' class paths, by the same name as this process does.
    program = (
        "import importlib.util, sys, warnings; warnings.simplefilter('ignore');"
        f"spec = importlib.util.spec_from_file_location({__name__!r}, {__file__!r});"
        f"module = sys.modules[{__name__!r}] = importlib.util.module_from_spec(spec);"
        f"spec.loader.exec_module(module); module.stall_in_two({str(tmp_path)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as child:
        try:
            while not (tmp_path / "stalled").exists():
                assert child.poll() is None
                time.sleep(0.1)
            with pytest.raises(UserError, match=rf"process {child.pid}\) is working in {tmp_path}"):
                LocalRunner().run(_pipeline(tmp_path, _chain()))
        finally:
            child.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / "two" / "model").iterdir())) == 1  # half-written
    assert len(list((tmp_path / "two" / ".system" / "executor_execution").iterdir())) == 1

    result = LocalRunner().run(_pipeline(tmp_path, _chain()))
    assert _states(result) == {"one": "cached", "two": "done", "three": "done"}
    assert [str(path) for path in (tmp_path / "two" / "model").iterdir()] == [result.outputs("two", "model")[0].uri]
    assert len(list((tmp_path / "two" / ".system" / "executor_execution").iterdir())) == 1


def _raise(error):
    raise error


def _python_write():
    with open("/dev/full", "w") as file:
        file.write("x")


def _tensorflow_write():
    with tf.io.gfile.GFile("/dev/full", "w") as file:
        file.write("x" * 100)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (_python_write, r"ran out of disk space: \[Errno 28\] No space left on device"),
        (_tensorflow_write, r"ran out of disk space: /dev/full; No space left on device"),
        (
            lambda: _raise(PermissionError(errno.EACCES, "Permission denied", "/data/x")),
            r"was denied access: .*'/data/x'",
        ),
        (lambda: _raise(OSError(errno.EROFS, "Read-only file system", "/data/x")), "met a read-only file system"),
        (lambda: _raise(OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x")), "used up the disk quota"),
        (lambda: _raise(RuntimeError("database or disk is full")), "ran out of disk space: database or disk is full"),
        (lambda: _raise(RuntimeError("attempt to write a readonly database")), "was denied access"),
    ],
)
def test_disk_errors_stop_the_run_with_a_remedy(tmp_path, action, message):
    ACTIONS["two"] = action
    recorder = Recorder()
    with pytest.raises(UserError, match=f"^Step two {message}") as caught:
        LocalRunner(recorder).run(_pipeline(tmp_path, _chain()))
    assert f"Outputs go to {tmp_path} (" in str(caught.value)
    assert re.search(r"[kMGT]B free\)", str(caught.value))
    assert str(caught.value).endswith("Finished steps are kept; run the same command again to go on.")
    assert (recorder.events[-1].node_id, recorder.events[-1].state) == ("two", "failed")
    assert caught.value.__cause__ is not None


def test_disk_error_wrapped_in_another_one(tmp_path):
    def wrap():
        try:
            _python_write()
        except OSError as error:
            raise RuntimeError("could not save") from error

    ACTIONS["one"] = wrap
    with pytest.raises(UserError, match=r"Step one ran out of disk space: \[Errno 28\]"):
        LocalRunner().run(_pipeline(tmp_path, _chain()))


def test_a_step_s_own_user_error_is_left_alone(tmp_path):
    def explain():
        try:
            _python_write()
        except OSError as error:
            raise UserError("The labels are wrong.\nSee the manual.") from error

    ACTIONS["one"] = explain
    result = LocalRunner().run(_pipeline(tmp_path, [Step("one")]))
    assert isinstance(result.nodes["one"].exception, UserError)
    assert result.nodes["one"].detail == "The labels are wrong."


def test_beam_steps_pack_no_sdist_and_ignore_our_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(dependency_utils, "build_ephemeral_package", lambda: pytest.fail("packed TFX"))
    # absl would take "-v" for its own flag and fail at its missing value.
    arguments = ["edgeline", "run", "-v", "--name", "x"]
    monkeypatch.setattr(sys, "argv", arguments)
    result = LocalRunner().run(_pipeline(tmp_path, [BeamStep("counted")]))
    assert _states(result) == {"counted": "done"}
    assert sys.argv is arguments


def test_disk_error_inside_beam(tmp_path):
    ACTIONS["counted"] = _python_write
    with pytest.raises(UserError, match=r"Step counted ran out of disk space: .*No space left on device"):
        LocalRunner().run(_pipeline(tmp_path, [BeamStep("counted")]))
