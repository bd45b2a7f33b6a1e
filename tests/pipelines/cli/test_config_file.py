"""`--config FILE.toml`: the file's options are those of the command line, which wins over it."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgeline.errors import UserError
from edgeline.pipelines.cli import config_file, main, run
from edgeline.pipelines.run.request import Request


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "night" / "edgeline.toml"


def parsed(*words: object) -> Any:
    given = [str(word) for word in words]
    return main.parser(given[:1]).parse_args(config_file.expanded(given, lambda: main._parsers(given[:1])[1]))


def asked(*words: object) -> Request:
    arguments = parsed(*words)
    return run._request(arguments, run._root(arguments))


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


EVERYTHING = """
module = "model.py"
root = "root"
recipes = ["int8", "qat8"]
warm_start = "latest"
cache = false
memory_limit = 6.5

[data]
window = 2
schema = "schema.pbtxt"
max_drift = 0.5
only_new_data = true

[training]
epochs = 3
finetune_epochs = 1
non_deterministic = true
threads = 0
calibration = "diverse"
winsor_percent = 1.5

[budget]
max_accuracy_drop = 0.02
max-bytes = 100_000
max_slice_drop = {label = 0.03, "camera,label" = 0}
metrics = ["classes_accuracy", "boxes_mae:min:0.5"]
target = "gpu"

[evaluation]
check_keras = true
allow_chance_level = true
like = "none"

[export]
allow_custom_ops = true
"""


def test_a_file_asks_what_the_command_line_does(file: Path) -> None:
    folder = write(file, EVERYTHING).parent
    write(file, EVERYTHING.replace("[data]", '[data]\ndata = "~/day-{SPAN}"'))
    words = [
        *("--module", folder / "model.py", "--root", folder / "root", "--data", Path("~/day-{SPAN}").expanduser()),
        *("--recipe", "int8", "--recipe", "qat8", "--warm-start", "latest", "--no-cache", "--window", 2),
        *("--schema", folder / "schema.pbtxt", "--max-drift", 0.5, "--only-new-data", "--epochs", 3),
        *(
            "--finetune-epochs",
            1,
            "--non-deterministic",
            "--threads",
            0,
            "--calibration",
            "diverse",
            "--winsor-percent",
            1.5,
        ),
        *("--max-drop", 0.02, "--max-bytes", 100_000, "--max-slice-drop", "label", 0.03),
        *("--max-slice-drop", "camera,label", 0, "--metric", "classes_accuracy"),
        *("--metric", "boxes_mae:min:0.5", "--target", "gpu", "--check-keras"),
        *("--like", "none", "--allow-chance-level", "--allow-custom-ops", "--memory-limit", 6.5),
    ]
    assert asked("run", "--config", file) == asked("run", *words)


def test_every_option_can_be_written_down(tmp_path: Path) -> None:
    for name in ("run", "optimize"):
        parser = main._parsers([name])[1][name]
        known = config_file._names(parser._actions).values()
        missing = [action.dest for action in parser._actions if action not in known]
        assert missing == ["help", "debug", "config"]


def test_the_command_line_wins(file: Path) -> None:
    write(file, EVERYTHING)
    data = ("--data", file.parent)
    written = asked("run", "--config", file, "--data", "day-{SPAN}")
    given = asked(
        *("run", "--epochs", 9, "--config", file, "--data", "day-{SPAN}", "--recipe", "float16", "--max-drop", 0.5),
        *("--cache", "--no-only-new-data", "--max-slice-drop", "label", 0.1, "--root", "elsewhere"),
    )
    assert [recipe.name for recipe in given.recipes] == ["float16"]
    assert (given.train.epochs, given.finetune.epochs) == (9, 1)
    assert (given.budget.max_drop, given.budget.max_slice_drops) == (0.5, {"label": 0.1})
    assert (given.use_cache, given.only_new_data, given.root.path.name) == (True, False, "elsewhere")
    assert given.sample == written.sample
    # also where what is given is what holds without a file
    assert asked("run", "--config", file, *data, "--epochs", 4).train.epochs == 4
    assert parsed("run", "--conf", file, *data).epochs == 3  # as argparse allows


def test_a_trained_model(file: Path) -> None:
    (file.parent).mkdir()
    (file.parent / "m.tflite").write_bytes(b"\0\0\0\0TFL3")
    text = 'model = "m.tflite"\nmodule = "a.b"\ndata = "data"\nroot = "root"\n[import]\nsignature = "twice"\n'
    found = parsed("optimize", "--config", write(file, text))
    assert (found.model, found.module, found.signature) == (file.parent / "m.tflite", "a.b", "twice")
    assert parsed("optimize", "other.keras", "--config", file).model == Path("other.keras")
    assert asked("optimize", "--config", file, "--recipe", "int8").model.signature == "twice"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_acuracy_drop = 0.1", "max_acuracy_drop is no option; did you mean max_accuracy_drop?"),
        ("[buget]\nmax_bytes = 1", "buget is no option; did you mean budget?"),
        ("[budget]\nmax_byte = 1", "[budget] max_byte is no option; did you mean max_bytes?"),
        ("[budget]\nepochs = 1", "[budget] epochs is an option of another table"),
        ("budget = 1", "[budget] is a table of options, received 1"),
        ("config = 'other.toml'", "config is no option"),
        ("epochs = 'many'", "argument --epochs: invalid int value: 'many'"),
        ("epochs = true", "epochs: expected one value, received True"),
        ("epochs = [1, 2]", "epochs: expected one value, received [1, 2]"),
        ("check_keras = 1", "check_keras is a switch: expected true or false, received 1"),
        ("direction = 'up'", "argument --direction: invalid choice: 'up'"),
        ("max_slice_drop = 0.1", "max_slice_drop: expected a table, such as {label = 0.03}, received 0.1"),
        ("epochs = ", "is no TOML file: Invalid value (at"),
    ],
)
def test_what_is_refused(file: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        parsed("run", "--config", file)
    assert str(error.value).startswith(f"--config {file}")
    assert main.main(["run", "--config", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["run", "--config", str(tmp_path / "none.toml")]) == 2
    assert f"--config {tmp_path}/none.toml cannot be read: No such file" in capsys.readouterr().err


def test_what_a_file_lacks_is_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, 'module = "model.py"')
    with pytest.raises(SystemExit):
        parsed("optimize", "--config", file)
    assert "the following arguments are required: MODEL, --root, --data" in capsys.readouterr().err


def test_the_page_has_a_file_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "config-file.md").read_text()
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert tomllib.loads(text)
    monkeypatch.chdir(tmp_path)
    request = asked("run", "--config", write(tmp_path / "edgeline.toml", text), "--data", tmp_path)
    assert request.budget.max_drop == 0.01
    assert dataclasses.replace(request, recipes=()) != request
