"""What CONTRIBUTING.md says of new passes, schemes, targets and limits: they enter by the public tables alone."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline import schemes, targets
from edgeline.budget import LIMITS, Budget
from edgeline.conversion import converter
from edgeline.keras_models import promise_kinds
from edgeline.passport import Passport
from edgeline.pipelines import compression
from edgeline.pipelines.cli import main
from edgeline.quantizer.config import Quantize
from edgeline.recipe import ALLOWED, Recipe
from edgeline.tflite import litert

toys: Any = sys.modules["toys"]

RECIPES = """
from edgeline.quantizer.config import Quantize
from edgeline.recipe import Recipe
from toys import Round


def round64_float32():
    return Recipe("round64_float32", (Round(), Quantize("float32")))


def weights8():
    return Recipe("weights8", (Quantize("weights8"),))


def wide16_int16io():
    return Recipe("wide16_int16io", (Quantize("wide16", "int16"),))
"""


@pytest.fixture(scope="module")
def tables() -> Iterator[None]:
    """The toys, in the tables and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        # the pass: its component, its order, what it promises
        patch.setitem(compression.COMPONENTS, toys.Round, toys.Rounder)
        patch.setitem(ALLOWED, None, (*ALLOWED[None], toys.Round))
        patch.setitem(ALLOWED, toys.Round, (Quantize,))
        patch.setitem(promise_kinds.KINDS, "multiples", toys.MULTIPLES)
        # the schemes, and the converter of one
        patch.setitem(schemes.SCHEMES, "wide16", toys.WIDE16)
        patch.setitem(schemes.SCHEMES, "weights8", toys.WEIGHTS8)
        patch.setitem(converter.CONVERTERS, "weights_only", toys.weights_only)
        # the target
        patch.setitem(targets.TARGETS, "board", toys.BOARD)
        # the limit
        patch.setitem(LIMITS, "max_operators", toys.MAX_OPERATORS)
        yield


@pytest.fixture(scope="module")
def root(tables: None, tiny_source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line with all of them, on a model of two layers."""
    from edgeline.data.data_folder import SPLITS

    folder = tmp_path_factory.mktemp("toys")
    (folder / "model.py").write_text(tiny_source)
    (folder / "recipes.py").write_text(RECIPES)
    random = np.random.default_rng(0)
    for split in SPLITS:
        (folder / "data" / split).mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "data" / split / "data.tfrecord.gz"), "GZIP") as writer:
            for x in random.uniform(-1, 1, [32, 4]):
                features = {
                    "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
                    "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(np.argmax(x[:3]))])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main.main(
            [
                *("run", "--module", str(folder / "model.py"), "--data", str(folder / "data")),
                *("--root", str(folder / "root"), "--recipes-file", str(folder / "recipes.py"), "--target", "board"),
                *("--epochs", "1", "--finetune-epochs", "1", "--max-accuracy-drop", "1"),
                *("--max-operators", "3", "--allow-chance-level"),
            ]
        )
    assert code == 0, said.getvalue()
    return folder / "root"


@pytest.fixture(scope="module")
def candidates(root: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["selected"] == "round64_float32"
    return {candidate["name"]: candidate for candidate in report["candidates"]}


def exported(root: Path, name: str) -> Path:
    """The folder that the TFLiteExporter wrote for a candidate."""
    [folder] = (root / "artifacts" / f"TFLiteExporter.{name}" / "tflite").glob("*/Format-Serving")
    return folder


def test_a_pass_goes_from_recipe_to_file(root: Path, candidates: dict[str, dict[str, Any]]) -> None:
    assert not candidates["round64_float32"]["failure"]
    folder = exported(root, "round64_float32")
    passport = Passport.read(folder)
    assert [step["step"] for step in passport.steps] == ["Trainer", "Rounder", "Quantizer", "TFLiteExporter"]
    assert [(p.kind, p.value) for p in passport.promises] == [("multiples", 64.0)] * 2
    kernels = litert.kernels((folder / "model.tflite").read_bytes(), at_least=2)
    assert len(kernels) == 2
    assert all((kernel.stored * 64 == np.round(kernel.stored * 64)).all() for kernel in kernels)
    # the plain model's are no such multiples, and the report tells the two apart
    plain = litert.kernels((exported(root, "float32") / "model.tflite").read_bytes(), at_least=2)
    assert not all((kernel.stored * 64 == np.round(kernel.stored * 64)).all() for kernel in plain)
    assert "float32 rounded" in json.loads((folder / "metadata.json").read_text())["techniques"]


def test_a_pass_that_breaks_its_promise_is_caught_in_the_file(root: Path) -> None:
    from edgeline.conversion import checks
    from edgeline.keras_models.promise_checks import BrokenPromiseError

    plain = (exported(root, "float32") / "model.tflite").read_bytes()
    promises = Passport.read(exported(root, "round64_float32")).promises
    with pytest.raises(BrokenPromiseError, match=r"dense \(multiples 64, found \d+ weights off the grid\)"):
        checks.check_promises(plain, promises)


def test_the_order_of_a_pass_is_kept(tables: None) -> None:
    with pytest.raises(ValueError, match="recipe two: Round cannot follow Round; after Round may come Quantize"):
        Recipe("two", (toys.Round(), toys.Round(), Quantize("float32")))


@pytest.mark.parametrize(
    ("name", "ports", "types"),
    [("weights8", "float32", {"int8"}), ("wide16_int16io", "int16", {"int8"})],
)
def test_a_scheme_goes_from_recipe_to_file(
    root: Path, candidates: dict[str, dict[str, Any]], name: str, ports: str, types: set[str]
) -> None:
    assert not candidates[name]["failure"]
    folder = exported(root, name)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert {port["dtype"] for port in (*metadata["inputs"], *metadata["outputs"])} == {ports}
    kernels = litert.kernels((folder / "model.tflite").read_bytes(), at_least=2)
    assert {kernel.stored.dtype.name for kernel in kernels} == types
    assert metadata["parity"]["dense_1"]["cosine"] > 0.98


def test_a_scheme_is_checked_as_its_entry_says(tables: None) -> None:
    with pytest.raises(ValueError, match=r"io_type 'int16' needs scheme wide16 .* received scheme 'int8'"):
        Quantize("int8", "int16")
    with pytest.raises(ValueError, match="keep_float needs scheme int8 or qat8, received scheme 'wide16'"):
        Quantize("wide16", keep_float=["a"])
    with pytest.raises(SystemExit):
        main.main(["export", "m.keras", "--scheme", "weights9", "--data", "d", "--module", "m", "-o", "o.tflite"])


def test_a_target_refuses_a_file(candidates: dict[str, dict[str, Any]]) -> None:
    assert candidates["round64_float32"]["reasons"] == []
    assert candidates["weights8"]["reasons"][0] == (
        "target board: it has no DEQUANTIZE; replace the layers that need it"
    )
    [io_types, *_] = candidates["wide16_int16io"]["reasons"]
    assert io_types.startswith("target board: inputs and outputs must be float32, x is int16")
    assert io_types.endswith("; choose float32")


def test_a_limit_rejects_a_candidate(root: Path, candidates: dict[str, dict[str, Any]]) -> None:
    assert "graph 4 operators exceeds 3 operators" in candidates["weights8"]["reasons"]
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["budget"]["max_operators"] == 3
    assert "more_limits" not in report["budget"]
    page = (root / "report" / "report.html").read_text()
    assert "at most 3 operators" in page


def test_a_limit_is_a_parameter_like_the_others(tables: None) -> None:
    budget = Budget(more_limits={"max_operators": 3})
    assert budget.parameters()["max_operators"] == 3
    assert Budget.of(budget.parameters()) == budget
    assert Budget.decoded(budget.encoded()) == budget
    assert Budget.decoded(Budget().encoded()) == Budget()
    with pytest.raises(ValueError, match=r"^Budget.more_limits must be by names in LIMITS \(max_operators\), received"):
        Budget(more_limits={"max_operator": 3})
    with pytest.raises(ValueError, match=r"^Budget.more_limits must be at least 1, or None for no limit"):
        Budget(more_limits={"max_operators": 0})
