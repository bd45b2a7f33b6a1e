"""Frozen dataclasses as JSON: one definition of a format is what is read, what is written and what a JSON Schema says.

Fields may be text, numbers, whether something holds, `Literal`, `Any`, other dataclasses, `tuple`, `Mapping` with text
for keys, and unions of these with None. A key that is missing is read as if it were null, and null as the field's
default. Keys that no field has are passed over: a later version may write more.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

#: Whole numbers beyond are no size or count of anything, and overflow where they are written as text.
_LARGEST = 2**63


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """The least value of a number, as in `Annotated[int, AtLeast(0)]`."""

    least: float


Count = Annotated[int, AtLeast(0)]
"""A whole number of things, at least 0."""

Amount = Annotated[float, AtLeast(0)]
"""A number that is at least 0."""


class MismatchError(ValueError):
    """Content is not what a dataclass says.

    Attributes:
      missing: places whose value has to be there, such as `candidates[0].name`.
      wrong: what was expected where and what was found instead, in words.
    """

    def __init__(self, missing: list[str], wrong: list[str]):
        lacks = [f"lacks {', '.join(missing)}"] if missing else []
        super().__init__("; ".join([*lacks, *wrong]))
        self.missing = missing
        self.wrong = wrong


def field(*, key: str | None = None, prefix: str | None = None, **options: Any) -> Any:
    """Returns a dataclass field with its own place in JSON.

    Args:
      key: its key, where that is not the field's name.
      prefix: of a Mapping whose entries lie in JSON beside the other fields, not in an object of their own: what the
        keys of these entries begin with.
      **options: of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"key": key, "prefix": prefix}, **options)


def from_json(kind: type[T], content: Any) -> T:
    """Reads a dataclass from what `json.loads` returned; a number that is NaN or infinite counts as null.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Port:
    ...     name: str
    ...     shape: tuple[int, ...] = ()
    >>> from_json(Port, {"name": "image", "shape": [1, 8, 8]})
    Port(name='image', shape=(1, 8, 8))

    Raises:
      MismatchError: a required value is missing, or a value is of another kind.
    """
    faults = _Faults()
    reader: _Reader = _reader(typing.cast("Any", kind))
    value = reader(content, (), faults)
    if faults.missing or faults.wrong:
        # what lies higher is named first
        missing = sorted(faults.missing, key=len)
        raise MismatchError([_spelled(place) for place in missing], faults.wrong)
    result: T = value
    return result


def to_json(value: Any) -> Any:
    """Returns what `json.dumps` takes: dataclasses as dicts with every field, None for numbers that JSON cannot say."""
    if dataclasses.is_dataclass(value):
        content: dict[str, Any] = {}
        for own in dataclasses.fields(value):
            part = to_json(getattr(value, own.name))
            content |= part if _prefix(own) is not None else {_key(own): part}
        return content
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of what `to_json` makes of a dataclass.

    Its descriptions are those of the docstrings, with null for None: of a class what precedes `Attributes:`, of a field
    what stands there.
    """
    definitions: dict[str, Any] = {}
    reference = _schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions.pop(reference["$ref"].rpartition("/")[2]),
        "$defs": dict(sorted(definitions.items())),
    }


# reading --------------------------------------------------------------------------------------------------------------

#: Keys and indices from the top.
_Place = tuple[str | int, ...]


@dataclasses.dataclass
class _Faults:
    missing: list[_Place] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def expected(self, what: str, place: _Place, content: Any) -> None:
        text = json.dumps(content, ensure_ascii=False, default=str)
        text = text if len(text) <= 60 else f"{text[:59]}…"
        self.wrong.append(f"{_spelled(place) or 'the whole'}: expected {what}, found {text}")


_Reader = Callable[[Any, _Place, _Faults], Any]


def _spelled(place: _Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _key(own: dataclasses.Field[Any]) -> str:
    return own.metadata.get("key") or own.name


def _prefix(own: dataclasses.Field[Any]) -> str | None:
    return own.metadata.get("prefix")


def _is_null(content: Any) -> bool:
    return content is None or (isinstance(content, float) and not math.isfinite(content))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


@functools.cache
def _reader(kind: Any) -> _Reader:
    """Returns what reads values of a kind; made once, as a report has many thousand of some."""
    if get_origin(kind) is Annotated:
        inner, bound = get_args(kind)
        return _bounded(_reader(inner), bound.least)
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(typing.cast("type[Any]", kind))
    if _is_union(kind):
        return _union_reader(kind)
    if get_origin(kind) is tuple:
        return _tuple_reader(get_args(kind))
    if get_origin(kind) is Mapping:
        return _mapping_reader(_reader(get_args(kind)[1]))
    if get_origin(kind) is Literal:
        return _scalar_reader(lambda content: content in get_args(kind), _words(kind))
    if kind is Any:
        return lambda content, place, faults: to_json(content)
    return _scalar_reader(_SCALARS[kind], _words(kind))


_SCALARS: dict[Any, Callable[[Any], bool]] = {
    str: lambda content: isinstance(content, str),
    bool: lambda content: isinstance(content, bool),
    int: lambda content: type(content) is int and abs(content) < _LARGEST,
    float: lambda content: type(content) is float or (type(content) is int and abs(content) < _LARGEST),
}


def _words(kind: Any) -> str:
    """What is expected of a value, for messages."""
    if _is_union(kind):
        return " or ".join(_words(member) for member in get_args(kind))
    if get_origin(kind) is Annotated:
        inner, bound = get_args(kind)
        return f"{_words(inner)} of at least {bound.least:g}"
    if get_origin(kind) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list"
    return {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}.get(
        kind, "an object"
    )


def _scalar_reader(holds: Callable[[Any], bool], words: str) -> _Reader:
    def read(content: Any, place: _Place, faults: _Faults) -> Any:
        if holds(content):
            return content
        faults.expected(words, place, content)
        return None

    return read


def _bounded(reader: _Reader, least: float) -> _Reader:
    def read(content: Any, place: _Place, faults: _Faults) -> Any:
        value = reader(content, place, faults)
        if value is not None and value < least:
            faults.expected(f"at least {least:g}", place, content)
        return value

    return read


def _union_reader(kind: Any) -> _Reader:
    members = [member for member in get_args(kind) if member is not type(None)]
    is_nullable = len(members) < len(get_args(kind))
    readers = [_reader(member) for member in members]

    def read(content: Any, place: _Place, faults: _Faults) -> Any:
        if is_nullable and _is_null(content):
            return None
        if len(readers) == 1:
            return readers[0](content, place, faults)
        for reader in readers:
            attempt = _Faults()
            value = reader(content, place, attempt)
            if not attempt.missing and not attempt.wrong:
                return value
        faults.expected(_words(kind), place, content)
        return None

    return read


def _tuple_reader(members: tuple[Any, ...]) -> _Reader:
    readers = [_reader(member) for member in members if member is not Ellipsis]

    def read(content: Any, place: _Place, faults: _Faults) -> Any:
        if not isinstance(content, list | tuple):
            faults.expected("a list", place, content)
            return ()
        if Ellipsis in members:
            return tuple(readers[0](part, (*place, i), faults) for i, part in enumerate(content))
        if len(content) != len(readers):
            faults.expected(f"a list of {len(readers)}", place, content)
            return ()
        pairs = enumerate(zip(readers, content, strict=True))
        return tuple(reader(part, (*place, i), faults) for i, (reader, part) in pairs)

    return read


def _mapping_reader(reader: _Reader) -> _Reader:
    def read(content: Any, place: _Place, faults: _Faults) -> Any:
        if not isinstance(content, Mapping):
            faults.expected("an object", place, content)
            return {}
        return {key: reader(part, (*place, key), faults) for key, part in content.items()}

    return read


def _dataclass_reader(kind: type[Any]) -> _Reader:
    owns, hints = dataclasses.fields(kind), _hints(kind)
    readers = {own.name: _reader(hints[own.name]) for own in owns}
    keys = {_key(own) for own in owns if _prefix(own) is None}

    def read(content: Any, place: _Place, faults: _Faults) -> Any:
        if not isinstance(content, Mapping):
            faults.expected("an object", place, content)
            return None
        values = {}
        before = len(faults.missing) + len(faults.wrong)
        for own in owns:
            own_place = (*place, _key(own))
            part = content.get(_key(own))
            if (prefix := _prefix(own)) is not None:
                beside = {key: value for key, value in content.items() if key not in keys and key.startswith(prefix)}
                values[own.name] = readers[own.name](beside, place, faults)
            elif not _is_null(part):
                values[own.name] = readers[own.name](part, own_place, faults)
            elif own.default is dataclasses.MISSING and own.default_factory is dataclasses.MISSING:
                named = len(faults.missing)
                if dataclasses.is_dataclass(hints[own.name]) and _key(own) in content:
                    readers[own.name]({}, own_place, faults)  # names what null lacks
                if len(faults.missing) == named:
                    faults.missing.append(own_place)
        return kind(**values) if len(faults.missing) + len(faults.wrong) == before else None

    return read


# the JSON Schema ------------------------------------------------------------------------------------------------------


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if get_origin(kind) is Annotated:
        inner, bound = get_args(kind)
        return _schema(inner, definitions) | {"minimum": bound.least}
    if dataclasses.is_dataclass(kind):
        return _object_schema(typing.cast("type[Any]", kind), definitions)
    if _is_union(kind):
        members = [_schema(member, definitions) for member in get_args(kind)]
        if all(member.keys() == {"type"} for member in members):
            return {"type": [member["type"] for member in members]}
        return {"anyOf": members}
    if get_origin(kind) is tuple:
        parts = [_schema(part, definitions) for part in get_args(kind) if part is not Ellipsis]
        if Ellipsis in get_args(kind):
            return {"type": "array", "items": parts[0]}
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if get_origin(kind) is Mapping:
        return {"type": "object", "additionalProperties": _schema(get_args(kind)[1], definitions)}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if kind is Any:
        return {}
    return {"type": {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}[kind]}


def _object_schema(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = {"$ref": f"#/$defs/{kind.__name__}"}
    if kind.__name__ in definitions:
        return reference
    summary, descriptions = _described(kind)
    schema: dict[str, Any] = {"title": kind.__name__, "description": summary, "type": "object", "properties": {}}
    definitions[kind.__name__] = schema
    hints = _hints(kind)
    for own in dataclasses.fields(kind):
        described = {"description": descriptions[own.name]}
        part = _schema(hints[own.name], definitions)
        if (prefix := _prefix(own)) is not None:
            others = "|".join(map(re.escape, (_key(other) for other in dataclasses.fields(kind) if other is not own)))
            schema["patternProperties"] = {f"^(?!({others})$){prefix}": described | part["additionalProperties"]}
        else:
            schema["properties"][_key(own)] = described | part
    schema["required"] = list(schema["properties"])
    return reference


def _described(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """Returns what a dataclass's docstring says of it, and of each of its fields, inherited ones too."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = (inspect.getdoc(base) or "").partition("\nAttributes:\n")
        for name, text in re.findall(r"^  (\w+): (.+(?:\n    .+)*)", attributes, re.MULTILINE):
            words = re.sub(r"\bNone\b", "null", " ".join(text.split()))
            descriptions[name] = words[0].upper() + words[1:]
    return " ".join((inspect.getdoc(kind) or "").partition("\nAttributes:\n")[0].split()), descriptions
