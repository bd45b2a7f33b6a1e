"""What the commands leave on stderr: their own lines alone, not one of the libraries under them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeline import layout
from edgeline.pipelines.root import Root

MODULE = "edgeline.pipelines.examples.digits.model"
#: Lines of ours: a note, a finished step, a progress bar or what a data folder holds.
OWN = re.compile(r"edgeline: .*|\[\d+/\d+\] \w+ .*|digits: writing .*|.*: digits, 1,461 train, .*")


def said(*arguments: object) -> list[str]:
    """Runs a command in a process whose stderr is a file, as nothing but it writes to; returns the lines there."""
    # as a user's shell has it: TensorFlow says more where it may look for a GPU
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TF_", "CUDA_", "PYTHONWARNINGS"))
    }
    command = [sys.executable, "-m", "edgeline.pipelines.cli", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode in (0, 1), ended.stderr
    assert ended.stdout or arguments[0] == "data"
    return ended.stderr.splitlines()


def foreign(*arguments: object) -> list[str]:
    return [line for line in said(*arguments) if not OWN.fullmatch(line)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that the command has made."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert foreign("data", "digits", folder) == []
    return folder


@pytest.mark.slow
def test_making_data(data: Path) -> None:
    assert (data / "dataset.json").is_file()


def test_recipes() -> None:
    assert said("recipes") == []


def test_an_error_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeline.pipelines.cli", "runs", "--root", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"edgeline: There is no {tmp_path}/metadata.db")


@pytest.fixture(scope="module")
def root(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The root of a finished run that selected and pushed a model."""
    root = Root(tmp_path_factory.mktemp("runs") / "digits")
    options = ("--recipe", "float16", "--epochs", 1, "--max-accuracy-drop", 1)
    assert foreign("run", "--data", data, "--root", root, *options) == []
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("runs", "--root", "{root}"),
        ("history", "{root}", "--html"),
        ("lineage", "{model}"),
        ("report", "--root", "{root}"),
        ("compare", "{root}", "{root}"),
        ("push", "--root", "{root}", "--list"),
        ("gc", "{root}", "--keep", 1, "--dry-run"),
        ("inspect", "{model}"),
        ("inspect", "{saved_model}"),
        ("verify", "{version}"),
        ("bench", "{model}"),
        ("data", "schema", "{data}", "-o", "{out}.pbtxt"),
        ("export", "{keras}", "--data", "{data}", "--module", MODULE, "-o", "{out}.tflite"),
        ("optimize", "{keras}", "--data", "{data}", "--module", MODULE, "--root", "{out}", "--recipe", "int8"),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_every_command(command: tuple[object, ...], root: Root, data: Path, tmp_path: Path) -> None:
    [model] = root.pushed.glob(f"*/{layout.TFLITE_FILE}")
    [trained] = (root.artifacts / "Trainer" / "model").iterdir()
    places = {
        "root": root, "data": data, "out": tmp_path / "out", "model": model, "version": model.parent,
        "keras": trained / layout.KERAS_FILE, "saved_model": trained / layout.SERVING_FOLDER,
    }  # fmt: skip
    assert foreign(*(str(part).format(**places) for part in command)) == []
