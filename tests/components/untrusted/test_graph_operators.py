"""What an adversary puts into a graph: refused by the operator's name and its node, before anything runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from edgeline.errors import UserError
from edgeline.model_importer import importing
from edgeline.model_importer.config import Import
from edgeline.model_io.graph_model import StoredGraph
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.untrusted import graph_operators

VALUES = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])
SPEC = [tf.TensorSpec([None, 4], tf.float32, name="x")]


@pytest.fixture
def module(tiny_module: Path) -> ModelModule:
    return hooks.load(str(tiny_module))


def save(folder: Path, body: Callable[[tf.Tensor], Any], **kept: Any) -> None:
    holder = tf.Module()
    for name, value in kept.items():
        setattr(holder, name, value)
    holder.kernel = tf.Variable(np.ones([4, 3], np.float32))
    holder.call = tf.function(lambda x: {"y": body(tf.matmul(x, holder.kernel))}, input_signature=SPEC)
    tf.saved_model.save(holder, str(folder), signatures=holder.call)


def load(path: Path, module: ModelModule, **options: Any) -> Any:
    """The model; a graph loaded in this process, as this test has made it itself."""
    model = importing.load(Import(str(path), **options), module)[0]
    return model.opened() if isinstance(model, StoredGraph) else model


def refused(path: Path, module: ModelModule) -> str:
    with pytest.raises(UserError) as error:
        load(path, module)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder: Path) -> Callable[[tf.Tensor], Any]:
    def body(y: tf.Tensor) -> tf.Tensor:
        tf.io.write_file(str(folder), "owned")
        return y

    return body


def in_a_branch(folder: Path) -> Callable[[tf.Tensor], Any]:
    return lambda y: tf.cond(tf.reduce_sum(y) > 0, lambda: written(folder)(y), lambda: y)


def in_a_loop(folder: Path) -> Callable[[tf.Tensor], Any]:
    return lambda y: tf.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, written(folder)(v)), [0, y])[1]


def in_a_function(folder: Path) -> Callable[[tf.Tensor], Any]:
    inner = tf.function(written(folder))
    return lambda y: tf.function(inner)(y)


@pytest.mark.parametrize("place", [written, in_a_branch, in_a_loop, in_a_function])
def test_a_saved_model_that_writes_a_file(module: ModelModule, tmp_path: Path, place: Any) -> None:
    save(tmp_path / "sm", place(tmp_path / "written"))
    assert "is refused: it holds the operators WriteFile (node " in refused(tmp_path / "sm", module)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (lambda y: y + tf.strings.to_number(tf.io.read_file("/etc/hostname")), "ReadFile"),
        (lambda y: tf.py_function(lambda v: v, [y], tf.float32), "EagerPyFunc"),
        (lambda y: tf.numpy_function(lambda v: v, [y], tf.float32), "PyFunc"),
        (lambda y: (tf.print(y), y)[1], "PrintV2"),
        (lambda y: y + tf.cast(tf.size(tf.io.matching_files("/*")), tf.float32), "MatchingFiles"),
        (lambda y: y + tf.raw_ops.RestoreV2(prefix="/x", tensor_names=["a"], shape_and_slices=[""],
                                            dtypes=[tf.float32])[0], "RestoreV2"),
        (lambda y: (tf.raw_ops.SaveV2(prefix="/x", tensor_names=["a"], shape_and_slices=[""], tensors=[y]), y)[1],
         "SaveV2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_operators_that_are_refused_by_name(module: ModelModule, tmp_path: Path, body: Any, operator: str) -> None:
    save(tmp_path / "sm", body)
    assert f" {operator} (node " in refused(tmp_path / "sm", module)


def test_an_initializer_that_writes_a_file(module: ModelModule, tmp_path: Path) -> None:
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [1.0, 2.0]), 0.0)
    save(tmp_path / "sm", lambda y: y + table.lookup(tf.constant([1])), table=table)
    assert load(tmp_path / "sm", module) is not None
    path = tmp_path / "sm" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    [function] = [
        each
        for each in content.meta_graphs[0].graph_def.library.function
        if any(node.op == "LookupTableImportV2" for node in each.node_def)
    ]
    function.node_def.add(op="WriteFile", name="evil", input=["a", "b"])
    path.write_bytes(content.SerializeToString())
    assert f"WriteFile (node {function.signature.name}/evil)" in refused(tmp_path / "sm", module)


def test_a_table_is_read_from_the_models_own_assets(module: ModelModule, tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("1\n2\n")
    initializer = tf.lookup.TextFileInitializer(
        str(vocabulary), tf.int64, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    table = tf.lookup.StaticHashTable(initializer, -1)
    save(tmp_path / "sm", lambda y: y + tf.cast(table.lookup(tf.constant([2], tf.int64)), tf.float32), table=table)
    np.testing.assert_allclose(load(tmp_path / "sm", module)(tf.constant(VALUES))[0], VALUES @ np.ones([4, 3]) + 1)
    # not of another place
    path = tmp_path / "sm" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    content.meta_graphs[0].asset_file_def[0].filename = "../../words.txt"
    path.write_bytes(content.SerializeToString())
    assert "its asset ../../words.txt is not in its assets/" in refused(tmp_path / "sm", module)
    # nor a path that is captured beside it
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = content.meta_graphs[0]
    graph.asset_file_def[0].filename = "words.txt"
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "asset":
            node.constant.operation = "Const"
    path.write_bytes(content.SerializeToString())
    assert "InitializeTableFromTextFileV2 (node " in refused(tmp_path / "sm", module)


def test_what_is_never_called_does_not_count(module: ModelModule, tmp_path: Path) -> None:
    holder = tf.Module()
    holder.good = tf.function(lambda x: {"y": 2 * x}, input_signature=SPEC)
    holder.evil = tf.function(lambda x: {"y": written(tmp_path / "written")(x)}, input_signature=SPEC)
    tf.saved_model.save(holder, str(tmp_path / "sm"), {"good": holder.good, "evil": holder.evil})
    np.testing.assert_allclose(load(tmp_path / "sm", module, signature="good")(tf.constant(VALUES))[0], 2 * VALUES)
    with pytest.raises(UserError, match="WriteFile"):
        load(tmp_path / "sm", module, signature="evil")
    assert not (tmp_path / "written").exists()


def old_saved_model(folder: Path, evil: str = "", *, use_resource: bool = True) -> None:
    """As TensorFlow 1 wrote it, with a variable, and a table of a file."""
    vocabulary = folder.parent / "words.txt"
    vocabulary.write_text("1\n2\n")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        kernel = v1.get_variable("kernel", initializer=np.ones([4, 3], np.float32), use_resource=use_resource)
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(vocabulary), tf.int64, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            ), -1,
        )  # fmt: skip
        y = tf.matmul(x, kernel) + tf.cast(table.lookup(tf.constant([2], tf.int64)), tf.float32)
        write = tf.io.write_file(str(folder.parent / "written"), "owned")
        if evil == "signature":
            with tf.control_dependencies([write]):
                y = tf.identity(y)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(folder))
        main = tf.group(v1.tables_initializer(), *([write] if evil == "initializer" else []))
        info = {"x": v1.saved_model.build_tensor_info(x)}, {"y": v1.saved_model.build_tensor_info(y)}
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": v1.saved_model.build_signature_def(*info, "m")},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS), main_op=main,
        )  # fmt: skip
        builder.save()


def test_a_saved_model_of_tensorflow_1(module: ModelModule, tmp_path: Path) -> None:
    old_saved_model(tmp_path / "sm")
    np.testing.assert_allclose(load(tmp_path / "sm", module)(tf.constant(VALUES))[0], VALUES @ np.ones([4, 3]) + 1)
    # an artifact could not keep the values of these
    old_saved_model(tmp_path / "older", use_resource=False)
    assert "variables of TensorFlow 1 that no SavedModel of TensorFlow 2 can keep: kernel" in refused(
        tmp_path / "older", module
    )


def test_of_several_graphs_the_one_for_serving_is_used(module: ModelModule, tmp_path: Path) -> None:
    old_saved_model(tmp_path / "sm")
    old_saved_model(tmp_path / "training", "initializer")
    path = tmp_path / "sm" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    [other] = saved_model_pb2.SavedModel.FromString((tmp_path / "training" / "saved_model.pb").read_bytes()).meta_graphs
    other.signature_def["train"].CopyFrom(other.signature_def.pop("serving_default"))
    for tags in (["train"], ["serve", "gpu"]):
        del other.meta_info_def.tags[:]
        other.meta_info_def.tags.extend(tags)
        two = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[other, *content.meta_graphs])
        path.write_bytes(two.SerializeToString())
        np.testing.assert_allclose(load(tmp_path / "sm", module)(tf.constant(VALUES))[0], VALUES @ np.ones([4, 3]) + 1)
        assert not (tmp_path / "written").exists()
        two.meta_graphs.add().CopyFrom(other)
        del two.meta_graphs[1]
        path.write_bytes(two.SerializeToString())
        assert "holds 2 graphs (tags " in refused(tmp_path / "sm", module)
    # what TensorFlow 2 writes is one graph, and restored in another way
    save(tmp_path / "new", lambda y: y)
    new = saved_model_pb2.SavedModel.FromString((tmp_path / "new" / "saved_model.pb").read_bytes())
    path.write_bytes(saved_model_pb2.SavedModel(meta_graphs=[other, *new.meta_graphs]).SerializeToString())
    assert "RestoreV2 (node " in refused(tmp_path / "sm", module)


@pytest.mark.parametrize("evil", ["signature", "initializer"])
def test_a_saved_model_of_tensorflow_1_that_writes(module: ModelModule, tmp_path: Path, evil: str) -> None:
    old_saved_model(tmp_path / "sm", evil)
    assert "WriteFile (node WriteFile" in refused(tmp_path / "sm", module)
    assert not (tmp_path / "written").exists()


def test_another_restorer_is_refused(module: ModelModule, tmp_path: Path) -> None:
    old_saved_model(tmp_path / "sm")
    path = tmp_path / "sm" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = content.meta_graphs[0]
    [restorer] = [node for node in graph.graph_def.node if node.op == "RestoreV2"]
    evil = graph.graph_def.node.add(op="Const", name="evil")
    evil.attr["dtype"].type = 7
    evil.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/etc/checkpoint"))
    restorer.input[0] = "evil"
    path.write_bytes(content.SerializeToString())
    assert "RestoreV2 (node save" in refused(tmp_path / "sm", module)
    # two graphs go TensorFlow 1's way, also with an object graph
    save(tmp_path / "two", lambda y: y)
    path = tmp_path / "two" / "saved_model.pb"
    two = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    two.meta_graphs.add().CopyFrom(graph)
    path.write_bytes(two.SerializeToString())
    shutil.copytree(tmp_path / "sm" / "assets", tmp_path / "two" / "assets", dirs_exist_ok=True)
    assert "RestoreV2 (node " in refused(tmp_path / "two", module)


def test_a_frozen_graph_that_writes_a_file(module: ModelModule, tmp_path: Path) -> None:
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
        tf.io.write_file(str(tmp_path / "written"), "owned", name="evil")
        tf.identity(x, name="y")
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    assert "is refused: it holds the operators WriteFile (node evil), which are not on the list" in refused(
        path, module
    )
    # in a function that nothing calls yet
    with graph.as_default():
        definition = tf.function(written(tmp_path / "w")).get_concrete_function(SPEC[0]).graph.as_graph_def()
    holder = tf.compat.v1.GraphDef()
    holder.library.function.add().signature.name = "f"
    holder.library.function[0].node_def.add(op="WriteFile", name="evil")
    with pytest.raises(UserError, match=r"WriteFile \(node f/evil\)"):
        graph_operators.check_graph(holder, path)
    with pytest.raises(UserError, match="WriteFile"):
        graph_operators.check_graph(definition, path)


def test_the_list_holds_operators_of_tensorflow() -> None:
    known = {name for name in dir(tf.raw_ops) if not name.startswith("_")}
    # LoopCond and such are made by TensorFlow alone
    assert not {name for name in graph_operators.SAVED_MODEL if name not in known and name != "DisableCopyOnRead"}
    foreign = "ReadFile WriteFile PyFunc EagerPyFunc PyFuncStateless RestoreV2 SaveV2 Save Restore PrintV2 Print "
    foreign += "MatchingFiles DebugIdentity WholeFileReader TFRecordReader LoadDataset SaveDataset TextLineDataset "
    foreign += "RemoteCall DeleteFile LoadAndRemapMatrix ImportEvent LMDBReader XlaLaunch InitializeTableFromTextFileV2"
    assert not graph_operators.SAVED_MODEL & set(foreign.split())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_graph_is_checked_or_refused(content: bytes) -> None:
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(content)
        graph_operators.check_graph(definition, Path("any.pb"))
    except (UserError, DecodeError):
        return
    assert all(node.op in graph_operators.PURE for node in definition.node)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_damaged_saved_model_is_refused_or_sound(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "sound"
    if not folder.exists():
        save(folder, lambda y: y)
    content = bytearray((folder / "saved_model.pb").read_bytes())
    content[place % len(content)] = value
    other = folder.parent / "damaged"
    other.mkdir(exist_ok=True)
    (other / "saved_model.pb").write_bytes(content)
    with contextlib.suppress(UserError):
        graph_operators.check_saved_model(other, "")


def test_what_only_computes_is_allowed() -> None:
    special = [getattr(tf.math.special, name) for name in dir(tf.math.special) if not name.startswith("_")]
    special += [tf.math.lgamma, tf.math.digamma, tf.math.erf, tf.math.erfc, tf.math.erfinv, tf.math.ndtri]

    def body(x: tf.Tensor) -> tf.Tensor:
        parts = [function(x) for function in special]
        return [*parts, tf.math.betainc(x, x, x), tf.math.igamma(x, x), tf.math.polygamma(x, x), tf.linalg.lu(x)]

    graph = tf.function(body).get_concrete_function(tf.TensorSpec([4, 4], tf.float32)).graph.as_graph_def()
    assert len(special) > 15
    assert {"Betainc", "BesselI0", "Spence"} <= {node.op for node in graph.node}
    graph_operators.check_graph(graph, Path("graph.pb"))
