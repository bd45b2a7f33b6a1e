"""What the configs of all steps share: checked, coerced, flat, frozen dataclasses. Standard library only.

A step's config is its request: every field is a primitive, so that each value becomes a queryable execution property
in ML Metadata. TFX neither records defaults nor takes an int where a float is declared, so values are coerced here and
every field is always passed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, get_type_hints


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Base of all step configs: coerces each field to its annotated type (int to float; nothing lossy).

    Raises:
      ValueError: a value has another type; the message names the class, the field, what was expected and received.
    """

    def __post_init__(self) -> None:
        for name, expected in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if expected is float and type(value) is int:
                object.__setattr__(self, name, float(value))
            elif type(value) is not expected:
                raise ValueError(f"{self.where(name)} must be of type {expected.__name__}, received {value!r}")
            if expected is float and not math.isfinite(getattr(self, name)):
                raise ValueError(f"{self.where(name)} must be a finite number, received {value!r}")

    def where(self, name: str) -> str:
        """Returns `Class.field`, the start of every message about a field."""
        return f"{type(self).__name__}.{name}"

    def check(self, name: str, holds: bool, expected: str) -> None:
        """Raises ValueError saying what `name` was expected to be, unless `holds`."""
        if not holds:
            raise ValueError(f"{self.where(name)} must be {expected}, received {getattr(self, name)!r}")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raises ValueError unless the field's value is one of `choices`."""
        self.check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")

    def parameters(self) -> dict[str, Any]:
        """Returns every field by name: the parameters of the step's component."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Returns the step in words for tables, e.g. `prune sparsity=0.8 schedule=polynomial_decay`."""
        fields = (f"{name}={value}" for name, value in self.parameters().items())
        return " ".join((type(self).__name__.lower(), *fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(StepConfig):
    """What every step that trains an existing model may be asked.

    Attributes:
      epochs: passes over the training split, at least 1.
      batch_size: examples per optimizer step, at least 1.
      seed: start of every random draw (shuffling, initialisation), 0 to 2**31 - 1.
      deterministic: 1: the same inputs and seed give the same weights to the bit, on the same machine; 0: operations
        may sum in any order, which can be faster on a GPU.
    """

    epochs: int = 2
    batch_size: int = 32
    seed: int = 0
    deterministic: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("epochs", self.epochs >= 1, "at least 1")
        self.check("batch_size", self.batch_size >= 1, "at least 1")
        self.check("seed", 0 <= self.seed < 2**31, "in [0, 2**31)")
        self.check("deterministic", self.deterministic in (0, 1), "0 or 1")

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

    A pattern is a glob over a layer's name or its type (`stem*`, `Dense`); capital and small letters differ. Lists and
    objects of patterns may be given as such and are kept as JSON, in their order.

    Attributes:
      include: JSON list of patterns: only layers that one of them matches, however small they are; `[]`: all layers.
        A layer that is named in full must be one the technique can handle.
      exclude: JSON list of patterns: layers to be left alone.
      protect: `first` and `last` leave those layers alone that no other layer the technique can handle comes before or
        after, on any path from an input to an output; `both` both; `none` neither.
    """

    include: str = "[]"
    exclude: str = "[]"
    protect: str = "none"

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            self._keep_json(name)
        super().__post_init__()
        for name in ("include", "exclude"):
            patterns = self.decoded(name)
            self.check(
                name,
                isinstance(patterns, list) and all(isinstance(p, str) and p for p in patterns),
                'a JSON list of patterns over layer names or types, such as ["stem*", "Dense"]',
            )
        self.check_choice("protect", PROTECTED)

    def decoded(self, name: str) -> Any:
        """Returns what the JSON of a field says, None where it is no JSON."""
        try:
            return json.loads(getattr(self, name))
        except json.JSONDecodeError:
            return None

    def check_by_layer(self, name: str, holds: Callable[[Any], bool], values: str) -> None:
        """Raises ValueError unless a field is a JSON object from patterns to values for which `holds` is true."""
        found = self.decoded(name)
        correct = isinstance(found, dict) and all(found) and all(map(holds, found.values()))
        self.check(name, correct, f"a JSON object from patterns over layer names or types to {values}")

    def _keep_json(self, name: str) -> None:
        """Turns a list or an object into JSON, and JSON into its one spelling: two spellings are one request."""
        value = getattr(self, name)
        if isinstance(value, list | tuple | dict):
            object.__setattr__(self, name, json.dumps(value))
        elif isinstance(value, str) and self.decoded(name) is not None:
            object.__setattr__(self, name, json.dumps(self.decoded(name)))


#: What LayerChoice.protect may be.
PROTECTED = ("none", "first", "last", "both")


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
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    changed = {n: v for n, v in config.parameters().items() if n not in named and v != fields[n]}
    if not changed:
        return ""
    return "_x" + hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:4]


RUN_WIDE = ("epochs", "batch_size", "seed", "deterministic")
