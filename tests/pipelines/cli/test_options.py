from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgeline.budget import LIMITS, Budget
from edgeline.errors import UserError
from edgeline.evaluator.config import Evaluation
from edgeline.pipelines import recipes
from edgeline.pipelines.cli import options


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for add in (
        options.add_recipes,
        options.add_training,
        options.add_budget,
        options.add_evaluation,
        options.add_export,
    ):
        add(parser)
    return parser.parse_args(arguments)


def test_nothing_said_is_the_default() -> None:
    assert options.budget(parse()) == Budget()
    assert options.evaluation(parse()) == Evaluation()


#: How every field of the budget is said, and what it then is.
SAID: dict[str, tuple[list[str], Any]] = {
    "metric": (["--metric", "mae"], "mae"),
    "direction": (["--direction", "min"], "min"),
    "max_drop": (["--max-drop", "0.5"], 0.5),
    "drop_bound": (["--drop-bound", "upper"], "upper"),
    "value_threshold": (["--value-threshold", "0.85"], 0.85),
    "max_deployed_drop": (["--max-deployed-drop", "none"], None),
    "max_slice_drops": (
        ["--max-slice-drop", "label", "0.03", "--max-slice-drop", "camera,label", "0"],
        {"camera,label": 0.0, "label": 0.03},
    ),
    "min_slice_examples": (["--min-slice-examples", "5"], 5),
    "max_bytes": (["--max-bytes", "1"], 1),
    "max_zlib_bytes": (["--max-zlib-bytes", "2"], 2),
    "max_latency_ms": (["--max-latency-ms", "3"], 3.0),
    "max_latency_p90_ms": (["--max-latency-p90-ms", "4.5"], 4.5),
    "max_latency_p99_ms": (["--max-latency-p99-ms", "5"], 5.0),
    "max_latency_all_threads_ms": (["--max-latency-all-threads-ms", "6"], 6.0),
    "max_latency_without_xnnpack_ms": (["--max-latency-without-xnnpack-ms", "7"], 7.0),
    "max_cold_start_ms": (["--max-cold-start-ms", "8"], 8.0),
    "max_peak_rss_bytes": (["--max-peak-rss-bytes", "9"], 9),
    "objective": (["--objective", "latency_ms"], "latency_ms"),
    "target": (["--target", "micro"], "micro"),
}


def test_every_field_can_be_said() -> None:
    assert SAID.keys() == Budget().parameters().keys()
    expected = Budget(**{name: value for name, (_, value) in SAID.items()})
    assert options.budget(parse(*(word for words, _ in SAID.values() for word in words))) == expected
    assert all(getattr(expected, name) != getattr(Budget(), name) for name in SAID)  # else a default might be read


@pytest.mark.parametrize("name", [name for name in SAID if name not in ("metric", "direction")])
def test_each_field_is_read_by_itself(name: str) -> None:
    words, value = SAID[name]
    assert options.budget(parse(*words)) == dataclasses.replace(Budget(), **{name: value})


@pytest.mark.parametrize("name", [name for name in LIMITS])
@pytest.mark.parametrize("text", ["-1", "0"])
def test_a_limit_is_a_positive_number(name: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"Budget.{name} must be .*, or None for no limit, received {text}"):
        options.budget(parse(f"--{name.replace('_', '-')}", text))
    assert getattr(options.budget(parse(f"--{name.replace('_', '-')}", "none")), name) is None


def test_the_drop_has_two_names() -> None:
    assert options.budget(parse("--max-accuracy-drop", "0.5")) == options.budget(parse("--max-drop", "0.5"))


def test_evaluation() -> None:
    assert options.evaluation(parse("--max-bad-records", "3", "--check-keras")) == Evaluation(3, True)
    assert options.evaluation(parse("--allow-chance-level")) == Evaluation(allow_chance_level=True)
    with pytest.raises(UserError, match=r"Evaluation.max_bad_records must be at least 0, received -1"):
        options.evaluation(parse("--max-bad-records", "-1"))


def test_the_target_may_be_asked_for_by_another_name() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target")
    options.add_budget(parser, target_flag="--runs-on")
    assert options.budget(parser.parse_args(["--target", "vertex", "--runs-on", "dsp"])).target == "dsp"


@pytest.mark.parametrize(("target", "one"), [("cpu", 0), ("gpu", 0), ("edgetpu", 1), ("dsp", 0), ("micro", 1)])
def test_a_target_of_fixed_sizes_is_exported_for(target: str, one: int) -> None:
    assert options.export(parse("--target", target)).one_example is bool(one)


def test_recipes() -> None:
    def names(*arguments: str) -> list[str]:
        return [recipe.name for recipe in options.chosen(parse(*arguments))]

    assert tuple(names()) == recipes.DEFAULT
    assert names("--target", "gpu") == list(recipes.DEFAULT)
    # of the default ones those of 8 bits, with integers at both ends
    assert names("--target", "micro") == ["int8_io", "qat8_io", "prune80_int8_io", "prune80_cluster16_int8_io"]
    assert all(recipe.steps[-1].token in ("int8_io", "qat8_io") for recipe in options.chosen(parse("--target", "dsp")))
    assert names("--recipe", "prune80_int8_io", "--recipe", "int8_io") == ["prune80_int8_io", "int8_io"]
    [made] = options.chosen(parse("--recipe", "int8_io"))
    assert made == recipes.RECIPES["int8_io"]
    assert names("--target", "edgetpu", "--recipe", "int8", "--recipe", "int8_io") == ["int8", "int8_io"]
    with pytest.raises(UserError, match=r"unknown recipe 'int16x8_io'; did you mean"):
        names("--recipe", "int16x8_io")


def test_recipes_of_a_file_for_a_target_of_integers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from edgeline.recipe import Recipe\n"
        "from edgeline.quantizer.config import Quantize\n"
        "def bytes_in() -> Recipe:\n    return Recipe('bytes_in', (Quantize('int8', 'uint8'),))\n"
        "def plain() -> Recipe:\n    return Recipe('plain', (Quantize('int8'),))\n"
        "def half() -> Recipe:\n    return Recipe('half', (Quantize('float16'),))\n"
    )
    found = options.chosen(parse("--recipes-file", f"{tmp_path}/mine.py", "--target", "micro"))
    assert [recipe.name for recipe in found] == ["bytes_in", "plain_io"]


def test_recipes_that_no_target_of_integers_can_run() -> None:
    with pytest.raises(UserError) as error:
        options.chosen(parse("--target", "edgetpu", "--recipe", "float16", "--recipe", "prune80_int8"))
    assert str(error.value) == (
        "target edgetpu takes integers only, but of float16, prune80_int8 none has integer inputs and outputs; choose "
        "prune80_int8_io"
    )
    with pytest.raises(UserError, match=r"of int16x8 none has integer inputs and outputs; choose int8_io$"):
        options.chosen(parse("--target", "micro", "--recipe", "int16x8"))


def test_like(tmp_path: Path) -> None:
    for word, like in {"deployed": "deployed", "none": None}.items():
        assert options.evaluation(parse("--like", word)) == Evaluation(like=like)
    with pytest.raises(UserError) as error:
        options.evaluation(parse("--like", f"{tmp_path}/x.tflite"))
    assert str(error.value) == (
        f"--like {tmp_path}/x.tflite: there is no such file; give a .tflite file, deployed or none"
    )
    (tmp_path / "x.tflite").write_text("no model")
    with pytest.raises(UserError, match=r"x.tflite: not a TFLite model"):
        options.evaluation(parse("--like", f"{tmp_path}/x.tflite"))


def test_a_slice_that_is_given_twice() -> None:
    with pytest.raises(UserError) as error:
        options.budget(parse("--max-slice-drop", "label", "0.03", "--max-slice-drop", "label", "0.1"))
    assert str(error.value) == "--max-slice-drop label is given as 0.03 and as 0.1; give it once"
    # but nothing is wrong with saying the same again
    same = options.budget(parse("--max-slice-drop", "label", "0.03", "--max-slice-drop", "label", "3e-2"))
    assert same.max_slice_drops == {"label": 0.03}


@pytest.mark.parametrize("text", ["much", "", "0,03", "3%"])
def test_a_slice_drop_that_is_no_number(text: str) -> None:
    with pytest.raises(UserError) as error:
        options.budget(parse("--max-slice-drop", "label", text))
    assert str(error.value) == f"--max-slice-drop label {text}: the drop must be a number, such as 0.03"


@pytest.mark.parametrize("text", ["-0.1", "nan", "inf"])
def test_a_slice_drop_that_is_out_of_range(text: str) -> None:
    with pytest.raises(UserError, match=r"Budget.max_slice_drops must be a mapping .*, received {'label': "):
        options.budget(parse("--max-slice-drop", "label", text))


def test_a_direction_that_contradicts_the_metric() -> None:
    with pytest.raises(UserError, match=r"contradicts the metric loss: less of it is better \(--direction min\)"):
        options.budget(parse("--metric", "loss", "--direction", "max"))
    with pytest.raises(UserError, match=r"loss cannot be max: less of it is better; write loss:min, or loss alone"):
        options.budget(parse("--metric", "loss:max"))


def test_several_metrics() -> None:
    words = ("--metric", "boxes_mae:min:0.5", "--metric", "classes_accuracy")
    assert options.budget(parse(*words)) == Budget(metric=["boxes_mae:min:0.5", "classes_accuracy"])
    with pytest.raises(UserError, match=r"Budget.metric names boxes_mae 2 times; name it once"):
        options.budget(parse(*words, "--metric", "boxes_mae"))
    with pytest.raises(UserError, match=r"the drop of boxes_mae must be a finite number of at least 0, received '-1'"):
        options.budget(parse("--metric", "boxes_mae:min:-1"))
    with pytest.raises(UserError, match=r"must be NAME\[:max\|min\[:DROP\]\], .*, received 'boxes_mae:0.5'"):
        options.budget(parse("--metric", "boxes_mae:0.5"))


def test_what_argparse_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in [
        (["--max-slice-drop", "label"], "--max-slice-drop: expected 2 arguments"),
        (["--max-bytes", "1.5"], "--max-bytes: invalid int value: '1.5'"),
        (["--direction", "up"], "--direction: invalid choice: 'up'"),
        (["--target", "tpu"], "--target: invalid choice: 'tpu' (choose from 'cpu', 'gpu', 'edgetpu', 'dsp', 'micro')"),
    ]:
        with pytest.raises(SystemExit):
            parse(*arguments)
        assert text in capsys.readouterr().err


def test_training() -> None:
    found = options.training(parse("--epochs", "7", "--finetune-epochs", "3", "--batch-size", "16", "--seed", "5"))
    assert (found["train"].epochs, found["finetune"].epochs) == (7, 3)
    assert {found[key].seed for key in found} == {5}
    assert (found["train"].batch_size, found["finetune"].batch_size) == (16, 16)
    with pytest.raises(UserError, match=r"epochs must be at least 1, received 0"):
        options.training(parse("--epochs", "0"))
