"""Recipes: which orders are allowed, how names decode, what is shared."""

import itertools
import re
from pathlib import Path

import pytest

from edgeline.clusterer.config import Cluster
from edgeline.config import FineTuning
from edgeline.errors import UserError
from edgeline.pipelines import recipes
from edgeline.pipelines.cli import main, options
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize
from edgeline.recipe import Recipe, Step, check_distinct, find
from edgeline.trainer.config import Train

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


def test_a_sparse_file_needs_the_pruning_for_it() -> None:
    sparse = Quantize("float32", sparse=True)
    for steps in ((sparse,), (Prune(0.85), sparse), (Prune(0.85), Cluster(16), sparse)):
        with pytest.raises(ValueError, match=r"recipe x: Quantize\.sparse needs a Prune with policy xnnpack before it"):
            Recipe("x", steps)
    assert Recipe("x", (Prune(0.85, policy="xnnpack"), sparse)).prefixes()[-1].endswith("_float32_sparse")


def test_steps_chain_to_a_recipe() -> None:
    recipe = Prune(0.8) >> Cluster(16) >> Quantize("int8")
    assert recipe == recipes.RECIPES["prune80_cluster16_int8"]
    begun = Prune(0.8) >> Cluster(16)
    assert not isinstance(begun, Recipe)
    assert (begun >> Quantize("int8")) == recipe
    # of settings that no name spells out, the node's tag
    tagged = Prune(0.8, include=["Dense"]) >> Quantize("int8")
    assert re.fullmatch("prune80_x[0-9a-f]{4}_int8", tagged.name)
    assert tagged.prefixes()[-1] == tagged.name


@pytest.mark.parametrize(("first", "second"), list(itertools.product(MAY_FOLLOW, repeat=2)))
def test_a_chain_has_a_recipes_order(first: type[Step], second: type[Step]) -> None:
    if first in MAY_FOLLOW[second]:
        assert (first() >> second()).steps == (first(), second())
    else:
        with pytest.raises(ValueError, match=f"{second.__name__} cannot follow {first.__name__}; after"):
            first() >> second()


def test_what_does_not_chain() -> None:
    with pytest.raises(ValueError, match="Prune cannot follow Quantize; after Quantize may come nothing"):
        Prune(0.8) >> Quantize() >> Prune(0.5)
    with pytest.raises(ValueError, match="Train cannot follow the trained model"):
        Train() >> Quantize()
    with pytest.raises(
        ValueError, match="a recipe is made of steps such as Prune, Cluster and Quantize, received 'int8'"
    ):
        Prune(0.8) >> "int8"


def test_a_name_is_that_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    same = [Recipe("x", (Quantize("int8"),)), Recipe("x", (Quantize("int8"),)), Recipe("y", (Prune(), Quantize()))]
    check_distinct(same)
    with pytest.raises(UserError, match="two different recipes are called x; give one of them another name"):
        check_distinct([*same, Recipe("x", (Quantize("float16"),))])
    # tags are short: two requests may get one
    monkeypatch.setattr(Quantize, "token", "int8_x0000")
    with pytest.raises(UserError, match="recipe b: the name int8_x0000 of its step 1 is already that of another"):
        check_distinct([Recipe("a", (Quantize(keep_float=["a"]),)), Recipe("b", (Quantize(keep_float=["b"]),))])


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


# a file of the user's own ---------------------------------------------------------------------------------------------

OWN = """
from edgeline.recipe import Recipe
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize

SHARE = 0.7


def blocks() -> Recipe:
    \"\"\"Blocks of four.\"\"\"
    return Recipe("blocks", (Prune(SHARE, block_size=(1, 4)), Quantize("int8")))


def _private():
    return 1


def helper(share):
    return share
"""


def test_recipes_of_ones_own_join_the_named_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    known = recipes.catalog(path)
    assert list(known.recipes) == [*recipes.RECIPES, "blocks"]
    assert known.recipes["blocks"].steps == (Prune(0.7, block_size=(1, 4)), Quantize("int8"))
    assert known.descriptions["blocks"] == "Blocks of four."
    assert known.default == ("blocks",)
    assert recipes.catalog().default == recipes.DEFAULT
    assert main.main(["recipes", "--recipes-file", str(path)]) == 0
    assert "blocks *" in capsys.readouterr().out


def test_commands_take_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    commands = {
        "run": ["run"],
        "optimize": ["optimize", "m.keras", "--module", "m", "--data", "d", "--root", "r"],
        "compile": ["kubeflow", "compile", "--module", "m"],
    }
    for command in commands.values():
        given = main.parser().parse_args([*command, "--recipes-file", str(path)])
        assert [recipe.name for recipe in options.chosen(given)] == ["blocks"]
        given = main.parser().parse_args(
            [*command, "--recipes-file", str(path), "--recipe", "int8", "--recipe", "blocks_io"]
        )
        assert [recipe.name for recipe in options.chosen(given)] == ["int8", "blocks_io"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "has no public function without parameters that returns a Recipe"),
        ("x = ", "fails on import: SyntaxError"),
        ("def own(): return 1", r"own\(\) must return a Recipe, received 1"),
        (OWN.replace('"blocks"', '"bricks"'), r"blocks\(\) returns the recipe 'bricks'; give both one name"),
        (OWN.replace("blocks", "int8"), "int8 is the name of a recipe of Edgeline; call yours otherwise"),
        (OWN.replace("(1, 4)", "(0, 4)"), r"blocks\(\) fails: Prune.block_size must be height and width"),
        (
            OWN.replace("(1, 4)", '"1x4"'),
            r"own.py:11: blocks\(\) fails: Prune.block_size must be a pair of integers, received '1x4'; write "
            r"block_size=\[1, 4\]$",
        ),
        (
            OWN.replace("SHARE = 0.7", "SHARE = Prune(include='[]')"),
            r"own.py:6 fails on import: ValueError: .* write inc",
        ),
        (OWN.replace("0.7", "7"), r"blocks\(\) fails: Prune.sparsity must be above 0 and below 1, received 7.0"),
    ],
)
def test_a_file_that_holds_no_recipes(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(code)
    with pytest.raises(UserError, match=message):
        recipes.catalog(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own.py: there is no such Python file"):
        recipes.catalog(tmp_path / "own.py")
