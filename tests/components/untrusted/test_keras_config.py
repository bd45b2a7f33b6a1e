"""What an adversary puts into a config: each is refused before anything of it is built."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeline.untrusted import functions
from edgeline.untrusted.keras_config import Checker, RefusedError
from edgeline.untrusted.keras_objects import objects_of

Config = dict[str, Any]


def config_of(model: Any) -> Config:
    library = keras if isinstance(model, keras.Model) else tf_keras
    return json.loads(json.dumps(library.saving.serialize_keras_object(model)))


@pytest.fixture(scope="module")
def sound() -> Config:
    """Of a model with everything that the attacks below change."""
    x = tf_keras.Input([4], name="x")
    y = tf_keras.layers.Dense(4, "relu", kernel_regularizer=tf_keras.regularizers.L2(0.1), name="dense")(x)
    y = tf.cast(tf.math.multiply(y, 2.0), "float32")
    return config_of(tf_keras.Model(x, tf_keras.layers.Dense(3, name="out")(y)))


@pytest.fixture(scope="module")
def sound3() -> Config:
    x = keras.Input([4], name="x")
    y = keras.layers.Dense(4, "relu", name="dense")(x)
    return config_of(keras.Model(x, keras.layers.Dense(3, name="out")(y * 2.0)))


def check(config: Any, package: str = "tf_keras", custom_objects: dict[str, Any] | None = None, **options: Any) -> Any:
    return Checker(objects_of(package), custom_objects or {}, **options).checked(config)


def layer(config: Config, name: str) -> Config:
    return next(each for each in config["config"]["layers"] if each["name"] == name)


def called(config: Config, name: str) -> Config:
    return next(each for each in config["config"]["layers"] if each["config"].get("function") == name)


def test_a_sound_config_passes_unchanged(sound: Config, sound3: Config) -> None:
    checked = check(sound)
    # but for what it was compiled with
    assert checked == {key: value for key, value in sound.items() if key != "compile_config"}
    again = tf_keras.saving.deserialize_keras_object(checked)
    assert [each.name for each in again.layers] == [each["name"] for each in sound["config"]["layers"]]
    checked = check(sound3, "keras")
    assert [each["name"] for each in checked["config"]["layers"]] == [e["name"] for e in sound3["config"]["layers"]]
    assert keras.saving.deserialize_keras_object(checked).count_params() > 0


@pytest.mark.parametrize("begins", [True, False])
def test_a_model_that_is_called_twice_in_a_model_passes(begins: bool) -> None:
    inner = tf_keras.Sequential([*([tf_keras.Input([4])] if begins else []), tf_keras.layers.Dense(4)], name="inner")
    x = tf_keras.Input([4], name="x")
    y = inner(inner(x)) + inner(x)
    config = config_of(tf_keras.Model(x, tf_keras.layers.Dense(2)(y)))
    again = tf_keras.saving.deserialize_keras_object(check(config))
    assert len(again.get_layer("inner")._inbound_nodes) == 3
    for index in (1, True, 1.0):
        layer(config, "inner")["inbound_nodes"][0] = [["inner", index, 0, {}]]
        with pytest.raises(RefusedError, match="need each other's outputs"):
            check(config)


def test_what_a_model_was_compiled_with_is_left_out(sound: Config) -> None:
    config = copy.deepcopy(sound)
    evil = {"loss": {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"}}
    config["compile_config"] = evil
    layer(config, "dense")["compile_config"] = evil
    assert "os" not in json.dumps(check(config)).replace('"float32"', "").split('"')


FUNCTION = {"class_name": "function", "config": "relu", "module": "builtins", "registered_name": "relu"}
INITIALIZER = {"class_name": "Zeros", "config": {}, "module": "keras.initializers", "registered_name": None}

#: By what it tries: how it changes the sound config, and what the message names.
ATTACKS: dict[str, tuple[Callable[[Config], Any], str]] = {
    "a module of its own": (lambda c: c.update(module="antigravity", class_name="Model"), "antigravity"),
    "a prefix of Keras": (lambda c: c.update(module="keras.evil", class_name="Model"), r"keras\.evil"),
    "a name with a dot": (lambda c: c.update(module="tf_keras", class_name="utils.get_file"), r"utils\.get_file"),
    "a module in a class": (lambda c: layer(c, "dense").update(module="os", class_name="system"), "'?os"),
    "a layer's name from elsewhere": (lambda c: layer(c, "dense").update(module="evil", class_name="Dense"), "evil"),
    "another registered name": (lambda c: layer(c, "dense").update(registered_name="Custom>Adam"), "Custom>Adam"),
    "a registered name that is Lambda": (lambda c: layer(c, "dense").update(registered_name="Lambda"), "Lambda"),
    "a registered name without a class": (lambda c: layer(c, "dense").pop("class_name"), "names a class by none"),
    "a class that is no string": (lambda c: layer(c, "dense").update(class_name=["Dense"]), "a list"),
    "a module that is no string": (lambda c: layer(c, "dense").update(module={"a": 1}), "a dict as module"),
    "a method by its name": (lambda c: layer(c, "dense").update(class_name="InstanceMethod"), "InstanceMethod"),
    "a class method by its name": (lambda c: layer(c, "dense").update(class_name="ClassMethod"), "ClassMethod"),
    "any operator": (lambda c: layer(c, "dense").update(class_name="TensorFlowOpLayer"), "TensorFlowOpLayer"),
    "a SavedModel by its path": (lambda c: layer(c, "dense").update(class_name="TFSMLayer"), "TFSMLayer"),
    "feature columns": (lambda c: layer(c, "dense").update(class_name="DenseFeatures"), "DenseFeatures"),
    "a vocabulary's path": (
        lambda c: layer(c, "dense").update(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
        "takes its vocabulary from a file: /etc/passwd",
    ),
    "a function of Python": (
        lambda c: layer(c, "dense")["config"].update(activation=FUNCTION | {"config": "eval", "registered_name": None}),
        "eval",
    ),
    "a function under another name": (
        lambda c: layer(c, "dense")["config"].update(activation=FUNCTION | {"registered_name": "deserialize"}),
        "deserialize",
    ),
    "a function of a module": (
        lambda c: layer(c, "dense")["config"].update(
            activation=FUNCTION | {"module": "keras.models", "config": "load_model", "registered_name": "load_model"}
        ),
        "load_model",
    ),
    "a word for an activation": (lambda c: layer(c, "dense")["config"].update(activation="deserialize"), "deserialize"),
    "a word for an initializer": (lambda c: layer(c, "dense")["config"].update(kernel_initializer="get"), "'?get"),
    "a word for a regularizer": (lambda c: layer(c, "dense")["config"].update(kernel_regularizer="math"), "math"),
    "an initializer that is a function": (
        lambda c: layer(c, "dense")["config"].update(kernel_initializer=FUNCTION | {"config": "exec"}),
        "exec",
    ),
    "an initializer of a module": (
        lambda c: layer(c, "dense")["config"].update(kernel_initializer=INITIALIZER | {"module": "subprocess"}),
        "subprocess",
    ),
    "an optimizer in a layer": (
        lambda c: layer(c, "dense")["config"].update(kernel_initializer=INITIALIZER | {"class_name": "Adam"}),
        "Adam",
    ),
    "a type": (
        lambda c: layer(c, "dense")["config"].update(
            kernel_initializer={"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess"}
        ),
        "__typespec__",
    ),
    "bytes": (lambda c: layer(c, "dense")["config"].update(a={"class_name": "__bytes__", "value": "x"}), "__bytes__"),
    "an array of objects": (
        lambda c: layer(c, "dense")["config"].update(
            a={"class_name": "__numpy__", "config": {"value": [1], "dtype": "O"}}
        ),
        "__numpy__",
    ),
    "a type of HDF5 files": (
        lambda c: layer(c, "x")["config"].update(
            type_spec={"class_name": "TypeSpec", "type_spec": "tf.RaggedTensorSpec", "serialized": []}
        ),
        "TypeSpec",
    ),
    "a tensor that is decoded again": (
        lambda c: layer(c, "dense").update(
            inbound_nodes=[[["_CONSTANT_VALUE", -1, {"class_name": "__tuple__", "items": ["_COMPOSITE_TYPE", "{}"]}]]]
        ),
        "a constant of another kind",
    ),
    "in build_config": (lambda c: layer(c, "dense").update(build_config={"a": {"module": "os"}}), "names a class"),
    "in shared_object_id": (
        lambda c: layer(c, "dense").update(shared_object_id={"class_name": "Popen", "module": "subprocess"}),
        "Popen",
    ),
    "in a tuple": (
        lambda c: layer(c, "dense")["config"].update(
            a={"class_name": "__tuple__", "items": [{"class_name": "Popen", "module": "subprocess", "config": {}}]}
        ),
        "Popen",
    ),
    "in the arguments of a call": (
        lambda c: layer(c, "dense")["inbound_nodes"][0][0][3].update(
            mask={"class_name": "Popen", "module": "subprocess", "config": {}}
        ),
        "Popen",
    ),
    "a function that writes": (
        lambda c: called(c, "math.multiply")["config"].update(function="io.write_file"),
        r"calls io\.write_file",
    ),
    "a function that reads": (
        lambda c: called(c, "math.multiply")["config"].update(function="io.read_file"),
        r"calls io\.read_file",
    ),
    "a function that builds": (
        lambda c: called(c, "math.multiply")["config"].update(function="keras.models.model_from_json"),
        r"calls keras\.models\.model_from_json",
    ),
    "a function that runs Python": (
        lambda c: called(c, "math.multiply")["config"].update(function="numpy_function"),
        "calls numpy_function",
    ),
    "a function of an older TensorFlow": (
        lambda c: called(c, "math.multiply")["config"].update(function="compat.v1.py_func"),
        r"calls compat\.v1\.py_func",
    ),
    "no function": (lambda c: called(c, "math.multiply")["config"].update(function={"a": 1}), "calls a dict"),
    "a string for a number": (
        lambda c: called(c, "math.multiply")["inbound_nodes"][0][3].update(y="/etc/passwd"),
        r"gives math\.multiply /etc/passwd as y",
    ),
    "a constant string": (
        lambda c: called(c, "math.multiply").update(inbound_nodes=[[["_CONSTANT_VALUE", -1, "/etc/passwd", {}]]]),
        "/etc/passwd as x",
    ),
    "a string in a list": (
        lambda c: called(c, "math.multiply")["inbound_nodes"][0][3].update(y=[[1.0, ["a"]]]),
        "a as y",
    ),
    "a type that is a resource": (
        lambda c: called(c, "cast")["inbound_nodes"][0][3].update(dtype="resource"),
        "resource as dtype",
    ),
    "a layer that reads itself": (
        lambda c: layer(c, "dense").update(inbound_nodes=[[["dense", 0, 0, {}]]]),
        "the calls of .*dense.* need each other's outputs",
    ),
    "layers in a ring": (
        lambda c: layer(c, "dense").update(inbound_nodes=[[["out", 0, 0, {}]]]),
        "need each other's outputs",
    ),
    "a call that is not there": (
        lambda c: layer(c, "out").update(inbound_nodes=[[["dense", 7, 0, {}]]]),
        "or such that are not there",
    ),
    "marshalled code in a regularizer": (
        lambda c: layer(c, "dense")["config"].update(
            kernel_regularizer={"class_name": "Wrapper", "config": {"layer": {"class_name": "os", "config": None}}}
        ),
        "os",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(sound: Config, attack: str) -> None:
    change, message = ATTACKS[attack]
    config = copy.deepcopy(sound)
    change(config)
    with pytest.raises(RefusedError, match=message):
        check(config)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_a_nested_model_is_refused(sound: Config, attack: str) -> None:
    change, message = ATTACKS[attack]
    config = copy.deepcopy(sound)
    change(config)
    wrapper = {
        "class_name": "TimeDistributed",
        "config": {"name": "each", "layer": config},
        "module": "keras.layers",
        "registered_name": None,
    }
    with pytest.raises(RefusedError, match=message):
        check({"class_name": "Sequential", "module": "keras", "config": {"layers": [wrapper]}})


ATTACKS3: dict[str, tuple[Callable[[Config], Any], str]] = {
    "a class of Keras' inside": (
        lambda c: layer(c, "dense").update(module="keras.src.utils.file_utils", class_name="get_file"),
        "get_file",
    ),
    "a layer that loads": (lambda c: layer(c, "dense").update(class_name="TFSMLayer"), "TFSMLayer"),
    "a layer of torch": (lambda c: layer(c, "dense").update(class_name="TorchModuleWrapper"), "TorchModuleWrapper"),
    "an operation that maps a function": (
        lambda c: layer(c, "dense").update(module="keras.src.ops.core", class_name="Map"),
        "Map",
    ),
    "a saving function": (
        lambda c: layer(c, "dense").update(module="keras.saving", class_name="load_model"),
        "load_model",
    ),
    "a dtype": (lambda c: layer(c, "dense")["config"]["dtype"].update(module="os", class_name="system"), "system"),
    "a slice of tensors": (
        lambda c: layer(c, "dense")["config"].update(a={"class_name": "__slice__", "config": {"start": "x"}}),
        "a slice",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS3)
def test_an_attack_in_a_config_of_keras_3_is_refused(sound3: Config, attack: str) -> None:
    change, message = ATTACKS3[attack]
    config = copy.deepcopy(sound3)
    change(config)
    with pytest.raises(RefusedError, match=message):
        check(config, "keras")


def test_a_lambda_is_found_wherever_it_is(sound: Config) -> None:
    for code in (
        {"class_name": "Lambda", "config": {"name": "evil"}, "module": "keras.layers"},
        {"class_name": "__lambda__", "config": {"name": "evil", "value": "4wEAAA=="}},
    ):
        for place in ("activation", "kernel_initializer"):
            config = copy.deepcopy(sound)
            layer(config, "dense")["config"][place] = {"deep": [code]}
            checker = Checker(objects_of("tf_keras"), {})
            assert "evil" not in json.dumps(checker.checked(config))
            assert checker.lambdas == ["evil"]


def test_too_deep_a_config_is_refused() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    with pytest.raises(RefusedError, match="nested more than"):
        check({"class_name": "Sequential", "config": {"layers": deep}})


class Own(tf_keras.layers.Layer):
    pass


def test_custom_objects_are_taken_by_the_modules_own_names(sound: Config) -> None:
    config = copy.deepcopy(sound)
    # the module says where it is, and nothing is imported from there
    layer(config, "dense").update(class_name="Own", module="evil", registered_name="Custom>Own")
    checked = check(config, custom_objects={"Own": Own})
    assert {key: layer(checked, "dense")[key] for key in ("class_name", "module", "registered_name")} == {
        "class_name": "Own", "module": None, "registered_name": "Own",
    }  # fmt: skip
    layer(config, "dense")["config"]["activation"] = FUNCTION | {"config": "own", "module": "evil"}
    checked = check(config, custom_objects={"Custom>Own": Own, "own": tf.nn.relu})
    assert layer(checked, "dense")["config"]["activation"] == "own"
    assert layer(checked, "dense")["class_name"] == "Custom>Own"


@pytest.mark.parametrize("name", ["Dense", "relu", "Zeros", "Lambda", "function", "__lambda__", "glorot_uniform"])
def test_a_custom_object_cannot_take_a_known_name(name: str) -> None:
    with pytest.raises(RefusedError, match=f"custom_objects\\(\\) has {name}, a name that tf_keras has"):
        Checker(objects_of("tf_keras"), {name: Own})


# the lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["tf_keras", "keras"])
def test_the_lists_hold_what_they_name(package: str) -> None:
    objects = objects_of(package)
    names = objects.names()
    assert {"Dense", "Functional", "GlorotUniform", "L2", "MaxNorm", "relu", "LayerScale", "CustomScaleLayer"} <= names
    for refused in ("Lambda", "TFSMLayer", "TorchModuleWrapper", "DenseFeatures", "Adam", "load_model", "deserialize"):
        assert refused not in names
    # of the package alone
    for (module, _), value in objects.classes.items():
        assert value.__module__.split(".")[0] in (package, "tensorflow")
        assert module is None or module.split(".")[0] in ("keras", "tf_keras", "tensorflow")


def test_all_that_the_list_of_functions_names_exists() -> None:
    from tensorflow.python.util import tf_export

    for prefix, names in functions._GROUPS.items():
        for name in names.split():
            found = [tf_export.get_symbol_from_name(f"{each}{prefix}{name}") for each in ("", "compat.v1.")]
            assert any(callable(each) for each in found), f"{prefix}{name}"


@pytest.mark.parametrize(
    "name",
    ["io.write_file", "io.read_file", "py_function", "numpy_function", "print", "compat.v1.py_func", "map_fn", "cond",
     "while_loop", "keras.models.load_model", "keras.utils.get_file", "saved_model.load", "load_op_library", "function",
     "raw_ops.WriteFile", "debugging.assert_equal", "strings.join", "summary.write", "train.load_checkpoint",
     "data.experimental.load", "autograph.to_code", "", "os.system", None, 7],
)  # fmt: skip
def test_other_functions_are_not_on_the_list(name: Any) -> None:
    assert not functions.is_pure(name)


@pytest.mark.parametrize(
    ("name", "parameter", "good", "bad"),
    [
        ("cast", "dtype", "int32", "string"),
        ("einsum", "equation", "...ab,bc->ac", "/etc/passwd"),
        ("image.resize", "method", "bilinear", "file"),
        ("compat.v1.pad", "mode", "REFLECT", "x"),
        ("compat.v1.nn.conv2d", "padding", "SAME", "gs://bucket"),
        ("math.add", "name", "a/b_1", "a b\n"),
        ("norm", "ord", "fro", "euclid"),
    ],
)
def test_strings_are_what_their_parameter_takes(name: str, parameter: str, good: str, bad: str) -> None:
    assert functions.is_pure(name)
    assert functions.may_be(name, parameter, good)
    assert not functions.may_be(name, parameter, bad)


# any config -----------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["class_name", "config", "module", "registered_name", "inbound_nodes", "layers", "name", "Dense", "Functional", "x",
     "function", "TFOpLambda", "math.add", "keras.layers", "__tuple__", "items", "Lambda", "os", "activation", "relu"]
)  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=True) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_any_config_passes_or_is_refused(config: Any) -> None:
    for package in ("tf_keras", "keras"):
        checker = Checker(objects_of(package), {})
        try:
            checked = checker.checked(config)
        except RefusedError:
            continue
        # what passes has no name that is not on the lists
        text = json.dumps(checked)
        assert '"module": "os"' not in text
        assert '"class_name": "Lambda"' not in text
