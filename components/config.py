"""What the configs of all steps share: checked, frozen dataclasses, and how TFX is told their values.

A step's config is its request, in Python's own types: `bool`, sequences, mappings, None for nothing. TFX takes
`bool`, `int`, `float` and `str` alone, and knows neither None nor defaults in a cache key. So a field of one of these
types is given to TFX as it is, and any other as text, by which it stays a property that ML Metadata can be asked for:

    ("stem*", "Dense")   '["Dense", "stem*"]'    JSON; sorted first where the order has no meaning
    {"Dense": 0.9}       '{"Dense": 0.9}'
    0.85                 '0.85'                  where the field may also be None
    "a.keras"            'a.keras'               likewise
    None                 'none'

`StepConfig.encoded` and `StepConfig.decoded` are all that knows of it. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

#: How TFX is told None.
NONE = "none"

#: Types that TFX takes as they are.
_PRIMITIVE = (bool, int, float, str)

#: What a mapping goes to, in words.
_MAPPED = {int: " to integers", float: " to numbers"}

#: What a text begins with that is JSON; others are themselves.
_JSON_STARTS = ('"', "[", "{")


class Values(Mapping[str, Any]):
    """An immutable mapping whose order counts: two that differ in it are two requests."""

    def __init__(self, items: Mapping[str, Any]):
        self._items = dict(items)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        # as of OrderedDict: beside a mapping without this rule the order says nothing
        same_order = not isinstance(other, Values) or list(self) == list(other)
        return isinstance(other, Mapping) and same_order and self._items == dict(other)

    def __hash__(self) -> int:
        return hash(json.dumps(self._items))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Base of all step configs: keeps each value in the type that its field declares (int as float; nothing lossy).

    Any sequence is kept as a tuple, any mapping as Values.

    Raises:
      ValueError: a value has another type; the message names the class, the field, what was expected and received, and
        how to write what was probably meant.
    """

    def __post_init__(self) -> None:
        for name, hint in self.field_types().items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, _kept(value, hint))
            except TypeError:
                is_number = not isinstance(value, float) or math.isfinite(value)
                expected = _words(hint) if is_number else "a finite number"
                raise ValueError(
                    f"{self.where(name)} must be {expected}, received {value!r}{_suggestion(name, value, hint)}"
                ) from None

    @classmethod
    @functools.cache
    def field_types(cls) -> dict[str, Any]:
        """Returns the declared type of every field."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def where(cls, name: str) -> str:
        """Returns `Class.field`, the start of every message about a field."""
        return f"{cls.__name__}.{name}"

    def check(self, name: str, holds: bool, expected: str) -> None:
        """Raises ValueError saying what `name` was expected to be, unless `holds`."""
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"{self.where(name)} must be {expected}, received {_plain(value)!r}")

    def check_choice(self, name: str, choices: Collection[str]) -> None:
        """Raises ValueError unless the field's value is one of `choices`, or None where it may be that."""
        value = getattr(self, name)
        words = ", ".join(choices) + (", or None" if _is_optional(self.field_types()[name]) else "")
        self.check(name, value is None or value in choices, f"one of {words}")

    def sort(self, name: str) -> None:
        """Keeps a sequence sorted and without repeats, where neither has a meaning: one request has one spelling."""
        object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def parameters(self) -> dict[str, Any]:
        """Returns every field by name as JSON has it, sequences as lists; the same class takes them again."""
        return {name: _plain(getattr(self, name)) for name in self.field_types()}

    def describe(self) -> str:
        """Returns the step in words for tables, e.g. `prune sparsity=0.8 schedule=polynomial_decay`."""
        fields = (f"{name}={value}" for name, value in self.parameters().items())
        return " ".join((type(self).__name__.lower(), *fields))

    @classmethod
    def encoded_types(cls) -> dict[str, type]:
        """Returns the type that TFX declares for every field: `bool`, `int`, `float` or `str`."""
        return {name: hint if hint in _PRIMITIVE else str for name, hint in cls.field_types().items()}

    def encoded(self) -> dict[str, bool | int | float | str]:
        """Returns every field as TFX is given it: equal requests have equal values."""
        return {name: _encoded(getattr(self, name), hint) for name, hint in self.field_types().items()}

    @classmethod
    def decoded(cls, properties: Mapping[str, Any]) -> Self:
        """Returns the config that TFX was given; other properties are left alone.

        Raises:
          ValueError: a value is none that the field may have.
        """
        return cls(**{name: _decoded(properties[name], hint) for name, hint in cls.field_types().items()})


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def _is_optional(hint: Any) -> bool:
    return types.NoneType in _members(hint)


def _kept(value: Any, hint: Any) -> Any:
    """Returns a value as a field of this type keeps it; raises TypeError where it is of another."""
    if len(members := _members(hint)) > 1:
        for member in members if value != "" or types.NoneType not in members else ():
            with contextlib.suppress(TypeError):
                return _kept(value, member)
    elif hint is Any:
        return json.loads(json.dumps(_plain(value)))
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint in (bool, int, str, types.NoneType) and type(value) is hint:
        return value
    elif get_origin(hint) in (Sequence, tuple) and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        arguments = get_args(hint)
        kinds = arguments if get_origin(hint) is tuple else arguments * len(value)
        if len(kinds) == len(value):
            return tuple(map(_kept, value, kinds))
    elif get_origin(hint) is Mapping and isinstance(value, Mapping):
        of_key, of_value = get_args(hint)
        return Values({_kept(key, of_key): _kept(each, of_value) for key, each in value.items()})
    raise TypeError


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: sequences as lists, mappings as dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _words(hint: Any) -> str:
    if len(members := _members(hint)) > 1:
        return ", or ".join(_words(member) for member in members)
    words = {bool: "True or False", types.NoneType: "None", Sequence: "a list of strings", tuple: "a pair of integers"}
    if get_origin(hint) is Mapping:
        return f"a mapping{_MAPPED.get(get_args(hint)[1], '')}"
    return words.get(get_origin(hint) or hint) or f"of type {hint.__name__}"


def _suggestion(name: str, value: Any, hint: Any) -> str:
    """Returns how to write a value that is written as TFX is given it, or was once: `; write include=['stem*']`."""
    for meant in _meant(value):
        with contextlib.suppress(TypeError):
            return f"; write {name}={_plain(_kept(meant, hint))!r}"
    return ""


def _meant(value: Any) -> Iterator[Any]:
    """Yields what a value may mean where it has not the type of its field."""
    if isinstance(value, int | float):
        yield None if value == -1 else bool(value)
    elif isinstance(value, str):
        if value in ("", NONE):
            yield None
        with contextlib.suppress(ValueError):
            yield json.loads(value)
        if pair := re.fullmatch(r"(\d+)x(\d+)", value):
            yield int(pair[1]), int(pair[2])
        yield [part for part in value.split(";") if part]


def _encoded(value: Any, hint: Any) -> Any:
    if hint in _PRIMITIVE:
        return value
    if value is None:
        return NONE
    if isinstance(value, str) and value != NONE and not value.startswith(_JSON_STARTS):
        return value
    return json.dumps(_plain(value))


def _decoded(value: Any, hint: Any) -> Any:
    if hint in _PRIMITIVE or not isinstance(value, str):
        return value
    members = _members(hint)
    if value == NONE and types.NoneType in members:
        return None
    if str in members and not value.startswith(_JSON_STARTS):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value  # which the config refuses with its own words


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(StepConfig):
    """What every step that trains an existing model may be asked.

    Attributes:
      epochs: passes over the training split, at least 1.
      batch_size: examples per optimizer step, at least 1.
      seed: start of every random draw (shuffling, initialisation), 0 to 2**31 - 1.
      deterministic: whether the same inputs and seed give the same weights to the bit; else operations may sum in any
        order, which can be faster on a GPU.
      threads: among how many threads an operation is split, by which sums are grouped: the same number gives the same
        bits on any number of cores. At least 1, or 0 for TensorFlow's own choice, by which another number of cores may
        give other bits. TensorFlow takes it once in a process, before its first operation.
    """

    epochs: int = 2
    batch_size: int = 32
    seed: int = 0
    deterministic: bool = True
    threads: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("epochs", self.epochs >= 1, "at least 1")
        self.check("batch_size", self.batch_size >= 1, "at least 1")
        self.check("seed", 0 <= self.seed < 2**31, "in [0, 2**31)")
        self.check("threads", 0 <= self.threads <= 1024, "1 to 1024, or 0 for TensorFlow's own choice")

    def __rshift__(self, following: Any) -> Any:
        """Chains two steps of a recipe, which is whole at its Quantize: `Prune(0.8) >> Quantize("int8")`."""
        # by name, since no step runs recipes: what a step is made of must not cover them
        return importlib.import_module("edgeline.recipe").chain(self, following)

    @property
    def trains(self) -> bool:
        """Whether what is asked needs a training."""
        return True

    @property
    def token(self) -> str:
        """The step in a recipe's name; two requests that differ in more than RUN_WIDE have two."""
        raise NotImplementedError(f"{type(self).__name__} is no step of a recipe")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilling(FineTuning):
    """What every fine-tuning that compresses may be asked: to learn from the model that goes in, too.

    Attributes:
      distillation: share of the loss that is the distance to the outputs of that model, in [0, 1]; 0: none.
      temperature: by which both distributions over classes are softened for that distance, above 0.
    """

    distillation: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("distillation", 0 <= self.distillation <= 1, "in [0, 1]")
        self.check("temperature", self.temperature > 0, "above 0")

    @property
    def distilled(self) -> str:
        """What a step's name says of it: `_d50` for a share of one half, nothing for none."""
        return f"_d{percent(self.distillation)}" if self.distillation else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerChoice(Distilling):
    """What every step that works on some of a model's layers may be asked.

    A pattern is a glob over a layer's name or its type (`stem*`, `Dense`); capital and small letters differ.

    Attributes:
      include: patterns: only layers that one of them matches, however small they are; empty: all layers. A layer that
        is named in full must be one the technique can handle.
      exclude: patterns: layers to be left alone.
      protect: `first` and `last` leave those layers alone that no other layer the technique can handle comes before or
        after, on any path from an input to an output; `both` both; None neither.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    protect: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("include", "exclude"):
            self.check(
                name,
                all(getattr(self, name)),
                'a list of patterns over layer names or types, such as ["stem*", "Dense"]',
            )
            self.sort(name)
        self.check_choice("protect", PROTECTED)

    def check_by_layer(self, name: str, holds: Callable[[Any], bool], values: str) -> None:
        """Raises ValueError unless a field is a mapping from patterns to values for which `holds` is true."""
        by_pattern = getattr(self, name)
        self.check(
            name,
            all(by_pattern) and all(map(holds, by_pattern.values())),
            f"a mapping from patterns over layer names or types to {values}",
        )


#: What LayerChoice.protect may be.
PROTECTED = ("first", "last", "both")


def percent(share: float) -> str:
    """Returns a share in percent as part of a name, e.g. `80` or `82p5`: two shares that differ are two names."""
    return f"{share * 100:.10f}".rstrip("0").rstrip(".").replace(".", "p")  # :g has six digits only


def deviation_tag(config: StepConfig, named: tuple[str, ...]) -> str:
    """Returns a short tag for fields that differ from the defaults and are not in the step's name.

    A node's id is made of the names of its steps, so two different requests must never get the same name.

    Args:
      config: a step config.
      named: the fields that its name already spells out, and those that are set for a whole run (epochs and so on).

    Returns:
      "" where all other fields have their defaults, else `_x` and four hexadecimal digits.
    """
    defaults = type(config)().encoded()
    changed = {n: v for n, v in config.encoded().items() if n not in named and v != defaults[n]}
    if not changed:
        return ""
    return "_x" + hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:4]


RUN_WIDE = ("epochs", "batch_size", "seed", "deterministic", "threads")
