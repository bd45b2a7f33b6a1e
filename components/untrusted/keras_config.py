"""The check of a Keras model's config, as data, before anything of it is built.

What comes out is a copy that holds what was checked and nothing else, so that Keras reads what the check read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgeline.untrusted import functions
from edgeline.untrusted.keras_objects import KerasObjects

#: How many objects and lists may be in one another: a model within a model takes four.
MAX_DEPTH = 200
#: Parts of an object that are taken over. What it was compiled with is not, nor what Keras does not know.
_PARTS = ("build_config", "name", "inbound_nodes", "shared_object_id")
_CALLS = ("TFOpLambda", "SlicingOpLambda")
#: Keys under which a layer takes the path of a file beside values.
_VALUES = ("idf_weights", "vocabulary")
#: Of a constant among the inputs of a layer, and of one that is decoded once more.
_CONSTANT, _COMPOSITE = "_CONSTANT_VALUE", "_COMPOSITE_TYPE"
_CODE = ("Lambda", "__lambda__")
_SHOWN = 100
_UNKNOWN = "which is neither Keras' own nor a custom object"


class RefusedError(Exception):
    """A config holds what is not on the list; says what and where."""


class Checker:
    """Checks configs of one Keras.

    Args:
      objects: what may be named.
      custom_objects: of the model module, by name.
      code: whether the author is trusted: Lambda layers and any function of TensorFlow pass.

    Attributes:
      lambdas: names of the layers that hold code, which were found so far.

    Raises:
      RefusedError: a custom object takes a name that Keras has for something.
    """

    def __init__(self, objects: KerasObjects, custom_objects: Mapping[str, Any], *, code: bool = False):
        self._objects = objects
        self._custom = custom_objects
        self._code = code
        self.lambdas: list[str] = []
        reserved = objects.names() | {"function", *_CODE} | set().union(*objects.strings.values())
        for name in custom_objects:
            if not isinstance(name, str) or name in reserved or name.startswith("__"):
                raise RefusedError(
                    f"custom_objects() has {_short(name)}, a name that {objects.package} has for something of its own; "
                    f"give the class or function another name"
                )

    def checked(self, config: Any) -> Any:
        """Returns a copy of a model's config in which everything was checked.

        Args:
          config: as JSON gives it.

        Raises:
          RefusedError: it holds what is not on the list, or names itself; says what and where.
        """
        return self._value(config, "the model", 0)

    # walking --------------------------------------------------------------------------------------------------------

    def _value(self, value: Any, where: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise RefusedError(f"{where} is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            if "class_name" in value or "registered_name" in value or "module" in value:
                return self._object(value, where, depth)
            return {self._key(key, where): self._value(each, where, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(each, where, depth + 1) for each in value]
        if value == _COMPOSITE:
            raise RefusedError(f"{where} holds a constant of another kind than numbers")
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise RefusedError(f"{where} holds a {type(value).__name__}")

    def _key(self, key: Any, where: str) -> str:
        if not isinstance(key, str):
            raise RefusedError(f"{where} has a key that is no string: {_short(key)}")
        return key

    def _object(self, value: dict[str, Any], where: str, depth: int) -> Any:
        name, module, registered = (value.get(key) for key in ("class_name", "module", "registered_name"))
        config = value.get("config")
        if not isinstance(name, str):
            raise RefusedError(f"{where} names a class by {_short(name)}")
        for key, word in (("module", module), ("registered_name", registered)):
            if word is not None and not isinstance(word, str):
                raise RefusedError(f"{where} has {_short(word)} as {key} of {name}")
        if name in _CODE:
            return self._with_code(value, where)
        if name.startswith("__") or name == "TensorShape":
            return self._marker(name, value, where, depth)
        own = config.get("name") if isinstance(config, dict) else None
        inside = f"{name} {_short(own)}" if isinstance(own, str) else f"{name} in {where}"
        custom = self._custom_name(name, registered, config)
        if name == "function":
            return self._function(value, custom, where)
        copy: dict[str, Any]
        if custom is not None:
            # without a module nothing is imported, and the name is the one that custom_objects() has
            copy = {"class_name": custom}
            if "module" in value or "registered_name" in value:
                copy |= {"module": None, "registered_name": custom}
        else:
            found = self._objects.classes.get((module, name))
            if found is None or registered not in (None, name, found.__name__, f"Custom>{found.__name__}"):
                raise RefusedError(f"{where} holds {self._called(module, name, registered)}")
            copy = {key: value[key] for key in ("class_name", "module", "registered_name") if key in value}
        if "config" in value:
            copy["config"] = self._config(config, inside, depth, built_in=custom is None)
        for key in _PARTS:
            if key in value:
                copy[key] = self._value(value[key], inside, depth + 1)
        if not isinstance(copy.get("name", ""), str):
            raise RefusedError(f"{where} has a layer whose name is {_short(copy['name'])}")
        if custom is None and name in _CALLS:
            self._call(copy, inside)
        # Keras 3 counts calls in another way, and notices by itself
        if self._objects.package == "tf_keras" and isinstance(config, dict) and "layers" in config:
            _check_order(copy["config"], inside)
        return copy

    def _custom_name(self, name: str, registered: str | None, config: Any) -> str | None:
        """Returns by which name of the module's custom objects something goes; None: by none."""
        names = (registered, config if isinstance(config, str) else None) if name == "function" else (registered, name)
        return next((each for each in names if each is not None and each in self._custom), None)

    def _called(self, module: str | None, name: str, registered: str | None) -> str:
        extra = f" registered as {_short(registered)}" if registered not in (None, name) else ""
        known = self._objects.names()
        hint = f"; {name} is to be found elsewhere" if name in known else ""
        return (
            f"{_short(name)} of module {_short(module)}{extra}, which is neither Keras' own nor a custom object{hint}"
        )

    def _with_code(self, value: dict[str, Any], where: str) -> Any:
        config = value.get("config")
        own = config.get("name") if isinstance(config, dict) else None
        self.lambdas.append(own if isinstance(own, str) else "a function")
        if not self._code:
            return None
        return value

    def _marker(self, name: str, value: dict[str, Any], where: str, depth: int) -> Any:
        """Checks what stands for a value of Python that JSON has no words for."""
        config = value.get("config")
        if name in ("__tuple__", "TensorShape") and isinstance(value.get("items"), list):
            return {"class_name": name, "items": self._value(value["items"], where, depth + 1)}
        if name == "__ellipsis__":
            return {"class_name": name, "config": {}}
        if name in ("__numpy__", "__tensor__") and isinstance(config, dict):
            dtype, numbers = config.get("dtype"), config.get("value")
            if dtype in functions.DTYPES and _is_numeric(numbers, depth):
                return {"class_name": name, "config": {"value": numbers, "dtype": dtype}}
        if name == "__slice__" and isinstance(config, dict):
            return {"class_name": name, "config": {key: _whole(config.get(key)) for key in ("start", "stop", "step")}}
        if name == "__keras_tensor__" and isinstance(config, dict):
            return {"class_name": name, "config": self._value(config, where, depth + 1)}
        raise RefusedError(f"{where} holds {_short(name)}, which no layer needs")

    def _function(self, value: dict[str, Any], custom: str | None, where: str) -> Any:
        name, module, registered = (value.get(key) for key in ("config", "module", "registered_name"))
        if custom is not None:
            return custom  # each format of Keras takes a custom function by its name alone
        if not isinstance(name, str) or (module, name) not in self._objects.functions or registered not in (None, name):
            raise RefusedError(f"{where} names the function {self._called(module, _short(name), registered)}")
        return {"class_name": "function", "config": name, "module": module, "registered_name": registered}

    def _config(self, config: Any, where: str, depth: int, *, built_in: bool) -> Any:
        """Checks the config of an object: in one of Keras' own, words that stand for objects too."""
        checked = self._value(config, where, depth + 1)
        if built_in and isinstance(checked, dict):
            for key, word in checked.items():
                if isinstance(word, str):
                    self._word(key, word, where)
        return checked

    def _word(self, key: str, word: str, where: str) -> None:
        if key in _VALUES:
            raise RefusedError(f"{where} takes its {key} from a file: {_short(word)}")
        for end, words in self._objects.strings.items():
            if (key == end or key.endswith(f"_{end}")) and word not in words and word not in self._custom:
                raise RefusedError(
                    f"{where} has {_short(word)} as {key}, which is neither Keras' own nor a custom object"
                )

    # calls of functions -----------------------------------------------------------------------------------------------

    def _call(self, layer: dict[str, Any], where: str) -> None:
        config = layer.get("config")
        name = config.get("function") if isinstance(config, dict) else None
        if self._code:
            return
        if not functions.is_pure(name):
            raise RefusedError(f"{where} calls {_short(name)}, which is not on the list of functions that only compute")
        for parameter, word in _words(layer.get("inbound_nodes", []), functions.first_parameter(str(name))):
            if not functions.may_be(str(name), parameter, word):
                raise RefusedError(f"{where} gives {name} {_short(word)} as {parameter or 'an argument'}")


def _words(node: Any, first: str) -> Iterator[tuple[str, str]]:
    """Yields the strings that the calls of a function are given, each with the parameter it is for."""
    reference = _reference(node)
    if reference is not None:
        layer, arguments = reference
        if layer == _CONSTANT:
            yield from ((first, word) for word in _strings(node[2]))
        for name, value in arguments.items():
            yield from ((name, word) for word in _strings(value))
    elif isinstance(node, list | dict):
        for each in node.values() if isinstance(node, dict) else node:
            yield from _words(each, first)
    elif isinstance(node, str):
        yield "", node


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list) and _reference(value) is None:
        for each in value:
            yield from _strings(each)


def _reference(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Returns the layer that a list names an output of, and the arguments beside it; None where it is another list."""
    if not isinstance(value, list) or len(value) not in (3, 4) or not isinstance(value[0], str):
        return None
    # true and 1.0 are as good as 1 for Keras
    if not isinstance(value[1], int | float) or (value[0] != _CONSTANT and not isinstance(value[2], int | float)):
        return None
    arguments = value[3] if len(value) == 4 else {}
    return (value[0], arguments) if isinstance(arguments, dict) else None


# order ----------------------------------------------------------------------------------------------------------------


def _check_order(config: dict[str, Any], where: str) -> None:
    """Raises RefusedError where the calls of a functional model's layers wait for each other: Keras would for ever."""
    if not isinstance(config["layers"], list):
        raise RefusedError(f"{where} has layers that are no list")
    calls: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for layer in config["layers"]:
        nodes = layer.get("inbound_nodes") if isinstance(layer, dict) else None
        if nodes is None:
            continue
        name = layer.get("name")
        if not isinstance(name, str) or not isinstance(nodes, list):
            raise RefusedError(f"{where} has a layer without a name or with inbound nodes that are no list")
        first = _first_call(layer)
        for index, node in enumerate(nodes, first):
            calls[name, index] = set(_reads(node))
            if index > first:  # they are called in their order
                calls[name, index].add((name, index - 1))
    # a layer that is never called is an input, whose output is there from the start
    called = {name for name, _ in calls}
    waiting = {call: {each for each in reads if each[0] in called} for call, reads in calls.items()}
    while waiting:
        ready = [call for call, reads in waiting.items() if not reads & waiting.keys() and reads <= calls.keys()]
        if not ready:
            names = sorted({name for name, _ in waiting})
            raise RefusedError(
                f"the calls of {', '.join(map(_short, names[:5]))}{' and others' if len(names) > 5 else ''} in {where} "
                f"need each other's outputs, or such that are not there"
            )
        for call in ready:
            del waiting[call]


def _first_call(layer: dict[str, Any]) -> int:
    """Returns the number of a layer's first call: of a model that begins with an input, 0 is how it was built."""
    config = layer.get("config")
    inner = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(inner, list) or not inner or not isinstance(inner[0], dict):
        return 0
    return int(inner[0].get("class_name") == "InputLayer")


def _reads(node: Any) -> Iterator[tuple[str, int]]:
    """Yields the calls whose outputs a call is given: the layer's name, and which call of it."""
    if isinstance(node, dict):
        if node.get("class_name") == "__keras_tensor__":
            return
        for each in node.values():
            yield from _reads(each)
        return
    if not isinstance(node, list):
        return
    reference = _reference(node)
    if reference is not None:
        if reference[0] != _CONSTANT:
            yield reference[0], node[1]
        yield from _reads(reference[1])
        return
    for each in node:
        yield from _reads(each)


# values ---------------------------------------------------------------------------------------------------------------


def _is_numeric(value: Any, depth: int) -> bool:
    if isinstance(value, list):
        return depth < MAX_DEPTH and all(_is_numeric(each, depth + 1) for each in value)
    return isinstance(value, int | float)


def _whole(value: Any) -> int | None:
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        raise RefusedError("a slice is given by a tensor")
    if value is not None and type(value) is not int:
        raise RefusedError(f"a slice has {_short(value)} as an end")
    return value


def _short(value: Any) -> str:
    """Returns a stranger's value for a message: one line of limited length that a terminal can show."""
    if not isinstance(value, str):
        return (
            "none" if value is None else f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)
        )
    text = re.sub(r"[^\x20-\x7e\xa0-\ud7ff]", "\N{REPLACEMENT CHARACTER}", value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
