"""What a user can get wrong: one clear line, exit code 2, nothing lost, no training where it can be known before."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from command_line import CommandLine

from edgeline.data.data_folder import SPLITS
from edgeline.pipelines.cli import main

Edit = Callable[[int], dict[str, tf.train.Feature]]

SLOW = pytest.mark.slow


def floats(*values: float) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def ints(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def examples(count: int, edit: Edit = lambda row: {}) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for row in range(count):
        x = rng.normal(size=4)
        features = {"x": floats(*x), "y": ints(int(np.argmax(x[:3])))} | edit(row)
        yield tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_data(folder: Path, edit: Edit = lambda row: {}, split: str = "train", count: int = 96) -> Path:
    """Writes a data folder for the tiny module; `edit` changes the features of one split's rows."""
    for name in SPLITS:
        (folder / name).mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / name / "data.tfrecord.gz"), "GZIP") as writer:
            for record in examples(count if name == split else 32, edit if name == split else lambda row: {}):
                writer.write(record)
    return folder


class Case(CommandLine):
    """Runs `edgeline run` on the tiny module."""

    def __init__(self, module: Path, folder: Path, capfd: pytest.CaptureFixture[str]):
        super().__init__(capfd)
        self.module = module
        self.root = folder / "root"
        self.data = folder / "data"

    def run(self, *arguments: object) -> int:
        given = ("--module", self.module, "--data", self.data, "--root", self.root, "--allow-chance-level")
        return self("run", *given, "--epochs", 1, "--finetune-epochs", 1, *arguments)

    def rejected(self, *recipes: str, but: str) -> dict[str, str]:
        """Runs, and returns why candidates were rejected, after checking that this one alone was pushed."""
        named = [part for name in recipes for part in ("--recipe", name)]
        assert self.run(*named, "--max-drop", 1, "--output", "json") == 0, self.err
        told = json.loads(self.out)
        assert told["selected"] == but
        assert told["pushed"]
        assert Path(told["report"]).exists()
        return {candidate["name"]: " ".join(candidate["reasons"]) for candidate in told["candidates"]}

    def refused(self, *arguments: object) -> str:
        """Runs, and returns the error after checking that it is one clear message with exit code 2."""
        assert self.run(*arguments) == 2, self.out + self.err
        assert "Traceback" not in self.err
        return self.err

    @property
    def trained(self) -> bool:
        return (self.root / "artifacts" / "Trainer").exists()


@pytest.fixture
def case(tiny_module: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Case:
    return Case(tiny_module, tmp_path, capfd)


def test_unknown_recipe_suggests_the_nearest(case: Case) -> None:
    assert "unknown recipe 'prune80_in8'; did you mean prune80_int8?" in case.refused("--recipe", "prune80_in8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def build_model()", "def built_model()", "has no function build_model (did you mean that by built_model?)"),
        (
            "def preprocess(features)",
            "def preprocess()",
            "preprocess has a wrong signature; expected preprocess(features)",
        ),
        ("import tensorflow as tf", "import tensorflow as", "is not valid Python: line 2"),
    ],
)
def test_module_mistakes_show_before_anything_is_made(case: Case, old: str, new: str, message: str) -> None:
    case.module.write_text(case.module.read_text().replace(old, new))
    assert message in case.refused()
    assert not case.root.exists()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["acuracy"], "the budget's metric 'acuracy' (did you mean 'accuracy'?) is not compiled by the model module"),
        (["accuracy", "mae:min:0.5"], "the budget's metric 'mae' is not compiled by the model module, which has loss,"),
        (["off"], "neither its name nor its class tells; write --metric off:max or --metric off:min"),
        (["missed:max"], "the budget's metric missed cannot be max: less of it is better; write missed:min, or missed"),
    ],
)
def test_metrics_that_the_module_does_not_compile_stop_before_the_training(
    case: Case, metrics: list[str], message: str
) -> None:
    write_data(case.data)
    missed = 'keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="missed")'
    code = case.module.read_text().replace('["accuracy"]', f'["accuracy", off, {missed}]')
    case.module.write_text(code + "\n\ndef off(label, predicted):\n    return tf.reduce_max(predicted, axis=-1)\n")
    words = [word for metric in metrics for word in ("--metric", metric)]
    assert message in case.refused(*words)
    assert not (case.root / "artifacts").exists()


def test_missing_data_folder(case: Case) -> None:
    assert "edgeline data" in case.refused()


def test_empty_split(case: Case) -> None:
    write_data(case.data)
    (case.data / "eval" / "data.tfrecord.gz").write_bytes(gzip.compress(b""))
    message = case.refused()
    assert "eval" in message
    assert "0 " in message or "no " in message


def test_truncated_shard_is_named(case: Case) -> None:
    write_data(case.data)
    shard = case.data / "train" / "data.tfrecord.gz"
    shard.write_bytes(shard.read_bytes()[:-200])
    assert str(shard) in case.refused()
    assert not case.trained


@pytest.mark.parametrize(
    ("edit", "messages"),
    [
        (lambda row: {"x": floats(1, 2, 3)}, ["do not fit the model module", "x: float32 [4]"]),
        pytest.param(
            lambda row: {"x": ints(1, 2, 3, 4)}, ["do not fit the model module", "x: float32 [4]"], marks=SLOW
        ),
        (lambda row: {"y": ints(7 if row == 5 else 0)}, ["1 training examples have labels outside [0, 3)", "7"]),
        pytest.param(lambda row: {"y": ints(-1)}, ["96 training examples have labels outside [0, 3)"], marks=SLOW),
        (lambda row: {"x": floats(1, 2, math.nan if row < 2 else 3, 4)}, ["NaN or infinite", "2 in input 'x'"]),
        pytest.param(lambda row: {"x": floats(1, 2, math.inf, 4)}, ["NaN or infinite", "96 in input 'x'"], marks=SLOW),
    ],
)
def test_bad_examples_stop_the_run_before_the_training(case: Case, edit: Edit, messages: list[str]) -> None:
    write_data(case.data, edit)
    error = case.refused("--recipe", "int8")
    for message in messages:
        assert message in error
    assert not case.trained


@pytest.mark.slow
def test_absent_feature(case: Case) -> None:
    write_data(case.data)
    case.module.write_text(
        case.module.read_text().replace('"y": tf.io', '"label": tf.io').replace('["y"]', '["label"]')
    )
    error = case.refused("--recipe", "int8")
    assert "do not fit the model module" in error
    assert "label: int64 []" in error
    assert not case.trained


@pytest.mark.slow
def test_inputs_of_another_shape_than_the_model_takes(case: Case) -> None:
    write_data(case.data)
    case.module.write_text(case.module.read_text().replace("keras.Input([4]", "keras.Input([5]"))
    assert "returns input 'x' of shape (None, 4) float32, but build_model takes (None, 5)" in case.refused()
    assert not case.trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "Train.epochs must be at least 1, received 0"),
        (["--max-accuracy-drop", "-1"], "Budget.max_drop must be at least 0, received -1.0"),
        (["--max-bytes", "0"], "Budget.max_bytes must be at least 1"),
        (["--max-bytes", "-1"], "Budget.max_bytes must be at least 1, or None for no limit, received -1"),
        (["--seed", "-1"], "seed must be in [0, 2**31), received -1"),
    ],
)
def test_bad_numbers(case: Case, arguments: list[str], message: str) -> None:
    assert message in case.refused(*arguments)
    assert not case.root.exists()


def test_module_without_data_or_root(capfd: pytest.CaptureFixture[str], tiny_module: Path) -> None:
    assert main.main(["run", "--module", str(tiny_module)]) == 2
    assert "--module needs --data" in capfd.readouterr().err
    assert main.main(["run", "--module", str(tiny_module), "--data", "x"]) == 2
    assert "need --root" in capfd.readouterr().err


def test_unwritable_root(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    case.root = tmp_path / "file" / "root"
    assert "cannot be written" in case.refused()


def use_sines(case: Case) -> None:
    """Gives the module an operator that TFLite does not have for 16-bit activations."""
    source = case.module.read_text().replace('activation="relu"', "activation=tf.math.sin")
    case.module.write_text(source + "\n\ndef custom_objects():\n    return {'sin': tf.math.sin}\n")


@pytest.mark.slow  # of the Evaluator alone, test_component.py shows it every time
def test_a_model_that_learned_nothing_is_no_first_push(case: Case) -> None:
    write_data(case.data, lambda row: {"y": ints(row % 3)}, "eval")  # what has nothing to do with the inputs
    asked = ("--recipe", "float16", "--max-drop", 1)
    assert case.run(*asked, "--no-allow-chance-level") == 1
    assert "float16 is at chance level: accuracy 0." in case.out
    assert "no candidate is better than chance, nothing is pushed; closest was float16" in case.out
    assert not list(case.root.glob("pushed/*"))
    assert case.run(*asked) == 0
    assert len(list(case.root.glob("pushed/*/model.tflite"))) == 1


@pytest.mark.slow  # the next test has such a candidate too
def test_a_candidate_that_cannot_be_converted_is_rejected_and_the_others_finish(case: Case) -> None:
    write_data(case.data)
    use_sines(case)
    code = case.run("--recipe", "int16x8", "--recipe", "dynamic_range", "--max-accuracy-drop", "1", "--output", "json")
    assert code == 0, case.err
    outcome = json.loads(case.out)
    assert outcome["selected"] == "dynamic_range"
    rejected = next(c for c in outcome["candidates"] if c["name"] == "int16x8")
    assert not rejected["blessed"]
    assert "TFLiteExporter failed" in rejected["reasons"][0]


def test_a_failed_shared_step_skips_only_its_descendants(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeline.pipelines import recipes
    from edgeline.recipe import Recipe

    # more clusters than any layer has weights: there is nothing to cluster
    steps = (recipes.Cluster(1000), recipes.Quantize("int8"))
    monkeypatch.setitem(recipes.RECIPES, "cluster1000_int8", Recipe("cluster1000_int8", steps))
    write_data(case.data)
    use_sines(case)
    asked = [part for name in ("cluster1000_int8", "int16x8", "dynamic_range") for part in ("--recipe", name)]
    assert case.run(*asked, "--max-accuracy-drop", 1, "--output", "json") == 3
    outcome = json.loads(case.out)
    assert "no layer can be clustered" in outcome["failures"][0]
    assert outcome["selected"] == "dynamic_range"
    assert outcome["steps"] == {"done": 11, "failed": 1, "skipped": 2}
    reasons = {c["name"]: c["reasons"] for c in outcome["candidates"]}
    assert "it failed" in reasons["cluster1000_int8"][0]
    # a candidate that cannot be converted is no failure of a step
    assert "TFLiteExporter failed" in reasons["int16x8"][0]


@pytest.mark.slow  # of the loop alone, test_loop.py shows it every time
def test_a_loss_that_explodes_names_step_and_epoch(case: Case) -> None:
    write_data(case.data)
    case.module.write_text(case.module.read_text().replace('"adam"', "keras.optimizers.SGD(1e30)"))
    error = case.refused("--recipe", "int8")
    assert "Trainer: loss became nan in epoch 1 of 1" in error


@pytest.mark.slow  # of a step alone, test_local_runner.py shows it every time
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_full_root(case: Case, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this system lets no one mount")
    try:
        write_data(case.data)
        case.root = disk / "root"
        error = case.refused("--recipe", "int8")
        assert "Finished steps are kept" in error
        assert "No space left" in error or "full" in error
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_help_does_not_import_tensorflow() -> None:
    code = (
        "import sys\nfrom edgeline.pipelines.cli.main import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "main(['recipes'])\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'tf_keras'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prune80_cluster16_int8" in done.stdout


# conversions that crash -----------------------------------------------------------------------------------------------

#: Where x is 0 or less nothing gets through, by a logarithm that is infinite: the int8 quantizer crashes on it.
MASKED = """
def build_model():
    x = keras.Input([4], name="x")
    mask = tf.math.log(tf.concat([tf.nn.relu(x), tf.ones_like(x)], -1))
    shares = tf.nn.softmax(keras.layers.Dense(8, name="score")(x) + mask)
    return keras.Model(x, keras.layers.Dense(3, name="logits")(shares))
"""


@pytest.mark.slow
def test_a_conversion_that_would_crash_rejects_its_candidate_alone(case: Case) -> None:
    case.module.write_text(case.module.read_text() + MASKED)
    write_data(case.data)
    reasons = case.rejected("dynamic_range", "int8", but="dynamic_range")
    assert "layer tf.math.log (LOG, tensor" in reasons["int8"]
    assert "infinite values" in reasons["int8"]


@pytest.mark.slow
def test_a_conversion_that_is_killed_rejects_its_candidate_alone(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeline.conversion import tensorflow_converter, worker

    called = worker.call

    def call(function: Callable[..., list[bytes]], *arguments: Any) -> list[bytes]:
        if function is tensorflow_converter.convert and arguments[2]["scheme"] == "int8":
            return called(signal.raise_signal, signal.SIGKILL)  # as the kernel does where memory runs out
        return called(function, *arguments)

    monkeypatch.setattr(worker, "call", call)
    write_data(case.data)
    reasons = case.rejected("int8", "dynamic_range", but="dynamic_range")
    assert "killed with SIGKILL: most likely memory ran out" in reasons["int8"]
