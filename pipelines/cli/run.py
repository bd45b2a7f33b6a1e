"""`edgeline run` and `edgeline optimize`."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any, cast

from edgeline import files
from edgeline.errors import UserError
from edgeline.pipelines import console, endings, stopping
from edgeline.pipelines.cli import config_file, options, verdict
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.root import DEFAULT_ROOT, Root
from edgeline.pipelines.run import execution, warm_start
from edgeline.pipelines.run.journal import Journal, recorded
from edgeline.pipelines.run.live_view import LiveView
from edgeline.pipelines.run.request import DIGITS_MODULE, Prepared, Request, prepare

_EPILOG = """\
exit codes: 0 a model was selected, and pushed unless an earlier run had pushed it, 1 no candidate was selected (the
report says why), 2 a mistake in what was given, 3 a step failed, 129, 130, 143 stopped by SIGHUP, Ctrl-C, SIGTERM"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `run` and `optimize` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    run = commands.add_parser(
        "run",
        parents=[common],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command=_run)
    run.add_argument(
        "--module",
        type=options.MODULE,
        default=DIGITS_MODULE,
        help="the model module: a .py file or a dotted name (default: the digits example)",
    )
    run.add_argument(
        "--root", type=options.root, help="where everything of this pipeline is kept (default: runs/digits)"
    )
    run.add_argument(
        "--warm-start",
        type=options.PathOr(lambda text: text != warm_start.LATEST),
        metavar=f"{warm_start.LATEST}|PATH",
        help=f"begin the training with the weights of the float model behind the pushed one ({warm_start.LATEST}), or "
        "of a .keras file or Model folder (default: the module's initial weights)",
    )
    _add_run_options(run, needs_data=False)

    optimize = commands.add_parser(
        "optimize",
        parents=[common],
        description=(
            "Compress, export, evaluate, select and push a trained model. It is not trained further\n"
            "before that: --epochs and --early-stopping do nothing, and the module needs no build_model."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    optimize.set_defaults(command=_optimize)
    options.add_import_options(optimize)
    optimize.add_argument(
        "--module", type=options.MODULE, required=True, help="the model module: a .py file or a dotted name"
    )
    optimize.add_argument("--root", type=options.root, required=True, help="where everything of this pipeline is kept")
    _add_run_options(optimize, needs_data=True)


def _add_run_options(parser: argparse.ArgumentParser, *, needs_data: bool) -> None:
    """Adds the options that `run` and `optimize` share."""
    config_file.add_option(parser)
    options.add_data(parser, required=needs_data)
    options.add_recipes(parser)
    options.add_training(parser)
    options.add_budget(parser)
    options.add_evaluation(parser)
    options.add_export(parser)
    options.add_memory_limit(parser)
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="serve steps with equal inputs from earlier runs, or run every step again",
    )
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="json: one machine-readable line, for cron"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the full logs")


def _run(arguments: argparse.Namespace) -> int:
    return _work(arguments, "run")


def _optimize(arguments: argparse.Namespace) -> int:
    return _work(arguments, "optimize")


def _work(arguments: argparse.Namespace, command: str) -> int:
    root = _root(arguments)
    asked = {"module": arguments.module, "data": arguments.data and str(arguments.data)}
    with recorded(root, command, **asked) as journal:
        # all that can be wrong with what was given is found here, before anything slow is imported
        prepared = prepare(_request(arguments, root))
        if (why := prepared.nothing_new()) is not None:
            journal.write("no_new_data", why=why)
            journal.exit_code = _nothing_new(why, prepared, arguments)
        else:
            journal.exit_code = _execute(prepared, journal, arguments)
    return journal.exit_code


def _root(arguments: argparse.Namespace) -> Root:
    """Returns the root, by the rules of the command's help."""
    if arguments.root is not None:
        root = cast(Root, arguments.root).absolute()
        if problem := endings.not_utf8(str(root)):  # of the folder that it was given in
            raise UserError(f"--root {problem}")
        return root
    is_digits = arguments.module == DIGITS_MODULE
    if arguments.data is None and not is_digits:
        raise UserError("--module needs --data: a folder with train, validation and eval (see: edgeline data --help)")
    if arguments.data is not None or not is_digits:
        raise UserError("--module and --data need --root: the folder where everything of this pipeline is kept")
    return DEFAULT_ROOT.absolute()


def _request(arguments: argparse.Namespace, root: Root) -> Request:
    """Returns what the command line asks for.

    Raises:
      UserError: a value is out of range, or two contradict each other.
    """
    return Request(
        root,
        arguments.module,
        arguments.data,
        tuple(options.chosen(arguments)),
        **options.training(arguments),
        budget=options.budget(arguments),
        evaluation=options.evaluation(arguments),
        export=options.export(arguments),
        gate=options.gate(arguments),
        model=options.imported(arguments) if "model" in arguments else None,
        warm_start=getattr(arguments, "warm_start", None),
        window=arguments.window,
        schema=arguments.schema,
        only_new_data=arguments.only_new_data,
        use_cache=arguments.cache,
        memory_limit=arguments.memory_limit,
    )


def _execute(prepared: Prepared, journal: Journal, arguments: argparse.Namespace) -> int:
    log = _open_root(prepared.request.root, journal.run)
    with console.capture_output(log, arguments.verbose) as terminal:

        def note(text: str) -> None:
            console.say(terminal.err, f"edgeline: {text}", "yellow")

        view = LiveView(
            terminal.err if arguments.output == "json" else terminal.out, False if arguments.verbose else None
        )
        try:
            outcome = execution.execute(prepared, view, journal, note=note)
        except UserError:
            raise
        except Exception as error:
            stopping.check()
            if arguments.debug:
                terminal.err.print_exception()
            logging.exception("The run failed.")
            code, journal.error = endings.of(error)
            console.say(terminal.err, f"edgeline: {journal.error}\nfull log: {log}", "red")
            return code
        return verdict.show(outcome, log, arguments, terminal)


def _nothing_new(why: str, prepared: Prepared, arguments: argparse.Namespace) -> int:
    for note in prepared.window.notes if prepared.window else ():
        console.say(Console(stderr=True), f"edgeline: {note}", "yellow")
    line = (
        json.dumps({"exit_code": ExitCode.DONE, "no_new_data": True, "why": why}) if arguments.output == "json" else why
    )
    console.say(Console(), line)
    return ExitCode.DONE


def _open_root(root: Root, run: str) -> Path:
    """Makes the root and returns the log file of this run."""
    log = root.log(run)
    try:
        files.make_folder(log.parent)
        log.touch()
    except OSError as error:
        raise UserError(f"--root {root} cannot be written: {error.strerror}; choose another folder") from None
    return log
