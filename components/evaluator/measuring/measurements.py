"""What is measured of the models, and how partial measurements are added up."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from edgeline.budget import Budget
from edgeline.evaluator.measuring.chance import Chance
from edgeline.evaluator.measuring.classification import Classification
from edgeline.evaluator.measuring.comparison import Comparison, Paired
from edgeline.evaluator.measuring.metrics import State
from edgeline.evaluator.measuring.outputs import Part
from edgeline.evaluator.measuring.slices import Key
from edgeline.keras_models.model_form import ModelForm

#: Flipped examples that are kept of each kind and candidate.
FLIPS = 6


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated, and how.

    Attributes:
      module: reference of the model module.
      inputs: names of the models' inputs, in the Keras model's order.
      outputs: likewise.
      models: paths of `.tflite` files by name.
      baseline: name of the model that the others are compared with.
      deployed: name of the model in the field, with which they are compared too; None without one.
      budget: differences of its metrics get an interval.
      max_bad_records: records that may be unreadable before it fails.
      form: of an imported model; None: the module builds the model.
    """

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    models: dict[str, str]
    baseline: str
    deployed: str | None = None
    budget: Budget = dataclasses.field(default_factory=Budget)
    max_bad_records: int = 0
    form: ModelForm | None = None


@dataclasses.dataclass(frozen=True)
class Flip:
    """An example that one model has right and the other wrong.

    Attributes:
      digest: of the record; the smallest are kept, so that the choice depends on the data alone.
      kind: `right_to_wrong` or `wrong_to_right`, from the baseline to the candidate.
      label, baseline, candidate: class numbers.
      image: the input if it is one, smaller, uint8, shape [height, width] or [height, width, 3]; else None.
      features: those that are sliced by.
    """

    digest: int
    kind: str
    label: int
    baseline: int
    candidate: int
    image: np.ndarray | None
    features: dict[str, str | int]


@dataclasses.dataclass
class Evaluated:
    """What one model did.

    Attributes:
      overall: on all examples.
      slices: on those of each slice.
      groups: on those of each group of the jackknife; empty where the budget's metrics are means.
      classes: what a classifier does class by class.
      comparison: with the baseline; None for the baseline itself.
      paired: by the name of the baseline or of the deployed model, and of one of the budget's metrics that is a mean:
        its difference.
      flips: examples that the baseline and this model disagree about.
      parts: what it does at each output that is not described by `classes`, by name.
      chance: what a model that ignores its inputs would have, by metric.
    """

    overall: State = dataclasses.field(default_factory=State)
    slices: dict[Key, State] = dataclasses.field(default_factory=dict)
    groups: dict[int, State] = dataclasses.field(default_factory=dict)
    classes: Classification | None = None
    comparison: Comparison | None = None
    paired: dict[tuple[str, str], Paired] = dataclasses.field(default_factory=dict)
    flips: list[Flip] = dataclasses.field(default_factory=list)
    chance: dict[str, Chance] = dataclasses.field(default_factory=dict)
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)

    def __add__(self, other: Evaluated) -> Evaluated:
        return Evaluated(
            self.overall + other.overall,
            _merged(self.slices, other.slices),
            _merged(self.groups, other.groups),
            _sum(self.classes, other.classes),
            _sum(self.comparison, other.comparison),
            _merged(self.paired, other.paired),
            _few([*self.flips, *other.flips]),
            _merged(self.chance, other.chance),
            _merged(self.parts, other.parts),
        )


def _sum(one: Any, two: Any) -> Any:
    return two if one is None else one if two is None else one + two


def _merged(one: dict[Any, Any], two: dict[Any, Any]) -> dict[Any, Any]:
    return one | {key: one[key] + value if key in one else value for key, value in two.items()}


def _few(flips: list[Flip]) -> list[Flip]:
    ordered = sorted(flips, key=lambda flip: (flip.kind, flip.digest))
    return [flip for _, same in itertools.groupby(ordered, lambda f: f.kind) for flip in itertools.islice(same, FLIPS)]


@dataclasses.dataclass
class Results:
    """What all models did on some shards.

    Attributes:
      models: by name; the text of the error at which a model was given up.
      bad_records: by shard, how many were left out; of a shard that breaks off, what was lost counts as one.
    """

    models: dict[str, Evaluated | str] = dataclasses.field(default_factory=dict)
    bad_records: dict[str, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: Results) -> Results:
        models = dict(self.models)
        for name, evaluated in other.models.items():
            before = models.get(name, Evaluated())
            if not isinstance(before, str):
                # an error anywhere is an error of the whole
                models[name] = evaluated if isinstance(evaluated, str) else before + evaluated
        return Results(models, _merged(self.bad_records, other.bad_records))
