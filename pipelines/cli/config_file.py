"""`--config FILE.toml`: the options of a command written down. What the command line says wins over the file.

    recipes = ["int8", "prune80_int8"]
    module = "model.py"                    # relative to the file, as every path in it

    [budget]
    max_accuracy_drop = 0.01
    max_slice_drop = {label = 0.03}

A key is the name of an option, with underscores; a table is a group of options, as `--help` shows them. An option may
stand at the top as well. The file becomes words of the command line, so that one parser checks both.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeline.errors import UserError, did_you_mean

#: Options that a file cannot give.
_OF_THE_COMMAND_LINE = ("help", "config", "debug")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option to a command."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="take options from a file; those given here win over it"
    )


def expanded(words: Sequence[str], build: Callable[[], dict[str, argparse.ArgumentParser]]) -> list[str]:
    """Returns the words of a command line with those that its `--config` stands for, after the command's name.

    Args:
      words: of the command line.
      build: makes the parsers of the commands anew, by name.

    Raises:
      UserError: the file cannot be read, has a key that is no option, or a value that the option does not take.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    if not any(word.startswith("--c") for word in words) or {"-h", "--help"}.intersection(words):
        return list(words)
    parser = build().get(command)
    if parser is None or "--config" not in parser._option_string_actions:
        return list(words)
    at = list(words).index(command) + 1
    given = _given(parser, [*words[: at - 1], *words[at:]])
    if "config" not in given:
        return list(words)
    return [*words[:at], *_words(given.config, parser, given), *words[at:]]


def _given(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Returns the options that the words give, without any default; the parser is of no other use afterwards."""
    for action in parser._actions:
        action.required, action.default = False, argparse.SUPPRESS
        if not action.option_strings:
            action.nargs = "*"
    parser._defaults.clear()
    return parser.parse_args(words)


def _words(file: Path, parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[str]:
    words: list[str] = []
    for key, value in _settings(file, parser):
        action = _names(parser._actions)[key]
        if action.dest not in given:
            words += _words_of(action, value, f"--config {file}: {key}", file.absolute().parent)
    parser.exit_on_error = False
    try:
        parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UserError(f"--config {file}: {error}") from None
    return words


def _settings(file: Path, parser: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
    """Yields the keys of a file, as options are called in it, with their values."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config {file} is no TOML file: {error}") from None
    tables = {
        group.title: _names(group._group_actions)
        for group in parser._action_groups
        if group.title and group not in (parser._positionals, parser._optionals)
    }
    everything = _names(parser._actions)
    for key, value in content.items():
        if key in tables and isinstance(value, dict):
            for inner, setting in value.items():
                yield _known(inner, tables[key], everything, f"--config {file}: [{key}]"), setting
        elif key in tables and key not in everything:
            raise UserError(f"--config {file}: [{key}] is a table of options, received {value!r}")
        else:
            yield _known(key, everything, tables, f"--config {file}:"), value


def _names(actions: Sequence[argparse.Action]) -> dict[str, argparse.Action]:
    """Returns options by what a file calls them: their names, of repeated ones the plural, of arguments the name."""
    names: dict[str, argparse.Action] = {}
    for action in actions:
        flags = [flag.lstrip("-").replace("-", "_") for flag in action.option_strings if flag.startswith("--")]
        plural = [action.dest] if not flags or isinstance(action, argparse._AppendAction) else []
        names |= {name: action for name in (*flags, *plural) if name not in _OF_THE_COMMAND_LINE}
    return names


def _known(key: str, names: Collection[str], others: Collection[str], where: str) -> str:
    name = key.replace("-", "_")
    if name in names:
        return name
    if name in others:
        raise UserError(f"{where} {key} is an option of another table (see --help); it may also stand above all tables")
    hint = did_you_mean(name, [*names, *others], "did you mean {}?") or "see --help"
    raise UserError(f"{where} {key} is no option; {hint}")


def _words_of(action: argparse.Action, value: Any, where: str, folder: Path) -> list[str]:
    """Returns the words of the command line that say what a file says."""
    flag = action.option_strings[0] if action.option_strings else ""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{where} is a switch: expected true or false, received {value!r}")
        opposite = [other for other in action.option_strings if other != flag]
        return [flag] if value else opposite[:1] if isinstance(action, argparse.BooleanOptionalAction) else []
    if not isinstance(action, argparse._AppendAction):
        text = _text(action, value, where, folder)
        return [f"{flag}={text}"] if flag else [text]
    if action.nargs == 2:
        pairs = list(value.items()) if isinstance(value, dict) else value
        if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise UserError(f"{where}: expected a table, such as {{label = 0.03}}, received {value!r}")
        return [word for pair in pairs for word in (flag, *(_text(action, part, where, folder) for part in pair))]
    values = value if isinstance(value, list) else [value]
    return [f"{flag}={_text(action, each, where, folder)}" for each in values]


def _text(action: argparse.Action, value: Any, where: str, folder: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: expected one value, received {value!r}")
    from edgeline.pipelines.cli import options  # most commands have no such file, and need no options either

    text = str(value)
    return str(folder / Path(text).expanduser()) if options.is_path(action.type, text) else text
