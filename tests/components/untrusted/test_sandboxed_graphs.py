"""A stranger's graph is opened and run in a process of its own; this one sees names, shapes, numbers and a copy."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline import layout
from edgeline.conversion import checks, converter, float_tflite, worker
from edgeline.conversion.failures import ConversionError, ExportError, RefusedGraphError
from edgeline.errors import UserError
from edgeline.model_io import graph_model
from edgeline.model_io.graph_model import GraphModel, StoredGraph
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.tflite import litert
from edgeline.untrusted import sandbox
from edgeline.untrusted.graph_files import Given

VALUES = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])
SPEC = [tf.TensorSpec([None, 4], tf.float32, name="x")]
IO = {
    "inputs": [{"name": "x", "shape": [None, 4], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [None, 4], "dtype": "float32"}],
}


@pytest.fixture
def module(tiny_module: Path) -> ModelModule:
    return hooks.load(str(tiny_module))


def doubled(x: tf.Tensor) -> tf.Tensor:
    return x * 2.0


def for_ever(x: tf.Tensor) -> tf.Tensor:
    return tf.while_loop(lambda y: tf.reduce_all(y < np.inf), lambda y: [tf.sin(y)], [x])[0]


def saved_model(folder: Path, body: Callable[[tf.Tensor], tf.Tensor] = doubled, **kept: Any) -> Path:
    holder = tf.Module()
    for name, value in kept.items():
        setattr(holder, name, value)
    holder.call = tf.function(lambda x: {"y": body(x)}, input_signature=SPEC)
    tf.saved_model.save(holder, str(folder), signatures=holder.call)
    return folder


def frozen(path: Path) -> Path:
    with tf.Graph().as_default() as graph:
        doubled(tf.compat.v1.placeholder(tf.float32, [None, 4], name="x"))
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def tflite(path: Path) -> Path:
    call = tf.function(lambda x: {"y": doubled(x)}, input_signature=SPEC).get_concrete_function()
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([call], tf.Module()).convert())
    return path


@pytest.mark.parametrize("kind", ["saved_model", "graph_def", "tflite"])
def test_nothing_of_it_runs_here(
    module: ModelModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make = {"saved_model": saved_model, "graph_def": frozen, "tflite": tflite}[kind]
    path = make(tmp_path / ("m" if kind == "saved_model" else f"m.{kind}"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it is opened in this process")

    for where, name in (
        (tf.saved_model, "load"), (tf.graph_util, "import_graph_def"), (litert.TFLiteModel, "__init__"),
        (float_tflite, "read"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, refuse)
    graph = sandbox.load_graph(path, kind, module, Given())
    [output] = graph.io["outputs"]
    assert graph.io["inputs"] == IO["inputs"]
    received = checks.reference(graph, graph.io, {"x": VALUES})
    np.testing.assert_array_equal(received[output["name"]], VALUES * 2)
    # also after it went through artifacts
    graph_model.copy(graph.folder, str(tmp_path / "artifact"))
    again = graph_model.load(str(tmp_path / "artifact"), graph.io)
    received = checks.reference(again, graph.io, {"x": VALUES})
    np.testing.assert_array_equal(received[output["name"]], VALUES * 2)
    # nor for a conversion, and the process that converts the user's own models sees nothing of it either
    monkeypatch.setattr(worker, "call", refuse)
    if kind == "graph_def":  # a SavedModel like the first
        return
    if kind == "tflite":
        content = converter.quantize(converter.calibrate(again, graph.io, {"x": VALUES}))
    else:
        content = converter.convert(again, graph.io, {"scheme": "int8", "io_type": "float32"}, {"x": VALUES})
    monkeypatch.undo()
    [values] = litert.TFLiteModel(content).run({"x": VALUES}, 1).values()
    np.testing.assert_allclose(values, VALUES * 2, atol=0.1)


def test_it_goes_with_what_was_loaded(module: ModelModule, tmp_path: Path) -> None:
    graph: GraphModel | None = sandbox.load_graph(saved_model(tmp_path / "m"), "saved_model", module, Given())
    assert graph is not None
    folder = Path(graph.folder)
    assert (folder / layout.SERVING_FOLDER / "saved_model.pb").is_file()
    assert isinstance(graph, StoredGraph)
    np.testing.assert_array_equal(graph.opened()(tf.constant(VALUES))[0], VALUES * 2)
    with pytest.raises(RuntimeError, match="is loaded in a process of its own alone"):
        graph(tf.constant(VALUES))
    del graph
    gc.collect()
    assert not folder.exists()


def test_a_graph_that_runs_for_ever(module: ModelModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = sandbox.load_graph(saved_model(tmp_path / "m", for_ever), "saved_model", module, Given())
    monkeypatch.setattr(checks, "_TIMEOUT_SECONDS", 2.0)
    with pytest.raises(ExportError, match="the imported graph is refused: it was not opened in 2 s"):
        checks.reference(graph, graph.io, {"x": VALUES})


def test_a_conversion_that_crashes_or_eats(
    module: ModelModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(body: Callable[[tf.Tensor], tf.Tensor], name: str) -> bytes:
        graph = sandbox.load_graph(saved_model(tmp_path / name, body), "saved_model", module, Given())
        return converter.convert(graph, graph.io, {"scheme": "float32", "io_type": "float32"}, {"x": VALUES})

    with pytest.raises(RefusedGraphError, match=r"operators that are not LiteRT's own: tf\.Betainc") as refused:
        convert(lambda x: tf.math.betainc(x, x, x), "foreign")
    assert refused.value.missing == ("tf.Betainc",)
    monkeypatch.setenv(worker.TIMEOUT_VARIABLE, "0.05")
    with pytest.raises(ConversionError, match=r"^the conversion did not end within 0\.05 s"):
        convert(doubled, "slow")


class SlowInitializer(tf.lookup.KeyValueTensorInitializer):
    """Fills a table, but not where it was loaded from a file."""

    def initialize(self, table: Any) -> Any:
        if tf.executing_eagerly():
            return super().initialize(table)
        with tf.control_dependencies([for_ever(tf.constant([0.5]))]):
            return super().initialize(table)


def test_a_graph_that_is_loaded_for_ever(module: ModelModule, tmp_path: Path) -> None:
    table = tf.lookup.StaticHashTable(SlowInitializer(tf.constant([1, 2], tf.int64), tf.constant([2.0, 4.0])), 0.0)
    path = saved_model(tmp_path / "m", lambda x: x + table.lookup(tf.constant([1], tf.int64)), table=table)
    with pytest.raises(UserError, match=r"model .* is refused: it was not opened in 4 s"):
        sandbox.load_graph(path, "saved_model", module, Given(), timeout=4)


def test_an_answer_is_not_trusted(module: ModelModule, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    serving = answer / layout.SERVING_FOLDER
    serving.parent.mkdir()

    def opened(io: Any = IO) -> GraphModel:
        (answer / "io.json").write_text(io if isinstance(io, str) else json.dumps(io))
        return sandbox._opened(tmp_path / "m", answer, module)

    holder = tf.Module()
    holder.call = tf.function(lambda x: {"y": doubled(x)}, input_signature=SPEC)
    tf.saved_model.save(holder, str(serving), signatures={"serving_raw": holder.call})
    assert opened().io == {**IO, "labels": []}
    assert opened({**IO, "labels": ["theirs"]}).io["labels"] == []  # the module's are
    for io in (
        [], {}, {**IO, "inputs": []}, {**IO, "inputs": "x"}, {**IO, "outputs": [{"name": "y"}]}, {**IO, "inputs": [1]},
        {**IO, "inputs": [{"name": 1, "shape": [], "dtype": "float32"}]},
        {**IO, "inputs": [{"name": "x", "shape": [-1], "dtype": "float32"}]},
        {**IO, "inputs": [{"name": "x", "shape": [True], "dtype": "float32"}]},
        {**IO, "inputs": [{"name": "x", "shape": [2], "dtype": "resource"}]},
        {**IO, "inputs": [{"name": "x", "shape": [2], "dtype": ["float32"]}]},
        "[" * 10**5, "no JSON",
    ):  # fmt: skip
        with pytest.raises(UserError):
            opened(io)
    (answer / "elsewhere").symlink_to("/etc")
    with pytest.raises(UserError, match="is a link or a device"):
        opened()
    (answer / "elsewhere").unlink()
    holder.call = tf.function(
        lambda x: {"y": x + tf.strings.to_number(tf.io.read_file("/etc/hostname"))}, input_signature=SPEC
    )
    tf.saved_model.save(holder, str(serving), signatures={"serving_raw": holder.call})
    with pytest.raises(UserError, match="it holds the operators ReadFile"):
        opened()
    serving.rename(tmp_path / "gone")
    with pytest.raises(UserError, match="No such file"):
        opened()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": VALUES[:1]}, "are not y of 2 examples"),
        ({"z": VALUES}, "are not y of 2 examples"),
        ({"y": np.array([{}, {}])}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_outputs_are_not_trusted(
    module: ModelModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: dict[str, np.ndarray], message: str
) -> None:
    def answer(function: str, arguments: Any, folder: Path, **_: Any) -> None:
        np.savez(folder / "outputs.npz", **outputs)

    monkeypatch.setattr(checks.fork_server, "call", answer)
    with pytest.raises(ExportError, match=message):
        checks.reference(StoredGraph(str(tmp_path), IO), IO, {"x": VALUES})
