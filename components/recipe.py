"""A recipe: a name and the steps that turn the trained model into one candidate. Standard library only."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from edgeline.clusterer.config import Cluster
from edgeline.config import RUN_WIDE, FineTuning
from edgeline.errors import UserError, suggest
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize

#: A step of a recipe: the config of a component that makes a Model of a Model.
Step = FineTuning

#: Which step may directly follow which, in every recipe; None is the trained model at the start. Pruning after a
#: clustering would train its shared values apart again, and nothing may train plainly after a quantization.
ALLOWED: dict[type[Step] | None, tuple[type[Step], ...]] = {
    None: (Prune, Cluster, Quantize),
    Prune: (Cluster, Quantize),
    Cluster: (Quantize,),
    Quantize: (),
}

#: Names that the Evaluator's other ports have.
_RESERVED = ("examples", "baseline", "keras", "evaluation", "selected", "blessing")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A candidate to be.

    Attributes:
      name: of the candidate, `[a-z][a-z0-9_]*`; names decode: the steps' own names joined by `_`.
      steps: in the order in which they are done; the last one is a Quantize.

    Raises:
      ValueError: the name or the order of the steps is not allowed; names both steps and what may follow. Or a sparse
        file is asked for without the pruning that it needs.
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name) or self.name in _RESERVED:
            raise ValueError(
                f"recipe name {self.name!r} must match [a-z][a-z0-9_]* and be none of {', '.join(_RESERVED)}"
            )
        _check_order(self.name, self.steps)
        if not self.steps or type(self.steps[-1]) is not Quantize:
            raise ValueError(
                f"recipe {self.name} must end with Quantize (scheme float32 changes nothing), received "
                f"{' → '.join(type(step).__name__ for step in self.steps) or 'no steps'}"
            )

        pruned = any(isinstance(step, Prune) and step.policy == "xnnpack" for step in self.steps)
        if any(isinstance(step, Quantize) and step.sparse for step in self.steps) and not pruned:
            raise ValueError(
                f"recipe {self.name}: Quantize.sparse needs a Prune with policy xnnpack before it; give the Prune that "
                f"policy, or leave sparse at False"
            )

    def __rshift__(self, following: Step) -> Chain | Recipe:
        return chain(*self.steps, following)

    def prefixes(self) -> list[str]:
        """Returns the name of the recipe up to each of its steps: what the nodes of the pipeline are called after.

        Recipes with the same first steps share those nodes. Settings of a whole run (epochs, batch size, seed) are no
        part of a name, all others are.
        """
        tokens = [step.token for step in self.steps]
        return ["_".join(tokens[: i + 1]) for i in range(len(tokens))]

    def for_run(self, finetune: FineTuning) -> Recipe:
        """Returns the recipe with the run's settings for its fine-tuning steps."""
        settings: dict[str, Any] = {name: getattr(finetune, name) for name in RUN_WIDE}
        # a scheme that trains nothing keeps its defaults, so that other epochs do not make it run again
        steps = [dataclasses.replace(step, **settings) if step.trains else step for step in self.steps]
        return dataclasses.replace(self, steps=tuple(steps))


@dataclasses.dataclass(frozen=True)
class Chain:
    """Steps that `>>` has put one after another, as long as they are no recipe: that ends with a Quantize.

    Attributes:
      steps: in the order in which they are done.

    Raises:
      ValueError: the order is not allowed.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        _check_order(" >> ".join(type(step).__name__ for step in self.steps), self.steps)

    def __rshift__(self, following: Step) -> Chain | Recipe:
        return chain(*self.steps, following)


def chain(*steps: Step) -> Chain | Recipe:
    """Returns the steps as a recipe where they end with a Quantize, else as the beginning of one.

    The name of the recipe is that of its last node, which the command line knows it by:

    >>> chain(Prune(0.8), Cluster(16), Quantize("int8")).name
    'prune80_cluster16_int8'

    Raises:
      ValueError: the order of the steps is not allowed, or one of them is no step.
    """
    for step in steps:
        if not isinstance(step, Step):
            raise ValueError(f"a recipe is made of steps such as Prune, Cluster and Quantize, received {step!r}")
    begun = Chain(steps)
    return Recipe("_".join(step.token for step in steps), steps) if isinstance(steps[-1], Quantize) else begun


def _check_order(name: str, steps: Iterable[Step]) -> None:
    before: type[Step] | None = None
    for step in steps:
        if type(step) not in ALLOWED[before]:
            last = "the trained model" if before is None else before.__name__
            following = ", ".join(kind.__name__ for kind in ALLOWED[before]) or "nothing"
            raise ValueError(
                f"recipe {name}: {type(step).__name__} cannot follow {last}; after {last} may come {following}"
            )
        before = type(step)


def check_distinct(recipes: Iterable[Recipe]) -> None:
    """Checks that a name is that of one request: candidates and nodes are told apart by their names alone.

    Raises:
      UserError: two recipes of one name have different steps, or two of their nodes would have one name.
    """
    by_name: dict[str, Recipe] = {}
    by_prefix: dict[str, tuple[Step, ...]] = {}
    for recipe in recipes:
        if by_name.setdefault(recipe.name, recipe) != recipe:
            raise UserError(f"two different recipes are called {recipe.name}; give one of them another name")
        for number, prefix in enumerate(recipe.prefixes(), 1):
            if by_prefix.setdefault(prefix, recipe.steps[:number]) != recipe.steps[:number]:
                raise UserError(
                    f"recipe {recipe.name}: the name {prefix} of its step {number} is already that of another request; "
                    f"change one of its settings, if only by a little"
                )


def find(names: Iterable[str], known: dict[str, Recipe]) -> list[Recipe]:
    """Returns the recipes of these names, each once, in the order given.

    Raises:
      UserError: a name is unknown; suggests the nearest.
    """
    recipes_found = {}
    for name in names:
        if name not in known:
            raise UserError(f"unknown recipe {name!r}; {suggest(name, known)} (edgeline recipes lists them)")
        recipes_found[name] = known[name]
    return list(recipes_found.values())
