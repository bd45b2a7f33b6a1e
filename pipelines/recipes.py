"""The named recipes, one function each; `edgeline recipes` lists them.

Measured on 2026-11-22 on 2 cores of an Intel Xeon: `edgeline run --module
edgeline.pipelines.examples.fashion_mnist.model --data DIR --root DIR --recipe NAME`, 4 + 2 epochs; the float32 baseline
has accuracy 0.8825 and 77,531 zlib bytes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeline import schemes, targets
from edgeline.clusterer.config import Cluster
from edgeline.errors import UserError
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize
from edgeline.recipe import Recipe, find
from edgeline.schemes import SCHEMES


def float32() -> Recipe:
    """As trained: the reference of every comparison, and a candidate where nothing else fits the budget.

    Measured: accuracy 0.8825, 77,531 zlib bytes, 1.0x smaller.
    """
    return Recipe("float32", (Quantize("float32"),))


def float16() -> Recipe:
    """Weights as float16: half the size, for GPUs and for models that lose too much in integers.

    Measured: accuracy 0.8825, 39,872 zlib bytes, 1.9x smaller.
    """
    return Recipe("float16", (Quantize("float16"),))


def dynamic_range() -> Recipe:
    """Weights as int8, activations as float: a quarter of the size, no calibration needed.

    Measured: accuracy 0.8825, 18,723 zlib bytes, 4.1x smaller.
    """
    return Recipe("dynamic_range", (Quantize("dynamic_range"),))


def int8() -> Recipe:
    """Weights and activations as int8, inputs and outputs as float32: the fastest on most phones.

    Measured: accuracy 0.8818, 18,681 zlib bytes, 4.2x smaller.
    """
    return Recipe("int8", (Quantize("int8"),))


def int8_io() -> Recipe:
    """Everything as int8, inputs and outputs too: for microcontrollers and integer-only accelerators.

    Measured: accuracy 0.8818, 18,579 zlib bytes, 4.2x smaller.
    """
    return Recipe("int8_io", (Quantize("int8", "int8"),))


def int8_uint8io() -> Recipe:
    """As int8_io, inputs and outputs as uint8: for accelerators and camera buffers that count from 0 to 255.

    Measured: accuracy 0.8814 of 0.8828 (docs/measured/conversions.md), 18,692 zlib bytes, 4.2x smaller.
    """
    return Recipe("int8_uint8io", (Quantize("int8", "uint8"),))


def int16x8() -> Recipe:
    """Weights as int8, activations as int16: for models whose accuracy collapses in int8.

    Measured: accuracy 0.8824, 18,974 zlib bytes, 4.1x smaller.
    """
    return Recipe("int16x8", (Quantize("int16x8"),))


def auto() -> Recipe:
    """The first that holds on the validation split: int8, int8 with the worst layers float, int16x8, and so on.

    Measured: accuracy 0.8814 of 0.8828 (docs/measured/conversions.md), 18,682 zlib bytes, 4.2x smaller: int8 held.
    """
    return Recipe("auto", (Quantize("auto"),))


def qat8() -> Recipe:
    """As int8, after a fine-tuning that simulates it: wins back what post-training int8 loses.

    Measured: accuracy 0.8870, 17,389 zlib bytes, 4.5x smaller.
    """
    return Recipe("qat8", (Quantize("qat8"),))


def prune80_float32() -> Recipe:
    """80% of the weights zero, float32: shows what the pruning alone costs, and saves only when compressed.

    Measured: accuracy 0.8834, 23,510 zlib bytes, 3.3x smaller.
    """
    return Recipe("prune80_float32", (Prune(0.8), Quantize("float32")))


def prune80_dynamic_range() -> Recipe:
    """80% of the weights zero, the others int8: small over the air, no calibration needed.

    Measured: accuracy 0.8836, 8,534 zlib bytes, 9.1x smaller.
    """
    return Recipe("prune80_dynamic_range", (Prune(0.8), Quantize("dynamic_range")))


def prune80_int8() -> Recipe:
    """80% of the weights zero, weights and activations int8: small over the air and fast.

    Measured: accuracy 0.8842, 8,476 zlib bytes, 9.1x smaller.
    """
    return Recipe("prune80_int8", (Prune(0.8), Quantize("int8")))


def cluster16_float32() -> Recipe:
    """16 shared weight values per layer, float32: shows what the clustering alone costs.

    Measured: accuracy 0.8845, 13,820 zlib bytes, 5.6x smaller.
    """
    return Recipe("cluster16_float32", (Cluster(16), Quantize("float32")))


def cluster16_dynamic_range() -> Recipe:
    """16 shared weight values per layer, stored as int8: small over the air, dense.

    Measured: accuracy 0.8824, 11,806 zlib bytes, 6.6x smaller.
    """
    return Recipe("cluster16_dynamic_range", (Cluster(16), Quantize("dynamic_range")))


def prune80_cluster16_int8() -> Recipe:
    """80% of the weights zero, the others 15 shared values, int8: the smallest over the air.

    Measured: accuracy 0.8862, 6,540 zlib bytes, 11.9x smaller.
    """
    return Recipe("prune80_cluster16_int8", (Prune(0.8), Cluster(16), Quantize("int8")))


def prune50_2by4_int8() -> Recipe:
    """2 of every 4 weights zero, int8: the pattern that sparse tensor cores and some NPUs run faster.

    Measured: accuracy 0.8853 of 0.8787 (docs/measured/quality.md), 15,071 zlib bytes, 5.1x smaller.
    """
    return Recipe("prune50_2by4_int8", (Prune(0.5, m_by_n=(2, 4)), Quantize("int8")))


def prune85_cluster16_int8() -> Recipe:
    """85% of the weights zero, the others 15 shared values, int8: where prune80_cluster16_int8 has accuracy to spare.

    Measured: accuracy 0.8789 of 0.8787 (docs/measured/quality.md), 5,514 zlib bytes, 14.1x smaller.
    """
    return Recipe("prune85_cluster16_int8", (Prune(0.85), Cluster(16), Quantize("int8")))


def prune90_d50_cluster8_d50_int8() -> Recipe:
    """90% of the weights zero, the others 7 shared values, each fine-tuning learning from the model it began with.

    Measured: accuracy 0.8819 of 0.8846, three seeds (docs/measured/quality.md), 4,599 zlib bytes, 16.9x smaller.
    """
    steps = Prune(0.9, distillation=0.5), Cluster(8, distillation=0.5), Quantize("int8")
    return Recipe("prune90_d50_cluster8_d50_int8", steps)


_FUNCTIONS = (
    float32, float16, dynamic_range, int8, int8_io, int8_uint8io, int16x8, auto, qat8,
    prune80_float32, prune80_dynamic_range, prune80_int8, prune50_2by4_int8,
    cluster16_float32, cluster16_dynamic_range,
    prune80_cluster16_int8, prune85_cluster16_int8, prune90_d50_cluster8_d50_int8,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {function.__name__: function() for function in _FUNCTIONS}
DESCRIPTIONS: dict[str, str] = {function.__name__: inspect.getdoc(function) or "" for function in _FUNCTIONS}

#: What `edgeline run` tries where no recipe is asked for: one of each kind.
DEFAULT = ("float16", "dynamic_range", "int8", "qat8", "prune80_int8", "prune80_cluster16_int8")


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The recipes that a command may be asked for, by name.

    Attributes:
      recipes: in the order in which they are listed.
      descriptions: what for, and what was measured.
      default: names of those that are made where none is asked for.
    """

    recipes: dict[str, Recipe]
    descriptions: dict[str, str]
    default: tuple[str, ...]


def catalog(path: Path | None = None) -> Catalog:
    """Returns the recipes of this module, and those of a user's file of the same form.

    Args:
      path: a Python file; each of its public functions without parameters returns the Recipe of its name. Where it is
        given, its recipes are the default.

    Raises:
      UserError: the file cannot be imported, has no recipes, or one that has another name or that of one of ours.
    """
    if path is None:
        return Catalog(RECIPES, DESCRIPTIONS, DEFAULT)
    functions = _functions(path)
    recipes_by_name: dict[str, Recipe] = {}
    for name, function in functions.items():
        try:
            recipe = function()
        except Exception as error:
            raise UserError(f"recipes file {path}{_line(path, error)}: {name}() fails: {error}") from error
        if not isinstance(recipe, Recipe):
            raise UserError(f"recipes file {path}: {name}() must return a Recipe, received {recipe!r}")
        if recipe.name != name:
            raise UserError(f"recipes file {path}: {name}() returns the recipe {recipe.name!r}; give both one name")
        if name in RECIPES:
            raise UserError(f"recipes file {path}: {name} is the name of a recipe of Edgeline; call yours otherwise")
        recipes_by_name[name] = recipe
    if not recipes_by_name:
        raise UserError(f"recipes file {path} has no public function without parameters that returns a Recipe")
    descriptions = {name: inspect.getdoc(function) or "" for name, function in functions.items()}
    return Catalog(RECIPES | recipes_by_name, DESCRIPTIONS | descriptions, tuple(recipes_by_name))


def _line(path: Path, error: BaseException) -> str:
    """Returns `:12`, the line of the file where an error comes from; empty where it does not say."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f":{frames[-1].lineno}" if frames else ""


def chosen(names: Sequence[str] | None, target: str, file: Path | None = None) -> list[Recipe]:
    """Returns the recipes of these names, of Edgeline and of the user's file, else those tried where none is named.

    Each of a scheme that has integer inputs and outputs too exists with them as NAME_io: where the target takes nothing
    else, these are tried.

    Args:
      names: in the order in which they are made; None or empty: none is asked for.
      target: the kind of hardware, one of `edgeline.targets.NAMES`.
      file: of the user's own recipes, see `catalog`.

    Raises:
      UserError: a name is unknown, the file has no recipes, or the target can run none of what they make.
    """
    known = catalog(file)
    with_integers = {name: variant for name, recipe in known.recipes.items() if (variant := _with_integers(recipe))}
    by_name = {variant.name: variant for variant in with_integers.values()}
    recipes = find(names or known.default, known.recipes | by_name | known.recipes)
    needed = targets.TARGETS[target]
    if needed is not None and needed.integers_only and not names:
        recipes = [with_integers.get(recipe.name) or recipe for recipe in recipes]
        recipes = [recipe for recipe in recipes if _io_type(recipe) in needed.io] or recipes
    check_target(recipes, target)
    return recipes


def check_target(chosen: Sequence[Recipe], target: str) -> None:
    """Checks that a target can run anything of what recipes make.

    Raises:
      UserError: it takes integers only, and no recipe has integer inputs and outputs; names those that do.
    """
    needed = targets.TARGETS[target]
    if needed is None or not needed.integers_only or any(_io_type(recipe) in needed.io for recipe in chosen):
        return
    possible = [variant.name for recipe in chosen if (variant := _with_integers(recipe))] or ["int8_io"]
    raise UserError(
        f"target {target} takes integers only, but of {', '.join(recipe.name for recipe in chosen)} none has integer "
        f"inputs and outputs; choose {', '.join(possible)}"
    )


def _with_integers(recipe: Recipe) -> Recipe | None:
    """Returns a recipe with integer inputs and outputs; None where it has them, or its scheme cannot."""
    *before, last = recipe.steps
    if not isinstance(last, Quantize) or last.io_type != Quantize().io_type:
        return None
    io_type = SCHEMES[last.scheme].integer_io
    if io_type is None:
        return None
    return Recipe(f"{recipe.name}{schemes.io_suffix(io_type)}", (*before, dataclasses.replace(last, io_type=io_type)))


def _io_type(recipe: Recipe) -> str:
    last = recipe.steps[-1]
    return last.io_type if isinstance(last, Quantize) else ""


def _functions(path: Path) -> dict[str, Callable[[], Any]]:
    spec = importlib.util.spec_from_file_location("edgeline_recipes_file", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"recipes file {path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = f"{path}{_line(path, error)}"
        raise UserError(f"recipes file {where} fails on import: {type(error).__name__}: {error}") from error
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.signature(function).parameters
    }
