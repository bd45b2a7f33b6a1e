"""The command line: which commands there are. A command's own module is imported when it is asked for, no other."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Collection, Sequence
from typing import NamedTuple

try:
    import edgeline
    from edgeline.errors import UserError
    from edgeline.pipelines import console, endings, stopping
    from edgeline.pipelines.cli import config_file
    from edgeline.pipelines.console import Console
    from edgeline.pipelines.exit_codes import ExitCode
except ImportError as error:
    # the command would leave with Python's 1, which is a verdict, where the installation is not whole
    sys.stderr.write(f"edgeline: the installation is not whole ({error}); install it anew\n")
    sys.exit(3)


class Command(NamedTuple):
    """A command of `edgeline`.

    Attributes:
      module: whose `add_commands(commands, common)` adds its parser, perhaps with others of the same module.
      summary: what it does, for the list of `edgeline --help`.
    """

    module: str
    summary: str


#: In the order of `edgeline --help`. The one place that a new command is entered, besides its own module.
COMMANDS = {
    "run": Command("edgeline.pipelines.cli.run", "train, compress, export, evaluate, select and push"),
    "optimize": Command("edgeline.pipelines.cli.run", "like run, for a model that is already trained"),
    "data": Command("edgeline.pipelines.cli.data", "make a data folder"),
    "recipes": Command("edgeline.pipelines.cli.listing", "list the named recipes"),
    "runs": Command("edgeline.pipelines.cli.listing", "list the runs of a pipeline, from its metadata"),
    "lineage": Command("edgeline.pipelines.cli.listing", "say which data, module, parameters and steps made a file"),
    "export": Command(
        "edgeline.pipelines.cli.export", "make one TFLite or ONNX file of a trained model, without a pipeline"
    ),
    "inspect": Command(
        "edgeline.pipelines.cli.inspect_file", "say what is in a .tflite file, or which signatures a SavedModel has"
    ),
    "report": Command("edgeline.pipelines.cli.report", "draw the report of a run anew, and open it"),
    "compare": Command(
        "edgeline.pipelines.cli.report", "say what two runs were asked differently, and what came out differently"
    ),
    "bench": Command("edgeline.pipelines.cli.bench", "measure what .tflite files cost on this machine"),
    "push": Command("edgeline.pipelines.cli.push", "list the versions that were pushed, and roll back to one of them"),
    "verify": Command("edgeline.pipelines.cli.verify", "check an exported model against what was exported with it"),
    "history": Command("edgeline.pipelines.cli.listing", "say what became of every run, night by night"),
    "gc": Command("edgeline.pipelines.cli.clean", "delete what old runs have left behind"),
    "kubeflow": Command("edgeline.kubeflow.cli.main", "run on Kubeflow Pipelines or Vertex"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    # before the first import of TensorFlow, in this process and its children
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    given = list(sys.argv[1:] if argv is None else argv)
    # no option of `edgeline` itself takes a value, so that the first word is the command
    names = [word for word in given if not word.startswith("-")][:1]
    console.open_streams()
    with stopping.signals_raise():
        try:
            code = _ended(given, names)
        except SystemExit:  # argparse has said what it had to
            if problem := console.flush_output():
                return _fail(endings.of(problem))
            raise
        if problem := console.flush_output():
            code = _fail(endings.of(problem))
    return code


def _ended(given: list[str], names: list[str]) -> int:
    """Runs a command, whatever it raises; returns the exit code.

    Raises:
      SystemExit: the parser's, after a mistake in the options or `--help`.
    """
    parsed = False
    try:
        for word in given:
            if problem := endings.not_utf8(word):
                raise UserError(problem)
        arguments = parser(names).parse_args(config_file.expanded(given, lambda: _parsers(names)[1]))
        parsed = True
        with contextlib.nullcontext() if arguments.debug else console.quiet():
            return int(arguments.command(arguments))
    except BaseException as error:
        if isinstance(error, SystemExit) and not parsed:
            raise
        ending = endings.of(error)
        if "--debug" in given:
            with contextlib.suppress(OSError):
                traceback.print_exc()
        if ending.code == ExitCode.STEP_FAILED:
            ending = endings.Ending(ending.code, f"{ending.text}; {endings.keep_traceback(error)}")
        return _fail(ending)


def _fail(ending: endings.Ending) -> int:
    # where nobody can be told, the exit code still says it
    with contextlib.suppress(OSError, ValueError):
        console.say(Console(stderr=True), f"edgeline: {ending.text}", "red")
    return ending.code


class _Version(argparse.Action):
    """Prints the version, which is looked up only when it is asked for: that takes longer than the whole parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        console.say(Console(), f"edgeline {edgeline.__version__}")
        parser.exit()


def parser(names: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Returns the parser of `edgeline`.

    Args:
      names: the commands whose options it has to know; of the others it knows only that they are there.
    """
    return _parsers(names)[0]


def _parsers(names: Collection[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser of `edgeline`, and those of its commands by name."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    whole = argparse.ArgumentParser(
        prog="edgeline",
        description="Turn a Keras model into the smallest, fastest TFLite model that still meets its quality budget.",
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    wanted = {command.module for name, command in COMMANDS.items() if name in names}
    for name, command in COMMANDS.items():
        if command.module not in wanted:
            commands.add_parser(name, help=command.summary)
        elif name not in commands.choices:
            importlib.import_module(command.module).add_commands(commands, common)
    return whole, commands.choices
