"""Recipes: which orders are allowed, how names decode, what is shared."""

import itertools

import pytest

from edgeline.clusterer.config import Cluster
from edgeline.config import FineTuning
from edgeline.errors import UserError
from edgeline.pipelines import recipes
from edgeline.pipelines.recipe import Recipe, Step, find
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize

# one row per step: what may stand before it; a new step is a new row
MAY_FOLLOW: dict[type[Step], set[type[Step]]] = {
    Prune: set(),
    Cluster: {Prune},
    Quantize: {Prune, Cluster},
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(MAY_FOLLOW, repeat=2)))
def test_every_ordered_pair_is_allowed_or_refused_when_built(first: type[Step], second: type[Step]) -> None:
    steps = (first(), second()) if second is Quantize else (first(), second(), Quantize())
    if first in MAY_FOLLOW[second]:
        assert Recipe("pair", steps).steps == steps
    else:
        with pytest.raises(ValueError, match=f"pair: {second.__name__} cannot follow {first.__name__}; after"):
            Recipe("pair", steps)


@pytest.mark.parametrize("steps", [(), (Prune(),), (Prune(), Cluster())])
def test_a_recipe_ends_with_quantize(steps: tuple[Step, ...]) -> None:
    with pytest.raises(ValueError, match="must end with Quantize"):
        Recipe("open", steps)


@pytest.mark.parametrize("name", ["", "8int", "Int8", "int-8", "int8.x", "baseline", "selected"])
def test_a_name_must_serve_as_a_port(name: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        Recipe(name, (Quantize(),))


@pytest.mark.parametrize("recipe", list(recipes.RECIPES.values()), ids=list(recipes.RECIPES))
def test_names_decode(recipe: Recipe) -> None:
    assert recipe.prefixes()[-1] == recipe.name
    assert recipes.DESCRIPTIONS[recipe.name]


def test_prefixes_by_hand() -> None:
    assert recipes.prune80_cluster16_int8().prefixes() == ["prune80", "prune80_cluster16", "prune80_cluster16_int8"]
    assert recipes.int8_io().prefixes() == ["int8_io"]
    assert Recipe("x", (Prune(0.875), Quantize("qat8", "uint8"))).prefixes() == ["prune87p5", "prune87p5_qat8_uint8io"]


def test_other_settings_make_other_names_but_those_of_the_run_do_not() -> None:
    plain = Recipe("x", (Prune(0.8), Quantize()))
    other = Recipe("x", (Prune(0.8, schedule="constant"), Quantize()))
    assert other.prefixes()[0].startswith("prune80_x")
    assert plain.prefixes()[0] != other.prefixes()[0]
    assert plain.for_run(FineTuning(epochs=9, batch_size=7, seed=5)).prefixes() == plain.prefixes()


def test_settings_of_the_run_reach_only_steps_that_train() -> None:
    prune, quantize = recipes.prune80_int8().for_run(FineTuning(epochs=9, batch_size=7, seed=5)).steps
    assert (prune.epochs, prune.batch_size, prune.seed) == (9, 7, 5)
    assert quantize == Quantize("int8")
    [qat] = recipes.qat8().for_run(FineTuning(epochs=9, batch_size=7, seed=5)).steps
    assert (qat.epochs, qat.batch_size, qat.seed) == (9, 7, 5)


def test_find_keeps_the_order_and_drops_repeats() -> None:
    found = find(["qat8", "int8", "qat8"], recipes.RECIPES)
    assert [recipe.name for recipe in found] == ["qat8", "int8"]


def test_find_suggests_the_nearest_or_lists_all() -> None:
    with pytest.raises(UserError, match="unknown recipe 'in8'; did you mean int8"):
        find(["in8"], recipes.RECIPES)
    with pytest.raises(UserError, match="known are float32, float16"):
        find(["zzz"], recipes.RECIPES)


def test_the_default_recipes_exist() -> None:
    assert set(recipes.DEFAULT) <= set(recipes.RECIPES)
